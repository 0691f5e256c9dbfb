"""The hub: each listener gets its events once and in order, over cuts, and learns of every gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from api.events import hub as hub_module
from api.events.client_queue import Live, Steps
from api.events.hub import Hub
from taskpool.errors import TaskNotFound
from taskpool.operations.status import START, Position
from taskpool.redis import bulk_scripts, keys, scripts
from taskpool.redis.embedded import RedisServer
from taskpool.types import DEFAULT_LIMITS, TaskStatus
from tests.listeners import Listener, hub_on
from tests.proxy import Proxy, Trap, When
from tests.states import World
from tests.support import PATIENCE_S, eventually

LIVE = "live"


@pytest.fixture
async def hub(redis_url: str) -> AsyncIterator[Hub]:
    async with hub_on(redis_url) as hub:
        yield hub


async def live(listener: Listener) -> None:
    await listener.until(lambda each: LIVE in each.received)


async def test_a_tasks_listener_gets_a_snapshot_and_then_each_event(hub: Hub, world: World) -> None:
    world.add("a")
    world.add("b")
    listener = Listener(hub)

    await listener.open(task="a")
    await live(listener)
    running = world.claim()
    world.run(scripts.progress(running, {"done": 1}))
    world.finish(running)
    world.finish(world.claim())

    await listener.until(lambda each: len(each.steps()) == 3)
    assert listener.received == [
        ("snapshot", {"a": 1}),
        LIVE,
        ("event", "a", 2, "started"),
        ("event", "a", 3, "progress"),
        ("event", "a", 4, "done"),
    ]


async def test_a_task_that_does_not_exist_or_is_not_to_be_seen_is_not_found(hub: Hub, world: World) -> None:
    world.add("a")

    with pytest.raises(TaskNotFound):
        await Listener(hub).open(task="missing")
    with pytest.raises(TaskNotFound):
        await Listener(hub).open(task="a", project="mine")


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, ["a", "b", "c"]),
        ({"queue": "q2"}, ["b"]),
        ({"type": "other"}, ["c"]),
        ({"tag": "x"}, ["b", "c"]),
        ({"tag": "x", "queue": "q2"}, ["b"]),
        ({"status": TaskStatus.QUEUED}, ["a", "b", "c"]),
        ({"status": TaskStatus.FAILED}, []),
        ({"project": "mine"}, ["b"]),
    ],
)
async def test_a_filter_keeps_what_fits_also_of_tasks_that_are_older_than_it(
    hub: Hub, world: World, wanted: dict[str, Any], ids: list[str]
) -> None:
    def add_all(suffix: str) -> None:
        world.add(f"a{suffix}")
        world.add(f"b{suffix}", queue="q2", tags=["x", "y"])
        world.add(f"c{suffix}", type="other", tags=["x"])

    def expire(id: str) -> None:
        world.redis.hset(f"rq:job:{id}", "project", "mine" if id.startswith("b") else "theirs")
        assert world.run(scripts.cancel(id, reason="canceled", error="by hand")) == "ok"

    add_all("1")
    listener, everybody = Listener(hub), Listener(hub)
    await listener.open(**wanted)
    await everybody.open()
    await live(listener)
    await live(everybody)
    add_all("2")
    for id in ("a1", "b1", "c1"):
        expire(id)

    await everybody.until(lambda each: len(each.steps()) == 6)
    received = [of for kind, of, *_ in (each for each in listener.received if each[0] == "event")]
    new = [] if "project" in wanted else [id + "2" for id in ids]
    old = [] if "status" in wanted else [id + "1" for id in ids]
    assert received == new + old


async def test_a_moved_task_is_followed_in_its_new_queue(hub: Hub, world: World) -> None:
    there, here = Listener(hub), Listener(hub)
    await here.open(queue="default", snapshots=False)
    await live(here)
    world.add("a")
    world.add("b")
    await here.until(lambda each: len(each.steps()) == 2)
    await there.open(queue="other", snapshots=False)
    await live(there)

    world.run(bulk_scripts.move_many(["a"], "other", scripts.Work("mark")))
    world.claim("other")
    world.claim("default")

    await there.until(lambda each: each.steps("a") == [2])
    await here.until(lambda each: each.steps("b") == [1, 2])
    assert (here.steps("a"), there.steps("b")) == ([1], [])


async def test_what_was_moved_while_nobody_followed_is_read_anew(hub: Hub, world: World) -> None:
    first = Listener(hub)
    subscription = await first.open(queue="default", snapshots=False)
    await live(first)
    world.add("a")
    await first.until(lambda each: len(each.steps()) == 1)
    hub.close(subscription)
    await first.until(lambda each: not hub._channels)

    world.run(bulk_scripts.move_many(["a"], "other", scripts.Work("mark")))
    second = Listener(hub)
    await second.open(queue="other", snapshots=False)
    await live(second)
    world.claim("other")

    await second.until(lambda each: each.steps("a") == [2])


async def test_a_filters_snapshot_shows_the_newest_tasks_and_their_events_do_not_come_again(
    hub: Hub, world: World
) -> None:
    world.add("a")
    world.end("b")
    listener = Listener(hub)

    await listener.open(queue="default")
    await live(listener)
    world.add("c")

    await listener.until(lambda each: each.steps("c") == [1])
    assert listener.received == [("snapshot", {"a": 1, "b": 3}), LIVE, ("event", "c", 1, "queued")]


async def test_a_listener_that_returns_gets_the_events_since(hub: Hub, world: World) -> None:
    world.end("a")
    first = Listener(hub)
    await first.open(after=START, task="a")
    await live(first)
    assert first.steps() == [1, 2, 3]
    for _ in range(1200):  # more than is read at once
        world.redis.xadd(keys.EVENTS, {"e": "not an event"})
    world.end("b")

    again, all_of_it = Listener(hub), Listener(hub)
    await again.open(after=first.last)
    await all_of_it.open(after=START)

    await live(again)
    await live(all_of_it)
    assert again.received == [
        *[("event", "b", seq, name) for seq, name in enumerate(("queued", "started", "done"), 1)],
        LIVE,
    ]
    assert all_of_it.steps("a") == all_of_it.steps("b") == [1, 2, 3]


@pytest.mark.parametrize("after", [Position(1, 1), Position(9_999_999_999_999, 0)])
@pytest.mark.parametrize("wanted", [{"task": "a"}, {}])
async def test_a_listener_behind_the_streams_first_event_gets_resync_and_a_snapshot(
    hub: Hub, world: World, after: Position, wanted: dict[str, Any]
) -> None:
    running = world.start("a")
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
    listener = Listener(hub)

    await listener.open(after=after, **wanted)
    await live(listener)
    world.finish(running)

    await listener.until(lambda each: each.steps() == [3])
    assert listener.received[:3] == [("resync", "trimmed"), ("snapshot", {"a": 2}), LIVE]


async def test_a_cut_longer_than_the_stream_reaches_back_causes_resync(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener = Listener(hub)
    await listener.open(task="a")
    await live(listener)

    hub._connection.close()  # nothing is heard of what follows before the loop goes on
    for done in range(3):
        world.run(scripts.progress(running, {"done": done}))
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
    await listener.until(lambda each: each.received.count(LIVE) == 2)
    world.finish(running)

    await listener.until(lambda each: each.steps() == [6])
    assert listener.received[2:-1] == [("resync", "trimmed"), ("snapshot", {"a": 5}), LIVE]


async def test_after_an_outage_without_events_no_listener_resyncs(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener = Listener(hub)
    await listener.open(task="a")
    await live(listener)
    for _ in range(100):
        world.redis.xadd(keys.EVENTS, {"e": "another task's"})
    await hub._mark()
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)

    hub._connection.close()
    world.finish(running)

    await listener.until(lambda each: each.steps() == [3])
    assert ("resync", "trimmed") not in listener.received


async def test_a_listener_that_does_not_read_gets_the_position_to_resume_and_delays_no_other(
    hub: Hub, world: World
) -> None:
    running = world.start("a")
    slow, quick = Listener(hub, most=20), Listener(hub)
    await slow.open(task="a", reads=False)
    await quick.open(task="a")
    await live(quick)
    for done in range(50):
        world.run(scripts.progress(running, {"done": done}))
    await quick.until(lambda each: len(each.steps()) == 50)

    slow.read()
    await slow.until(lambda each: ("resync", "slow") in each.received)
    again = Listener(hub)
    await again.open(after=slow.last, task="a")
    world.finish(running)

    await again.until(lambda each: each.steps()[-1:] == [53])
    await quick.until(lambda each: each.steps()[-1:] == [53])
    assert slow.steps() + again.steps() == quick.steps() == list(range(3, 54))
    assert slow.received[-1] == ("resync", "slow")


async def test_what_a_client_missed_is_read_only_as_fast_as_it_reads(hub: Hub, world: World) -> None:
    running = world.start("a")
    world.store.run_many([scripts.progress(running, {"done": done}) for done in range(3000)])
    waits, quick = Listener(hub, most=100), Listener(hub)
    await waits.open(after=START, task="a", reads=False)
    await quick.open(after=START, task="a")
    await live(quick)
    read_ahead = waits.queue._waiting

    waits.read()
    await live(waits)
    world.finish(running)

    await waits.until(lambda each: each.steps()[-1:] == [3003])
    await quick.until(lambda each: each.steps()[-1:] == [3003])
    assert waits.steps() == quick.steps() == list(range(1, 3004))
    assert 0 < read_ahead <= hub_module.CHUNK
    assert waits.received.count(LIVE) == 1


async def test_a_listener_whose_task_was_purged_while_events_were_missed_gets_gone(hub: Hub, world: World) -> None:
    world.add("a")
    listener, others = Listener(hub), Listener(hub)
    await listener.open(task="a")
    await others.open()
    await live(listener)
    await live(others)

    hub._connection.close()
    world.redis.flushall()
    world.add("b")

    await listener.until(lambda each: each.received[-1] == "gone")
    await others.until(lambda each: each.received.count(LIVE) == 2)
    assert listener.received[1:] == [LIVE, ("resync", "trimmed"), "gone"]
    assert others.received[2:] == [("resync", "trimmed"), ("snapshot", {"b": 1}), LIVE]


async def test_a_redis_that_lost_events_is_noticed_whatever_came_since(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener = Listener(hub)
    await listener.open(task="a")
    await live(listener)
    world.run(scripts.progress(running, {"done": 1}))
    await listener.until(lambda each: each.steps() == [3])

    hub._connection.close()
    world.redis.xdel(keys.EVENTS, str(listener.last))  # as if a replica had taken over that didn't have it
    world.run(scripts.progress(running, {"done": 2}))

    await listener.until(lambda each: each.received.count(LIVE) == 2)
    assert listener.received[3:] == [("resync", "trimmed"), ("snapshot", {"a": 4}), LIVE]


async def test_events_of_a_redis_whose_clock_is_behind_the_last_ones_come_through(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener = Listener(hub)
    await listener.open(task="a")
    await live(listener)
    received = '{"id":"a","seq":3,"event":"progress","status":"in_progress","at_ms":1,"stream":"9999999999999-0"}'
    world.redis.publish("taskpool:task:a", received)
    await listener.until(lambda each: each.steps() == [3])

    hub._connection.close()
    await listener.until(lambda each: each.received.count(LIVE) == 2)
    world.finish(running)

    await listener.until(lambda each: each.received[-1] == ("event", "a", 3, "done"))
    assert listener.received[3:5] == [("resync", "trimmed"), ("snapshot", {"a": 2})]


@pytest.fixture
def proxy(redis_server: RedisServer, tmp_path: Path, redis_url: str) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path, redis_server.socket_path)
    yield proxy
    proxy.close()


async def test_over_many_cuts_each_listener_gets_every_event_once_and_in_order(
    world: World, redis_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "RETRY_S", 0.01)

    def cut(when: When, n: int) -> Trap:
        proxy.trap = Trap(catches=lambda name: name == "taskpool-wait", when=when, n=n)
        return proxy.trap

    def live_more_than(times: int) -> None:
        eventually(lambda: everybody.received.count(LIVE) > times)

    def work() -> dict[str, int]:
        """Tasks in whose course the connection is cut at one message or another, and then at one of those that open it
        again: how many events each has."""
        made, lives = {}, 0
        for n in range(20):
            id = f"t{n}"
            running = world.start(id)
            if n % 2:
                live_more_than(lives)
            lives = everybody.received.count(LIVE)
            trap = cut("after", 1 + n % 5)
            made[id] = 3
            while not trap.closed.wait(0.001):
                world.run(scripts.progress(running, {"done": 1}))
                made[id] += 1
            if n % 3 == 0:
                assert cut("before", 1 + n % 2).closed.wait(PATIENCE_S)
            world.finish(running)
        proxy.trap = None
        return made

    async with hub_on(proxy.url) as hub:
        first, everybody = Listener(hub), Listener(hub)
        world.add("t-", queue="last")
        await first.open(task="t-")
        await everybody.open(snapshots=False)
        await live(first)
        await live(everybody)

        made = await asyncio.to_thread(work)
        world.finish(world.claim("last"))

        await everybody.until(lambda each: each.steps("t-") == [2, 3])
        await first.until(lambda each: each.steps() == [2, 3])
    assert {id: everybody.steps(id) for id in made} == {id: list(range(1, last + 1)) for id, last in made.items()}
    assert ("resync", "trimmed") not in everybody.received
    assert everybody.received.count(LIVE) >= 10


async def test_no_listener_costs_nothing_and_a_thousand_share_one_subscription(
    hub: Hub, world: World, redis: Redis
) -> None:
    world.add("a")
    world.add("b")
    listeners = [Listener(hub) for _ in range(1000)]
    assert redis.pubsub_numsub("taskpool:task:a") == [(b"taskpool:task:a", 0)]

    opened = [await each.open(task="a" if n % 2 else "b") for n, each in enumerate(listeners)]
    for listener in listeners:
        await live(listener)
    heard = [redis.pubsub_numsub("taskpool:task:a")[0][1], redis.pubsub_numpat()]
    clients = [each for each in redis.client_list() if each["name"] == "taskpool-wait"]
    world.finish(world.claim())
    world.finish(world.claim())
    for listener in listeners:
        await listener.until(lambda each: each.steps() == [2, 3])
    for subscription in opened:
        hub.close(subscription)

    assert (heard, len(clients)) == ([1, 0], 1)
    async with asyncio.timeout(PATIENCE_S):
        while redis.pubsub_numsub("taskpool:task:a")[0][1]:
            await asyncio.sleep(0.01)


async def test_what_is_only_published_is_not_kept_for_clients(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener = Listener(hub)
    await listener.open(task="a", reads=False)
    items = await listener.queue.take()
    while not isinstance(items[-1], Live):
        items = await listener.queue.take()

    assert world.run(scripts.log("a", running.attempt_id, [b'{"text":"a line"}'], DEFAULT_LIMITS)) == "ok"

    (item,) = [item for item in await listener.queue.take() if isinstance(item, Steps)]
    (step,) = item.steps
    assert (step.event.event, step.event.data["count"], step.event.aside) == ("log", 1, {})
    assert b"a line" not in step.json()


async def test_a_message_that_cannot_be_read_is_made_up_for_from_the_stream(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener = Listener(hub)
    await listener.open(task="a")
    await live(listener)

    world.redis.publish("taskpool:task:a", "{")
    world.redis.publish("taskpool:task:a", '{"id":"a","seq":1,"event":"queued","status":"queued","at_ms":1}')
    world.finish(running)

    await listener.until(lambda each: each.steps() == [3])
    await asyncio.sleep(0)
    assert listener.steps() == [3]
