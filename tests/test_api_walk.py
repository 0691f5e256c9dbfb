"""Every operation of the API: refusals that all of them share, other methods, and HEAD."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from api.app import create_app
from api.http import body
from api.http.declarations import Guarded
from api.openapi.document import operations
from api.routing import METHODS, Resource
from taskpool.errors import PROBLEM_PREFIX
from taskpool.settings import Settings
from tests.api_client import JSON, publish_types

ROUTES = create_app(Settings(redis_url="redis://nowhere")).routes
OPERATIONS = [
    (operation, method, re.sub(r"{\w+}", "000000000000", path), set(operation.kinds(guarded.access)))
    for path, method, operation, guarded in operations(ROUTES)
]
"""Each with its method, a path at which nothing is, and the kinds of its problems."""

TEXT = {"content-type": "text/plain"}
ZIPPED = {"content-type": "application/json", "content-encoding": "gzip"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "body-timeout": ({}, {"headers": JSON}),
    "body-too-large": ({"max_body_bytes": 10, "max_workflow_bytes": 10}, {"content": b"[0,0,0,0,0]", "headers": JSON}),
    "internal-error": ({}, {}),
    "invalid-header": ({}, {"headers": [("authorization", "Bearer a"), ("authorization", "Bearer b")]}),
    "invalid-json": ({}, {"content": b"{", "headers": JSON}),
    "invalid-query": ({}, {"params": {"nonsense": "1"}}),
    "misdirected": ({}, {"headers": {"host": "elsewhere.example"}}),
    "rate-limited": ({"rate_limit": 1}, {}),
    "redis-unavailable": ({"redis_url": "unix:///nowhere/redis.sock"}, {}),
    "unsupported-media-type": ({}, {"content": b"{}", "headers": TEXT}),
    "a content coding": ({}, {"content": b"{}", "headers": ZIPPED}),
}
"""What makes an operation refuse a request in this way: settings of the server, and the request."""
PAGE = {"taskpool-page": "1", "origin": "http://localhost", "cookie": f"taskpool_session={43 * 'a'}"}
"""What the web page sends, with which alone /session changes anything."""
KINDS = {"a content coding": "unsupported-media-type"}


async def half_a_body() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


@asynccontextmanager
async def server(**settings: Any) -> AsyncIterator[tuple[Starlette, httpx.AsyncClient]]:
    """The application and a client to which it shows bugs as answers."""
    app = create_app(Settings(**{"rate_limit": 1_000_000, **settings}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield app, client


def _of_the_page(request: dict[str, Any]) -> dict[str, Any]:
    """The same request as the web page would send it."""
    body = {} if "content" in request else {"json": {"key": f"tp_{12 * '0'}_{43 * 'a'}"}}
    headers = httpx.Headers(request.get("headers"))
    return (
        body | request | {"headers": [*headers.multi_items(), *((k, v) for k, v in PAGE.items() if k not in headers)]}
    )


async def fail(*_: Any) -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("refusal", REFUSED)
async def test_every_operation_refuses_what_the_document_says_it_does(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    changes, request = REFUSED[refusal]
    kind = KINDS.get(refusal, refusal)
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.01)
    publish_types(redis_url)
    async with server(**{"redis_url": redis_url, **changes}) as (app, client):
        for route in app.routes:
            if kind == "internal-error" and isinstance(route, Route) and isinstance(route.endpoint, Resource):
                for method, guarded in route.endpoint.guarded.items():
                    route.endpoint.guarded[method] = Guarded(fail, guarded.access)
        if kind == "rate-limited":
            await client.get("/types")  # the one request that is allowed
        for operation, method, path, declared in OPERATIONS:
            kinds = declared - ({"rate-limited"} if path == "/session" else set())  # there: too many wrong keys
            asked = request | ({"content": half_a_body()} if kind == "body-timeout" else {})
            if path == "/session":
                asked = _of_the_page(asked)
            # Where nothing is refused, a stream would never end.
            answer = await client.request(method if kind in kinds or method != "GET" else "HEAD", path, **asked)

            if kind in kinds:
                assert answer.json()["type"] == PROBLEM_PREFIX + kind, f"{operation.id}: {answer.text}"
            # What else an operation answers is compared with the document, as in every test.


async def test_no_path_takes_a_method_that_the_document_does_not_have(redis_url: str) -> None:
    async with server(redis_url=redis_url) as (_, client):
        for path in {path for _, _, path, _ in OPERATIONS}:
            known = {method for _, method, of, _ in OPERATIONS if of == path}
            known |= {"HEAD"} if "GET" in known else set()
            for method in {"HEAD", "OPTIONS", *METHODS} - known:
                answer = await client.request(method, path)
                assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, known), (method, path)


async def test_head_is_answered_as_get_without_a_body(redis_url: str) -> None:
    publish_types(redis_url)
    async with server(redis_url=redis_url) as (_, client):
        for operation, method, path, _ in OPERATIONS:
            if method == "GET" and operation.id not in ("follow_tasks", "follow_figures"):  # which never end
                got, head = await client.get(path), await client.head(path)
                assert head.status_code == got.status_code
                assert set(head.headers) == set(got.headers), operation.id
