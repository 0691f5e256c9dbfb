"""Projects: no route shows the tasks of another one; what a key may submit; and the audit of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from api.app import create_app
from api.routing import Resource
from taskpool.access.api_key import PLAIN_SCOPES, Scope
from taskpool.redis import scripts
from taskpool.settings import Settings
from taskpool.types import TaskStatus
from tests.api_client import api, claim, publish_types, run_next
from tests.keys import bearer, id_of, make_key
from tests.states import World

ECHO: dict[str, Any] = {"type": "echo", "payload": {"message": "hi"}}


@dataclass
class Callers:
    """One client, and the headers of those who use it."""

    client: httpx.AsyncClient
    shop: dict[str, str]
    bank: dict[str, str]
    root: dict[str, str]

    async def add(self, headers: dict[str, str], **options: Any) -> str:
        """Submit a task; its id."""
        response = await self.client.post("/tasks", json={**ECHO, **options}, headers=headers)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    async def ids(self, headers: dict[str, str], path: str = "/tasks", **query: Any) -> set[str]:
        """The ids of all pages of a listing."""
        found: set[str] = set()
        while True:
            page = (await self.client.get(path, params=query, headers=headers)).json()
            found |= {task["id"] for task in page["tasks"]}
            if "next_cursor" not in page:
                return found
            query["cursor"] = page["next_cursor"]


@pytest.fixture
async def callers(redis_url: str) -> AsyncIterator[Callers]:
    publish_types(redis_url)
    shop, bank = (make_key(redis_url, name, *PLAIN_SCOPES, Scope.CONFIRM, project=name) for name in ("shop", "bank"))
    root = make_key(redis_url, "root", Scope.ADMIN)
    async with api(redis_url) as client:
        yield Callers(client, bearer(shop), bearer(bank), bearer(root))


async def test_a_task_carries_its_submitters_project(callers: Callers, world: World) -> None:
    id = await callers.add(callers.shop)
    batch = await callers.client.post("/tasks/batch", json={"tasks": [ECHO, ECHO]}, headers=callers.shop)
    free = await callers.add(callers.root)

    ids = [id, *(task["id"] for task in batch.json()["tasks"])]
    projects = [(await callers.client.get(f"/tasks/{each}", headers=callers.shop)).json()["project"] for each in ids]
    assert projects == ["shop"] * 3
    assert "project" not in (await callers.client.get(f"/tasks/{free}", headers=callers.root)).json()
    assert sorted(world.redis.zrange("taskpool:project:shop", 0, -1)) == sorted(each.encode() for each in ids)
    first = json.loads(world.redis.xrange("taskpool:events")[0][1][b"e"])
    assert first["project"] == "shop"


ROUTES_OF_A_TASK = {
    ("/tasks/{id}", "GET"),
    ("/tasks/{id}", "HEAD"),
    ("/tasks/{id}", "DELETE"),
    ("/tasks/{id}/stop", "POST"),
    ("/tasks/{id}/retry", "POST"),
    ("/tasks/{id}/confirm", "POST"),
    ("/tasks/{id}/reject", "POST"),
    ("/tasks/{id}/answer", "POST"),
}


def routes_of_a_task() -> set[tuple[str, str]]:
    """Every method of every route that names a task."""
    routes = create_app(Settings(redis_url="redis://nowhere")).routes
    return {
        (route.path, method)
        for route in routes
        if isinstance(route, Route) and isinstance(route.endpoint, Resource) and "/tasks/{id}" in route.path
        for method in route.endpoint.guarded
    }


def left_alone(world: World) -> dict[str, Any]:
    """Redis but for what looking at it writes: when a key was used."""
    return {name: value for name, value in world.snapshot().items() if not name.startswith("taskpool:keys:used")}


STATES: dict[str, Callable[[str], Any]] = {
    "queued": lambda url: None,
    "running": claim,
    "done": run_next,
    "failed": lambda url: run_next(url, TaskStatus.FAILED, error="no", failure={}),
}


@pytest.mark.parametrize("state", STATES)
async def test_another_projects_task_is_404_in_every_route_and_stays_as_it_is(
    callers: Callers, redis_url: str, world: World, state: str
) -> None:
    id = await callers.add(callers.shop)
    STATES[state](redis_url)
    before = left_alone(world)

    for path, method in sorted(routes_of_a_task()):
        body = {"answer": True} if path.endswith("/answer") else None
        for query in ("", "?wait=60") if (path, method) == ("/tasks/{id}", "GET") else ("",):
            target = path.replace("{id}", id) + query
            async with asyncio.timeout(40):  # it doesn't wait
                theirs = await callers.client.request(method, target, headers=callers.bank, json=body)
            nobodys = await callers.client.request(
                method, target.replace(id, "nobody"), headers=callers.bank, json=body
            )

            assert theirs.status_code == 404, (method, path)
            assert theirs.text.replace(id, "nobody") == nobodys.text

    assert left_alone(world) == before
    assert (await callers.client.get(f"/tasks/{id}", headers=callers.shop)).status_code == 200
    assert (await callers.client.get(f"/tasks/{id}", headers=callers.root)).status_code == 200


async def test_listings_show_the_own_project_alone(callers: Callers, redis_url: str) -> None:
    mine = {await callers.add(callers.shop, tags=["t"]) for _ in range(3)}
    theirs = {await callers.add(callers.bank, tags=["t"]) for _ in range(3)}
    free = await callers.add(callers.root, tags=["t"])

    for query in ({}, {"status": "queued"}, {"type": "echo"}, {"tag": "t"}, {"queue": "default"}):
        assert await callers.ids(callers.shop, limit=2, **query) == mine
        assert await callers.ids(callers.bank, limit=2, **query) == theirs
        assert await callers.ids(callers.root, limit=2, **query) == mine | theirs | {free}
    assert await callers.ids(callers.shop, "/queues/default", limit=2) == mine
    assert await callers.ids(callers.shop, status="done") == set()


async def test_a_task_of_another_project_is_no_dependency(callers: Callers) -> None:
    mine, theirs = await callers.add(callers.shop), await callers.add(callers.bank)

    answers = [
        await callers.client.post("/tasks", json={**ECHO, "depends_on": [id]}, headers=callers.shop)
        for id in (theirs, "nobody", mine)
    ]
    batch = await callers.client.post(
        "/tasks/batch", json={"tasks": [ECHO, {**ECHO, "depends_on": [theirs]}]}, headers=callers.shop
    )

    assert [answer.status_code for answer in answers] == [422, 422, 202]
    assert answers[0].text.replace(theirs, "nobody") == answers[1].text
    assert batch.status_code == 422
    assert await callers.add(callers.root, depends_on=[mine, theirs])


async def test_counts_are_shown_of_the_queues_that_are_for_a_key(callers: Callers, redis_url: str) -> None:
    mails = bearer(make_key(redis_url, "mails", project="shop", queues=["mails", "none"]))
    await callers.add(callers.bank, queue="mails")
    await callers.add(callers.bank, queue="secret")

    def names(response: httpx.Response) -> list[str]:
        return [queue["name"] for queue in response.json()["queues"]]

    async def ask(headers: dict[str, str]) -> list[str]:
        return names(await callers.client.get("/queues", headers=headers))

    assert (await ask(mails), await ask(callers.shop), await ask(callers.root)) == (
        ["mails"],
        [],
        ["mails", "secret"],
    )


@pytest.mark.parametrize("path", ["/workers", "/metrics"])
async def test_what_shows_all_projects_is_not_for_a_key_of_one(callers: Callers, path: str) -> None:
    assert (await callers.client.get(path, headers=callers.shop)).status_code == 403
    assert (await callers.client.get(path, headers=callers.root)).status_code == 200


@pytest.mark.parametrize(
    ("bounds", "submission", "pointer"),
    [
        ({"types": ["long_task"]}, ECHO, "/type"),
        ({"queues": ["mails"]}, {**ECHO, "queue": "other"}, "/queue"),
        ({"queues": ["mails"]}, ECHO, "/queue"),  # the type's own
    ],
)
async def test_what_a_key_may_not_use_is_403_and_nothing_is_stored(
    callers: Callers, world: World, bounds: dict[str, Any], submission: dict[str, Any], pointer: str
) -> None:
    bound = bearer(make_key(world.url, "bound", **bounds))
    await callers.client.get("/tasks", headers=bound)
    before = world.snapshot()

    one = await callers.client.post("/tasks", json=submission, headers=bound)
    many = await callers.client.post("/tasks/batch", json={"tasks": [submission]}, headers=bound)

    assert [answer.status_code for answer in (one, many)] == [403, 403]
    assert one.json()["errors"][0]["pointer"] == pointer
    assert many.json()["errors"][0]["pointer"] == f"/tasks/0{pointer}"
    assert "may use" in one.json()["detail"]
    assert world.since(before) == {}


async def test_what_a_key_may_use_it_submits_and_retries(callers: Callers, redis_url: str) -> None:
    bound = bearer(make_key(redis_url, "bound", types=["echo"], queues=["default"]))
    others = bearer(make_key(redis_url, "others", types=["long_task"]))
    id = await callers.add(bound)
    run_next(redis_url, TaskStatus.FAILED, error="no", failure={})

    assert (await callers.client.post(f"/tasks/{id}/retry", headers=others)).status_code == 403
    assert (await callers.client.post(f"/tasks/{id}/retry", headers=bound)).status_code == 202


async def test_every_change_of_a_task_is_in_the_audit(callers: Callers, redis_url: str) -> None:
    first, second, third = [await callers.add(callers.shop) for _ in range(3)]
    batch = await callers.client.post("/tasks/batch", json={"tasks": [ECHO] * 3}, headers=callers.bank)
    ids = [task["id"] for task in batch.json()["tasks"]]
    claim(redis_url)
    moves: list[Awaitable[httpx.Response]] = [
        callers.client.post(f"/tasks/{first}/stop", headers=callers.root),
        callers.client.delete(f"/tasks/{second}", headers=callers.shop),
        callers.client.post(f"/tasks/{third}/stop", headers=callers.shop),
        callers.client.post(f"/tasks/{second}/retry", headers=callers.shop),
        callers.client.delete(f"/tasks/{third}", headers=callers.shop),
        callers.client.post(f"/tasks/{ids[0]}/stop", headers=callers.shop),  # another project's
        callers.client.delete(f"/tasks/{first}", headers=callers.shop),  # running
    ]
    answers = [(await move).status_code for move in moves]

    entries = (await callers.client.get("/audit", headers=callers.root)).json()["entries"]

    assert answers == [202, 200, 202, 202, 204, 404, 409]
    done = [(entry["what"], entry["about"], entry["by"]["name"]) for entry in entries if "key." not in entry["what"]]
    assert done == [
        ("task.removed", third, "shop"),
        ("task.retried", second, "shop"),
        ("task.stopped", third, "shop"),
        ("task.canceled", second, "shop"),
        ("task.stopped", first, "root"),
        ("task.submitted", ids[0], "bank"),
        *(("task.submitted", id, "shop") for id in (third, second, first)),
    ]
    whole = next(entry for entry in entries if entry["about"] == ids[0])
    assert (whole["count"], whole["last"]) == (3, ids[-1])
    assert whole["by"] | {"key": None} == {"key": None, "name": "bank", "project": "bank", "address": "127.0.0.1"}


async def test_the_audit_of_a_submission_names_what_was_stored_and_what_it_replaced(callers: Callers) -> None:
    unique = {**ECHO, "unique_key": "u", "delay_s": 60}
    held = await callers.add(callers.shop, **{**unique, "type": "echo"})
    given_back = {**unique, "on_conflict": "return"}

    async def batch(*tasks: dict[str, Any]) -> list[str]:
        answer = await callers.client.post("/tasks/batch", json={"tasks": tasks}, headers=callers.shop)
        return [task["id"] for task in answer.json()["tasks"]]

    _, one = await batch(given_back, ECHO)
    two, _, three = await batch(ECHO, given_back, ECHO)
    assert await batch(given_back) == [held]
    fresh = await callers.add(callers.shop, **unique, on_conflict="replace")

    entries = (await callers.client.get("/audit", headers=callers.root)).json()["entries"]
    received = [
        (entry["what"], entry["about"], entry.get("count"), entry.get("last"), entry["by"]["name"])
        for entry in reversed(entries)
        if entry["what"].startswith("task.")
    ]
    assert received[:3] == [
        ("task.submitted", held, None, None, "shop"),
        ("task.submitted", one, None, None, "shop"),
        ("task.submitted", two, 2, three, "shop"),
    ]
    assert sorted(received[3:]) == [
        ("task.canceled", held, None, None, "shop"),
        ("task.submitted", fresh, None, None, "shop"),
    ]


async def test_the_audit_names_callers_without_a_key_anonymous(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        id = (await client.post("/tasks", json=ECHO)).json()["id"]
        (entry,) = (await client.get("/audit")).json()["entries"]

    assert (entry["what"], entry["about"]) == ("task.submitted", id)
    assert entry["by"] == {"name": "anonymous", "address": "127.0.0.1"}


async def test_a_purged_project_leaves_nothing_behind(callers: Callers, world: World, redis_url: str) -> None:
    id = await callers.add(callers.shop)
    run_next(redis_url)

    await callers.client.delete(f"/tasks/{id}", headers=callers.shop)

    assert not world.redis.exists("taskpool:project:shop", "taskpool:projects")


async def test_what_dashboards_deleted_is_swept_from_a_projects_index(callers: Callers, world: World) -> None:
    id = await callers.add(callers.shop)
    world.redis.delete(f"rq:job:{id}")

    assert world.run(scripts.sweep_index("taskpool:project:shop", "", 10)) == ""

    assert not world.redis.exists("taskpool:project:shop", "taskpool:projects")


def test_every_route_of_a_task_is_among_those_tried() -> None:
    assert routes_of_a_task() >= ROUTES_OF_A_TASK


async def test_the_id_of_a_key_is_in_the_audit_and_its_secret_is_not(callers: Callers, world: World) -> None:
    await callers.add(callers.shop)

    (entry,) = world.redis.xrange("taskpool:audit:submitted")
    token = callers.shop["authorization"].removeprefix("Bearer ")
    assert json.loads(entry[1][b"e"])["key"] == id_of(token)
    assert token.split("_", 2)[2] not in repr(world.snapshot())
