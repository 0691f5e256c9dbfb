"""Counts by minute, hour and day: none is lost or counted twice, and they take bounded space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from taskpool.operations.insight import history
from taskpool.operations.insight.history import DAY, HOUR, MINUTE, MOST_PAIRS, MOST_ROWS, OTHER, TEN_MINUTES, Unit
from taskpool.operations.insight.stats import quantile_ms, stats
from taskpool.redis import insight_scripts, keys, scripts
from taskpool.redis.calls import Call, Plan, redis_ms
from taskpool.types import TaskStatus
from tests.states import World

MINUTE_MS = 60_000
DONE = "tasks|done|work|default|b1"


def now_ms(world: World) -> int:
    return world.run(redis_ms())


def count_at(world: World, minute: int, fields: Mapping[str, int], submitted: Mapping[str, int] = {}) -> None:
    """What was counted in a minute of the past."""
    for key, counts in ((keys.STATS_COUNTED, fields), (keys.STATS_SUBMITTED, submitted)):
        if counts:
            mapping: Any = dict(counts)
            world.redis.hset(f"{key}{minute}", mapping=mapping)
    world.redis.sadd(keys.STATS_OPEN, minute)


def close(world: World, at_ms: int | None = None, depth: Mapping[str, int] | None = None) -> None:
    """Close all minutes up to this one, also the current one."""
    world.store.carry_out(history.close_minutes(at_ms or now_ms(world) + MINUTE_MS, depth))


def counters(world: World) -> dict[str, int]:
    return world.store.carry_out(history.counters())


def numbers(world: World, unit: Unit) -> list[int]:
    return sorted(int(each) for each in world.redis.hkeys(unit.key))


def test_what_scripts_and_processes_count_is_the_same_before_and_after_the_minute_is_closed(world: World) -> None:
    world.end("a", TaskStatus.DONE)
    world.add("b", type="other", depends_on=["a"])
    world.cancel("b")
    world.start("c")
    world.run(scripts.crash("c", world.running["c"].attempt_id, "default", error="died", failure={}, max_crashes=3))
    world.run(scripts.count({DONE: 1, "run_bucket|work|default|0.5|b1": 1, "run_us_sum|work|default|b1": 400_000}))
    before = counters(world)

    close(world)

    assert counters(world) == before
    assert before == {
        "submitted|work|default": 2,
        "submitted|other|default": 1,
        "tasks|done|work|default": 1,
        "tasks|crashed|work|default": 1,
        "tasks|canceled|other|default": 1,
        "run_bucket|work|default|0.5": 1,
        "run_us_sum|work|default": 400_000,
    }
    assert world.counted() == {}


def test_of_two_pools_that_close_a_minute_at_once_one_does_it(world: World) -> None:
    world.run(scripts.count({DONE: 2}))
    plans = [history.close_minutes(now_ms(world) + MINUTE_MS, {"default": 1}) for _ in range(2)]
    steps: list[Any] = [next(plan) for plan in plans]

    while any(steps):  # side by side, each step of one after the same step of the other
        values = [world.store.run_many(list(step)) if step else [] for step in steps]
        steps = [sent(plan, value) if step else None for plan, step, value in zip(plans, steps, values, strict=True)]

    assert counters(world) == {"tasks|done|work|default": 2}
    assert sum_of(world, "done") == 2


def sent(plan: Plan[None], values: list[Any]) -> Any:
    try:
        return plan.send(values)
    except StopIteration:
        return None


def sum_of(world: World, name: str, range: Any = "1h", **wanted: Any) -> int:
    """The sum of all points of the first series."""
    series = world.store.carry_out(stats(range, **wanted)).series
    return sum(sum(getattr(each, name)) for each in series)


def test_a_scrape_while_a_minute_is_closed_misses_nothing_and_counts_nothing_twice(world: World) -> None:
    world.run(scripts.count({DONE: 5}))
    for closes_after in range(1, 4):  # after each step of the reader
        world.run(scripts.count({DONE: 1}))

        def reading(closes_after: int = closes_after) -> Plan[dict[str, int]]:
            plan = history.counters()
            values: Any = None
            number = 0
            while True:
                try:
                    values = yield plan.send(values)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                number += 1
                if number == closes_after:
                    close(world)
                    world.redis.delete(keys.STATS_MINUTES)

        assert world.store.carry_out(reading()) == {"tasks|done|work|default": 5 + closes_after}


def test_closing_is_safe_to_send_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(scripts.count({DONE: 1}))
    rolls: list[Call[str]] = []
    roll = insight_scripts.roll

    def noted(*given: Any) -> Call[str]:
        rolls.append(roll(*given))
        return rolls[-1]

    monkeypatch.setattr(insight_scripts, "roll", noted)
    close(world)
    before = world.redis.hgetall(keys.COUNTERS), world.redis.hgetall(keys.STATS_MINUTES)

    assert world.run(rolls[0]) == "stale"
    assert (world.redis.hgetall(keys.COUNTERS), world.redis.hgetall(keys.STATS_MINUTES)) == before


def test_hours_are_made_of_minutes_and_days_of_hours(world: World) -> None:
    now = now_ms(world) // MINUTE_MS
    midnight = now - now % 1440
    for minute in (midnight - 1440, midnight - 70, midnight - 1):
        count_at(world, minute, {DONE: 1}, {"work|default": 3})
    close(world)

    assert numbers(world, HOUR) == sorted({(midnight - back) // 60 for back in (1440, 70, 1)})
    assert numbers(world, DAY) == [midnight // 1440 - 1]
    assert (sum_of(world, "done", "90d"), sum_of(world, "submitted", "7d")) == (3, 9)


def test_a_range_adds_up_whatever_its_buckets_are_made_of(world: World) -> None:
    now = now_ms(world) // MINUTE_MS
    for back in (0, 1, 61, 130, 1300, 3000):
        count_at(world, now - back, {DONE: 1})
        if back > 100:
            close(world, now * MINUTE_MS)

    assert [sum_of(world, "done", range) for range in ("1h", "24h", "7d", "90d")] == [2, 5, 6, 6]
    close(world)
    assert [sum_of(world, "done", range) for range in ("1h", "24h", "7d", "90d")] == [2, 5, 6, 6]
    assert [sum_of(world, "done", range, by="type") for range in ("1h", "24h", "7d", "90d")] == [2, 5, 6, 6]


def test_a_minute_that_is_counted_in_again_keeps_both_counts(world: World) -> None:
    """Redis's clock was put back."""
    minute = now_ms(world) // MINUTE_MS - 120
    count_at(world, minute, {DONE: 1})
    close(world)
    count_at(world, minute, {DONE: 2})

    close(world)

    assert counters(world) == {"tasks|done|work|default": 3}
    assert (sum_of(world, "done", "24h"), sum_of(world, "done", "7d")) == (3, 3)


def test_what_is_old_is_removed(world: World) -> None:
    now = now_ms(world) // MINUTE_MS
    for unit in (MINUTE, TEN_MINUTES, HOUR, DAY):
        number = now // unit.minutes
        for each in (number - unit.kept - 1, number - unit.kept, number - unit.kept + 1, number + 500):
            world.redis.hset(unit.key, str(each), history.bucket_of({}, {}))

    close(world, now * MINUTE_MS, {})

    assert min(numbers(world, MINUTE)) == now - MINUTE.kept + 1
    assert min(numbers(world, TEN_MINUTES)) == now // 10 - TEN_MINUTES.kept + 1
    assert min(numbers(world, HOUR)) == now // 60 - HOUR.kept + 1
    assert min(numbers(world, DAY)) == now // 1440 - DAY.kept + 1
    assert max(numbers(world, MINUTE)) <= now + 1


def test_many_types_take_bounded_space_and_the_totals_hold(world: World) -> None:
    count = MOST_PAIRS + 200
    minute = now_ms(world) // MINUTE_MS - 1
    count_at(world, minute, {f"tasks|done|t{n:04}|default|b1": 1 + n % 2 for n in range(count)})
    close(world)
    count_at(world, minute + 1, {f"tasks|done|t{n:04}|default|b1": 1 for n in range(count)})
    open_too = counters(world)
    close(world)

    totals = counters(world)
    assert totals == open_too
    assert totals["tasks|done|t0000|default"] == 2
    assert totals[f"tasks|done|{OTHER}|{OTHER}"] == 200 + 300
    assert len(totals) == MOST_PAIRS + 1
    bucket = history.read_bucket(world.redis.hget(keys.STATS_MINUTES, str(minute)))
    assert bucket is not None
    assert len(bucket.rows()) == MOST_ROWS + 1
    assert bucket.total == {"done": count + count // 2}
    series = world.store.carry_out(stats("1h", by="type")).series
    assert (len(series), series[-1].type) == (21, OTHER)
    assert sum(sum(each.done) for each in series) == 2 * count + count // 2


def test_the_depth_of_an_hour_is_its_highest_sample(world: World) -> None:
    hour = now_ms(world) // MINUTE_MS // 60 - 1
    for minute, depth in ((2, 5), (3, 9), (4, 0)):
        close(world, (hour * 60 + minute) * MINUTE_MS, {"default": depth, "empty": 0})
    close(world, (hour + 1) * 60 * MINUTE_MS + MINUTE_MS, {"default": 1})

    depths = {each.queue: each.values for each in world.store.carry_out(stats("7d")).depth}
    assert (depths["default"][-2], depths["empty"][-2], depths["default"][0]) == (9, 0, None)


def test_one_of_the_pools_closes_a_minute(world: World) -> None:
    assert [world.run(history.take_turn(7)) for _ in range(3)] == [True, False, False]
    assert world.run(history.take_turn(8)) is True


@pytest.mark.parametrize(
    ("ns", "share", "expected"),
    [([], 0.5, None), ([10], 0.5, 0.5), ([0, 0, 0, 0, 0, 4], 0.5, 37.5), ([1, 0, 0, 0, 0, 99], 0.95, 48.737)],
)
def test_quantiles_are_those_of_prometheus(ns: list[int], share: float, expected: float | None) -> None:
    assert quantile_ms(ns + [0] * (len(keys.BUCKET_LABELS) - len(ns)), share) == expected


def test_what_is_slower_than_the_last_bound_counts_as_that(world: World) -> None:
    ns = [0] * (len(keys.BUCKET_LABELS) - 1) + [3]

    assert quantile_ms(ns, 0.5) == 3_600_000


def test_a_cancellation_that_is_sent_again_counts_once(world: World) -> None:
    world.add("a")
    call = scripts.cancel("a", reason="canceled", error="no")

    assert [world.run(call) for _ in range(2)] == ["ok", "ok"]
    assert world.counted()["tasks|canceled|work|default|"] == 1


def crash_of(world: World, **how: Any) -> Call[str]:
    running = world.start("a")
    return scripts.crash("a", running.attempt_id, "default", error="died", failure={}, **how)


def expired(world: World) -> Call[str]:
    world.add("a", expires_in_s=100)
    world.redis.hset("rq:job:a", "expires_ms", 1000)
    return scripts.cancel("a", reason="expired", error="late")


@pytest.mark.parametrize(
    ("move", "outcome"),
    [
        (lambda world: scripts.give_back(world.start("a")), "given_back"),
        (lambda world: scripts.retry(world.start("a"), delay_ms=0, error="no", failure={}), None),
        (lambda world: scripts.snooze(world.start("a"), delay_ms=1000, message="later"), None),
        (lambda world: crash_of(world, max_crashes=3), "crashed"),
        (lambda world: crash_of(world, max_crashes=1), "crashed"),
        (lambda world: crash_of(world, max_crashes=3, is_shared=True), "given_back"),
        (expired, "expired"),
    ],
)
def test_scripts_count_what_no_worker_process_counts(
    world: World, move: Callable[[World], Call[str]], outcome: str | None
) -> None:
    world.run(move(world))

    ended = {name.split("|")[1]: n for name, n in world.counted().items() if name.startswith("tasks|")}
    assert ended == ({} if outcome is None else {outcome: 1})


def test_a_crash_counts_for_the_build_of_its_worker(world: World) -> None:
    world.redis.hset("rq:worker:w", "build", "b7")
    world.run(crash_of(world, max_crashes=1))

    assert world.counted()["tasks|crashed|work|default|b7"] == 1
