"""The matrix: every method of every route, asked without a key, and with keys of each scope alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from starlette.routing import Route

from api.app import create_app
from api.auth import rate_limit
from api.http.declarations import Access
from api.routing import Resource
from taskpool.access.api_key import Scope
from taskpool.settings import Settings
from tests.api_client import api, publish_types
from tests.keys import bearer, make_key

FILLED = {
    "{id}": "nobody",
    "{name}": "none",
    "{key}": "000000000000",
    "{file}": "none",
    "{version}": "none",
    "{webhook}": "none",
    "{delivery}": "none",
    "{schedule}": "none",
    "{workflow}": "none",
    "{fingerprint}": "000000000000",
    "{queue}": "none",
    "{pool}": "none",
    "{operation}": "none",
}
SAFE = {"GET", "HEAD"}


def routes() -> list[tuple[str, str, Access]]:
    """Method, path with something in its places, and what it asks of its caller, for every route but sockets."""
    found = []
    for route in create_app(Settings(redis_url="redis://nowhere")).routes:
        if isinstance(route, Route):
            assert isinstance(route.endpoint, Resource)
            path = route.path_format
            for place, filling in FILLED.items():
                path = path.replace(place, filling)
            found += [(method, path, guarded.access) for method, guarded in route.endpoint.guarded.items()]
    return found


ROUTES = routes()
STREAMS = {"/events", "/live"}
"""What never ends for who is let in: asked for with HEAD alone."""


@dataclass
class Callers:
    """One client, and a key of each scope and of a project."""

    client: httpx.AsyncClient
    keys: dict[Scope, str]
    bound: str

    async def ask(self, method: str, path: str, key: str | None) -> httpx.Response:
        method = "HEAD" if method == "GET" and path in STREAMS and key is not None else method
        return await self.client.request(method, path, headers=bearer(key) if key else {})


@pytest.fixture
async def callers(redis_url: str) -> AsyncIterator[Callers]:
    publish_types(redis_url)
    keys = {scope: make_key(redis_url, scope.value, scope) for scope in Scope}
    bound = make_key(redis_url, "bound", Scope.READ, project="shop")
    async with api(redis_url) as client:
        yield Callers(client, keys, bound)


def test_every_place_in_a_path_is_filled() -> None:
    assert [path for _, path, _ in ROUTES if "{" in path] == []


async def test_without_a_key_only_public_routes_answer(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "FAILED_AT_ONCE", 2 * len(ROUTES))
    for method, path, access in ROUTES:
        response = await callers.ask(method, path, None)

        assert (response.status_code == 401) == (not access.public), (method, path)
        if not access.public:
            assert response.headers["www-authenticate"] == 'Bearer realm="taskpool"'


async def test_each_scope_opens_what_asks_for_it_and_nothing_else(callers: Callers) -> None:
    for method, path, access in ROUTES:
        for scope, key in callers.keys.items():
            response = await callers.ask(method, path, key)
            may = access.public or access.scope in (None, scope) or scope is Scope.ADMIN

            assert (response.status_code == 403) == (not may), (method, path, scope)
            assert response.status_code != 401


async def test_a_key_of_a_project_is_kept_from_what_shows_all(callers: Callers) -> None:
    for method, path, access in ROUTES:
        if access.scope is Scope.READ:
            response = await callers.ask(method, path, callers.bound)

            assert (response.status_code == 403) == access.whole, (method, path)


async def test_what_is_refused_changes_nothing_and_is_not_audited(callers: Callers) -> None:
    for method, path, access in ROUTES:
        if method not in SAFE and access.scope is not Scope.READ and access.scope is not None:
            await callers.ask(method, path, callers.keys[Scope.READ])

    entries = (await callers.client.get("/audit", headers=bearer(callers.keys[Scope.ADMIN]))).json()["entries"]
    assert {entry["what"] for entry in entries} == {"key.created"}
