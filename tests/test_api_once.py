"""Idempotency keys and unique keys over HTTP: sent again, sent at once, sent to an API that dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.api_client import api, api_process, claim, publish_types, run_next
from tests.support import PATIENCE_S, eventually

ECHO = {"type": "echo", "payload": {"message": "hi"}}
BATCH = {"tasks": [ECHO, {**ECHO, "delay_s": 60}]}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


def key(name: str = "key-1") -> dict[str, str]:
    return {"Idempotency-Key": name}


@pytest.mark.parametrize(("path", "body"), [("/tasks", ECHO), ("/tasks/batch", BATCH)])
async def test_the_second_request_is_answered_as_the_first(
    client: httpx.AsyncClient, redis: Redis, path: str, body: dict[str, Any]
) -> None:
    first = await client.post(path, json=body, headers=key())
    before = redis.dbsize(), redis.llen("rq:queue:default")

    second = await client.post(path, json=body, headers=key())

    assert (first.status_code, second.status_code) == (202, 202)
    assert second.content == first.content
    assert second.headers.get("location") == first.headers.get("location")
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert (redis.dbsize(), redis.llen("rq:queue:default")) == before


async def test_the_answer_is_the_first_even_when_the_task_has_gone(client: httpx.AsyncClient, redis_url: str) -> None:
    first = await client.post("/tasks", json=ECHO, headers=key())
    run_next(redis_url)
    await client.delete(first.headers["location"])

    second = await client.post("/tasks", json=ECHO, headers=key())

    assert (second.status_code, second.content) == (202, first.content)


async def test_what_a_body_means_counts_and_not_how_it_is_written(client: httpx.AsyncClient) -> None:
    headers = {**key(), "content-type": "application/json"}
    first = await client.post("/tasks", content='{"type":"echo","payload":{"message":1}}', headers=headers)

    second = await client.post("/tasks", content='{ "payload": {"message": 1}, "type": "echo" }', headers=headers)

    assert second.content == first.content


@pytest.mark.parametrize(("path", "body"), [("/tasks", {**ECHO, "front": True}), ("/tasks/batch", {"tasks": [ECHO]})])
async def test_a_key_stands_for_one_request(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    await client.post("/tasks", json=ECHO, headers=key())

    response = await client.post(path, json=body, headers=key())

    assert response.status_code == 422
    assert response.json()["type"] == "urn:taskpool:problem:idempotency-key-reused"


async def test_a_refused_request_is_not_kept(client: httpx.AsyncClient) -> None:
    refused = await client.post("/tasks", json={**ECHO, "depends_on": ["none"]}, headers=key())

    response = await client.post("/tasks", json=ECHO, headers=key())

    assert (refused.status_code, response.status_code) == (422, 202)
    assert "idempotency-replayed" not in response.headers


async def test_a_repeated_submission_is_answered_though_its_type_is_no_longer_served(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        first = await client.post("/tasks", json=ECHO, headers=key())
    with Redis.from_url(redis_url) as redis:
        redis.delete("taskpool:types")
    async with api(redis_url) as client:
        second = await client.post("/tasks", json=ECHO, headers=key())
        other = await client.post("/tasks", json=ECHO, headers=key("key-2"))

    assert (second.status_code, second.content) == (202, first.content)
    assert other.status_code == 422


async def test_of_many_at_once_one_is_carried_out(client: httpx.AsyncClient, redis: Redis) -> None:
    responses = await asyncio.gather(*[client.post("/tasks", json=ECHO, headers=key()) for _ in range(20)])

    assert {response.status_code for response in responses} == {202}
    assert len({response.content for response in responses}) == 1
    assert sum("idempotency-replayed" in response.headers for response in responses) == 19
    assert redis.llen("rq:queue:default") == 1


@pytest.mark.parametrize("name", ["", "x" * 256, "a b"])
async def test_what_cant_be_a_key_is_refused(client: httpx.AsyncClient, redis: Redis, name: str) -> None:
    response = await client.post("/tasks", json=ECHO, headers=key(name))

    assert response.status_code == 400
    assert response.json()["type"] == "urn:taskpool:problem:invalid-header"
    assert not redis.exists("rq:queue:default")


async def test_an_api_that_is_killed_in_between_leaves_no_key_blocked_and_no_task_twice(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    publish_types(redis_url)
    with api_process(redis_url, tmp_path / "first.log") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            await client.post("/tasks", json={**ECHO, "queue": "other"})  # Redis knows the script from here on
            redis.client_pause(60_000, all=False)
            sent = [asyncio.create_task(client.post("/tasks", json=ECHO, headers=key())) for _ in range(3)]
            assert await asyncio.to_thread(eventually, lambda: _blocked(redis))
            process.kill()
            redis.client_unpause()
            gone = await asyncio.gather(*sent, return_exceptions=True)
    assert all(isinstance(each, httpx.TransportError) for each in gone)

    with api_process(redis_url, tmp_path / "second.log") as (_, url):
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            response = await client.post("/tasks", json=ECHO, headers=key())

    assert response.status_code == 202
    assert redis.lrange("rq:queue:default", 0, -1) == [response.json()["id"].encode()]


def _blocked(redis: Redis) -> bool:
    return int(redis.info("clients")["blocked_clients"]) > 0


# --- unique keys ----------------------------------------------------------------------------------------------------

UNIQUE = {**ECHO, "unique_key": "report:1"}


async def test_a_held_key_is_a_conflict_with_a_link_to_the_holder(client: httpx.AsyncClient) -> None:
    holder = (await client.post("/tasks", json=UNIQUE)).headers["location"]

    response = await client.post("/tasks", json=UNIQUE)

    problem = response.json()
    assert (response.status_code, problem["type"]) == (409, "urn:taskpool:problem:unique-conflict")
    assert (problem["task"], problem["task_status"]) == (holder, "queued")
    assert problem["errors"][0]["pointer"] == "/unique_key"
    assert response.headers["link"] == f'<{holder}>; rel="related"'
    assert (await client.get(problem["task"])).json()["unique_key"] == "report:1"


async def test_the_holder_may_be_the_answer(client: httpx.AsyncClient, redis_url: str) -> None:
    holder = await client.post("/tasks", json=UNIQUE)
    claim(redis_url)

    response = await client.post("/tasks", json={**UNIQUE, "on_conflict": "return"})

    assert response.status_code == 200
    assert response.json() == {"id": holder.json()["id"], "status": "in_progress"}
    assert response.headers["location"] == holder.headers["location"]


async def test_of_many_that_replace_each_other_the_last_one_stays(client: httpx.AsyncClient) -> None:
    body = {**UNIQUE, "on_conflict": "replace", "delay_s": 60}

    ids = [(await client.post("/tasks", json=body)).json()["id"] for _ in range(5)]

    stand = [(await client.get(f"/tasks/{id}")).json() for id in ids]
    assert [each["status"] for each in stand] == ["canceled"] * 4 + ["scheduled"]
    assert {each.get("reason") for each in stand[:4]} == {"replaced"}


async def test_a_key_is_free_once_its_task_has_ended(client: httpx.AsyncClient, redis_url: str) -> None:
    await client.post("/tasks", json=UNIQUE)
    run_next(redis_url)

    assert (await client.post("/tasks", json=UNIQUE)).status_code == 202


async def test_in_a_batch_the_held_key_is_named_and_nothing_stored(client: httpx.AsyncClient, redis: Redis) -> None:
    await client.post("/tasks", json=UNIQUE)

    response = await client.post("/tasks/batch", json={"tasks": [ECHO, UNIQUE]})

    assert response.status_code == 409
    assert response.json()["errors"][0]["pointer"] == "/tasks/1/unique_key"
    assert redis.llen("rq:queue:default") == 1


async def test_a_batch_says_which_tasks_were_there(client: httpx.AsyncClient) -> None:
    id = (await client.post("/tasks", json=UNIQUE)).json()["id"]

    response = await client.post("/tasks/batch", json={"tasks": [ECHO, {**UNIQUE, "on_conflict": "return"}]})

    new, old = response.json()["tasks"]
    assert response.status_code == 202
    assert old == {"id": id, "status": "queued", "existing": True}
    assert "existing" not in new


async def test_a_batch_has_each_key_once(client: httpx.AsyncClient, redis: Redis) -> None:
    response = await client.post("/tasks/batch", json={"tasks": [UNIQUE, ECHO, UNIQUE]})

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/tasks/2/unique_key"
    assert not redis.exists("rq:queue:default")


async def test_a_retry_is_refused_while_another_task_holds_the_key(client: httpx.AsyncClient) -> None:
    first = (await client.post("/tasks", json=UNIQUE)).headers["location"]
    await client.delete(first)
    second = (await client.post("/tasks", json=UNIQUE)).json()["id"]

    response = await client.post(f"{first}/retry")

    assert response.status_code == 409
    assert second in response.json()["detail"]
