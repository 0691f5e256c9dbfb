"""/openapi.json: the whole of this API as a document for programs."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request

from api.openapi import describe
from api.operation import operation
from api.query import NoQuery, read_query
from api.responses import Json
from taskpool.async_pool import AsyncTaskPool
from taskpool.types import TypeInfo


class DocsRoutes:
    """Handlers that describe the API. `type_grace_s`: for how long a type without workers still takes tasks."""

    def __init__(self, pool: AsyncTaskPool, type_grace_s: float) -> None:
        self._pool = pool
        self._type_grace_s = type_grace_s

    @operation("get_openapi", tag="service", answers={200: dict[str, Any]})
    async def openapi(self, request: Request) -> Json:
        """GET /openapi.json: this document, OpenAPI 3.1, with the task types as they are known now."""
        read_query(request.scope["query_string"], NoQuery)
        types = [info for info in await self._pool.types() if self._takes_tasks(info)]
        return Json(describe(request.app.routes, types))

    def _takes_tasks(self, info: TypeInfo) -> bool:
        return bool(info.served_by) or (info.last_seen_ms or 0) / 1000 > time.time() - self._type_grace_s
