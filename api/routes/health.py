"""/, /livez, /readyz and /metrics: for those who meet the service first, and those who run it."""

from __future__ import annotations

import asyncio
import logging
import re
from importlib.metadata import version
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from api.access.access import READ_ALL
from api.access.gate import Gate
from api.answers import Door, Live, Ready
from api.metrics import MOST_QUEUES, Scrape, exposition
from api.openapi.operation import Answer, operation
from api.prefix import public_path
from api.problems import Problem, retry_after
from api.resource import Resource, Socket
from api.responses import Json
from taskpool.async_pool import AsyncTaskPool
from taskpool.document import server_document
from taskpool.errors import RedisFull, RedisRefused
from taskpool.overview import busiest_queues, write_probe
from taskpool.webhooks.delivery import outbox_length

logger = logging.getLogger(__name__)

MEMORY_FULL: Final = "Redis's memory is full (maxmemory): it takes no new tasks until there is room"
EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")
_is_one_word: Final = re.compile(r"/[^/{}]+").fullmatch


class HealthRoutes:
    """Handlers for probes and scrapes. They take whatever parameters a probe adds."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate) -> None:
        self._pool = pool
        self._gate = gate

    @operation("open_door", tag="service", query=None, answers={200: Door}, asks_redis=False)
    async def door(self, request: Request) -> Json:
        """GET /: what this is, and where one can go from here."""
        paths = [path for path in map(_way, request.app.routes) if path]
        links = {path.removeprefix("/"): public_path(request.scope, path) for path in paths}
        return Json(Door(service="taskpool", version=version("taskpool"), links=links))

    @operation("is_alive", tag="service", query=None, answers={200: Live}, asks_redis=False)
    async def live(self, request: Request) -> Json:
        """GET /livez: this process answers. It asks nobody else: a restart wouldn't bring Redis back."""
        return Json(Live(status="ok"))

    @operation("is_ready", tag="service", query=None, answers={200: Ready})
    async def ready(self, request: Request) -> Json:
        """GET /readyz: Redis answers and takes writes. Callers who see all tasks get what it keeps, too."""
        server, workers, beside = await asyncio.gather(
            self._pool.server(), self._pool.workers(), self._pool.worker_warnings()
        )
        if server.role != "master":
            raise _not_ready("it is a read-only replica now")
        is_full = await self._memory_is_full()
        if not await self._gate.would_admit(request.scope, READ_ALL):
            return Json(Ready(status="ok"))
        warnings = (*server.warnings, *((MEMORY_FULL,) if is_full else ()), *beside)
        document = server_document(server)
        return Json(
            Ready(status="ok", reads=True, writes=True, redis=document, workers=len(workers), warnings=warnings)
        )

    async def _memory_is_full(self) -> bool:
        """Asks Redis for a write that changes nothing: whether its memory is full, so that it takes no new tasks.

        Raises:
            Problem: it takes no writes.
        """
        try:
            await self._pool.store.run(write_probe())
        except RedisFull:
            return True
        except RedisRefused as error:
            raise _not_ready(str(error)) from error
        return False

    @operation("get_metrics", tag="service", query=None, answers={200: Answer(str, media_types=EXPOSITIONS)})
    async def metrics(self, request: Request) -> Response:
        """GET /metrics: the whole cluster's figures for Prometheus, or as OpenMetrics for who accepts that."""
        counters, queues, workers, outbox = await asyncio.gather(
            self._pool.counters(),
            self._pool.store.carry_out(busiest_queues(MOST_QUEUES)),
            self._pool.workers(),
            self._pool.store.run(outbox_length()),
        )
        text, media_type = exposition(Scrape(counters, queues, workers, outbox), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})


def _not_ready(why: str) -> Problem:
    """Redis answers reads but takes no writes. The text may name hosts, so it goes to the log alone."""
    logger.warning("not ready, Redis takes no writes: %s", why)
    detail = "Redis can be read, but takes no writes at the moment"
    return Problem("redis-unavailable", detail, headers=[retry_after(1)], reads=True, writes=False)


def _way(route: BaseRoute) -> str:
    """The path of a route that can be read or listened to without knowing more, and is one word; else nothing."""
    if not isinstance(route, Route | WebSocketRoute) or not _is_one_word(route.path):
        return ""
    served: object = route.endpoint
    is_open = isinstance(served, Socket) or (isinstance(served, Resource) and "GET" in served.guarded)
    return route.path if is_open else ""
