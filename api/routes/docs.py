"""/openapi.json and /docs: the whole of this API as a document, for programs and for people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from taskpool.async_pool import AsyncTaskPool
from taskpool.types import TypeInfo

from ..auth.gate import Gate
from ..http.prefix import prefix_of
from ..http.problems import Problem
from ..http.query import NoQuery, read_query
from ..http.responses import Json
from ..openapi.asyncapi import describe_socket
from ..openapi.declarations import Answer, operation
from ..openapi.document import FILES, INDEX, DocsPage, describe

PAGE: Final = Answer(str, headers=("ETag",), media_types=("text/html",))
SAME_PAGE: Final = Answer(None, headers=("ETag",))
SCRIPT_OR_STYLE: Final = Answer(str, headers=("ETag",), media_types=("text/javascript", "text/css"))


Described = tuple[list[TypeInfo], bool, str]


class DocsRoutes:
    """Handlers that describe the API. `type_grace_s`: for how long a type without workers still takes tasks."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate, type_grace_s: float) -> None:
        self._pool = pool
        self._gate = gate
        self._type_grace_s = type_grace_s
        self._page = DocsPage()
        self._described: tuple[Described, msgspec.Raw] | None = None
        """The last document, and what it is of."""

    @operation("get_openapi", tag="service", answers={200: dict[str, Any]})
    async def openapi(self, request: Request) -> Json:
        """GET /openapi.json: this document, OpenAPI 3.1, with the task types as they are known now."""
        read_query(request.scope["query_string"], NoQuery)
        types = [info for info in await self._pool.types() if self._takes_tasks(info)]
        prefix, needs_key = prefix_of(request.scope), await self._gate.needs_key()
        # Without what changes all the time, and isn't in the document.
        of = [replace(info, served_by=(), last_seen_ms=None) for info in types], needs_key, prefix
        if self._described is None or self._described[0] != of:
            # In a thread, because with many types it takes long.
            self._described = of, await asyncio.to_thread(_described, request.app.routes, *of)
        return Json(self._described[1])

    @operation("get_asyncapi", tag="service", answers={200: dict[str, Any]}, asks_redis=False)
    async def asyncapi(self, request: Request) -> Json:
        """GET /asyncapi.json: the WebSocket at /ws as a document, AsyncAPI 3."""
        read_query(request.scope["query_string"], NoQuery)
        secure, prefix = request.url.scheme == "https", prefix_of(request.scope)
        return Json(describe_socket(request.url.netloc, secure=secure, prefix=prefix))

    @operation("show_docs", tag="service", query=None, answers={200: PAGE, 304: SAME_PAGE}, asks_redis=False)
    async def docs(self, request: Request) -> Response:
        """GET /docs: this document as a page. The page itself is the same for all; what it shows takes a key."""
        return await self._file(request, INDEX)

    @operation(
        "get_docs_file",
        tag="service",
        query=None,
        answers={200: SCRIPT_OR_STYLE, 304: SAME_PAGE},
        problems=["not-found"],
        asks_redis=False,
    )
    async def docs_file(self, request: Request) -> Response:
        """GET /docs/{file}: what the page is made of."""
        name: str = request.path_params["file"]
        if name not in FILES:
            raise Problem("not-found", "the page has no such file")
        return await self._file(request, name)

    async def _file(self, request: Request, name: str) -> Response:
        takes_gzip = "gzip" in request.headers.get("accept-encoding", "")
        return await self._page.answer(name, takes_gzip=takes_gzip, known=request.headers.get("if-none-match", ""))

    def _takes_tasks(self, info: TypeInfo) -> bool:
        return bool(info.served_by) or (info.last_seen_ms or 0) / 1000 > time.time() - self._type_grace_s


def _described(routes: Sequence[BaseRoute], types: list[TypeInfo], needs_key: bool, prefix: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(describe(routes, types, needs_key=needs_key, prefix=prefix)))
