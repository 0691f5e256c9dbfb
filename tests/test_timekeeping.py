"""Steps of Redis's clock are found and counted once, and no lease is taken back too early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from taskpool import TaskStatus
from taskpool.errors import RedisRefused
from taskpool.redis import keys, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call
from taskpool.webhooks.delivery import NewDelivery, deliver
from tests.states import World
from workers.duties import Outage
from workers.redis_clock import RedisClock, StepDetector

S = TaskStatus
LEASE_S = 15.0
H = 3_600_000


# --- finding steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_ms", [120_000, -600_000, H, -2500, 2500])
def test_a_step_is_measured(step_ms: int) -> None:
    watch = StepDetector(2000)
    for second in range(10):
        assert watch.step_ms(second * 1000, second - 0.01, second + 0.01) == 0

    found = watch.step_ms(10_000 + step_ms, 9.99, 10.01)

    assert abs(found - step_ms) <= 25
    assert watch.step_ms(11_000 + step_ms, 10.99, 11.01) == 0


def test_small_steps_add_up() -> None:
    watch, stepped_ms, found = StepDetector(2000), 0, 0

    for second in range(20):
        stepped_ms += 1500 if second in (3, 5, 7) else 0
        found += watch.step_ms(second * 1000 + stepped_ms, second, second)

    assert 0 <= stepped_ms - found < 2000


def test_a_slow_round_trip_and_a_slewed_clock_are_no_steps() -> None:
    watch, chance = StepDetector(2000), Random(1)
    now = 0.0
    for _ in range(2000):
        now += chance.uniform(0, 30)
        before, after = chance.uniform(0, 12), chance.uniform(0, 12)
        assert watch.step_ms(now * 1000.5, now - before, now + after) == 0


# --- what is done about them --------------------------------------------------------------------------------------


class Host:
    """One pool's view of Redis's clock, with a host clock that the test sets."""

    def __init__(self, store: AsyncStore, now: float = 1000.0) -> None:
        self.now, self.steps, self.outage = now, 0, Outage()
        self.waits_s: list[float] = []
        """How much time passes on its own clock after each time it is read. Redis's stands still meanwhile."""
        self.keeper = RedisClock(store, self.outage, lease_s=LEASE_S, clock=self._clock, on_step=self._stepped)

    def _clock(self) -> float:
        now = self.now
        self.now += self.waits_s.pop(0) if self.waits_s else 0.0
        return now

    def _stepped(self) -> None:
        self.steps += 1

    async def look(self) -> bool:
        await self.keeper.look()
        return self.keeper.may_reap()


@pytest.fixture
async def store(world: World) -> AsyncIterator[AsyncStore]:
    store = AsyncStore(world.url)
    yield store
    await store.close()


def start(world: World, id: str, lease_ms: int) -> None:
    world.add(id)
    assert world.run(scripts.claim(["default"], worker="w", attempt_id="1", lease_ms=lease_ms)) is not None


def stepped_ms(world: World) -> int:
    return int(world.redis.hget(keys.CLOCK, "stepped_ms") or 0)


def age(world: World, ms: int) -> None:
    """As if the last rounds had been so long ago."""
    for field in ("seen_ms", "since_ms"):
        world.redis.hincrby(keys.CLOCK, field, -ms)


pytestmark = pytest.mark.anyio


async def test_a_new_pool_takes_nothing_back_before_a_lease_has_passed(world: World, store: AsyncStore) -> None:
    host = Host(store)

    assert not await host.look()
    world.redis.hincrby(keys.CLOCK, "since_ms", -14_000)
    assert not await host.look()
    world.redis.hincrby(keys.CLOCK, "since_ms", -1000)
    assert await host.look()


async def test_a_new_pool_relies_on_earlier_pools(world: World, store: AsyncStore) -> None:
    first, second = Host(store), Host(store, now=5.0)
    await first.look()
    world.redis.hincrby(keys.CLOCK, "since_ms", -15_000)

    assert await second.look()


async def test_after_a_gap_of_all_pools_a_new_one_waits(world: World, store: AsyncStore) -> None:
    first, second = Host(store), Host(store)
    await first.look()
    world.redis.hincrby(keys.CLOCK, "since_ms", -H)
    age(world, 6000)

    assert not await second.look()


async def test_a_pool_that_saw_an_outage_waits_and_one_that_saw_none_does_not(world: World, store: AsyncStore) -> None:
    host = Host(store)
    await host.look()
    world.redis.hincrby(keys.CLOCK, "since_ms", -H)
    assert await host.look()

    host.outage.note_failure(RedisRefused("NOREPLICAS"), "heartbeats")
    assert not await host.look()
    host.outage.note_success("heartbeats")
    assert not await host.look()


def tick_s(world: World, steady_s: int, *, gap_s: int = 5, ahead_s: int = 0) -> int:
    """For how many seconds writes are known to work, after a round of a pool that has seen that for `steady_s`, and
    that expects a time which is `ahead_s` ahead of Redis's."""
    expected_ms = (world.redis.time()[0] + ahead_s) * 1000
    tick = scripts.tick(
        steady_ms=steady_s * 1000,
        gap_ms=gap_s * 1000,
        lease_ms=15_000,
        expected_ms=expected_ms,
        least_ms=60_000,
    )
    return round(world.run(tick).steady_ms / 1000)


async def test_a_pool_that_starts_takes_nothing_from_what_others_know(world: World) -> None:
    assert tick_s(world, 0) == 0
    assert tick_s(world, 20) == 20
    assert tick_s(world, 0) == 20


@pytest.mark.parametrize("gap_s", [-1, 5])
async def test_a_pool_that_is_about_to_find_a_step_does_not_report_a_steady_clock(world: World, gap_s: int) -> None:
    tick_s(world, 0)

    assert tick_s(world, 20, gap_s=gap_s, ahead_s=600) == 0
    assert tick_s(world, 20, gap_s=gap_s, ahead_s=-600) == 0


@pytest.mark.parametrize("step_s", [120, -600])
async def test_a_step_is_counted_once_when_several_pools_measure_it(
    world: World, store: AsyncStore, step_s: float
) -> None:
    hosts = [Host(store, now=100.0 * number) for number in range(3)]
    for host in hosts:
        await host.look()

    for host in hosts:
        host.now -= step_s  # to it, Redis's clock has gone on by so much more
    reaps = [await host.look() for host in (*hosts, *hosts)]

    assert not any(reaps)
    assert [host.steps for host in hosts] == [1] * 3
    assert abs(stepped_ms(world) - step_s * 1000) < 1000


async def test_two_steps_in_a_row_are_both_counted(world: World, store: AsyncStore) -> None:
    first, second = Host(store), Host(store)
    await first.look()
    await second.look()

    first.now -= 100
    await first.look()
    first.now -= 50
    second.now -= 150
    await second.look()
    await first.look()

    assert abs(stepped_ms(world) - 150_000) < 1000


async def test_a_step_that_was_noted_right_after_a_pool_had_started_is_not_counted_with_the_next_one(
    world: World, store: AsyncStore
) -> None:
    first, second = Host(store), Host(store)
    await first.look()
    first.now -= 120
    await second.look()  # the clock was stepped already, and it isn't noted yet
    await first.look()
    await second.look()
    assert abs(stepped_ms(world) - 120_000) < 1000

    second.now += 120
    await second.look()

    assert abs(stepped_ms(world)) < 1000


async def test_a_step_that_hides_in_a_slow_round_trip_is_counted_once(world: World, store: AsyncStore) -> None:
    first, second = Host(store), Host(store)
    await first.look()
    await second.look()
    first.now -= 3
    await first.look()

    second.now -= 3
    second.waits_s = [8.0]
    await second.look()
    second.now -= 8
    await second.look()
    await second.look()

    assert abs(stepped_ms(world) - 3000) < 1000


async def test_a_step_found_in_a_slow_reply_is_measured_exactly(world: World, store: AsyncStore) -> None:
    host = Host(store)
    await host.look()

    host.now -= 90 + 5
    host.waits_s = [5.0]
    await host.look()

    assert abs(stepped_ms(world) - 90_000) < 500


async def test_a_step_that_cannot_be_noted_at_once_is_noted_later(world: World, store: AsyncStore) -> None:
    host, error = Host(store), RedisRefused("NOREPLICAS")
    await host.look()
    run = store.run

    async def refuse(call: Call[Any]) -> Any:
        raise error

    host.now -= 90
    store.run = refuse  # type: ignore[method-assign]
    with pytest.raises(RedisRefused):
        await host.look()
    assert stepped_ms(world) == 0

    store.run = run  # type: ignore[method-assign]
    assert not await host.look()

    assert abs(stepped_ms(world) - 90_000) < 500
    assert host.steps == 1


async def test_a_step_begins_every_lease_anew_with_its_own_length(world: World, store: AsyncStore) -> None:
    host = Host(store)
    await host.look()
    world.redis.hset(keys.CLOCK, "lease_ms", 60_000)
    for id, lease_ms in (("a", 15_000), ("b", 60_000), ("c", 15_000)):
        start(world, id, lease_ms)
        world.run(scripts.heartbeat([(id, "1", "default")], lease_ms))
    for id in ("a", "b"):  # as they were left by a clock that was 600 s ahead
        world.redis.zincrby("rq:wip:default", 600, f"{id}:1")
        world.redis.hincrbyfloat(f"rq:execution:{id}:1", "last_heartbeat", 600)
    world.redis.zadd("rq:wip:default", {"plain:e": 5})
    world.redis.hset("rq:execution:plain:e", "id", "e")

    host.now += 600
    await host.look()

    now_s = world.redis.time()[0]
    left = {member.decode(): score - now_s - keys.WIP_GRACE_S
            for member, score in world.redis.zrange("rq:wip:default", 0, -1, withscores=True)}  # fmt: skip
    assert [round(left[f"{id}:1"] / 5) * 5 for id in ("a", "b", "c")] == [15, 60, 15]
    assert world.redis.zscore("rq:wip:default", "plain:e") == 5


async def test_due_times_that_came_from_a_duration_are_corrected_and_named_ones_stay(
    world: World, store: AsyncStore
) -> None:
    host = Host(store)
    await host.look()
    for number in range(300):
        world.add(f"d{number}", delay_s=5000, expires_in_s=9000)
    world.add("named", run_at=datetime.now(UTC) + timedelta(seconds=5000))
    world.start("r", max_attempts=2)
    world.run(scripts.retry(world.running["r"], delay_ms=5_000_000, error="no", failure={}))
    before = due_in(world)

    host.now += 600
    for _ in range(4):
        await host.look()

    after = due_in(world)
    moved = {id for id in before if abs(before[id] - after[id] - 600) < 3}
    assert moved == before.keys() - {"named"}
    assert after["named"] == before["named"]
    expiring = world.redis.zrange(keys.EXPIRING, 0, -1, withscores=True)
    assert all(abs(score - world.redis.time()[0] - 8400) < 5 for _, score in expiring)
    assert world.redis.hget("rq:job:d0", "expires_ms") == b"%.0f" % (dict(expiring)[b"d0"] * 1000)
    assert world.redis.hget(keys.CLOCK, "corrected_ms") == world.redis.hget(keys.CLOCK, "stepped_ms")


def due_in(world: World) -> dict[str, float]:
    return {id.decode(): score for id, score in world.redis.zrange("rq:scheduled:default", 0, -1, withscores=True)}


async def test_a_delay_that_a_step_forward_made_due_keeps_waiting(world: World, store: AsyncStore) -> None:
    host = Host(store)
    await host.look()
    world.add("a", delay_s=500)
    world.add("b", expires_in_s=500)
    at = world.redis.zscore("rq:scheduled:default", "a")
    world.run(scripts.step(1000_000, base_ms=0, least_ms=2000, lease_ms=15_000))
    for field, key in (("run_ms", "rq:scheduled:default"), ("expires_ms", keys.EXPIRING)):
        id = "a" if field == "run_ms" else "b"
        world.redis.hset(f"rq:job:{id}", field, round((at - 1000) * 1000))
        world.redis.zadd(key, {id: at - 1000})

    assert world.run(scripts.promote("a", "default")) == "early"
    assert world.redis.zscore("rq:scheduled:default", "a") == pytest.approx(at)
    assert world.run(scripts.cancel("b", reason="expired", error="late")) == "early"
    assert world.claim().id == "b"


def steps_unnoticed(world: World, host: Host, step_s: float) -> None:
    """Redis's clock is stepped, and the host will see that in its next round."""
    host.now -= step_s  # to it, Redis's clock has gone on by so much more
    world.redis.hincrby(keys.CLOCK, "seen_ms", round(-step_s * 1000))


@pytest.mark.parametrize("step_s", [120, 3600, -600])
async def test_tasks_scheduled_between_a_step_and_its_notice_need_no_correction(
    world: World, store: AsyncStore, step_s: float
) -> None:
    host, late = Host(store), Host(store, now=7.0)
    await host.look()
    world.add("parent")
    world.start("before", max_attempts=2)
    world.run(scripts.retry(world.running["before"], delay_ms=8_000_000, error="no", failure={}))
    steps_unnoticed(world, host, step_s)
    world.add("delayed", delay_s=8000, expires_in_s=9000)
    world.add("child", delay_s=8000, depends_on=["parent"])
    world.start("again", max_attempts=2)
    world.run(scripts.retry(world.running["again"], delay_ms=8_000_000, error="no", failure={}))
    await late.look()  # a pool that starts now can't tell that the clock was stepped
    world.add("later", delay_s=8000)

    for _ in range(3):
        await host.look()
    world.finish(world.claim())
    world.run(scripts.release("parent", 10))

    now_s = world.redis.time()[0]
    left_s = {id: due_s - now_s for id, due_s in due_in(world).items()}
    assert left_s == {
        **{id: pytest.approx(8000, abs=3) for id in ("delayed", "child", "again", "later")},
        "before": pytest.approx(8000 + step_s, abs=3),  # it was computed before the step, by a clock that was behind
    }
    assert world.redis.zscore(keys.EXPIRING, "delayed") - now_s == pytest.approx(9000, abs=3)
    assert {world.redis.hget(f"rq:job:{id}", "run_clock") for id in ("delayed", "again", "later", "before")} == {
        world.redis.hget(keys.CLOCK, "stepped_ms")
    }


@pytest.mark.parametrize("step_s", [120, -600])
async def test_two_steps_in_a_row_move_what_was_scheduled_between_them_by_the_second(
    world: World, store: AsyncStore, step_s: float
) -> None:
    host = Host(store)
    await host.look()
    steps_unnoticed(world, host, step_s)
    world.add("a", delay_s=8000)
    world.run(scripts.step(round(step_s * 1000), base_ms=0, least_ms=2000, lease_ms=15_000))
    world.run(scripts.step(50_000, base_ms=round(step_s * 1000), least_ms=2000, lease_ms=15_000))

    world.run(scripts.rebase("default", "0", 100))

    assert due_in(world)["a"] - world.redis.time()[0] == pytest.approx(8050, abs=3)


async def test_a_pool_that_starts_between_a_step_and_its_notice_takes_no_delay_for_over(
    world: World, store: AsyncStore
) -> None:
    host, late = Host(store), Host(store, now=7.0)
    await host.look()
    world.add("a", delay_s=60)
    due_ms = world.redis.time()[0] * 1000 - 60_000  # as the clock says after a step of 120 s
    world.redis.zadd("rq:scheduled:default", {"a": due_ms / 1000})
    steps_unnoticed(world, host, 120)

    await late.look()
    assert late.keeper.now_ms < due_ms
    late.now += 0.1
    await late.look()
    assert late.keeper.now_ms < due_ms
    await host.look()

    assert world.run(scripts.promote("a", "default")) == "early"


async def test_a_pool_that_starts_alone_soon_promotes_due_tasks(world: World, store: AsyncStore) -> None:
    await Host(store).look()
    age(world, H)
    host = Host(store)

    await host.look()
    early_ms = host.keeper.now_ms
    host.now += 1.6
    await host.look()

    assert early_ms < (world.redis.time()[0] - 3000) * 1000
    assert host.keeper.now_ms > (world.redis.time()[0] - 2) * 1000


async def test_a_delay_that_was_submitted_while_no_pool_lived_is_left_as_it_is(world: World, store: AsyncStore) -> None:
    await Host(store).look()
    age(world, H)
    world.add("a", delay_s=8000)
    host = Host(store)
    for _ in range(3):
        await host.look()
    host.now -= 120
    for _ in range(3):
        await host.look()

    assert due_in(world)["a"] - world.redis.time()[0] == pytest.approx(8120, abs=3)


async def test_steps_that_never_end_are_not_all_remembered(world: World) -> None:
    for number in range(200):
        world.run(scripts.step(5000, base_ms=5000 * number, least_ms=2000, lease_ms=15_000))

    assert world.redis.hlen(keys.CLOCK) <= keys.STEPS_KEPT + 1


@pytest.mark.parametrize("step_s", [120, -600])
async def test_webhooks_that_are_made_after_a_step_and_before_it_is_noticed_are_sent_at_once(
    world: World, store: AsyncStore, step_s: float
) -> None:
    host = Host(store)
    await host.look()
    steps_unnoticed(world, host, step_s)
    new = NewDelivery("new", "lane", "endpoint", "", "done", "http://127.0.0.1/", b"{}")
    world.run(deliver("", [new]))

    await host.look()

    score = world.redis.zscore(f"{keys.WEBHOOKS_WAITING}lane", "new")
    assert score / 1000 - world.redis.time()[0] == pytest.approx(0, abs=2)
    assert not world.redis.hexists(f"{keys.DELIVERY}new", "clock")


async def test_a_lease_that_ended_after_the_round_began_is_not_taken_back(world: World) -> None:
    start(world, "a", -1)
    before_ms = round(world.redis.zscore("rq:wip:default", "a:1") - keys.WIP_GRACE_S - 60) * 1000

    def crash(by_ms: int) -> str:
        return world.run(
            scripts.crash("a", "1", "default", error="x", failure={}, max_crashes=3, only_expired=True, by_ms=by_ms)
        )

    assert world.run(scripts.due("rq:wip:default", limit=9, ahead_s=keys.WIP_GRACE_S, by_ms=before_ms)).members == ()
    assert crash(before_ms) == "lost"
    assert crash(before_ms + H) == "queued"


async def test_webhooks_are_neither_late_nor_sent_twice_after_a_step_back(world: World, store: AsyncStore) -> None:
    host = Host(store)
    await host.look()
    ahead_ms = (world.redis.time()[0] + 600) * 1000  # as they were left by a clock that was 600 s ahead
    world.redis.zadd(keys.WEBHOOKS_LANES, {"lane": ahead_ms})
    world.redis.zadd(f"{keys.WEBHOOKS_SENDING}lane", {"sent": ahead_ms + 20_000})
    world.redis.zadd(f"{keys.WEBHOOKS_WAITING}lane", {"soon": ahead_ms + 5000, "later": ahead_ms + 300_000})

    host.now += 600
    await host.look()

    now_ms = world.redis.time()[0] * 1000

    def left_s(key: str, member: str) -> float:
        return float(world.redis.zscore(key, member) - now_ms) / 1000

    assert left_s(keys.WEBHOOKS_LANES, "lane") == pytest.approx(0, abs=2)
    assert left_s(f"{keys.WEBHOOKS_SENDING}lane", "sent") == pytest.approx(30, abs=2)
    assert left_s(f"{keys.WEBHOOKS_WAITING}lane", "soon") == pytest.approx(5, abs=2)
    assert left_s(f"{keys.WEBHOOKS_WAITING}lane", "later") == pytest.approx(300, abs=2)


async def test_a_heartbeat_makes_an_execution_anew_that_has_expired(world: World) -> None:
    world.start("a")
    world.run(scripts.heartbeat([("a", "1", "default")], 15_000))
    before = set(world.redis.hkeys("rq:execution:a:1"))
    world.redis.delete("rq:execution:a:1")

    assert world.run(scripts.heartbeat([("a", "1", "default")], 15_000)) == ["ok"]

    assert set(world.redis.hkeys("rq:execution:a:1")) == before
