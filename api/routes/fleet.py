"""/queues, /types, /waits, /storage and /workers."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.control.pauses import paused
from taskpool.operations.documents import (
    PauseDocument,
    QueuedDocument,
    QueueDocument,
    TypeDocument,
    TypeStorageDocument,
    WaitsDocument,
    WorkerDocument,
)
from taskpool.operations.insight.fresh import Fresh
from taskpool.operations.insight.waits import grouped, sample
from taskpool.operations.overview import known_queues, queues, queues_page
from taskpool.operations.queue import get_queue
from taskpool.redis.pause_scripts import ALL
from taskpool.types import Pause, QueueInfo

from ..answers import QueuePage, Queues, Storage, Types, Workers
from ..auth.caller import Caller, caller_of
from ..http.declarations import Answer, operation
from ..http.query import QueueQuery, QueuesQuery, WaitsQuery
from ..http.responses import Json, page, tagged


def _seen_by(caller: Caller, pause: Pause | None) -> Pause | None:
    """A pause as a caller sees it: one with a project doesn't see what operators say among themselves."""
    return pause if pause is None or caller.project is None else Pause(at=pause.at)


def _shown_to(caller: Caller, info: QueueInfo) -> QueueDocument:
    return QueueDocument.of(replace(info, paused=_seen_by(caller, info.paused)))


class FleetRoutes:
    """Handlers that show the queues, the task types and the workers."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool
        self._waiting = Fresh(pool.store, sample)

    @operation("list_queues", tag="fleet", answers={200: Queues})
    async def queues(self, request: Request, query: QueuesQuery) -> Json:
        """GET /queues: list the queues with their counts, by name."""
        caller, names = caller_of(request.scope), None
        if caller.project is not None:  # counts are of all projects: show the key's own queues only
            known, _ = await self._pool.store.carry_out(known_queues())
            names = [name for name in known if name in (caller.queues or ())]
        found = await self._pool.store.carry_out(queues_page(names, cursor=query.cursor, limit=query.limit))
        everything = (await self._pool.store.carry_out(paused())).get(ALL)
        document = Queues(
            queues=[_shown_to(caller, info) for info in found.items],
            next_cursor=found.next_cursor,
            paused=None if everything is None else PauseDocument.of(_seen_by(caller, everything)),
        )
        return page(document, request.scope, query)

    @operation("get_queue", tag="fleet", answers={200: QueuePage})
    async def queue(self, request: Request, query: QueueQuery) -> Json:
        """GET /queues/{name}: list the tasks of a queue in the order in which they will start."""
        name, caller = request.path_params["name"], caller_of(request.scope)
        reading = get_queue(name, cursor=query.cursor, limit=query.limit, project=caller.project)
        found = await self._pool.store.carry_out(reading)
        tasks = [QueuedDocument.of(queued) for queued in found.items]
        info = None
        if caller.project is None or name in (caller.queues or ()):  # counts are of all projects
            (counts,) = await self._pool.store.carry_out(queues([name]))
            info = _shown_to(caller, counts)
        document = QueuePage(name=name, info=info, tasks=tasks, next_cursor=found.next_cursor)
        return page(document, request.scope, query)

    @operation(
        "list_types",
        tag="fleet",
        headers=["If-None-Match"],
        answers={200: Answer(Types, headers=("ETag",)), 304: Answer(None, headers=("ETag",))},
    )
    async def types(self, request: Request) -> Response:
        """GET /types: list the task types with their JSON Schemas and the pools that serve them; 304 by ETag."""
        document = Types(types=[TypeDocument.of(info) for info in await self._pool.types()])
        return tagged(document, request.scope["headers"])

    @operation("get_waits", tag="fleet", answers={200: WaitsDocument})
    async def waits(self, request: Request, query: WaitsQuery) -> Json:
        """GET /waits: get who waits longest for a worker, by queue, task type, API key or project. It looks at up to
        1,000 tasks: the first of the 20 queues that wait longest. The answer may be some seconds old."""
        return Json(WaitsDocument.of(grouped(await self._waiting.get(), query.by)))

    @operation("get_storage", tag="fleet", answers={200: Storage})
    async def storage(self, request: Request) -> Json:
        """GET /storage: get what fills Redis: how many records each task type has, and how much memory they use."""
        found = await self._pool.storage()
        return Json(Storage(types=[TypeStorageDocument.of(each) for each in found]))

    @operation("list_workers", tag="fleet", answers={200: Workers})
    async def workers(self, request: Request) -> Json:
        """GET /workers: list the worker processes, and problems of RQ programs beside them."""
        infos = await self._pool.workers()
        # The warnings name queues of all projects.
        warnings = await self._pool.worker_warnings() if caller_of(request.scope).project is None else []
        return Json(Workers(workers=[WorkerDocument.of(info) for info in infos], warnings=warnings))
