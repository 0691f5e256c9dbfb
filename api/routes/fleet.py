"""/queues, /types and /workers: what there is to work on, what can be worked on, and who works."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import InvalidTask
from taskpool.operations.documents import queue_document, queued_document, type_document, worker_document
from taskpool.operations.listing import all_queues
from taskpool.operations.overview import queues_page
from taskpool.operations.queue import get_queue

from ..answers import QueuePage, Queues, Types, Workers
from ..auth.caller import caller_of
from ..http.prefix import next_link
from ..http.query import NoQuery, QueueQuery, QueuesQuery, read_query, wrong_parameter
from ..http.responses import Json, tagged
from ..openapi.declarations import Answer, operation


class FleetRoutes:
    """Handlers that show the queues, the task types and the workers."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation("list_queues", tag="fleet", query=QueuesQuery, answers={200: Answer(Queues, headers=("Link",))})
    async def queues(self, request: Request) -> Json:
        """GET /queues: the queues with their counts, by name."""
        query = read_query(request.scope["query_string"], QueuesQuery)
        caller, names = caller_of(request.scope), None
        if caller.project is not None:  # the counts are of all projects: it sees those of the queues that are for it
            known = await self._pool.store.run(all_queues())
            names = [name for name in known if name in (caller.queues or ())]
        try:
            page = await self._pool.store.carry_out(queues_page(names, cursor=query.cursor, limit=query.limit))
        except InvalidTask as error:
            raise wrong_parameter(error) from None
        document = Queues(queues=[queue_document(info) for info in page.items], next_cursor=page.next_cursor)
        if page.next_cursor is None:
            return Json(document)
        parameters = urlencode({"cursor": page.next_cursor, "limit": query.limit})
        return Json(document, headers=[next_link(request.scope, "/queues", parameters)])

    @operation("get_queue", tag="fleet", query=QueueQuery, answers={200: Answer(QueuePage, headers=("Link",))})
    async def queue(self, request: Request) -> Json:
        """GET /queues/{name}: the tasks of a queue in the order in which they will start."""
        query = read_query(request.scope["query_string"], QueueQuery)
        name = request.path_params["name"]
        try:
            project = caller_of(request.scope).project
            reading = get_queue(name, cursor=query.cursor, limit=query.limit, project=project)
            page = await self._pool.store.carry_out(reading)
        except InvalidTask as error:
            raise wrong_parameter(error) from None
        tasks = [queued_document(queued) for queued in page.items]
        document = QueuePage(name=name, tasks=tasks, next_cursor=page.next_cursor)
        if page.next_cursor is None:
            return Json(document)
        parameters = urlencode({"cursor": page.next_cursor, "limit": query.limit})
        return Json(document, headers=[next_link(request.scope, f"/queues/{quote(name)}", parameters)])

    @operation(
        "list_types",
        tag="fleet",
        headers=["If-None-Match"],
        answers={200: Answer(Types, headers=("ETag",)), 304: Answer(None, headers=("ETag",))},
    )
    async def types(self, request: Request) -> Response:
        """GET /types: every task type with the JSON Schema of its payload, and who serves it; 304 by its ETag."""
        read_query(request.scope["query_string"], NoQuery)
        document = Types(types=[type_document(info) for info in await self._pool.types()])
        return tagged(document, request.scope["headers"])

    @operation("list_workers", tag="fleet", answers={200: Workers})
    async def workers(self, request: Request) -> Json:
        """GET /workers: every worker process, and what is wrong with RQ programs beside them."""
        read_query(request.scope["query_string"], NoQuery)
        infos = await self._pool.workers()
        # They name queues of all projects.
        warnings = await self._pool.worker_warnings() if caller_of(request.scope).project is None else []
        return Json(Workers(workers=[worker_document(info) for info in infos], warnings=warnings))
