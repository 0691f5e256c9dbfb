"""/stats and /types/{name}/durations: what happened, and how long it takes."""

from __future__ import annotations

from starlette.requests import Request

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import DurationsDocument, StatsDocument

from ..http.declarations import operation
from ..http.query import StatsQuery
from ..http.responses import Json


class StatsRoutes:
    """Handlers of the history. It counts the tasks of all projects together."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation("get_stats", tag="fleet", answers={200: StatsDocument})
    async def stats(self, request: Request, query: StatsQuery) -> Json:
        """GET /stats: get counts and durations of the last hour, day, week or 90 days; the last point isn't over."""
        found = await self._pool.stats(query.range, type=query.type, queue=query.queue, by=query.by)
        return Json(StatsDocument.of(found))

    @operation("get_durations", tag="fleet", answers={200: DurationsDocument})
    async def durations(self, request: Request) -> Json:
        """GET /types/{name}/durations: get how long the attempts of a task type ran in the last seven days."""
        return Json(DurationsDocument.of(await self._pool.durations(request.path_params["name"])))
