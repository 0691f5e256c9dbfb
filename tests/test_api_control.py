"""Pauses and worker pools over HTTP and through both clients: made, seen, refused; keys, scopes and projects; audit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import InvalidTask, TaskPool
from taskpool.access.api_key import Scope
from taskpool.errors import PoolConflict, PoolNotFound
from taskpool.operations.control import stacks
from taskpool.redis import pause_scripts
from taskpool.redis.store import Store
from taskpool.types.fleet import PoolState, ReasonKind
from tests.api_client import api, api_process, claim, publish_types
from tests.client_kinds import KINDS, client_of
from tests.keys import bearer, make_key
from tests.stack_answers import FRAMES, answering

PROBLEM = "urn:taskpool:problem:"
PAUSED = ("/queues/default", "/pools/pool-1", "")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


@pytest.mark.parametrize("path", PAUSED)
async def test_what_is_paused_is_seen_until_it_is_resumed(client: httpx.AsyncClient, path: str) -> None:
    async def seen() -> Any:
        queues, pools = (await client.get("/queues")).json(), (await client.get("/pools")).json()
        if not path:
            assert queues.get("paused") == pools.get("paused")
            return queues.get("paused")
        return (queues["queues"] or [{}])[0].get("paused") if "queues" in path else pools["pools"][0].get("paused")

    paused = await client.post(f"{path}/pause", json={"why": "a deployment"})
    again = await client.post(f"{path}/pause", json={"why": "another"})
    shown = await seen()
    resumed = [await client.post(f"{path}/resume") for _ in range(2)]

    assert (paused.status_code, paused.json()) == (200, {"at": paused.json()["at"], "why": "a deployment"})
    assert again.json() == paused.json() == shown, "the first pause counts"
    assert [(answer.status_code, answer.text) for answer in resumed] == [(204, "")] * 2
    assert await seen() is None


async def test_a_pause_needs_no_body(client: httpx.AsyncClient) -> None:
    for path in PAUSED:
        assert set((await client.post(f"{path}/pause")).json()) == {"at"}


async def test_a_pool_is_listed_with_what_it_does(client: httpx.AsyncClient) -> None:
    running = (await client.get("/pools")).json()
    await client.post("/pools/pool-1/pause")
    paused = (await client.get("/pools")).json()["pools"][0]
    drained = await client.post("/pools/pool-1/drain", json={"why": "a new kernel"})
    draining = (await client.get("/pools")).json()["pools"][0]
    resumed = await client.post("/pools/pool-1/resume")

    (pool,) = running["pools"]
    assert pool == {
        "name": "pool-1",
        "host": "here",
        "state": "running",
        "last_seen_ms": pool["last_seen_ms"],
        "processes": 0,
        "slots": 1,
        "busy": 0,
        "queues": ["default"],
    }
    assert (paused["state"], "why" in paused["paused"]) == ("paused", False)
    assert (drained.status_code, drained.json()["why"], drained.json()["drains"]) == (202, "a new kernel", True)
    assert (draining["state"], draining["paused"]) == ("draining", drained.json())
    assert (resumed.status_code, resumed.json()["type"]) == (409, PROBLEM + "pool-conflict")


async def test_a_pool_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    for verb in ("pause", "resume", "drain"):
        answer = await client.post(f"/pools/nobody/{verb}")
        assert (answer.status_code, answer.json()["type"]) == (404, PROBLEM + "pool-not-found")


async def test_invalid_names_and_reasons_are_refused(client: httpx.AsyncClient) -> None:
    for path in ("/queues/default/pause", "/pools/pool-1/pause", "/pools/pool-1/drain", "/pause"):
        for why in ("", " blank", "x" * 2001, 7):
            answer = await client.post(path, json={"why": why})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/why"), (path, why)
        answer = await client.post(path, json={"whi": "x"})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/whi")
    for verb in ("pause", "resume"):
        answer = await client.post(f"/queues/a%20b/{verb}")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/queue")
    assert "paused" not in (await client.get("/queues")).json()


async def test_a_paused_queue_is_listed_although_nothing_is_known_of_it(client: httpx.AsyncClient) -> None:
    await client.post("/queues/b/pause")
    await client.post("/tasks", json={"type": "echo", "payload": {"message": "hi"}, "queue": "c"})
    await client.post("/queues/a/pause")

    first = (await client.get("/queues", params={"limit": 2})).json()
    rest = (await client.get("/queues", params={"limit": 2, "cursor": first["next_cursor"]})).json()

    shown = [(each["name"], each["queued"], "paused" in each) for each in first["queues"] + rest["queues"]]
    assert shown == [("a", 0, True), ("b", 0, True), ("c", 1, False)]


async def test_why_a_task_does_not_run_is_explained(client: httpx.AsyncClient, redis_url: str) -> None:
    echo: dict[str, Any] = {"type": "echo", "payload": {"message": "hi"}}
    first = (await client.post("/tasks", json=echo)).json()["id"]
    child = (await client.post("/tasks", json={**echo, "depends_on": [first]})).json()["id"]
    await client.post("/queues/default/pause", json={"why": "a reason"})

    why = (await client.get(f"/tasks/{child}/why")).json()
    missing = await client.get("/tasks/nobody/why")

    assert (why["id"], why["status"], why["can_run"]) == (child, "waiting", False)
    (reason,) = why["reasons"]
    (parent,) = reason["tasks"]
    assert (reason["kind"], parent["id"], parent["status"]) == ("waits_for", first, "queued")
    (paused,) = parent["why"]
    assert (paused["kind"], paused["paused"], paused["name"]) == ("paused", "queue", "default")
    assert paused["text"].endswith(": a reason.")
    assert (missing.status_code, missing.json()["type"]) == (404, PROBLEM + "task-not-found")
    await client.post("/queues/default/resume")
    busy = (await client.get(f"/tasks/{first}/why")).json()["reasons"]
    assert [(each["kind"], each["ahead"], each["workers"]) for each in busy] == [("busy", 0, 0)]


async def test_a_tenant_is_told_why_without_what_operators_say(client: httpx.AsyncClient, redis_url: str) -> None:
    tenant = bearer(make_key(redis_url, "tenant", Scope.READ, Scope.WRITE, project="shop"))
    other = bearer(make_key(redis_url, "other", Scope.READ, project="else"))
    admin = bearer(make_key(redis_url, "admin", Scope.ADMIN))
    task = {"type": "echo", "payload": {"message": "hi"}}
    id = (await client.post("/tasks", json=task, headers=tenant)).json()["id"]
    await client.post("/queues/default/pause", json={"why": "a reason"}, headers=admin)

    (reason,) = (await client.get(f"/tasks/{id}/why", headers=tenant)).json()["reasons"]

    assert (reason["kind"], reason["text"], "by" in reason) == ("paused", "It is paused.", False)
    assert (await client.get(f"/tasks/{id}/why", headers=other)).status_code == 404


async def test_a_running_task_tells_where_it_is(
    client: httpx.AsyncClient, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = bearer(make_key(redis_url, "tenant", Scope.READ, Scope.WRITE, project="shop"))
    other = bearer(make_key(redis_url, "other", Scope.READ, project="else"))
    admin = bearer(make_key(redis_url, "admin", Scope.ADMIN))
    task = {"type": "echo", "payload": {"message": "hi"}}
    id = (await client.post("/tasks", json=task, headers=tenant)).json()["id"]
    waits = await client.post(f"/tasks/{id}/stack", headers=admin)
    claim(redis_url)
    with answering(redis_url, "w", id):
        told = (await client.post(f"/tasks/{id}/stack", headers=admin)).json()
        of_tenant = (await client.post(f"/tasks/{id}/stack", headers=tenant)).json()
        of_other = await client.post(f"/tasks/{id}/stack", headers=other)
    monkeypatch.setattr(stacks, "POLLS", 1)
    unanswered = await client.post(f"/tasks/{id}/stack", headers=admin)

    assert (waits.status_code, waits.json()["task_status"]) == (409, "queued")
    assert told["frames"][-1] == {"file": "/app/tasks.py", "line": 41, "function": "resize", "is_user": True}
    assert (told["id"], told["text"]) == (id, "Thread 1 runs something else")
    assert of_tenant["frames"] == told["frames"]
    assert of_tenant["text"].splitlines()[-1] == '  File "/app/tasks.py", line 41 in resize'
    assert of_other.status_code == 404
    assert (unanswered.status_code, unanswered.json()["type"]) == (409, PROBLEM + "task-conflict")
    assert (await client.post("/tasks/nobody/stack", headers=admin)).status_code == 404


async def test_who_may_pause_what(client: httpx.AsyncClient, redis_url: str) -> None:
    stopper = bearer(make_key(redis_url, "stopper", Scope.STOP))
    reader = bearer(make_key(redis_url, "reader", Scope.READ))
    of_queue = bearer(make_key(redis_url, "of a queue", Scope.STOP, queues=["default"]))
    of_type = bearer(make_key(redis_url, "of a type", Scope.STOP, types=["echo"]))
    of_project = bearer(make_key(redis_url, "of a project", Scope.STOP, Scope.READ, project="shop", queues=["default"]))
    everything = [f"{path}/{verb}" for path in PAUSED for verb in ("resume", "pause")] + ["/pools/pool-1/drain"]

    async def allowed(headers: dict[str, str]) -> set[str]:
        answers = {path: await client.post(path, headers=headers) for path in everything}
        assert {answer.status_code for answer in answers.values()} <= {200, 202, 204, 403}, answers
        return {path for path, answer in answers.items() if answer.is_success}

    assert await allowed(reader) == await allowed(of_type) == await allowed(of_project) == set()
    assert await allowed(of_queue) == {"/queues/default/pause", "/queues/default/resume"}
    assert (await client.post("/queues/other/pause", headers=of_queue)).status_code == 403
    assert await allowed(stopper) == set(everything)
    seen = (await client.get("/queues", headers=of_project)).json()
    assert set(seen["queues"][0]["paused"]) == set(seen["paused"]) == {"at"}, "what operators say is not for tenants"
    assert (await client.get("/pools", headers=of_project)).status_code == 403


async def test_pauses_are_in_the_audit(client: httpx.AsyncClient, redis_url: str) -> None:
    ann = bearer(make_key(redis_url, "Ann", Scope.ADMIN))
    for path in PAUSED:
        await client.post(f"{path}/pause", headers=ann, json={"why": "a reason"})
        await client.post(f"{path}/resume", headers=ann)
    await client.post("/pools/pool-1/drain", headers=ann)
    paused = (await client.get("/pools", headers=ann)).json()["pools"][0]["paused"]

    async def entries(**query: str) -> list[tuple[str, str, str | None, str]]:
        found = (await client.get("/audit", headers=ann, params=query)).json()["entries"]
        return [(each["what"], each["about"], each.get("comment"), each["by"]["name"]) for each in found]

    expected = [
        ("queue.paused", "default", "a reason", "Ann"),
        ("queue.resumed", "default", None, "Ann"),
        ("pool.paused", "pool-1", "a reason", "Ann"),
        ("pool.resumed", "pool-1", None, "Ann"),
        ("everything.paused", "all", "a reason", "Ann"),
        ("everything.resumed", "all", None, "Ann"),
        ("pool.drained", "pool-1", None, "Ann"),
    ]
    assert list(reversed(await entries()))[1:] == expected
    for each in expected:
        assert await entries(what=each[0]) == [each]
    assert paused["by"] == "Ann"


@pytest.mark.parametrize("kind", KINDS)
def test_the_clients_pause_and_resume(redis_url: str, server: str, kind: str) -> None:
    with client_of(kind, server) as client, TaskPool(redis_url) as pool:
        for face in (client, pool):
            face.pause_queue("mail", why="a reason")
            face.pause_all()
            face.pause_pool("pool-1", why="a reason")
            (queue,) = face.queues()
            (listed,) = face.pools()
            assert queue.paused is not None
            assert queue.paused == face.pause_queue("mail")
            assert (queue.name, queue.paused.why, queue.paused.by) == ("mail", "a reason", None)
            assert (listed.name, listed.state, listed.paused) == ("pool-1", PoolState.PAUSED, face.pause_pool("pool-1"))
            face.resume_queue("mail")
            face.resume_all()
            face.resume_pool("pool-1")
            assert not Redis.from_url(redis_url).exists("taskpool:switches")
            with pytest.raises(PoolNotFound, match="'nobody'"):
                face.drain_pool("nobody")
            with pytest.raises(PoolNotFound):
                face.pause_pool("..")
            for name in ("a b", "..", "a/b", 7):
                with pytest.raises(InvalidTask, match="/queue"):
                    face.pause_queue(name)  # type: ignore[arg-type]
            with pytest.raises(InvalidTask, match="/why"):
                face.pause_all(why=" ")
        id = pool.add_task("echo", {"message": "hi"}).id
        assert client.why(id) == pool.why(id)
        assert [reason.kind for reason in client.why(id).reasons] == [ReasonKind.BUSY]
        child = pool.add_task("echo", {"message": "hi"}, depends_on=[id]).id
        assert pool.run_task(["default"], worker="w", attempt_id="a1")
        with answering(redis_url, "w", id):
            assert client.stack(id).frames == pool.stack(id).frames == FRAMES
        assert client.why(child).reasons[0].tasks[0].why == pool.why(id).reasons
        assert client.drain_pool("pool-1").drains
        for face in (client, pool):
            with pytest.raises(PoolConflict, match="draining"):
                face.resume_pool("pool-1")


@pytest.fixture
def server(redis_url: str, tmp_path: Any) -> Iterator[str]:
    publish_types(redis_url)
    with api_process(redis_url, tmp_path / "log") as (_, url):
        yield url


def test_a_value_that_cannot_be_read_pauses_but_is_not_shown(redis_url: str) -> None:
    redis, store = Redis.from_url(redis_url), Store(redis_url)
    redis.hset("taskpool:switches", mapping={"queue:a": "{", "queue:b": '{"at_ms":1}'})

    paused = store.run(pause_scripts.paused())
    assert set(paused) == {"queue:b"}

    store.close()
