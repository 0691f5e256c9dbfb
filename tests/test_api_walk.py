"""Every answer of every operation is in the document as it is, and everything in the document is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from redis import Redis
from starlette.routing import Route, WebSocketRoute

from api.app import create_app
from api.openapi.document import operations
from api.routing import Resource
from taskpool.errors import PROBLEM_PREFIX
from taskpool.settings import Settings
from tests import api_walk_answers, api_walk_refusals, api_walk_webhooks
from tests.api_contract import METHODS, templated
from tests.api_walk import ANSWERS, NONE, REFUSALS, Walk, refuse

ROUTES = create_app(Settings(redis_url="redis://nowhere")).routes
TABLES = (api_walk_answers, api_walk_refusals, api_walk_webhooks)
"""They fill ANSWERS and REFUSALS."""
OPERATIONS = [operation.id for _, _, operation, _ in operations(ROUTES)]


@pytest.fixture
async def walk(redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Walk]:
    async with AsyncExitStack() as stack:
        walk = Walk(redis, redis_url, stack, monkeypatch)
        await walk.begin()
        yield walk


@pytest.mark.parametrize("id", OPERATIONS)
async def test_an_operation_answers_what_the_document_says_and_nothing_else(walk: Walk, id: str) -> None:
    promised = {promise for promise in walk.contract.promises() if promise.operation == id}
    kinds = {promise.what.removeprefix(PROBLEM_PREFIX) for promise in promised if PROBLEM_PREFIX in promise.what}

    await ANSWERS[id](walk, id)
    for kind in sorted(kinds | REFUSALS.keys()):
        walk.prepare()
        await refuse(walk, id, kind)

    assert {promise for promise in walk.contract.kept if promise.operation == id} == promised


async def test_every_route_is_an_operation_or_a_channel_of_its_document(walk: Walk) -> None:
    socket = (await walk.ask("get_asyncapi")).json()
    served = {
        (route.path, method.lower())
        for route in ROUTES
        if isinstance(route, Route) and isinstance(route.endpoint, Resource)
        for method in route.endpoint.methods
        if method != "HEAD"
    }

    assert {(path, method) for path, method, _ in walk.contract.operations.values()} == served
    assert {channel["address"] for channel in socket["channels"].values()} == {
        route.path for route in ROUTES if isinstance(route, WebSocketRoute)
    }
    assert len(walk.contract.operations) == len(OPERATIONS) == len(ANSWERS)


async def test_no_path_takes_a_method_that_the_document_does_not_have(walk: Walk) -> None:
    client = await walk.server()

    for path, methods in walk.contract.document["paths"].items():
        known = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        for method in {"HEAD", "OPTIONS", *map(str.upper, METHODS)} - known:
            answer = await client.request(method, templated(path, NONE))
            assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, known), (method, path)


async def test_head_is_answered_as_get_without_a_body(walk: Walk) -> None:
    for id, (_, method, _) in walk.contract.operations.items():
        if method == "get" and "text/event-stream" not in str(walk.contract.operations[id][2]):
            got, head = await walk.ask(id), await walk.ask(id, method="HEAD")
            assert (head.status_code, head.content) == (got.status_code, b"")
            assert set(head.headers) == set(got.headers), id
