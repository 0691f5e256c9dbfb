"""/operations over HTTP: preview, start, progress, cancel, undo, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from taskpool import TaskPool, TaskStatus
from taskpool.access.api_key import Scope
from taskpool.errors import InvalidOperation, OperationConflict, OperationNotFound
from taskpool.types.control import Filter
from tests.api_client import api, api_process, publish_types, run_next
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


async def add(client: httpx.AsyncClient, count: int, **options: Any) -> list[str]:
    tasks = [{"type": "echo", "payload": {"message": "hi"}, **options}] * count
    added = await client.post("/tasks/batch", json={"tasks": tasks})
    return [task["id"] for task in added.json()["tasks"]]


async def ended(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """The operation at this path once it has ended."""
    while (found := (await client.get(path)).json())["status"] == "running":
        pass
    document: dict[str, Any] = found
    return document


async def test_a_preview_counts_and_shows_and_changes_nothing(client: httpx.AsyncClient) -> None:
    ids = await add(client, 7)
    await add(client, 2, delay_s=100, queue="other")

    seen = await client.post(
        "/operations", json={"action": "run_now", "filter": {"type": "echo", "since": "1h"}, "preview": True}
    )

    assert seen.status_code == 200
    assert (seen.json()["count"], seen.json()["is_exact"], seen.json()["left_out"]) == (2, True, {"queued": 7})
    assert {task["queue"] for task in seen.json()["sample"]} == {"other"}
    assert (await client.get(f"/tasks/{ids[0]}")).json()["status"] == "queued"


async def test_an_operation_is_started_followed_listed_and_undone(client: httpx.AsyncClient) -> None:
    ids = await add(client, 60, tags=["red"])

    started = await client.post("/operations", json={"action": "cancel", "filter": {"tag": "red"}})
    path = started.headers["location"]
    operation = await ended(client, path)
    undone = await client.post(f"{path}/undo")
    restored = await ended(client, undone.headers["location"])

    assert (started.status_code, started.json()["status"], undone.status_code) == (202, "running", 202)
    counts = {name: operation[name] for name in ("action", "status", "matched", "changed", "skipped", "progress")}
    assert counts == {
        "action": "cancel", "status": "done", "matched": 60, "changed": 60, "skipped": {}, "progress": 1.0,
    }  # fmt: skip
    assert operation["filter"] == {"tag": "red"}
    assert operation["undo_until"] > operation["ended_at"]
    assert (restored["undoes"], restored["changed"]) == (operation["id"], 60)
    assert (await client.get(f"/tasks/{ids[30]}")).json()["status"] == "queued"
    first = (await client.get("/operations", params={"limit": 1})).json()
    second = (await client.get("/operations", params={"limit": 1, "cursor": first["next_cursor"]})).json()
    assert [page["operations"][0]["action"] for page in (first, second)] == ["undo", "cancel"]


async def test_what_an_operation_does_not_allow_gives_409(client: httpx.AsyncClient) -> None:
    await add(client, 1)
    started = await client.post("/operations", json={"action": "run_now", "filter": {"type": "echo"}})
    path = started.headers["location"]
    await ended(client, path)

    canceled, undone = await client.post(f"{path}/cancel"), await client.post(f"{path}/undo")

    assert (canceled.status_code, undone.status_code) == (409, 409)
    assert canceled.json()["type"].endswith("operation-conflict")
    assert "only cancel and remove" in undone.json()["detail"]


async def test_an_operation_that_runs_is_canceled(client: httpx.AsyncClient, redis_url: str) -> None:
    with TaskPool(redis_url) as pool:
        id = pool.start_operation("cancel", Filter(type="echo")).id

    canceled = [await client.post(f"/operations/{id}/cancel") for _ in range(2)]

    assert [(each.status_code, each.json()["status"]) for each in canceled] == [(200, "canceled")] * 2


async def test_an_unknown_operation_gives_404(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/undo")):
        missing = await client.request(method, f"/operations/nothing{path}")
        assert (missing.status_code, missing.json()["type"]) == (404, "urn:taskpool:problem:operation-not-found")
    assert (await client.get("/operations/a:b")).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"action": "explode", "filter": {"type": "echo"}}, "/action"),
        ({"action": "retry"}, "/filter"),
        ({"action": "retry", "filter": {}}, "/filter"),
        ({"action": "retry", "filter": {"colour": "red"}}, "/filter/colour"),
        ({"action": "retry", "filter": {"status": "lost"}}, "/filter/status"),
        ({"action": "retry", "filter": {"since": "soon"}}, "/filter/since"),
        ({"action": "retry", "filter": {"attempts": 0}}, "/filter/attempts"),
        ({"action": "move", "filter": {"type": "echo"}}, "/queue"),
        ({"action": "retry", "filter": {"type": "echo"}, "preview": 1}, "/preview"),
        ([], ""),
    ],
)
async def test_what_is_no_operation_gives_422_with_its_place(
    client: httpx.AsyncClient, body: Any, pointer: str
) -> None:
    refused = await client.post("/operations", json=body)

    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["pointer"] == pointer


async def test_a_key_needs_the_scope_of_the_action_and_sees_only_its_project(redis_url: str) -> None:
    publish_types(redis_url)
    reader, writer = make_key(redis_url, "r", Scope.READ), make_key(redis_url, "w", Scope.READ, Scope.WRITE, Scope.STOP)
    shop = make_key(redis_url, "shop", Scope.READ, Scope.WRITE, Scope.STOP, project="shop")
    async with api(redis_url) as client:
        await client.post("/tasks", json={"type": "echo", "payload": {"message": "x"}}, headers=bearer(writer))
        mine = await client.post("/tasks", json={"type": "echo", "payload": {"message": "x"}}, headers=bearer(shop))
        body = {"action": "cancel", "filter": {"type": "echo"}}

        refused = await client.post("/operations", json=body, headers=bearer(reader))
        seen = await client.post("/operations", json=body | {"preview": True}, headers=bearer(shop))
        other = {"action": "cancel", "filter": {"project": "bank"}, "preview": True}
        nothing = await client.post("/operations", json=other, headers=bearer(shop))
        started = await client.post("/operations", json=body, headers=bearer(writer))
        path = started.headers["location"]
        hidden = [
            (await client.get(path, headers=bearer(shop))).status_code,
            (await client.post(f"{path}/cancel", headers=bearer(shop))).status_code,
            (await client.post(f"{path}/undo", headers=bearer(shop))).status_code,
        ]
        listed = (await client.get("/operations", headers=bearer(shop))).json()["operations"]
        may_not = (await client.post(f"{path}/undo", headers=bearer(reader))).status_code

    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (403, "/action")
    assert [task["id"] for task in seen.json()["sample"]] == [mine.json()["id"]]
    assert nothing.json()["count"] == 0
    assert (hidden, listed, may_not) == ([404, 404, 404], [], 403)


async def test_a_project_moves_tasks_only_to_as_many_queues_as_it_may_use(redis_url: str) -> None:
    publish_types(redis_url)
    shop = make_key(redis_url, "shop", Scope.READ, Scope.WRITE, project="shop")
    async with api(redis_url, max_queues=2) as client:
        submitted = {"type": "echo", "payload": {"message": "x"}}
        await client.post("/tasks", json=submitted, headers=bearer(shop))

        moved = [
            await client.post(
                "/operations",
                json={"action": "move", "queue": queue, "filter": {"type": "echo"}},
                headers=bearer(shop),
            )
            for queue in ("one", "default", "two", "one")
        ]
        refused = await client.post("/tasks", json={**submitted, "queue": "three"}, headers=bearer(shop))

    assert [each.status_code for each in moved] == [202, 202, 403, 202]
    assert (moved[2].json()["type"], moved[2].json()["cap"]) == ("urn:taskpool:problem:cap-reached", 2)
    assert refused.json()["type"] == "urn:taskpool:problem:cap-reached"


async def test_operations_are_audited(client: httpx.AsyncClient) -> None:
    (task,) = await add(client, 1)
    started = await client.post("/operations", json={"action": "cancel", "filter": {"type": "echo"}})
    await ended(client, started.headers["location"])
    undone = await client.post(f"{started.headers['location']}/undo")
    await ended(client, undone.headers["location"])

    entries = (await client.get("/audit", params={"about": task})).json()["entries"]

    ids = [started.json()["id"], undone.json()["id"]]
    assert [(entry["what"], entry["about"], entry.get("count", 1)) for entry in reversed(entries)] == [
        ("task.submitted", task, 1),
        ("operation.started", ids[0], 0),
        ("operation.ended", ids[0], 1),
        ("operation.undone", ids[0], 1),
        ("operation.ended", ids[1], 1),
    ]
    assert entries[-2]["comment"] == 'cancel {"type":"echo"}'
    assert (await client.get(f"/tasks/{task}")).json()["operations"] == ids


async def test_the_listing_says_how_much_a_search_saw(client: httpx.AsyncClient, redis_url: str) -> None:
    await add(client, 3)
    run_next(redis_url, TaskStatus.FAILED, error="no luck", failure={"reason": "exception"})

    plain = (await client.get("/tasks")).json()
    found = (await client.get("/tasks", params={"error": "LUCK", "since": "1h", "min_duration": "0"})).json()
    refused = await client.get("/tasks", params={"since": "soon"})

    assert "looked_at" not in plain
    assert (len(found["tasks"]), found["looked_at"], found["complete"]) == (1, 3, True)
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (400, "since")


@pytest.mark.parametrize("kind", ["pool", *KINDS])
def test_the_pools_and_the_clients_do_the_same(redis_url: str, tmp_path: Path, kind: str) -> None:
    publish_types(redis_url)
    with ExitStack() as stack:
        pool = stack.enter_context(TaskPool(redis_url))
        face: Any = pool
        if kind != "pool":
            _, url = stack.enter_context(api_process(redis_url, tmp_path / "api.log"))
            face = stack.enter_context(client_of(kind, url))
        ids = [pool.add_task("echo", {"message": "hi"}).id for _ in range(3)]

        seen = face.preview_operation("cancel", Filter(type="echo", status=TaskStatus.QUEUED))
        canceled = face.operate("cancel", Filter(type="echo", since="1h"))
        restored = list(face.follow_operation(face.undo_operation(canceled.id).id))[-1]

        assert (seen.count, seen.sample[0].status) == (3, "queued")
        assert (canceled.changed, restored.changed) == (3, 3)
        assert face.get_operation(canceled.id) == pool.get_operation(canceled.id)
        # Ids of one millisecond have no order of their making.
        newest = sorted([restored.id, canceled.id], reverse=True)
        assert [each.id for each in face.list_operations(limit=2).items] == newest
        with pytest.raises(OperationConflict):
            face.cancel_operation(restored.id)
        with pytest.raises(OperationNotFound):
            face.get_operation("nothing")
        with pytest.raises(InvalidOperation):
            face.start_operation("cancel", Filter(since="soon"))
        assert face.operate("cancel", Filter(text=ids[0])).changed == 1
        assert face.operate("remove", Filter(type="echo")).changed == 1
        assert face.operate("move", Filter(type="echo"), queue="other").changed == 2
