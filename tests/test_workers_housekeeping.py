"""One round of housekeeping: it finishes what dead processes left undone and changes nothing else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from taskpool import Registry, TaskPool, TaskSpec, TaskStatus, task
from taskpool.errors import RedisUnavailable
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis import keys, scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.scripts import claim, finish
from taskpool.settings import Settings
from taskpool.types import RunningTask
from workers.duties import Outage
from workers.housekeeping import BATCH, LEAST_S, Housekeeping


@task("nothing")
def nothing() -> None: ...


@dataclass
class Bench:
    """A round of housekeeping, and a pool to make work for it."""

    pool: TaskPool
    outage: Outage
    housekeeping: Housekeeping

    def claim(self, attempt_id: str = "a", lease_ms: int = 60_000) -> RunningTask:
        """The next task, as a worker claims it."""
        running = self.pool.store.run(
            claim(["default"], worker="w", attempt_id=attempt_id, lease_ms=lease_ms, was_idle=True)
        )
        assert running is not None
        return running

    def status(self, id: str) -> TaskStatus:
        return self.pool.get(id).status


def be_steady(pool: TaskPool) -> None:
    """As if another pool had seen writes work, and the clock run steadily, for an hour."""
    hour_ms = 3_600_000
    now_ms = pool.store.run(scripts.tick(steady_ms=0, gap_ms=0, lease_ms=15_000)).now_ms
    known = scripts.tick(steady_ms=hour_ms, gap_ms=0, lease_ms=15_000, expected_ms=now_ms, least_ms=60_000)
    assert pool.store.run(known).steady_ms >= hour_ms


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    store, outage = AsyncStore(redis_url), Outage()
    registry = Registry()
    registry.add(nothing)
    with TaskPool(redis_url, registry=registry) as pool:
        be_steady(pool)
        yield Bench(pool, outage, Housekeeping(store, outage, Settings(max_crashes=2)))
    await store.close()


async def test_a_task_whose_lease_has_ended_runs_again_and_fails_after_the_most_crashes(bench: Bench) -> None:
    task = bench.pool.add_task("nothing")

    bench.claim("first", lease_ms=-1)
    await bench.housekeeping.step()
    assert bench.status(task.id) is TaskStatus.QUEUED

    bench.claim("second", lease_ms=-1)
    await bench.housekeeping.step()
    record = bench.pool.get(task.id)
    assert (record.status, record.crashes) == (TaskStatus.FAILED, 2)
    assert record.error == "lease lost: its worker can't be reached and may still be running"
    assert record.failure == {"reason": "lease_lost", "message": record.error, "may_still_run": True}
    assert bench.pool.counters()["tasks|lease_lost|nothing|default"] == 2


async def test_attempts_of_a_host_that_died_are_taken_back_in_batches(bench: Bench) -> None:
    bench.pool.add_tasks([TaskSpec(type="nothing")] * (3 * BATCH))
    for number in range(3 * BATCH):
        bench.claim(str(number), lease_ms=-1)

    await bench.housekeeping.step()
    (queue,) = bench.pool.queues()
    assert BATCH <= queue.queued <= 2 * BATCH  # from both ends of the leases

    await bench.housekeeping.step()
    await bench.housekeeping.step()
    (queue,) = bench.pool.queues()
    assert (queue.queued, queue.in_progress) == (3 * BATCH, 0)


async def test_an_attempt_with_a_valid_lease_is_not_taken_back(bench: Bench) -> None:
    task = bench.pool.add_task("nothing")
    bench.claim()

    await bench.housekeeping.step()

    assert bench.status(task.id) is TaskStatus.IN_PROGRESS


async def test_after_an_outage_every_pool_may_renew_its_leases_first(bench: Bench) -> None:
    task = bench.pool.add_task("nothing")
    bench.claim(lease_ms=-1)
    bench.outage.note_failure(RedisUnavailable("away"))
    bench.outage.note_success()

    await bench.housekeeping.step()

    assert bench.status(task.id) is TaskStatus.IN_PROGRESS


async def test_the_next_round_comes_when_the_next_task_is_due(bench: Bench) -> None:
    bench.pool.add_task("nothing", delay_s=3600)
    assert await bench.housekeeping.step() == 1

    status, wait_s = TaskStatus.QUEUED, 0.0
    while status is not TaskStatus.SCHEDULED:  # this machine was slower than the delay
        soon = bench.pool.add_task("nothing", delay_s=0.5)
        wait_s = await bench.housekeeping.step()
        status = bench.status(soon.id)

    assert LEAST_S <= wait_s <= 0.5


async def test_tasks_of_many_queues_are_promoted_in_one_round(bench: Bench, redis: Redis) -> None:
    tasks = [bench.pool.add_task("nothing", queue=f"q{number}", delay_s=3600) for number in range(30)]
    for number, delayed in enumerate(tasks):
        redis.zadd(f"rq:scheduled:q{number}", {delayed.id: 1})

    await bench.housekeeping.step()

    assert {bench.status(delayed.id) for delayed in tasks} == {TaskStatus.QUEUED}


async def test_a_task_that_was_not_started_in_time_is_canceled(bench: Bench, redis: Redis) -> None:
    late = bench.pool.add_task("nothing", expires_in_s=3600)
    redis.zadd("taskpool:expiring", {late.id: 1})
    redis.hset(f"rq:job:{late.id}", "expires_ms", 1)

    await bench.housekeeping.step()

    record = bench.pool.get(late.id)
    assert (record.status, record.reason) == (TaskStatus.CANCELED, "expired")


async def test_tasks_that_wait_for_an_ended_task_are_released(bench: Bench) -> None:
    parent = bench.pool.add_task("nothing")
    children = [bench.pool.add_task("nothing", depends_on=[parent.id]) for _ in range(250)]
    word = bench.pool.store.run(finish(bench.claim(), TaskStatus.DONE, result=b"1"))
    assert word == "children"  # and the worker dies before it releases them

    await bench.housekeeping.step()

    assert {bench.status(child.id) for child in children} == {TaskStatus.QUEUED}


async def test_an_expired_record_is_removed_from_every_key(bench: Bench, redis: Redis) -> None:
    old = bench.pool.add_task("nothing", tags=["x"])
    bench.pool.store.run(finish(bench.claim(), TaskStatus.DONE, result=b"1"))
    redis.zadd("rq:finished:default", {old.id: 1})

    await bench.housekeeping.step()

    assert [key for key in redis.keys("*") if old.id.encode() in key] == []
    assert redis.zcard("taskpool:type:nothing") == 0
    assert redis.zcard("rq:finished:default") == 0


async def test_a_damaged_record_does_not_stop_the_rest_of_a_round(bench: Bench, redis: Redis) -> None:
    redis.set("rq:job:damaged", "not a hash")
    redis.sadd("rq:queues", "rq:queue:default")
    for registry in ("scheduled", "finished", "deferred"):
        redis.zadd(f"rq:{registry}:default", {"damaged": 1})
    redis.zadd("rq:wip:default", {"damaged:1": 1})
    due = bench.pool.add_task("nothing", delay_s=3600)
    redis.zadd("rq:scheduled:default", {due.id: 2})

    await bench.housekeeping.step()

    assert bench.status(due.id) is TaskStatus.QUEUED


async def test_unique_keys_without_a_task_are_removed(bench: Bench, redis: Redis) -> None:
    deleted = bench.pool.add_task("nothing", unique_key="deleted")
    held = bench.pool.add_task("nothing", unique_key="held")
    redis.delete(f"rq:job:{deleted.id}")

    await bench.housekeeping.step()

    assert redis.hgetall("taskpool:unique") == {b"held": held.id.encode()}


async def test_a_round_costs_no_more_with_many_idle_queues(bench: Bench, redis: Redis) -> None:
    async def commands() -> int:
        redis.config_resetstat()
        await bench.housekeeping.step()
        stats: Any = redis.info("commandstats")
        return sum(stat["calls"] for stat in stats.values())

    served = [f"q{n}" for n in range(3)]
    for queue in served:
        bench.pool.add_task("nothing", queue=queue, delay_s=3600)
        redis.sadd(f"rq:workers:{queue}", "rq:worker:w")
    redis.sadd("rq:queues", *[f"rq:queue:idle{n}" for n in range(100)])
    few = max([await commands() for _ in range(5)])

    redis.sadd("rq:queues", *[f"rq:queue:idle{n}" for n in range(5000)])
    many = max([await commands() for _ in range(5)])

    assert many < few * 2


async def test_due_tasks_are_found_in_one_of_many_queues_without_workers(bench: Bench, redis: Redis) -> None:
    redis.sadd("rq:queues", *[f"rq:queue:idle{n}" for n in range(1000)])
    task = bench.pool.add_task("nothing", queue="quiet", delay_s=3600)
    redis.zadd("rq:scheduled:quiet", {task.id: 1})

    for _ in range(30):
        await bench.housekeeping.step()

    assert bench.status(task.id) is TaskStatus.QUEUED


async def test_the_queues_of_pools_are_looked_at_in_each_round(bench: Bench, redis: Redis) -> None:
    redis.sadd("rq:queues", *[f"rq:queue:idle{n}" for n in range(1000)])
    pool = PoolInfo(id="other", host="h", pid=1, queues=("mine",), types=(), workers=())
    bench.pool.store.run(publish(pool, [], ttl_s=60))
    await bench.housekeeping.step()
    task = bench.pool.add_task("nothing", queue="mine", delay_s=3600)
    redis.zadd("rq:scheduled:mine", {task.id: 1})

    await bench.housekeeping.step()

    assert bench.status(task.id) is TaskStatus.QUEUED


async def test_a_round_closes_the_minutes_that_are_over_and_samples_the_queues(bench: Bench, redis: Any) -> None:
    bench.pool.add_task("nothing")
    counted = bench.pool.counters()
    (minute,) = redis.smembers("taskpool:stats:open")
    redis.rename(f"taskpool:stats:submitted:{int(minute)}", f"taskpool:stats:submitted:{int(minute) - 5}")
    redis.srem("taskpool:stats:open", int(minute))
    redis.sadd("taskpool:stats:open", int(minute) - 5)

    await bench.housekeeping.step()

    assert redis.smembers("taskpool:stats:open") == set()
    assert bench.pool.counters() == counted
    stats = bench.pool.stats("1h")
    assert sum(stats.series[0].submitted) == 1
    assert [(each.queue, each.values[-2:]) for each in stats.depth] in (
        [("default", (1, None))],
        [("default", (None, 1))],
    )


@pytest.fixture
async def stores(redis_url: str) -> AsyncIterator[list[AsyncStore]]:
    """Connections for three pools."""
    stores = [AsyncStore(redis_url) for _ in range(3)]
    yield stores
    for store in stores:
        await store.close()


async def test_one_of_several_pools_has_the_turn_until_it_ends(
    bench: Bench, stores: list[AsyncStore], redis: Any
) -> None:
    settings = Settings(max_crashes=2)
    one, two = (
        Housekeeping(store, Outage(), settings, pool_id=id) for store, id in zip(stores, ("one", "two"), strict=False)
    )
    other = Housekeeping(stores[2], Outage(), Settings(max_crashes=9), pool_id="other")

    for number in range(10):
        redis.delete(*redis.keys(f"{keys.HOUSEKEEPER}*"), "nothing")
        began = time.monotonic()
        for pool in (one, other):
            await pool.step()
        bench.pool.add_task("nothing")
        bench.claim(str(number), lease_ms=-1)
        be_steady(bench.pool)
        await two.step()
        if time.monotonic() - began < keys.TURN_MS / 1000:
            break  # else the turn may have ended on a slow machine
    assert (one.is_mine(), two.is_mine(), other.is_mine()) == (True, False, True)  # the last one would do otherwise
    assert bench.pool.queues()[0].in_progress == 1  # it is left to the first one

    await one.leave()
    be_steady(bench.pool)
    await two.step()
    assert (two.is_mine(), bench.pool.queues()[0].in_progress) == (True, 0)


@pytest.mark.parametrize(
    ("foreign", "ends_ms"),
    [("a pool", None), ("a pool", 600_000), (["a", "list"], None)],
    ids=["no end", "written before the clock was set back", "no string"],
)
async def test_a_turn_that_no_pool_can_have_now_is_taken(
    stores: list[AsyncStore], redis: Any, foreign: str | list[str], ends_ms: int | None
) -> None:
    pool = Housekeeping(stores[0], Outage(), Settings(), pool_id="pool")
    await pool.step()
    (key,) = redis.scan_iter(f"{keys.HOUSEKEEPER}*")
    redis.delete(key)
    redis.set(key, foreign, px=ends_ms) if isinstance(foreign, str) else redis.rpush(key, *foreign)

    await pool.step()

    assert pool.is_mine()
    assert redis.get(key) == b"pool"
