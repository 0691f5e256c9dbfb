"""/openapi.json, /asyncapi.json and /docs: the documents that describe the API, for programs and for people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from taskpool.async_pool import AsyncTaskPool
from taskpool.types import TypeInfo

from ..auth.gate import Gate
from ..http.declarations import Answer, operation
from ..http.files import File, send
from ..http.prefix import prefix_of
from ..http.problems import Problem
from ..http.responses import Json
from ..openapi.asyncapi import describe_socket
from ..openapi.document import FILES, describe

FOLDER: Final = Path(__file__).parents[1] / "docs"
INDEX: Final = "index.html"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page needs nothing from other hosts, no inline script or style, and no eval, so this policy forbids them."""

PAGE: Final = Answer(str, headers=("ETag",), media_types=("text/html",))
SAME_PAGE: Final = Answer(None, headers=("ETag",))
SCRIPT_OR_STYLE: Final = Answer(str, headers=("ETag",), media_types=("text/javascript", "text/css"))


Described = tuple[list[TypeInfo], bool, str]


class DocsRoutes:
    """Handlers that describe the API. `type_grace_s`: how long a type without workers still accepts tasks."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate, type_grace_s: float) -> None:
        self._pool = pool
        self._gate = gate
        self._type_grace_s = type_grace_s
        self._described: tuple[Described, msgspec.Raw] | None = None
        """The last document, with the arguments that it was made from."""

    @operation("get_openapi", tag="service", answers={200: dict[str, Any]})
    async def openapi(self, request: Request) -> Json:
        """GET /openapi.json: this document, OpenAPI 3.1, with the current task types."""
        types = [info for info in await self._pool.types() if self._takes_tasks(info)]
        prefix, needs_key = prefix_of(request.scope), await self._gate.needs_key()
        # Without the fields that change all the time and aren't in the document.
        of = [replace(info, served_by=(), last_seen_ms=None) for info in types], needs_key, prefix
        if self._described is None or self._described[0] != of:
            # In a thread, because it takes long with many types.
            self._described = of, await asyncio.to_thread(_described, request.app.routes, *of)
        return Json(self._described[1])

    @operation("get_asyncapi", tag="service", answers={200: dict[str, Any]}, asks_redis=False)
    async def asyncapi(self, request: Request) -> Json:
        """GET /asyncapi.json: the AsyncAPI 3 document of the WebSocket at /ws."""
        secure, prefix = request.url.scheme == "https", prefix_of(request.scope)
        return Json(describe_socket(request.url.netloc, secure=secure, prefix=prefix))

    @operation("show_docs", tag="service", query=None, answers={200: PAGE, 304: SAME_PAGE}, asks_redis=False)
    async def docs(self, request: Request) -> Response:
        """GET /docs: this document as a page. The page is public, but the document that it loads needs a key."""
        return await asyncio.to_thread(_page_file, request, INDEX)

    @operation(
        "get_docs_file",
        tag="service",
        query=None,
        answers={200: SCRIPT_OR_STYLE, 304: SAME_PAGE},
        problems=["not-found"],
        asks_redis=False,
    )
    async def docs_file(self, request: Request) -> Response:
        """GET /docs/{file}: the files of that page."""
        name: str = request.path_params["file"]
        if name not in FILES:
            raise Problem("not-found", "the page has no such file")
        return await asyncio.to_thread(_page_file, request, name)

    def _takes_tasks(self, info: TypeInfo) -> bool:
        return bool(info.served_by) or (info.last_seen_ms or 0) / 1000 > time.time() - self._type_grace_s


def _described(routes: Sequence[BaseRoute], types: list[TypeInfo], needs_key: bool, prefix: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(describe(routes, types, needs_key=needs_key, prefix=prefix)))


def _page_file(request: Request, name: str) -> Response:
    """INDEX or one of FILES. It takes long for the first request, so it belongs into a thread."""
    return send(_loaded(name), request, POLICY, cache_control="no-cache", vary="Accept-Encoding")


@cache
def _loaded(name: str) -> File:
    return File(FILES.get(name, "text/html"), (FOLDER / name).read_bytes())
