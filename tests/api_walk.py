"""A walk over the API: a client that holds every answer to the document, and what is known of how answers come about.

The tables here are filled by `api_walk_refusals`, `api_walk_answers` and `api_walk_webhooks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import httpx
import pytest
from redis import Redis
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from api.app import create_app
from api.auth.caller import Guarded
from api.routing import Resource
from taskpool.errors import PROBLEM_PREFIX
from taskpool.settings import Settings
from tests.api_client import publish_types
from tests.api_contract import Contract, templated
from tests.states import World

NONE: Final = dict.fromkeys(("delivery", "file", "id", "name", "webhook"), "none") | {"key": "000000000000"}
"""What stands in a path, and nothing is there."""
BODIES: Final[dict[str, Any]] = {
    "submit_task": {"type": "echo", "payload": {"message": "hi"}},
    "submit_batch": {"tasks": [{"type": "echo", "payload": {"message": "hi"}}]},
    "create_key": {"name": "k", "scopes": ["admin"]},
    "create_webhook": {"url": "https://a.example/"},
    "update_webhook": {"enabled": True},
}
"""Bodies that are taken, where there must be one."""


class Walk:
    """Asks one operation after the other, of servers of any settings."""

    def __init__(self, redis: Redis, redis_url: str, stack: AsyncExitStack, patch: pytest.MonkeyPatch) -> None:
        self.redis_url, self.patch = redis_url, patch
        self.world = World(redis, redis_url)
        self.contract: Contract
        self._stack = stack
        self._clients: dict[str, httpx.AsyncClient] = {}
        self.is_refused = False
        self.apps: dict[httpx.AsyncClient, Starlette] = {}

    async def begin(self) -> None:
        """Read the document."""
        self._stack.callback(self.world.store.close)
        self.prepare()
        self.contract = Contract((await (await self.server()).get("/openapi.json")).json())

    def prepare(self) -> None:
        """Make Redis empty but for the task types."""
        self.world.redis.flushdb()
        publish_types(self.redis_url)

    async def server(self, *, broken: Exception | None = None, **settings: Any) -> httpx.AsyncClient:
        """A client of a server with these settings; every handler of a broken one raises that."""
        name = f"{broken} {settings}"
        if name not in self._clients:
            app = create_app(Settings(**{"redis_url": self.redis_url, "rate_limit": 1_000_000, **settings}))
            if broken:
                _break(app, broken)
            await self._stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(_Leaving(app, self), raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
            self._clients[name] = await self._stack.enter_async_context(client)
            self.apps[client] = app
        return self._clients[name]

    async def ask(
        self, id: str, client: httpx.AsyncClient | None = None, *, method: str = "", at: str = "", **how: Any
    ) -> httpx.Response:
        """The answer to a request as `how` has it; `at` stands in its path, else what names nothing."""
        path, usual, operation = self.contract.operations[id]
        if not {"json", "content"} & how.keys() and operation.get("requestBody", {}).get("required"):
            how["json"] = BODIES[id]
        values = dict.fromkeys(NONE, at) if at else NONE
        client = client or await self.server()
        answer = await client.request(method or usual, templated(path, values), **how)
        self.contract.check(id, answer)
        return answer


Refusal = Callable[[Walk, str], Awaitable[httpx.Response]]
Answers = Callable[[Walk, str], Awaitable[Any]]
R = TypeVar("R", bound=Refusal)
A = TypeVar("A", bound=Answers)
ANSWERS: Final[dict[str, Answers]] = {}
"""For each operation what makes it give every good answer it has, with all of their headers."""
REFUSALS: Final[dict[str, Refusal]] = {}
PARTICULAR: Final[dict[tuple[str, str], Refusal]] = {}
"""How some operations come to a kind of refusal in a way of their own."""


def of_any(kind: str) -> Callable[[R], R]:
    """Register how any operation that may answer so comes to it."""

    def register(refusal: R) -> R:
        REFUSALS[kind] = refusal
        return refusal

    return register


def answers_of(*ids: str) -> Callable[[A], A]:
    """Register how these operations come to all of their good answers."""

    def register(answers: A) -> A:
        ANSWERS.update(dict.fromkeys(ids, answers))
        return answers

    return register


def refusal_of(kind: str, *ids: str) -> Callable[[R], R]:
    """Register how these operations come to a kind of refusal."""

    def register(refusal: R) -> R:
        PARTICULAR.update({(id, kind): refusal for id in ids})
        return refusal

    return register


async def refuse(walk: Walk, id: str, kind: str) -> None:
    """Do what makes operations answer with this kind of problem; one that has it must."""
    walk.is_refused = True
    walk_to = PARTICULAR.get((id, kind)) or REFUSALS[kind]
    answer = await walk_to(walk, id)
    if PROBLEM_PREFIX + kind in str(walk.contract.operations[id][2]["responses"]):
        assert answer.json()["type"] == PROBLEM_PREFIX + kind, f"{id} should say {kind}: {answer.text}"


RETRY: Final = b"retry: 2000\n"
"""The beginning of every stream of events."""


class _Leaving:
    """An application whose client leaves when an answer that has more has said something, or just begun if it should
    have been a refusal."""

    def __init__(self, app: Starlette, walk: Walk) -> None:
        self._app, self._walk = app, walk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, is_over = asyncio.Event(), False

        async def receive_or_leave() -> Message:
            message = asyncio.ensure_future(receive())
            leaving = asyncio.ensure_future(begun.wait())
            try:
                await asyncio.wait((message, leaving), return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                leaving.cancel()

        async def watched(message: Message) -> None:
            nonlocal is_over
            await send(message)
            if message.get("body") and (self._walk.is_refused or message["body"] != RETRY):
                begun.set()
            is_over = message["type"] == "http.response.body" and not message.get("more_body", False)

        await self._app(scope, receive_or_leave, watched)
        if not is_over:
            await send({"type": "http.response.body", "body": b""})


def _break(app: Starlette, error: Exception) -> None:
    async def broken(*_: Any) -> None:
        raise error

    for route in app.routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            for method, guarded in route.endpoint.guarded.items():
                route.endpoint.guarded[method] = Guarded(broken, guarded.access)
