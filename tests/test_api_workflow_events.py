"""The events of workflows: over Server-Sent Events and the WebSocket, numbered, resumable, and of no one else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskPool, TaskSpec
from taskpool.operations.status import follow_up
from taskpool.redis import keys
from taskpool.redis.calls import Call
from taskpool.tasks.attempt import Outcome
from taskpool.types import TaskStatus
from tests.api_client import api, api_process, publish_types
from tests.event_clients import StreamClient
from tests.keys import bearer, make_key
from tests.states import World
from tests.support import until
from tests.test_api_socket import client_of

ECHO = TaskSpec(type="echo", payload={"message": "hi"})


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    publish_types(redis_url)
    with TaskPool(redis_url) as pool:
        yield pool


@pytest.fixture
def url(redis_url: str, pool: TaskPool, tmp_path: Path) -> Iterator[str]:
    with api_process(redis_url, tmp_path / "log") as (_, url):
        yield url
    assert "Traceback" not in (tmp_path / "log").read_text()


def submit(pool: TaskPool, size: int = 2) -> str:
    with pool.workflow("import") as w:
        w.map("rows", [ECHO] * size)
    return w.id


def run_next(pool: TaskPool) -> None:
    running = pool.run_task(["default"], worker="w", attempt_id="a1")
    assert running is not None
    word = pool.update_status(running, Outcome(TaskStatus.DONE))
    pool.store.carry_out(follow_up(running, word))


def read(text: str) -> list[tuple[str, str, Any]]:
    """The messages of a stream: id, event, data."""
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":") for block in text.split("\n\n")
    ]
    return [(each["id"], each.get("event", "message"), json.loads(each["data"])) for each in blocks if "data" in each]


async def test_the_stream_of_an_ended_workflow_is_its_state_without_nodes(pool: TaskPool, redis_url: str) -> None:
    id = submit(pool)
    run_next(pool)
    run_next(pool)

    async with api(redis_url) as client:
        answer = await client.get(f"/workflows/{id}/events")

    ((_, event, document),) = read(answer.text)
    assert (event, document["id"], document["status"], document["counts"]) == ("snapshot", id, "done", {"done": 2})
    assert document["seq"] == pool.get_workflow(id).seq
    assert "nodes" not in document


async def test_a_client_that_reconnects_gets_what_it_missed_and_then_204(
    pool: TaskPool, redis_url: str, world: World
) -> None:
    id = submit(pool)
    run_next(pool)
    run_next(pool)
    steps = [(at.decode(), json.loads(fields[b"e"])) for at, fields in world.redis.xrange(keys.EVENTS)]
    own = [(at, step) for at, step in steps if step["id"] == id]

    async with api(redis_url) as client:
        missed = await client.get(f"/workflows/{id}/events", headers={"last-event-id": own[0][0]})
        nothing = await client.get(f"/workflows/{id}/events", headers={"last-event-id": own[-1][0]})

    received = read(missed.text)
    assert [at for at, _, _ in received] == [at for at, _ in own[1:]]
    assert [data["seq"] for _, _, data in received] == list(range(2, 2 + len(received)))
    assert received[-1][2]["event"] == "workflow_done"
    assert nothing.status_code == 204


async def test_a_stream_follows_a_workflow_to_its_end(pool: TaskPool, url: str) -> None:
    id = submit(pool, 4)
    client = await StreamClient.follow(url, f"/workflows/{id}/events")
    await until(lambda: client.shown)
    everything = await StreamClient.follow(url, "/events")

    for _ in range(4):
        run_next(pool)
    await until(lambda: client.reading is not None and client.reading.done())
    await until(lambda: len(everything.steps) >= 8)
    await everything.end()

    assert client.shown == {id: 1}
    assert client.of(id) == list(range(2, pool.get_workflow(id).seq + 1))
    assert {of for of, _ in client.steps} == {id}
    assert everything.of(id) == []


async def test_a_stream_ends_when_the_workflow_is_removed(pool: TaskPool, url: str) -> None:
    id = submit(pool)
    client = await StreamClient.follow(url, f"/workflows/{id}/events")
    await until(lambda: client.shown)

    pool.store.run(Call(("DEL", keys.WORKFLOW + id), int))
    await until(lambda: "gone" in client.notices)

    assert client.problem == "workflow-not-found"
    await client.end()


async def test_no_stream_for_a_workflow_that_the_caller_cannot_see(pool: TaskPool, redis_url: str) -> None:
    id = submit(pool)
    task = pool.list_tasks(workflow=id).items[0].id
    bank = bearer(make_key(redis_url, "bank", project="bank"))
    reader = bearer(make_key(redis_url, "reader"))

    async with api(redis_url) as client:
        answers = [
            await client.get(f"/workflows/{id}/events", headers=bank),
            await client.get(f"/workflows/{task}/events", headers=reader),
            await client.get("/workflows/none/events", headers=reader),
        ]

    assert [each.status_code for each in answers] == [404] * 3
    assert {each.json()["type"] for each in answers} == {"urn:taskpool:problem:workflow-not-found"}


async def test_a_socket_subscribes_to_a_workflow(pool: TaskPool, url: str) -> None:
    id = submit(pool, 1)
    async with client_of(url) as client:  # which compares each message with the AsyncAPI document
        await client.say(op="subscribe", sub="s", workflow=id)
        (snapshot, _) = await client.hear_until("live")
        run_next(pool)
        events = [await client.hear()]
        while events[-1]["event"]["event"] != "workflow_done":
            events.append(await client.hear())
        await client.say(op="subscribe", sub="t", workflow="none")
        unknown = await client.hear()
        await client.say(op="subscribe", sub="u", workflow=id, task=id)
        both = await client.hear()

    assert (snapshot["op"], snapshot["tasks"], snapshot["workflow"]["id"]) == ("snapshot", [], id)
    assert [each["event"]["seq"] for each in events] == list(range(2, 2 + len(events)))
    assert (events[-1]["sub"], events[-1]["event"]["id"], events[-1]["event"]["status"]) == ("s", id, "done")
    assert (unknown["op"], unknown["kind"], unknown["sub"]) == ("error", "workflow-not-found", "t")
    assert (both["op"], both["kind"]) == ("error", "invalid-message")


async def test_events_that_the_stream_no_longer_has_are_reported(pool: TaskPool, redis_url: str, world: World) -> None:
    id = submit(pool, 1)
    run_next(pool)
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)

    async with api(redis_url) as client:
        answer = await client.get(f"/workflows/{id}/events", headers={"last-event-id": "5-5"})
        wrong = await client.get(f"/workflows/{id}/events", headers={"last-event-id": "x"})

    (at, resync, lost), (_, snapshot, document) = read(answer.text)
    assert (resync, lost) == ("resync", {"after": at, "reason": "trimmed"})
    assert (snapshot, document["status"]) == ("snapshot", "done")
    assert (wrong.status_code, wrong.json()["type"]) == (400, "urn:taskpool:problem:invalid-event-id")


async def test_a_stream_beyond_the_limit_is_refused(pool: TaskPool, redis_url: str, world: World) -> None:
    id = submit(pool, 1)
    async with api(redis_url, max_streams=1) as client:
        first = asyncio.create_task(client.get(f"/workflows/{id}/events"))
        while not world.redis.pubsub_numsub(keys.CHANNEL + id)[0][1]:
            await asyncio.sleep(0.01)

        refused = await client.get(f"/workflows/{id}/events")
        run_next(pool)

        assert (refused.status_code, refused.json()["type"]) == (503, "urn:taskpool:problem:too-many-streams")
        assert (await first).status_code == 200
