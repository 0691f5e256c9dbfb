"""A bug in the delivery of events: it is logged once, and each listener gets every event once and in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from api.auth.caller import Caller, anonymous
from api.auth.gate import Gate
from api.events import hub as hub_module
from api.events.hub import Hub, LogThrottle
from api.events.streams import Streams
from api.events.subscriptions import AttributeCache, Subscription
from taskpool.errors import RedisUnavailable
from taskpool.redis import keys, scripts
from taskpool.settings import Settings
from tests.listeners import Listener, hub_on
from tests.states import World
from tests.support import PATIENCE_S


class Bug:
    """Raises in place of a function, `times` in a row, once it is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int = 3) -> None:
        self._real, self._is_async = getattr(owner, name), asyncio.iscoroutinefunction(getattr(owner, name))
        self._left, self._times = 0, times
        self.raised = 0
        bug = self

        def broken(*arguments: Any, **options: Any) -> Any:
            bug._strike()
            return bug._real(*arguments, **options)

        async def broken_async(*arguments: Any, **options: Any) -> Any:
            bug._strike()
            return await bug._real(*arguments, **options)

        monkeypatch.setattr(owner, name, broken_async if self._is_async else broken)

    @property
    def is_over(self) -> bool:
        """It has been raised as often as it was to be."""
        return self.raised >= self._times

    def arm(self) -> Bug:
        """From now on."""
        self._left = self._times
        return self

    def _strike(self) -> None:
        if self._left:
            self._left -= 1
            self.raised += 1
            raise TypeError("a bug")


@pytest.fixture(autouse=True)
def retries_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RETRY_S", 0.01)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """What was logged as an error: its text, and whether it says where."""
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    return [(record.getMessage(), record.exc_info is not None) for record in records]


@pytest.fixture(
    params=[
        (Hub, "_update_channels"),
        (Hub, "_catch_up"),
        (Hub, "_deliver_chunk"),
        (Hub, "_mark"),
        (Hub, "_deliver"),
        (Subscription, "deliver"),
        (AttributeCache, "resolve"),
    ],
    ids=lambda param: f"{param[0].__name__}.{param[1]}",
)
def arm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Bug]:
    """Lets the bug in."""
    bug = Bug(monkeypatch, *request.param)
    return bug.arm


async def test_a_bug_ends_no_subscription(
    world: World, redis_url: str, arm: Callable[[], Bug], caplog: pytest.LogCaptureFixture
) -> None:
    running, unknown = world.start("a"), world.start("b")
    done = 0
    async with hub_on(redis_url) as hub:
        of_a, late, of_all = Listener(hub), Listener(hub), Listener(hub)
        await of_a.open(task="a")
        await of_all.open(snapshots=False)
        await of_a.until(lambda each: "live" in each.received)
        await of_all.until(lambda each: "live" in each.received)

        bug = arm()
        await late.open(task="a")  # it has to be caught up with
        async with asyncio.timeout(PATIENCE_S):
            while not bug.is_over:
                done += 1
                world.run(scripts.progress(running, {"done": done}))
                world.run(scripts.progress(unknown, {"done": done}))
                await asyncio.sleep(0.01)
        world.finish(running)
        world.finish(unknown)

        steps = list(range(3, 4 + done))
        await of_a.until(lambda each: each.steps() == steps)
        await late.until(lambda each: each.steps() == steps)
        await of_all.until(lambda each: each.steps("a") == each.steps("b") == steps)
    assert not any(("resync", "trimmed") in each.received for each in (of_a, of_all, late))
    assert logged(caplog) == [("events: a bug; trying again", True)]


async def test_a_bug_while_catching_up_keeps_no_subscription_waiting(
    world: World, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = world.start("a")
    bug = Bug(monkeypatch, hub_module, "take_snapshot")
    async with hub_on(redis_url) as hub:
        listener = Listener(hub)
        await listener.open(task="a")
        await listener.until(lambda each: "live" in each.received)

        bug.arm()
        hub._connection.close()
        for done in range(3):
            world.run(scripts.progress(running, {"done": done}))
        world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
        await listener.until(lambda each: each.received.count("live") == 2)
        world.finish(running)

        await listener.until(lambda each: each.steps() == [6])
    assert bug.is_over
    assert listener.received[2:-1] == [("resync", "trimmed"), ("snapshot", {"a": 5}), "live"]
    assert logged(caplog) == [("events: a bug; trying again", True)]


async def test_a_hub_can_be_closed_at_any_time_also_while_it_wakes(redis_url: str, world: World) -> None:
    world.add("a")
    for turns in range(8):
        async with hub_on(redis_url) as hub:
            await Listener(hub).open(task="a")
            async with asyncio.timeout(PATIENCE_S):
                while not hub._all.live_to("a"):
                    await asyncio.sleep(0.01)
            worker = hub._worker
            assert worker is not None

            hub.go_on()
            for _ in range(turns):
                await asyncio.sleep(0)
            hub.end()

            await asyncio.wait((worker,), timeout=PATIENCE_S)
            assert worker.cancelled()


async def test_a_bug_in_the_check_keys_does_not_end_it(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Doors(Gate):
        def __init__(self) -> None:
            pass

        async def still_admits(self, caller: Caller) -> bool:
            return False

    bug = Bug(monkeypatch, Doors, "still_admits")
    async with hub_on(redis_url) as hub:
        streams = Streams(hub, Doors(), Settings(max_streams=9), check_keys_s=0.01)
        queue = streams.admit(anonymous(""))
        bug.arm()

        assert await asyncio.wait_for(queue.take(), 20) == []
        assert queue.ended == "revoked"
    assert logged(caplog) == [("keys of streams: a bug; trying again", True)]


@pytest.mark.parametrize(
    "entry",
    [
        "[]",
        "1",
        '{"id":1,"seq":1,"event":"queued","status":"queued","at_ms":1}',
        '{"id":"a","seq":"3","event":"queued","status":"queued","at_ms":1}',
        '{"id":"a","seq":3,"event":"queued","status":[],"at_ms":1}',
        '{"id":"a","seq":3,"event":"queued","status":"queued","at_ms":1,"stream":1}',
        '{"id":"a","seq":3,"event":"queued","status":"queued","at_ms":1,"stream":"x"}',
    ],
)
async def test_what_is_no_event_is_passed_over_wherever_it_stands(
    world: World, redis_url: str, caplog: pytest.LogCaptureFixture, entry: str
) -> None:
    running = world.start("a")
    async with hub_on(redis_url) as hub:
        listener = Listener(hub)
        await listener.open(task="a")
        await listener.until(lambda each: "live" in each.received)

        if "stream" not in entry:
            world.redis.xadd(keys.EVENTS, {"e": entry})
        world.redis.publish(f"{keys.CHANNEL}a", entry)
        world.finish(running)

        await listener.until(lambda each: each.steps() == [3])
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_each_kind_of_bug_is_logged_at_intervals_and_an_outage_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle = LogThrottle("it")
    away, bug = RedisUnavailable("away"), KeyError("a bug")

    for error in (away, bug, away, bug, ValueError("another")):
        throttle.log(error)
    throttle.recovered()
    for error in (away, bug, away):
        throttle.log(error)

    assert [record.getMessage() for record in caplog.records] == [
        "it: away; trying again",
        "it: a bug; trying again",
        "it: a bug; trying again",
        "it: away; trying again",
    ]
