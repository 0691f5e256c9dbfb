"""/queues, /types and /workers."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import queue_document, queued_document, type_document, worker_document
from taskpool.operations.listing import all_queues
from taskpool.operations.overview import queues_page
from taskpool.operations.queue import get_queue

from ..answers import QueuePage, Queues, Types, Workers
from ..auth.caller import caller_of
from ..http.query import QueueQuery, QueuesQuery, parameters_refused
from ..http.responses import Json, page, tagged
from ..openapi.declarations import Answer, operation


class FleetRoutes:
    """Handlers that show the queues, the task types and the workers."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation("list_queues", tag="fleet", query=QueuesQuery, answers={200: Answer(Queues, headers=("Link",))})
    async def queues(self, request: Request, query: QueuesQuery) -> Json:
        """GET /queues: list the queues with their counts, by name."""
        caller, names = caller_of(request.scope), None
        if caller.project is not None:  # counts are of all projects: show the key's own queues only
            known = await self._pool.store.run(all_queues())
            names = [name for name in known if name in (caller.queues or ())]
        with parameters_refused():
            found = await self._pool.store.carry_out(queues_page(names, cursor=query.cursor, limit=query.limit))
        document = Queues(queues=[queue_document(info) for info in found.items], next_cursor=found.next_cursor)
        return page(document, request.scope, "/queues", query)

    @operation("get_queue", tag="fleet", query=QueueQuery, answers={200: Answer(QueuePage, headers=("Link",))})
    async def queue(self, request: Request, query: QueueQuery) -> Json:
        """GET /queues/{name}: list the tasks of a queue in the order in which they will start."""
        name, project = request.path_params["name"], caller_of(request.scope).project
        with parameters_refused():
            reading = get_queue(name, cursor=query.cursor, limit=query.limit, project=project)
            found = await self._pool.store.carry_out(reading)
        tasks = [queued_document(queued) for queued in found.items]
        document = QueuePage(name=name, tasks=tasks, next_cursor=found.next_cursor)
        return page(document, request.scope, f"/queues/{quote(name)}", query)

    @operation(
        "list_types",
        tag="fleet",
        headers=["If-None-Match"],
        answers={200: Answer(Types, headers=("ETag",)), 304: Answer(None, headers=("ETag",))},
    )
    async def types(self, request: Request) -> Response:
        """GET /types: list the task types with their JSON Schemas and the pools that serve them; 304 by ETag."""
        document = Types(types=[type_document(info) for info in await self._pool.types()])
        return tagged(document, request.scope["headers"])

    @operation("list_workers", tag="fleet", answers={200: Workers})
    async def workers(self, request: Request) -> Json:
        """GET /workers: list the worker processes, and problems of RQ programs beside them."""
        infos = await self._pool.workers()
        # The warnings name queues of all projects.
        warnings = await self._pool.worker_warnings() if caller_of(request.scope).project is None else []
        return Json(Workers(workers=[worker_document(info) for info in infos], warnings=warnings))
