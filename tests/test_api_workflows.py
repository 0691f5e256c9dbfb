"""Workflows over HTTP: submitted, listed, read; what is refused, and with which pointer; keys and projects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from taskpool import TaskPool, TaskStatus
from taskpool.access.api_key import Scope
from taskpool.operations.status import follow_up
from taskpool.tasks.attempt import Outcome
from tests.api_client import api, publish_types
from tests.keys import bearer, make_key

ECHO: dict[str, Any] = {"type": "echo", "payload": {"message": "hi"}}
PROBLEM = "urn:taskpool:problem:"
PARENT = "d217r8m2n3aolstf2ch5"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


def run_next(redis_url: str, status: TaskStatus = TaskStatus.DONE, **outcome: Any) -> None:
    """Run the next task of the queue `default`, and release what waits for it."""
    with TaskPool(redis_url) as pool:
        running = pool.run_task(["default"], worker="w", attempt_id="a1")
        assert running is not None
        word = pool.update_status(running, Outcome(status, **outcome))
        pool.store.carry_out(follow_up(running, word))


def workflow(*nodes: dict[str, Any], name: str = "import") -> dict[str, Any]:
    return {"name": name, "nodes": list(nodes) or [node("first"), node("second", "first")]}


def node(name: str, *after: Any, **options: Any) -> dict[str, Any]:
    return {"name": name, "task": {**ECHO, **options}, **({"after": [*after]} if after else {})}


def rows(name: str, size: int, *after: Any) -> dict[str, Any]:
    return {"name": name, "map": [ECHO] * size, "after": [*after]}


async def submit(client: httpx.AsyncClient, *nodes: dict[str, Any], **headers: str) -> str:
    response = await client.post("/workflows", json=workflow(*nodes), headers=headers)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def read(client: httpx.AsyncClient, id: str, **headers: str) -> dict[str, Any]:
    response = await client.get(f"/workflows/{id}", headers=headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_workflow_is_accepted_with_its_place(client: httpx.AsyncClient) -> None:
    response = await client.post("/workflows", json=workflow())

    id = response.json()["id"]
    assert (response.status_code, response.json()) == (202, {"id": id, "status": "in_progress"})
    assert response.headers["location"] == f"/workflows/{id}"


async def test_a_workflow_shows_its_graph_and_how_far_it_is(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client, node("import"), rows("rows", 2, "import"), node("end", {"name": "rows", "on": "any"}))
    run_next(redis_url)
    run_next(redis_url, TaskStatus.FAILED, error="bad row")

    document = await read(client, id)

    first, end = (each["id"] for each in document["nodes"] if "id" in each)
    after = [{"name": "import", "on": "success"}]
    assert document.pop("created_at").endswith("Z")
    assert document == {
        "id": id, "name": "import", "status": "in_progress", "total": 4, "ended": 2, "seq": document["seq"],
        "counts": {"done": 1, "failed": 1},
        "nodes": [
            {"name": "import", "id": first, "status": "done"},
            {"name": "rows", "size": 2, "rank": 1, "counts": {"failed": 1}, "after": after},
            {"name": "end", "id": end, "status": "waiting", "rank": 2, "after": [{"name": "rows", "on": "any"}]},
        ],
    }  # fmt: skip


async def test_a_workflow_that_has_not_changed_is_not_sent_again(client: httpx.AsyncClient) -> None:
    id = await submit(client)
    tag = (await client.get(f"/workflows/{id}")).headers["etag"]

    again = await client.get(f"/workflows/{id}", headers={"if-none-match": tag})

    assert (again.status_code, again.content) == (304, b"")


async def test_its_tasks_name_it_and_are_listed_by_node_and_status(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client, node("import"), rows("rows", 5), node("end", "import"))
    await submit(client)
    run_next(redis_url)

    async def listed(**query: Any) -> list[tuple[str, str]]:
        found, query = [], {"workflow": id, "limit": 2, **query}
        while True:
            page = (await client.get("/tasks", params=query)).json()
            found += [(each["node"], each["status"]) for each in page["tasks"]]
            assert {each["workflow"] for each in page["tasks"]} <= {id}
            if "next_cursor" not in page:
                return found
            query["cursor"] = page["next_cursor"]

    assert await listed() == [("end", "queued"), *[("rows", "queued")] * 5, ("import", "done")]
    assert await listed(node="rows") == [("rows", "queued")] * 5
    assert await listed(status="done") == [("import", "done")]
    assert await listed(node="other") == []
    assert (await client.get("/tasks", params={"workflow": "none"})).json() == {"tasks": []}
    assert (await client.get("/tasks", params={"node": "rows"})).status_code == 400


async def test_workflows_are_listed_newest_first_in_pages(client: httpx.AsyncClient, redis_url: str) -> None:
    ids = [await submit(client, node("one")) for _ in range(3)]
    run_next(redis_url)

    first = await client.get("/workflows", params={"limit": 2})
    rest = await client.get("/workflows", params={"limit": 2, "cursor": first.json()["next_cursor"]})
    done = (await client.get("/workflows", params={"status": "done"})).json()["workflows"]

    listed = [each["id"] for each in (*first.json()["workflows"], *rest.json()["workflows"])]
    assert listed == sorted(ids, reverse=True)  # ids of one millisecond have no order of their making
    assert 'rel="next"' in first.headers["link"]
    assert [(each["id"], each["counts"]) for each in done] == [(ids[0], {"done": 1})]
    assert "nodes" not in done[0]
    assert (await client.get("/workflows", params={"status": "dne"})).status_code == 400
    other = (await client.post("/workflows", json=workflow(node("a"), name="other"))).json()["id"]
    named = (await client.get("/workflows", params={"name": "other"})).json()["workflows"]
    assert [each["id"] for each in named] == [other]


@pytest.mark.parametrize(
    ("body", "kind", "pointer"),
    [
        (workflow(node("a"), node("a")), "invalid-task", "/nodes/1/name"),
        (workflow(node("a", "b"), node("b", "a")), "invalid-task", "/nodes/0/after/0"),
        (workflow(node("a", "b")), "invalid-task", "/nodes/0/after/0"),
        (workflow(node("a"), name="a b"), "invalid-task", "/name"),
        ({"name": "a", "nodes": []}, "invalid-task", "/nodes"),
        ({"name": "a"}, "invalid-task", "/nodes"),
        (workflow({"name": "a", "task": {}}), "invalid-task", "/nodes/0/task/type"),
        (workflow(node("a"), node("b", priority=1)), "invalid-task", "/nodes/1/task/priority"),
        (workflow(node("a"), node("b", max_attempts=0)), "invalid-task", "/nodes/1/task/max_attempts"),
        (workflow({"name": "a", "map": [ECHO, {**ECHO, "payload": {}}]}), "invalid-payload",
         "/nodes/0/map/1/payload/message"),
        (workflow(node("a"), {"name": "b", "map": [ECHO, {"type": "eco"}]}), "unknown-type", "/nodes/1/map/1/type"),
        (workflow(node("a"), node("b", depends_on=[PARENT])), "unknown-dependency", "/nodes/1/task/depends_on"),
        (workflow(node("a", unique_key="k"), node("b", unique_key="k")), "invalid-task", "/nodes/1/task/unique_key"),
    ],
)  # fmt: skip
async def test_a_refusal_names_the_place_and_stores_nothing(
    client: httpx.AsyncClient, redis_url: str, body: Any, kind: str, pointer: str
) -> None:
    response = await client.post("/workflows", json=body)

    assert (response.status_code, response.json()["type"]) == (422, PROBLEM + kind), response.text
    assert pointer in [each["pointer"] for each in response.json()["errors"]]
    assert (await client.get("/workflows")).json() == {"workflows": []}
    assert (await client.get("/tasks")).json() == {"tasks": []}


async def test_a_unique_key_that_is_held_is_named_where_it_stands(client: httpx.AsyncClient) -> None:
    held = (await client.post("/tasks", json={**ECHO, "unique_key": "k"})).json()["id"]
    body = workflow(node("b", "a", unique_key="k"), node("a"))

    response = await client.post("/workflows", json=body)

    assert response.status_code == 409
    assert response.json()["task_id"] == held
    assert response.json()["errors"][0]["pointer"] == "/nodes/0/task/unique_key"


async def test_an_idempotency_key_submits_once(client: httpx.AsyncClient) -> None:
    headers = {"idempotency-key": "k1"}

    first = await client.post("/workflows", json=workflow(), headers=headers)
    again = await client.post("/workflows", json=workflow(), headers=headers)
    other = await client.post("/workflows", json=workflow(node("x")), headers=headers)

    assert "idempotency-replayed" not in first.headers
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status_code, other.json()["type"]) == (422, PROBLEM + "idempotency-key-reused")
    assert len((await client.get("/workflows")).json()["workflows"]) == 1


async def test_tasks_get_the_trace_context_of_the_request(client: httpx.AsyncClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    id = await submit(client, node("a"), rows("b", 1), traceparent=trace)

    tasks = (await client.get("/tasks", params={"workflow": id})).json()["tasks"]
    assert [each["traceparent"] for each in tasks] == [trace, trace]


async def test_ten_thousand_tasks_are_one_request(client: httpx.AsyncClient) -> None:
    body = workflow(*[node(f"n{at}") for at in range(2_000)], rows("rows", 7_999, "n0"), node("end", "rows"))
    assert len(msgspec.json.encode(body)) > 256 * 1024

    response = await client.post("/workflows", json=body)

    assert response.status_code == 202
    document = await read(client, response.json()["id"])
    assert (document["total"], len(document["nodes"])) == (10_000, 2_002)


async def test_a_body_beyond_its_limit_is_refused(redis_url: str) -> None:
    async with api(redis_url, max_workflow_bytes=100) as client:
        response = await client.post("/workflows", json=workflow(rows("rows", 50)))

    assert (response.status_code, response.json()["max_bytes"]) == (413, 100)


async def test_a_workflow_that_does_not_exist_is_not_found(client: httpx.AsyncClient) -> None:
    for id in ("d217r8m2n3aolstf0000", "a%3Ab", "x" * 300):
        response = await client.get(f"/workflows/{id}")

        assert (response.status_code, response.json()["type"]) == (404, PROBLEM + "workflow-not-found")


async def test_a_project_sees_its_own_workflows_alone(client: httpx.AsyncClient, redis_url: str) -> None:
    shop, bank = (bearer(make_key(redis_url, name, project=name)) for name in ("shop", "bank"))
    root = bearer(make_key(redis_url, "root", Scope.ADMIN))
    id = await submit(client, **shop)

    listed = [(await client.get("/workflows", headers=who)).json()["workflows"] for who in (shop, bank, root)]

    assert [[each["id"] for each in page] for page in listed] == [[id], [], [id]]
    assert (await read(client, id, **shop))["project"] == "shop"
    assert (await client.get(f"/workflows/{id}", headers=bank)).status_code == 404
    of_bank = (await client.get("/tasks", params={"workflow": id}, headers=bank)).json()["tasks"]
    of_shop = (await client.get("/tasks", params={"workflow": id}, headers=shop)).json()["tasks"]
    assert (len(of_bank), len(of_shop)) == (0, 2)


async def test_each_node_is_checked_against_the_key(client: httpx.AsyncClient, redis_url: str) -> None:
    bound = bearer(make_key(redis_url, "bound", types=("echo",), queues=("default",)))
    mine = (await client.post("/tasks", json=ECHO, headers=bound)).json()["id"]
    project = bearer(make_key(redis_url, "shop", project="shop"))

    for nodes, pointer in (
        ([node("a"), {"name": "b", "task": {"type": "long_task"}}], "/nodes/1/task/type"),
        ([node("a"), {"name": "b", "map": [ECHO, {**ECHO, "queue": "other"}]}], "/nodes/1/map/1/queue"),
    ):
        refused = await client.post("/workflows", json=workflow(*nodes), headers=bound)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (403, pointer)
    foreign = await client.post("/workflows", json=workflow(node("a", depends_on=[mine])), headers=project)
    assert (foreign.status_code, foreign.json()["type"]) == (422, PROBLEM + "unknown-dependency")
    assert (await client.get("/workflows", headers=bound)).json() == {"workflows": []}


async def test_a_key_that_may_not_write_submits_none(client: httpx.AsyncClient, redis_url: str) -> None:
    reader = bearer(make_key(redis_url, "reader", Scope.READ))
    writer = bearer(make_key(redis_url, "writer", Scope.WRITE))

    assert (await client.post("/workflows", json=workflow(), headers=reader)).status_code == 403
    id = await submit(client, **writer)
    assert (await client.get(f"/workflows/{id}", headers=writer)).status_code == 403
    assert (await read(client, id, **reader))["id"] == id


async def test_a_workflow_counts_as_many_requests_as_it_has_tasks(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url, rate_limit=600, rate_burst_s=10.0) as client:
        first = await client.post("/workflows", json=workflow(rows("rows", 80)))
        second = await client.post("/workflows", json=workflow(rows("rows", 70)))

    assert (first.status_code, second.status_code) == (202, 429)


async def test_a_stop_cancels_what_waits_and_a_removal_deletes_it(client: httpx.AsyncClient) -> None:
    id = await submit(client, node("a"), rows("rows", 3, "a"))

    early = await client.delete(f"/workflows/{id}")
    stopped = await client.post(f"/workflows/{id}/stop", json={"grace_s": 1})
    late = await client.post(f"/workflows/{id}/stop")
    removed = await client.delete(f"/workflows/{id}")

    assert (early.status_code, early.json()["workflow_status"]) == (409, "in_progress")
    assert (stopped.status_code, stopped.json()["status"], stopped.json()["counts"]) == (
        202,
        "stopped",
        {"canceled": 4},
    )
    assert (late.status_code, late.json()["type"]) == (409, PROBLEM + "workflow-conflict")
    assert (removed.status_code, removed.content) == (204, b"")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/stop")):
        assert (await client.request(method, f"/workflows/{id}{path}")).status_code == 404


@pytest.mark.parametrize("body", [{"grace_s": -1}, {"grace_s": "x"}, {"grace": 1}, []])
async def test_a_wrong_stop_is_refused(client: httpx.AsyncClient, body: Any) -> None:
    id = await submit(client)

    response = await client.post(f"/workflows/{id}/stop", json=body)

    assert (response.status_code, (await read(client, id))["status"]) == (422, "in_progress")


async def test_a_key_stops_only_workflows_whose_tasks_it_may_stop(client: httpx.AsyncClient, redis_url: str) -> None:
    root = bearer(make_key(redis_url, "root", Scope.ADMIN))
    bound = bearer(make_key(redis_url, "bound", queues=("default",)))
    blind = bearer(make_key(redis_url, "blind", Scope.STOP, Scope.WRITE, queues=("default",)))
    writer = bearer(make_key(redis_url, "writer", Scope.WRITE))
    bank = bearer(make_key(redis_url, "bank", project="bank"))
    mixed = await submit(client, node("a"), rows("rows", 3), node("b", queue="other"), **root)
    own = await submit(client, node("a"), rows("rows", 3), **root)

    answers = [
        (await client.request(method, f"/workflows/{mixed}{path}", headers=who)).status_code
        for who in (bound, blind, writer, bank)
        for method, path in (("POST", "/stop"), ("DELETE", ""))
    ]
    stopped = await client.post(f"/workflows/{own}/stop", headers=blind)

    assert answers == [403, 403, 404, 404, 403, 403, 404, 404]
    assert (stopped.status_code, stopped.json()) == (202, {"id": own, "status": "stopped"})
    assert (await read(client, mixed, **root))["status"] == "in_progress"


async def test_a_retry_runs_what_failed_and_what_is_behind_it(client: httpx.AsyncClient, redis_url: str) -> None:
    nodes = node("a"), node("b", "a"), node("c", "b"), node("end", {"name": "c", "on": "any"})
    id = await submit(client, *nodes)
    early = await client.post(f"/workflows/{id}/retry")
    run_next(redis_url)
    run_next(redis_url, TaskStatus.FAILED, error="no luck")
    run_next(redis_url)
    ended = await read(client, id)

    retried = await client.post(f"/workflows/{id}/retry", json={})

    assert (early.status_code, early.json()["workflow_status"]) == (409, "in_progress")
    assert ended["counts"] == {"done": 2, "failed": 1, "canceled": 1}
    assert retried.status_code == 202
    assert (retried.json()["status"], retried.json()["counts"]) == ("in_progress", {"done": 1})
    for _ in range(3):
        run_next(redis_url)
    after = await read(client, id)
    assert (after["status"], after["counts"]) == ("done", {"done": 4})
    assert (await client.post(f"/workflows/{id}/retry")).status_code == 409


async def test_a_key_retries_only_workflows_whose_tasks_it_may_start(client: httpx.AsyncClient, redis_url: str) -> None:
    root = bearer(make_key(redis_url, "root", Scope.ADMIN))
    id = await submit(client, node("a"), node("b", queue="other"), **root)
    await client.post(f"/workflows/{id}/stop", headers=root)

    answers = [
        (await client.post(f"/workflows/{id}/retry", headers=bearer(make_key(redis_url, **options)))).status_code
        for options in ({"queues": ("default",)}, {"project": "bank"}, {"types": ("echo",)})
    ]

    assert answers == [403, 404, 202]


async def test_a_workflow_that_has_no_room_is_refused_as_a_whole(redis_url: str) -> None:
    publish_types(redis_url)
    shop = bearer(make_key(redis_url, "shop", project="shop"))
    async with api(redis_url, max_queue_depth=3, max_tags=1) as client:
        client.headers.update(shop)
        full = await client.post("/workflows", json=workflow(node("a"), rows("rows", 3)))
        capped = await client.post("/workflows", json=workflow(node("a", tags=["x"]), node("b", tags=["y"])))
        fits = await client.post("/workflows", json=workflow(node("a", tags=["x"]), rows("rows", 2)))

        assert (full.status_code, full.json()["type"], full.json()["queue"]) == (429, PROBLEM + "queue-full", "default")
        assert (capped.status_code, capped.json()["type"], capped.json()["cap"]) == (403, PROBLEM + "cap-reached", 1)
        assert fits.status_code == 202
        assert len((await client.get("/tasks")).json()["tasks"]) == 3


async def test_a_wrong_retry_is_refused(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    response = await client.post(f"/workflows/{id}/retry", json={"from": "a"})

    assert (response.status_code, response.json()["type"]) == (422, PROBLEM + "invalid-body")
