"""/queues/{queue}/load: what autoscalers read."""

from __future__ import annotations

from starlette.requests import Request

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import QueueLoadDocument

from ..http.declarations import operation
from ..http.query import LoadQuery
from ..http.responses import Json


class LoadRoutes:
    """The handler."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation("get_queue_load", tag="fleet", answers={200: QueueLoadDocument})
    async def load(self, request: Request, query: LoadQuery) -> Json:
        """GET /queues/{queue}/load: get what waits in a queue, how fast tasks come and go, and how many workers
        do what waits and arrives within the target. KEDA's `metrics-api` reads `value`."""
        found = await self._pool.queue_load(request.path_params["queue"], target=query.target)
        return Json(QueueLoadDocument.of(found))
