"""How late events reach the clients of an API process, and what they lost: what is counted, and by which clock."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from api.events import hub as hub_module
from api.events.hub import Hub
from api.events.metrics import MOST_MS, ClockOffset, EventMetrics
from taskpool.operations.status import START, Position
from taskpool.redis import keys, scripts
from taskpool.redis.calls import redis_ms
from taskpool.redis.keys import BUCKETS_S
from tests.listeners import Listener, hub_on
from tests.shifted_clock import ShiftedRedis
from tests.states import World

AGO_MS = 100_000
"""How old forged events are: no test takes that long."""


@pytest.fixture
async def hub(redis_url: str) -> AsyncIterator[Hub]:
    async with hub_on(redis_url) as hub:
        yield hub


@pytest.fixture
def shifted(tmp_path: Path, redis_binary: str | None) -> Iterator[ShiftedRedis]:
    """A Redis whose clock can be set."""
    redis = ShiftedRedis(tmp_path / "redis", redis_binary)
    yield redis
    redis.server.stop()


async def live(*listeners: Listener, times: int = 1) -> None:
    for listener in listeners:
        await listener.until(lambda each: each.received.count("live") == times)


async def until(predicate: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not predicate():
            await asyncio.sleep(0.005)


def count(hub: Hub) -> int:
    return sum(hub.metrics.now().lags)


def old_event(world: World, id: str, seq: int, **members: Any) -> str:
    """An event as scripts write them, of AGO_MS ago by Redis's clock."""
    at_ms = world.run(redis_ms()) - AGO_MS
    return json.dumps({"id": id, "seq": seq, "event": "progress", "status": "in_progress", "at_ms": at_ms, **members})


# --- the clocks -------------------------------------------------------------------------------------------------------


def test_the_offset_is_as_exact_as_the_quickest_answer() -> None:
    clock = ClockOffset()

    assert clock.ms is None
    clock.note(1_000_500, 1.0, 1.2)  # it was read at 1.1 ± 0.1
    assert clock.ms == pytest.approx(1_000_500 - 1100, abs=100)
    clock.note(1_001_000, 1.599, 1.6)
    assert clock.ms == pytest.approx(1_001_000 - 1600, abs=1)
    clock.note(1_003_000, 2.0, 4.0)  # the event loop was busy
    assert clock.ms == pytest.approx(1_001_000 - 1600, abs=4)


@pytest.mark.parametrize("step_ms", [3_600_000, -50_000, 40])
def test_a_reading_that_contradicts_the_earlier_ones_replaces_them(step_ms: int) -> None:
    clock = ClockOffset()

    clock.note(1_000_000, 1.0, 1.001)
    clock.note(1_001_000 + step_ms, 2.0, 2.001)

    assert clock.ms == pytest.approx(1_001_000 + step_ms - 2000, abs=2)


def test_clocks_that_drift_apart_are_followed() -> None:
    clock = ClockOffset()

    for minute in range(1000):
        at_s = minute * 60.0
        clock.note(int(at_s * 1000 * 1.0005), at_s, at_s + 0.002)

    assert clock.ms == pytest.approx(999 * 60_000 * 0.0005, abs=3)


async def test_a_redis_with_another_clock_doesnt_distort_the_lag(
    shifted: ShiftedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MARK_S", 0.01)
    shifted.step(3600)
    world = World(Redis.from_url(shifted.url), shifted.url)
    async with hub_on(shifted.url) as hub:
        running, listener = world.start("a"), Listener(hub)
        await listener.open(task="a")
        await live(listener)
        ahead_ms = hub.metrics.clock.ms
        assert ahead_ms is not None
        world.run(scripts.progress(running, {"done": 1}))
        await until(lambda: count(hub) == 1)

        shifted.step(-7200)  # while clients follow
        await until(lambda: (hub.metrics.clock.ms or 0) < ahead_ms - 7_000_000)
        world.run(scripts.progress(running, {"done": 2}))
        world.finish(running)
        await until(lambda: count(hub) == 3)

        figures = hub.metrics.now()
        behind_ms = hub.metrics.clock.ms
    assert behind_ms == pytest.approx((time.time() - 3600 - time.monotonic()) * 1000, abs=60_000)
    assert 0 <= figures.lags_sum_s < 600
    assert not any(figures.lags[BUCKETS_S.index(900) :])
    world.store.close()


# --- what counts ------------------------------------------------------------------------------------------------------


async def test_an_event_counts_once_however_many_clients_get_it_and_only_if_one_does(hub: Hub, world: World) -> None:
    running, other = world.start("a"), world.start("b")
    of_a, of_queue, of_none = Listener(hub), Listener(hub), Listener(hub)
    await of_a.open(task="a")
    to_queue = await of_queue.open(queue="default")
    await of_none.open(tag="none")
    await live(of_a, of_queue, of_none)

    world.run(scripts.progress(running, {"done": 1}))
    world.finish(other)
    await of_a.until(lambda each: each.steps() == [3])
    await of_queue.until(lambda each: (each.steps("a"), each.steps("b")) == ([3], [3]))
    assert count(hub) == 2

    hub.close(to_queue)
    world.end("c")
    world.finish(running)
    await of_a.until(lambda each: each.steps() == [3, 4])
    assert count(hub) == 3
    assert of_none.steps() == []


async def test_the_lag_is_the_age_of_the_event_when_its_clients_have_it(hub: Hub, world: World) -> None:
    world.start("a")
    listener = Listener(hub)
    await listener.open(task="a")
    await live(listener)
    before = hub.metrics.now()

    world.redis.publish(f"{keys.CHANNEL}a", old_event(world, "a", 3, stream="9999999999999-0"))
    await listener.until(lambda each: each.steps() == [3])

    figures = hub.metrics.now()
    assert figures.lags[BUCKETS_S.index(300)] == 1
    assert sum(figures.lags) == sum(before.lags) + 1
    assert AGO_MS / 1000 - 1 <= figures.lags_sum_s < 300


@pytest.mark.parametrize(("at_ms", "lag_s"), [(10**300, 0.0), (9_999_999_999_999, 0.0), (-(10**300), MOST_MS / 1000)])
def test_a_time_that_cant_be_does_no_harm(at_ms: int, lag_s: float) -> None:
    metrics = EventMetrics()
    metrics.delivered(at_ms)  # nothing is known of Redis's clock yet
    metrics.clock.note(round(time.time() * 1000), time.monotonic(), time.monotonic())

    metrics.delivered(at_ms)

    assert (sum(metrics.now().lags), metrics.now().lags_sum_s) == (1, lag_s)


async def test_events_that_a_client_asks_for_again_arent_late(hub: Hub, world: World) -> None:
    world.end("a")
    world.redis.xadd(keys.EVENTS, {"e": old_event(world, "a", 4)})
    listener = Listener(hub)

    await listener.open(after=START)
    await live(listener)

    assert listener.steps() == [1, 2, 3, 4]
    assert count(hub) == 0


async def test_events_are_late_that_came_while_the_connection_was_lost(hub: Hub, world: World) -> None:
    running = world.start("a")
    listener, too = Listener(hub), Listener(hub)
    for each in (listener, too):
        await each.open(task="a")
    await live(listener, too)

    hub._connection.close()  # nothing is heard of what follows before the loop goes on
    world.run(scripts.progress(running, {"done": 1}))
    world.redis.xadd(keys.EVENTS, {"e": old_event(world, "a", 4)})
    await live(listener, too, times=2)

    figures = hub.metrics.now()
    assert listener.steps() == too.steps() == [3, 4]
    assert (sum(figures.lags), figures.lags[BUCKETS_S.index(300)]) == (2, 1)
    assert figures.lags_sum_s > AGO_MS / 1000 - 1
    world.finish(running)  # and then as before
    await listener.until(lambda each: len(each.steps()) == 3)
    assert count(hub) == 3


async def test_a_client_that_reads_slowly_makes_no_event_late(hub: Hub, world: World) -> None:
    running = world.start("a")
    slow = Listener(hub, most=20)
    await slow.open(task="a", reads=False)
    await until(lambda: len(hub._all.live_to("a")) == 1)
    for done in range(10):
        world.run(scripts.progress(running, {"done": done}))
    await until(lambda: not slow.queue.has_room and slow.queue._waiting == 13)
    before = count(hub)

    hub._connection.close()
    world.redis.xadd(keys.EVENTS, {"e": old_event(world, "a", 13)})
    slow.read()
    await live(slow, times=2)

    assert slow.steps() == list(range(3, 14))
    assert count(hub) == before == 10


# --- what was lost ----------------------------------------------------------------------------------------------------


async def test_what_a_slow_client_lost_is_counted(hub: Hub, world: World) -> None:
    running = world.start("a")
    slow, quick = Listener(hub, most=20), Listener(hub)
    await slow.open(task="a", reads=False)
    await quick.open(task="a")
    await live(quick)
    await until(lambda: len(hub._all.live_to("a")) == 2)
    for done in range(50):
        world.run(scripts.progress(running, {"done": done}))
    await quick.until(lambda each: len(each.steps()) == 50)

    # A snapshot of one task counts as two messages, and `live` is one: 17 events fit, the next one ends it.
    figures = hub.metrics.now()
    assert (figures.dropped, figures.resyncs) == (18, {"trimmed": 0, "slow": 1})
    slow.read()
    await slow.until(lambda each: ("resync", "slow") in each.received)
    assert slow.steps() == []


async def test_what_redis_no_longer_has_is_counted_by_subscription(hub: Hub, world: World) -> None:
    world.start("a")
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
    one, two = Listener(hub), Listener(hub)

    await one.open(after=Position(1, 1), task="a")
    await two.open(after=Position(1, 1))
    await live(one, two)

    figures = hub.metrics.now()
    assert (figures.dropped, figures.resyncs) == (0, {"trimmed": 2, "slow": 0})
