"""What a client may prefer: to wait for the result, 304 for what it knows, a trace context for its task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import TaskStatus, task
from taskpool.testing import InlinePool
from tests.api_client import api, claim, publish_types, run_next
from tests.support import eventually

ECHO = {"type": "echo", "payload": {"message": "hi"}}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


async def end_next(redis: Redis, redis_url: str, status: TaskStatus = TaskStatus.DONE, **outcome: Any) -> None:
    await asyncio.to_thread(eventually, lambda: redis.llen("rq:queue:default"))
    await asyncio.to_thread(lambda: run_next(redis_url, status, **outcome))


ENDS: dict[TaskStatus, tuple[dict[str, Any], dict[str, Any]]] = {
    TaskStatus.DONE: ({"result": b"42"}, {"status": "done", "result": 42}),
    TaskStatus.FAILED: ({"error": "no luck", "failure": {"reason": "x"}}, {"status": "failed", "error": "no luck"}),
}


@pytest.mark.parametrize("status", ENDS)
async def test_a_client_that_waits_gets_the_ended_task(
    client: httpx.AsyncClient, redis: Redis, redis_url: str, status: TaskStatus
) -> None:
    outcome, shown = ENDS[status]
    waiting = asyncio.create_task(client.post("/tasks", json=ECHO, headers={"Prefer": "wait=60"}))
    await end_next(redis, redis_url, status, **outcome)

    response = await waiting

    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=50"  # sooner than the 60 s of proxies
    assert response.headers["location"] == f"/tasks/{response.json()['id']}"
    assert response.json().items() >= shown.items()


async def test_a_task_that_takes_longer_is_accepted_as_ever(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks", json=ECHO, headers={"Prefer": "wait=0"})

    assert response.status_code == 202
    assert response.json().keys() == {"id", "status"}
    assert response.headers["preference-applied"] == "wait=0"


async def test_a_submission_waits_less_long_than_a_proxy(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.query.MAX_WAIT_S", 0)

    response = await client.post("/tasks", json=ECHO, headers={"Prefer": "respond-async, wait=3600"})

    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=0")


async def test_a_preference_that_isnt_understood_is_ignored(client: httpx.AsyncClient) -> None:
    response = await client.post("/tasks", json=ECHO, headers={"Prefer": "wait=long"})

    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_a_replayed_request_may_wait_too(client: httpx.AsyncClient, redis: Redis, redis_url: str) -> None:
    headers = {"Prefer": "wait=60", "Idempotency-Key": "k"}
    await client.post("/tasks", json=ECHO, headers={"Idempotency-Key": "k"})
    waiting = asyncio.create_task(client.post("/tasks", json=ECHO, headers=headers))
    await end_next(redis, redis_url, result=b"42")

    response = await waiting

    assert (response.status_code, response.json()["result"]) == (200, 42)
    assert response.headers["idempotency-replayed"] == "true"


async def test_a_task_that_has_not_changed_is_answered_304(client: httpx.AsyncClient, redis_url: str) -> None:
    path = (await client.post("/tasks", json=ECHO)).headers["location"]
    tag = (await client.get(path)).headers["etag"]

    same = await client.get(path, headers={"If-None-Match": tag})
    waited = await client.get(path + "?wait=0.01", headers={"If-None-Match": tag})
    claim(redis_url)
    changed = await client.get(path, headers={"If-None-Match": tag})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert (waited.status_code, waited.headers["preference-applied"]) == (304, "wait=0.01")
    assert (changed.status_code, changed.json()["status"]) == (200, "in_progress")
    assert changed.headers["etag"] != tag


async def test_a_change_that_a_plain_rq_worker_makes_is_one(client: httpx.AsyncClient, redis: Redis) -> None:
    response = await client.post("/tasks", json=ECHO)
    path, id = response.headers["location"], response.json()["id"]
    tag = (await client.get(path)).headers["etag"]
    redis.hset(f"rq:job:{id}", "status", "finished")  # without a number: RQ knows none

    assert (await client.get(path, headers={"If-None-Match": tag})).status_code == 200


async def test_the_types_have_a_tag_too(client: httpx.AsyncClient) -> None:
    tag = (await client.get("/types")).headers["etag"]

    assert (await client.get("/types", headers={"If-None-Match": f"W/{tag}"})).status_code == 304


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch"])
async def test_the_trace_context_of_a_request_is_kept_with_its_tasks(client: httpx.AsyncClient, path: str) -> None:
    body = ECHO if path == "/tasks" else {"tasks": [ECHO]}

    response = await client.post(path, json=body, headers={"traceparent": TRACE, "tracestate": "a=1,b=2"})

    document = response.json()
    id = document["id"] if path == "/tasks" else document["tasks"][0]["id"]
    shown = (await client.get(f"/tasks/{id}")).json()
    assert (shown["traceparent"], shown["tracestate"]) == (TRACE, "a=1,b=2")


async def test_the_submissions_own_trace_context_comes_first(client: httpx.AsyncClient) -> None:
    own = TRACE.replace("0af7", "1111")

    response = await client.post("/tasks", json={**ECHO, "traceparent": own}, headers={"traceparent": TRACE})

    assert (await client.get(response.headers["location"])).json()["traceparent"] == own


@pytest.mark.parametrize(
    "trace",
    [
        "", "x", TRACE[:-1], TRACE.upper(), TRACE + "-x", TRACE.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + TRACE[35:], TRACE[:36] + "0" * 16 + "-01",
    ],
)  # fmt: skip
async def test_an_invalid_trace_context_is_ignored(client: httpx.AsyncClient, trace: str) -> None:
    headers = {"traceparent": trace, "tracestate": "a=1"}

    response = await client.post("/tasks", json=ECHO, headers=headers)

    shown = (await client.get(response.headers["location"])).json()
    assert response.status_code == 202
    assert not shown.keys() & {"traceparent", "tracestate"}


def test_a_task_finds_its_trace_context() -> None:
    @task("traced")
    def traced(ctx: Any) -> list[str | None]:
        return [ctx.traceparent, ctx.tracestate]

    later = "cc" + TRACE[2:] + "-more"
    given: list[dict[str, Any]] = [{"traceparent": TRACE, "tracestate": "a=1"}, {"traceparent": later}, {}]
    with InlinePool(traced) as pool:
        results = [pool.run("traced", **options).result for options in given]

    assert results == [[TRACE, "a=1"], [later, None], [None, None]]
