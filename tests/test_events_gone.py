"""A client that follows a task learns that its record was deleted by hand, for which there is no event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from api.app import create_app
from api.events import hub as the_hub
from api.events.client_queue import ClientQueue, Gone
from api.events.hub import CHECK_S, RoundRobin
from api.routes.events import _until_live
from taskpool import TaskNotFound
from taskpool.operations.status import log_task
from taskpool.redis import scripts
from taskpool.settings import Settings
from tests.api_client import api_process
from tests.client_kinds import KINDS, client_of
from tests.event_clients import SocketClient, StreamClient
from tests.listeners import Listener, hub_on
from tests.states import World
from tests.support import PATIENCE_S, until
from tests.test_api_events import read


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hubs of this process look at each turn of their loop, without waiting."""
    monkeypatch.setattr(the_hub, "CHECK_S", 0.0)
    monkeypatch.setattr(the_hub, "MARK_S", 0.01)


@pytest.fixture
def url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """An API process, as it is."""
    with api_process(redis_url, tmp_path / "log") as (_, url):
        yield url
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("looks_often")
async def test_subscriptions_to_a_deleted_task_end_once_and_no_others(redis_url: str, world: World) -> None:
    world.add("a")
    running = world.start("b")
    async with hub_on(redis_url) as hub:
        of_a, of_a_too, of_b, of_all = [Listener(hub) for _ in range(4)]
        await of_a.open(task="a")
        await of_a_too.open(task="a")
        await of_b.open(task="b")
        await of_all.open(snapshots=False)
        for each in (of_a, of_a_too, of_b, of_all):
            await each.until(lambda each: "live" in each.received)

        world.redis.delete("rq:job:a")
        await of_a.until(lambda each: "gone" in each.received)
        await of_a_too.until(lambda each: "gone" in each.received)
        world.finish(running)
        await of_b.until(lambda each: each.steps() == [3])
        await of_all.until(lambda each: each.steps() == [3])
        async with asyncio.timeout(PATIENCE_S):
            while world.redis.pubsub_numsub("taskpool:task:a")[0][1]:
                await asyncio.sleep(0.01)

    assert of_a.received == of_a_too.received == [("snapshot", {"a": 1}), "live", "gone"]
    assert "gone" not in of_b.received + of_all.received


@pytest.mark.usefixtures("looks_often")
async def test_a_hash_that_a_late_write_has_left_is_no_task(redis_url: str, world: World) -> None:
    world.add("a")
    async with hub_on(redis_url) as hub:
        listener = Listener(hub)
        await listener.open(task="a")

        with world.redis.pipeline() as both:
            both.delete("rq:job:a")
            both.hset("rq:job:a", "last_heartbeat", "2026-11-24T03:00:00.000000Z")
            both.execute()

        await listener.until(lambda each: "gone" in each.received)


@pytest.mark.usefixtures("looks_often")
async def test_events_before_a_deletion_come_first(redis_url: str, world: World) -> None:
    async with hub_on(redis_url) as hub:
        listeners = []
        for n in range(20):
            running = world.start(f"t{n}")
            listeners.append(Listener(hub))
            await listeners[-1].open(task=running.id)
            await listeners[-1].until(lambda each: "live" in each.received)
            for done in range(3):
                world.run(scripts.progress(running, {"done": done}))
            world.finish(running)
            world.redis.delete(f"rq:job:{running.id}")

        for each in listeners:
            await each.until(lambda each: "gone" in each.received)
    assert [each.steps() for each in listeners] == [[3, 4, 5, 6]] * 20


def test_everyone_has_a_turn_and_a_look_never_takes_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_hub, "CHECK_S", 0.0)
    followed = ["a", "b", "c", "d", "e"]
    checks = RoundRobin(lambda: list(followed), most=2)

    first = [checks.take() for _ in range(3)]
    followed.append("f")
    second = [checks.take() for _ in range(3)]
    followed.clear()

    assert [len(ids) for ids in first] == [2, 2, 1]
    assert sorted(chain(*first)) == ["a", "b", "c", "d", "e"]
    assert [len(ids) for ids in second] == [2, 2, 2]
    assert sorted(chain(*second)) == ["a", "b", "c", "d", "e", "f"]
    assert checks.take() == []


def test_there_is_time_between_two_looks() -> None:
    checks = RoundRobin(lambda: ["a"])

    assert CHECK_S > 0
    assert [checks.take() for _ in range(3)] == [["a"], [], []]


@pytest.mark.usefixtures("looks_often")
async def test_a_stream_that_has_a_tasks_end_does_not_report_it_gone(redis_url: str, world: World) -> None:
    running = world.start("a")
    is_read = asyncio.Event()
    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        await is_read.wait()

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def heard(listeners: int) -> None:
        while world.redis.pubsub_numsub("taskpool:task:a")[0][1] != listeners:
            await asyncio.sleep(0.01)

    app = create_app(Settings(redis_url=redis_url))
    async with app.router.lifespan_context(app), asyncio.timeout(PATIENCE_S):
        scope = {"type": "http", "method": "GET", "path": "/tasks/a/events", "query_string": b"", "headers": []}
        stream = asyncio.create_task(app(scope, receive, send))
        await heard(1)
        world.finish(running)
        world.redis.delete("rq:job:a")
        await heard(0)  # that it is gone waits behind its end
        is_read.set()
        await stream

    received = read(b"".join(sent).decode())
    assert [(event, data["status"]) for _, event, data in received] == [
        ("snapshot", "in_progress"),
        ("message", "done"),
    ]


async def test_a_client_that_reconnects_to_a_task_deleted_meanwhile_does_not_wait(redis_url: str, world: World) -> None:
    world.add("a")
    async with hub_on(redis_url) as hub:
        subscription = await Listener(hub).open(task="a", reads=False)
        queue = ClientQueue(on_slow=hub.drop)

        queue.put(Gone(subscription))

        assert [type(item) for item in await _until_live(queue)] == [Gone]


async def test_streams_and_sockets_report_a_deleted_task(url: str, world: World) -> None:
    world.add("a")
    world.add("b")
    stream = await StreamClient.follow(url, "/tasks/a/events")
    log = await StreamClient.follow(url, "/tasks/a/logs?follow=1&format=events")
    socket = await SocketClient.follow(url, task="b")
    await until(lambda: "snapshot" in stream.notices and "live" in socket.notices)

    world.redis.delete("rq:job:a")
    Job.fetch("b", connection=world.redis, serializer=JSONSerializer).delete()  # as dashboards do

    await until(lambda: "gone" in stream.notices and "gone" in log.notices and "error" in socket.notices)
    assert stream.reading is not None
    await stream.reading  # it has ended
    assert stream.notices == ["snapshot", "gone"]
    assert log.notices == ["gone"]
    assert socket.notices == ["snapshot", "live", "error"]
    assert [each.problem for each in (stream, log, socket)] == ["task-not-found"] * 3
    assert httpx.get(f"{url}/tasks/a/events", headers={"last-event-id": stream.last}).status_code == 404
    await socket.connection.send('{"op": "subscribe", "sub": "s", "filter": {}}')  # the name is free again
    await until(lambda: socket.notices[-1] == "live")
    await socket.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_s_waits_raise_that_there_is_no_such_task(url: str, world: World, kind: str) -> None:
    running = world.start("a")
    world.run(log_task(running, [(1_795_435_200_123, "a line")]))

    with client_of(kind, url) as client:
        waits = [iter(each("a")) for each in (client.follow, client.events, client.follow_log)]
        for received in waits:
            next(received)
        world.redis.delete("rq:job:a")

        for received in waits:
            with pytest.raises(TaskNotFound) as raised:
                list(received)
            assert raised.value.id == "a"
