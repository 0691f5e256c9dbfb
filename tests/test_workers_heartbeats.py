"""What a supervisor does on the replies to its heartbeats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from tests.states import World
from workers.attempts import DEFAULT_GRACE_S, Heartbeats
from workers.fork_client import Verdict
from workers.process_group import boottime
from workers.registration import KEEP_S
from workers.shared_memory import LaneState, Request, Run
from workers.supervisor import heartbeat_s

pytestmark = pytest.mark.anyio


class Running:
    """A worker process, as far as heartbeats look at it: it runs one attempt. `asked` is what it was asked for."""

    def __init__(self, id: str, asked: list[tuple[str, Any]], safe_until: float = 0.0) -> None:
        self.asked = asked
        self.name = "w"
        self.run = Run(0, LaneState.RUNNING, 1, id, "1", "default", 0.0, 0.0, safe_until)
        self.block = self
        self.renewed: list[float] = []

    def renew(self, run: Run, safe_until: float) -> None:
        self.renewed.append(safe_until)

    def runs(self) -> list[Run]:
        return [self.run]

    def batch(self) -> None:
        return None

    def is_running(self, run: Run) -> bool:
        return run == self.run

    def kill(self, verdict: Verdict, run: Run) -> None:
        self.asked.append((run.id, verdict))


class Stops:
    """What was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def stop(self, process: Any, run: Run, *, grace_s: float, request: Request = Request.STOP) -> None:
        self.asked.append((run.id, (grace_s, request)))


@pytest.fixture
async def store(world: World) -> AsyncIterator[AsyncStore]:
    store = AsyncStore(world.url)
    yield store
    await store.close()


async def beat(store: AsyncStore, *ids: str, times: int = 1) -> list[tuple[str, Any]]:
    stops = Stops()
    heartbeats = Heartbeats(store, cast("Any", stops), lease_s=15)
    for _ in range(times):
        await heartbeats.renew_leases(cast("Any", [Running(id, stops.asked) for id in ids]))
    return stops.asked


async def test_a_stop_seen_by_a_heartbeat_has_the_grace_that_was_asked_for(world: World, store: AsyncStore) -> None:
    for id, grace_s in (("a", 3600.5), ("b", 0)):
        world.start(id)
        world.run(scripts.stop(id, grace_s=grace_s, force=False))

    asked = await beat(store, "a", "b")

    assert asked == [("a", (3600.5, Request.STOP)), ("b", (0, Request.STOP))]


async def test_each_heartbeat_applies_the_sooner_of_two_stops(world: World, store: AsyncStore) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=60, force=False))
    first = await beat(store, "a")

    world.run(scripts.stop("a", grace_s=1, force=False))
    world.run(scripts.stop("a", grace_s=600, force=False))

    assert first == [("a", (60, Request.STOP))]
    assert await beat(store, "a", times=2) == [("a", (1, Request.STOP))] * 2


@pytest.mark.parametrize("grace_s", ["", "soon"])
async def test_a_stop_without_a_grace_has_the_default_one(world: World, store: AsyncStore, grace_s: str) -> None:
    world.start("a")
    world.redis.hset("rq:job:a", mapping={"stop_ms": 1, "stop_grace_s": grace_s})

    assert await beat(store, "a") == [("a", (DEFAULT_GRACE_S, Request.STOP))]


async def test_other_attempts_go_on_are_killed_or_learn_that_they_lost_their_lease(
    world: World, store: AsyncStore
) -> None:
    world.start("runs")
    world.start("forced")
    world.run(scripts.stop("forced", grace_s=5, force=True))

    asked = await beat(store, "runs", "forced", "gone")

    assert asked == [("forced", Verdict.STOPPED), ("gone", (DEFAULT_GRACE_S, Request.LOST))]


async def test_one_damaged_record_costs_no_other_task_its_lease(
    world: World, store: AsyncStore, caplog: pytest.LogCaptureFixture
) -> None:
    for id in ("a", "b", "c"):
        world.start(id)
    world.redis.set("rq:job:b", "damaged")
    for id in ("a", "c"):
        world.redis.zadd("rq:wip:default", {f"{id}:1": 1})

    asked = await beat(store, "a", "b", "c")

    assert asked == []
    assert all(world.redis.zscore("rq:wip:default", f"{id}:1") > 1 for id in ("a", "c"))
    assert "the lease of task b can't be renewed" in caplog.text


async def test_an_attempt_that_must_not_outlive_its_lease_is_killed_when_it_has_lost_the_lease(
    world: World, store: AsyncStore
) -> None:
    world.start("runs")
    stops = Stops()
    runs, gone = Running("runs", stops.asked, 1.0), Running("gone", stops.asked, 1.0)
    before = boottime()

    await Heartbeats(store, cast("Any", stops), lease_s=15).renew_leases(cast("Any", [runs, gone]))

    assert stops.asked == [("gone", Verdict.LEASE_LOST)]
    assert gone.renewed == []
    (safe_until,) = runs.renewed
    assert before + 15 <= safe_until <= boottime() + 15


@pytest.mark.parametrize("lease_s", [1, 15, 600])
def test_two_heartbeats_may_be_lost_before_a_lease_ends_or_rq_forgets_a_worker(lease_s: float) -> None:
    assert 2 * heartbeat_s(lease_s) < lease_s
    assert 2 * heartbeat_s(lease_s) < KEEP_S
