"""The life of a task over HTTP, with the application in this process and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import TaskPool, TaskStatus
from tests.api_client import api, claim, publish_types, run_next
from tests.support import eventually

ECHO = {"type": "echo", "payload": {"message": "hi"}}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


async def submit(client: httpx.AsyncClient, **fields: Any) -> str:
    response = await client.post("/tasks", json={**ECHO, **fields})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def test_a_submitted_task_is_accepted_with_its_place(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks", json=ECHO)

    id = response.json()["id"]
    assert response.status_code == 202
    assert response.json() == {"id": id, "status": "queued"}
    assert response.headers["location"] == f"/tasks/{id}"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


async def test_an_accepted_task_can_be_read(client: httpx.AsyncClient) -> None:
    id = await submit(client, tags=["a"], max_attempts=3, timeout_s=2.5)

    response = await client.get(f"/tasks/{id}")

    document = response.json()
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert document.pop("created_at") == document.pop("enqueued_at")
    assert document == {
        "id": id, "type": "echo", "status": "queued", "queue": "default", "payload": {"message": "hi"}, "attempt": 0,
        "max_attempts": 3, "timeout_s": 2.5, "result_ttl_s": 86400, "failure_ttl_s": 604800, "tags": ["a"], "seq": 1,
    }  # fmt: skip


async def test_head_is_get_without_the_body(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    response = await client.head(f"/tasks/{id}")

    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 100


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"delay_s": 60}, "scheduled"),
        ({"run_at": "2027-11-23T00:00:00+01:00"}, "scheduled"),
        ({"run_at": "2026-11-20T00:00:00+01:00"}, "queued"),
        ({"delay_s": 0}, "queued"),
        ({"front": True}, "queued"),
        ({"expires_in_s": 0.5}, "queued"),
    ],
)
async def test_options_decide_how_a_task_starts(client: httpx.AsyncClient, fields: dict[str, Any], status: str) -> None:
    response = await client.post("/tasks", json={**ECHO, **fields})

    assert (response.status_code, response.json().get("status")) == (202, status)


async def test_a_task_waits_for_those_it_depends_on(client: httpx.AsyncClient) -> None:
    parent = await submit(client)

    response = await client.post("/tasks", json={**ECHO, "depends_on": [parent]})

    assert response.json()["status"] == "waiting"


async def test_what_a_task_came_to_is_shown(client: httpx.AsyncClient, redis_url: str) -> None:
    done, failed = await submit(client), await submit(client)
    run_next(redis_url, result=b'{"n":[1,null]}')
    run_next(redis_url, TaskStatus.FAILED, error="it broke", failure={"reason": "exception"})

    first = (await client.get(f"/tasks/{done}")).json()
    second = (await client.get(f"/tasks/{failed}")).json()

    assert (first["status"], first["result"], first["attempt"]) == ("done", {"n": [1, None]}, 1)
    assert (second["status"], second["error"], second["failure"]) == ("failed", "it broke", {"reason": "exception"})
    assert "result" not in second
    assert first["created_at"] <= first["started_at"] <= first["ended_at"]


async def test_a_batch_is_accepted_in_order(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks/batch", json={"tasks": [{**ECHO, "tags": [f"t{n}"]} for n in range(1000)]})

    tasks = response.json()["tasks"]
    listed = (await client.get("/tasks", params={"tag": "t7"})).json()["tasks"]
    assert response.status_code == 202
    assert len({task["id"] for task in tasks}) == 1000
    assert tasks[7] == {"id": listed[0]["id"], "status": "queued"}


async def test_a_batch_is_stored_whole_or_not_at_all(client: httpx.AsyncClient, redis: Redis) -> None:
    before = set(redis.keys())

    response = await client.post("/tasks/batch", json={"tasks": [ECHO, ECHO, {"type": "echo", "payload": {"x": 1}}]})

    assert response.status_code == 422
    assert {error["pointer"].rpartition("/payload")[0] for error in response.json()["errors"]} == {"/tasks/2"}
    assert set(redis.keys()) == before


async def test_a_wait_ends_with_the_task(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client)

    waiting = asyncio.create_task(client.get(f"/tasks/{id}?wait=30"))
    with Redis.from_url(redis_url) as redis:
        await asyncio.to_thread(eventually, lambda: redis.pubsub_numsub(f"taskpool:task:{id}")[0][1])
    await asyncio.to_thread(run_next, redis_url)
    response = await waiting

    assert response.json()["status"] == "done"


async def test_a_wait_that_is_over_shows_the_task_as_it_is(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    response = await client.get(f"/tasks/{id}?wait=0.01")

    assert (response.status_code, response.json()["status"]) == (200, "queued")


async def test_a_wait_for_an_ended_or_unknown_task_is_over_at_once(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client)
    run_next(redis_url)

    assert (await client.get(f"/tasks/{id}?wait=60")).json()["status"] == "done"
    assert (await client.get("/tasks/nothing?wait=60")).status_code == 404


@pytest.mark.parametrize(
    ("asked", "applied"),
    [("1", "1"), ("0.25", "0.25"), ("50", "50"), ("50.5", "50"), ("60", "50"), ("316224000", "50")],
)
async def test_a_wait_ends_before_a_proxy_gives_up(
    client: httpx.AsyncClient, redis_url: str, asked: str, applied: str
) -> None:
    id = await submit(client)
    run_next(redis_url)

    response = await client.get(f"/tasks/{id}?wait={asked}")

    assert (response.status_code, response.headers["preference-applied"]) == (200, f"wait={applied}")


async def test_a_wait_that_is_too_long_is_cut_short(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.routes.tasks.MAX_WAIT_S", 0.05)
    id = await submit(client)

    response = await client.get(f"/tasks/{id}?wait=3600")

    assert (response.json()["status"], response.headers["preference-applied"]) == ("queued", "wait=0.05")


@pytest.mark.parametrize("wait", ["-1", "nan", "long", "null", ""])
async def test_a_wait_that_is_no_time_is_refused(client: httpx.AsyncClient, wait: str) -> None:
    response = await client.get(f"/tasks/nothing?wait={wait}")

    assert response.status_code == 400
    assert response.json()["errors"][0]["parameter"] == "wait"


async def test_a_read_that_doesnt_wait_says_nothing_of_waiting(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    assert "preference-applied" not in (await client.get(f"/tasks/{id}")).headers


async def test_tasks_are_listed_page_by_page_newest_first(client: httpx.AsyncClient) -> None:
    ids = [await submit(client, tags=["x"]) for _ in range(5)]

    seen: list[str] = []
    url: str | None = "/tasks?tag=x&limit=2&status=queued&type=echo&queue=default"
    while url:
        response = await client.get(url)
        page = response.json()
        seen += [task["id"] for task in page["tasks"]]
        url = response.links["next"]["url"] if "next_cursor" in page else None
        assert ("next_cursor" in page) == ("next" in response.links)

    assert seen == sorted(ids, reverse=True)  # ids sort by the millisecond


async def test_a_waiting_task_is_canceled(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    response = await client.delete(f"/tasks/{id}")

    assert response.status_code == 200
    assert (response.json()["id"], response.json()["status"]) == (id, "canceled")


async def test_an_ended_task_is_purged(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client)
    run_next(redis_url)

    response = await client.delete(f"/tasks/{id}")

    assert (response.status_code, response.content) == (204, b"")
    assert (await client.get(f"/tasks/{id}")).status_code == 404
    assert (await client.delete(f"/tasks/{id}")).status_code == 404


async def test_a_running_task_must_be_stopped_first(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client)
    claim(redis_url)

    response = await client.delete(f"/tasks/{id}")

    problem = response.json()
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["task_status"], problem["stop"]) == (409, "in_progress", f"/tasks/{id}/stop")


@pytest.mark.parametrize("body", [None, {}, {"grace_s": 0.5}, {"force": True}])
async def test_a_running_task_is_asked_to_stop(client: httpx.AsyncClient, redis_url: str, body: Any) -> None:
    id = await submit(client)
    claim(redis_url)

    response = await (client.post(f"/tasks/{id}/stop") if body is None else client.post(f"/tasks/{id}/stop", json=body))

    assert (response.status_code, response.json()["status"]) == (202, "stopping")


async def test_stopping_a_task_that_has_not_started_cancels_it(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    response = await client.post(f"/tasks/{id}/stop")

    assert (response.status_code, response.json()["status"]) == (202, "canceled")


async def test_an_ended_task_cannot_be_stopped(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client)
    run_next(redis_url)

    response = await client.post(f"/tasks/{id}/stop")

    assert (response.status_code, response.json()["task_status"]) == (409, "done")


async def test_a_failed_task_is_retried(client: httpx.AsyncClient, redis_url: str) -> None:
    id = await submit(client)
    run_next(redis_url, TaskStatus.FAILED, error="it broke")

    response = await client.post(f"/tasks/{id}/retry")

    assert (response.status_code, response.json()["status"]) == (202, "queued")


async def test_a_queued_task_cannot_be_retried(client: httpx.AsyncClient) -> None:
    id = await submit(client)

    response = await client.post(f"/tasks/{id}/retry")

    assert (response.status_code, response.json()["task_status"]) == (409, "queued")


async def test_queues_are_paged_by_name(client: httpx.AsyncClient, redis: Redis, redis_url: str) -> None:
    redis.sadd("rq:queues", *[f"rq:queue:q{n:04}" for n in range(1200)])
    redis.rpush("rq:queue:q0501", "a", "b")

    found: list[dict[str, Any]] = []
    path = "/queues"
    while path:
        answer = await client.get(path)
        page = answer.json()
        assert len(page["queues"]) <= 500
        found += page["queues"]
        path = answer.links["next"]["url"] if page.get("next_cursor") else ""
        redis.srem("rq:queues", f"rq:queue:{found[-1]['name']}")  # the next page doesn't need it

    assert [queue["name"] for queue in found] == [f"q{n:04}" for n in range(1200)]
    assert [queue["name"] for queue in found if queue["queued"]] == ["q0501"]
    small = (await client.get("/queues?limit=2")).json()
    assert [queue["name"] for queue in small["queues"]] == ["q0000", "q0001"]
    assert (await client.get("/queues?cursor=x")).status_code == 400
    with TaskPool(redis_url) as pool:
        assert len(pool.queues()) == 1197


async def test_queues_are_shown_with_their_tasks_in_order(client: httpx.AsyncClient) -> None:
    second = await submit(client, queue="images")
    first = await submit(client, queue="images", front=True)

    queues = (await client.get("/queues")).json()["queues"]
    page = (await client.get("/queues/images")).json()
    start = await client.get("/queues/images?limit=1")
    rest = await client.get(start.links["next"]["url"])

    assert [(queue["name"], queue["queued"]) for queue in queues] == [("images", 2)]
    assert [(task["id"], task["position"]) for task in page["tasks"]] == [(first, 1), (second, 2)]
    assert page["tasks"][0]["wait_s"] >= 0
    assert [task["id"] for task in start.json()["tasks"] + rest.json()["tasks"]] == [first, second]
    assert "next_cursor" not in page


async def test_types_are_shown_with_their_schema_and_servers(client: httpx.AsyncClient) -> None:
    types = {entry["name"]: entry for entry in (await client.get("/types")).json()["types"]}

    assert types["echo"]["served_by"] == ["pool-1"]
    assert types["long_task"]["schema"]["properties"]["duration_s"]["default"] == 180


async def test_workers_are_shown(client: httpx.AsyncClient, redis: Redis) -> None:
    redis.sadd("rq:workers", "rq:worker:w1")
    birth = "2026-11-23T12:00:00.000000Z"
    redis.hset("rq:worker:w1", mapping={"birth": birth, "pid": 7, "queues": "a,b", "state": "idle"})

    (worker,) = (await client.get("/workers")).json()["workers"]

    assert (worker["name"], worker["pid"], worker["queues"], worker["state"]) == ("w1", 7, ["a", "b"], "idle")


async def test_the_front_door_leads_to_pages_that_exist(client: httpx.AsyncClient) -> None:
    streams = {"/events", "/live", "/ws"}  # they go on for ever

    door = (await client.get("/")).json()

    links = set(door["links"].values())
    assert door["service"] == "taskpool"
    assert streams <= links
    for link in links - streams:
        assert (await client.get(link)).status_code == 200


async def test_probes_answer(client: httpx.AsyncClient) -> None:
    live, ready = await client.get("/livez"), await client.get("/readyz?verbose")

    assert live.json() == {"status": "ok"}
    assert ready.status_code == 200
    assert ready.json()["workers"] == 0
    assert ready.json()["redis"].keys() >= {"version", "aof", "rdb_saved_at", "maxmemory_policy"}


async def test_a_task_of_another_program_is_seen(client: httpx.AsyncClient, redis_url: str) -> None:
    with TaskPool(redis_url) as pool:
        record = pool.add_task("echo", {"message": [None]})

    assert (await client.get(f"/tasks/{record.id}")).json()["payload"] == {"message": [None]}
