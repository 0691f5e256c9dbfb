"""/livez and /readyz, and what `/` tells programs."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from starlette.requests import Request
from starlette.routing import BaseRoute, Route, WebSocketRoute

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import RedisFull, RedisRefused
from taskpool.operations.overview import write_probe
from taskpool.text import own_version

from ..answers import Door, Live, Ready, ServerDocument
from ..auth.gate import Gate
from ..http.declarations import READ_ALL, operation
from ..http.prefix import public_path
from ..http.problems import Problem, retry_after
from ..http.responses import Json
from ..routing import Resource, Socket

logger = logging.getLogger("api")

MEMORY_FULL: Final = "Redis's memory is full (maxmemory): it takes no new tasks until there is room"
_is_one_word: Final = re.compile(r"/[^/{}]+").fullmatch


class HealthRoutes:
    """Handlers for probes. They ignore query parameters, because some probes add one."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate) -> None:
        self._pool = pool
        self._gate = gate

    def door(self, request: Request) -> Door:
        """The name and version of this service, and links to its pages."""
        paths = [path for path in map(_open_path, request.app.routes) if path]
        links = {path.removeprefix("/"): public_path(request.scope, path) for path in paths}
        return Door(service="taskpool", version=own_version(), links=links)

    @operation("is_alive", tag="service", query=None, answers={200: Live}, asks_redis=False)
    async def live(self, request: Request) -> Json:
        """GET /livez: check that this process answers. It doesn't check Redis, which a restart wouldn't repair."""
        return Json(Live(status="ok"))

    @operation("is_ready", tag="service", query=None, answers={200: Ready})
    async def ready(self, request: Request) -> Json:
        """GET /readyz: check that Redis answers and takes writes. Callers that may see all tasks get details."""
        server, workers, beside = await asyncio.gather(
            self._pool.server(), self._pool.workers(), self._pool.worker_warnings()
        )
        if server.role != "master":
            raise _not_ready("it is a read-only replica now")
        is_full = await self._memory_is_full()
        if not await self._gate.would_admit(request.scope, READ_ALL):
            return Json(Ready(status="ok"))
        warnings = (*server.warnings, *((MEMORY_FULL,) if is_full else ()), *beside)
        document = ServerDocument.of(server)
        return Json(
            Ready(status="ok", reads=True, writes=True, redis=document, workers=len(workers), warnings=warnings)
        )

    async def _memory_is_full(self) -> bool:
        """Send Redis a write that changes nothing: whether its memory is full, so that it takes no new tasks.
        Raises: Problem: it takes no writes."""
        try:
            await self._pool.store.run(write_probe())
        except RedisFull:
            return True
        except RedisRefused as error:
            raise _not_ready(str(error)) from error
        return False


def _not_ready(why: str) -> Problem:
    """Redis answers reads but takes no writes. `why` may name hosts, so only the log has it."""
    logger.warning("not ready, Redis takes no writes: %s", why)
    detail = "Redis can be read, but takes no writes at the moment"
    return Problem("redis-unavailable", detail, headers=[retry_after(1)], reads=True, writes=False)


def _open_path(route: BaseRoute) -> str:
    """The path of a route that GET or a WebSocket can open, if it is one constant word; else empty."""
    if not isinstance(route, Route | WebSocketRoute) or not _is_one_word(route.path):
        return ""
    served: object = route.endpoint
    is_open = isinstance(served, Socket) or (isinstance(served, Resource) and "GET" in served.guarded)
    return route.path if is_open else ""
