"""/queues, /types and /workers: what there is to work on, what can be worked on, and who works."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request

from api.query import NoQuery, QueueQuery, read_query, wrong_cursor
from api.responses import Json
from taskpool.async_pool import AsyncTaskPool
from taskpool.document import queue_document, queued_document, type_document, worker_document
from taskpool.errors import InvalidTask


class FleetRoutes:
    """Handlers that show the queues, the task types and the workers."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    async def queues(self, request: Request) -> Json:
        """GET /queues."""
        read_query(request.scope["query_string"], NoQuery)
        return Json({"queues": [queue_document(info) for info in await self._pool.queues()]})

    async def queue(self, request: Request) -> Json:
        """GET /queues/{name}: its tasks in the order in which they will start."""
        query = read_query(request.scope["query_string"], QueueQuery)
        name = request.path_params["name"]
        try:
            page = await self._pool.get_queue(name, cursor=query.cursor, limit=query.limit)
        except InvalidTask as error:
            raise wrong_cursor(error) from None
        document: dict[str, Any] = {"name": name, "tasks": [queued_document(queued) for queued in page.items]}
        if page.next_cursor is None:
            return Json(document)
        document["next_cursor"] = page.next_cursor
        parameters = urlencode({"cursor": page.next_cursor, "limit": query.limit})
        link = f'</queues/{quote(name)}?{parameters}>; rel="next"'
        return Json(document, headers=[(b"link", link.encode())])

    async def types(self, request: Request) -> Json:
        """GET /types."""
        read_query(request.scope["query_string"], NoQuery)
        return Json({"types": [type_document(info) for info in await self._pool.types()]})

    async def workers(self, request: Request) -> Json:
        """GET /workers."""
        read_query(request.scope["query_string"], NoQuery)
        return Json({"workers": [worker_document(info) for info in await self._pool.workers()]})
