"""Schedules while answers are lost, connections cut and pools compete: each occurrence is submitted exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from taskpool import Every, Registry, TaskPool, TaskSpec, task
from taskpool.errors import RedisUnavailable
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.embedded import RedisServer
from taskpool.settings import Settings
from taskpool.tasks.schedule import Overlap
from tests.proxy import Proxy, Trap, When
from workers.schedules import Schedules

HOUR_MS = 3_600_000
MOST_COMMANDS = 60


@task("work")
def work(n: int = 0) -> None: ...


class Bench:
    """Schedules that are due, a proxy before Redis, and pools behind it that fire them."""

    def __init__(self, url: str, proxy: Proxy) -> None:
        registry = Registry()
        registry.add(work)
        self.proxy = proxy
        self.redis: Any = Redis.from_url(url)
        self.pool = TaskPool(url, registry=registry)
        self.types = [each.info() for each in registry]
        self.empty()
        self.duties: list[tuple[AsyncStore, Schedules]] = []

    def empty(self) -> None:
        """Leaves only the task type."""
        self.redis.flushdb()
        info = PoolInfo(id="p", host="h", pid=1, queues=("default",), types=("work",), workers=())
        self.pool.store.run(publish(info, self.types, ttl_s=600))

    def duty(self) -> Schedules:
        """A new worker pool's duty, on a connection of its own."""
        store = AsyncStore(self.proxy.url, name="duty")
        self.duties.append((store, Schedules(store, Settings(), dict)))
        return self.duties[-1][1]

    async def close(self) -> None:
        for store, _ in self.duties:
            await store.close()
        self.pool.close()
        self.redis.close()

    def make_due(self, name: str, overlap: Overlap = "allow", missed: int = 1, **options: Any) -> list[datetime]:
        """A schedule with an hour between its runs, of which some are due; their nominal times."""
        times = Every("1h", overlap=overlap, catch_up="all")
        self.pool.set_schedule(name, times, TaskSpec(type="work", **options))
        next_ms = int(self.redis.hget(f"taskpool:schedule:{name}", "next_ms"))
        first_ms = next_ms - missed * HOUR_MS
        self.redis.hset(f"taskpool:schedule:{name}", "next_ms", first_ms)
        self.redis.zadd("taskpool:schedules:due", {name: first_ms / 1000})
        return [datetime.fromtimestamp(ms / 1000, UTC) for ms in range(first_ms, next_ms, HOUR_MS)]

    async def fire(self, duty: Schedules) -> None:
        """Rounds until nothing is due; a cut connection ends one."""
        for _ in range(2000):
            try:
                wait_s = await duty.step()
            except RedisUnavailable:
                continue
            if wait_s > 0.5:
                return
        raise AssertionError("schedules are due without end")

    def submitted(self, name: str) -> list[datetime]:
        found = self.pool.list_tasks(limit=500).items
        return sorted(record.occurrence for record in found if record.schedule == name and record.occurrence)

    def outcomes(self, name: str) -> list[str]:
        return [run.outcome for run in reversed(self.pool.get_schedule(name).history)]


@pytest.fixture
def proxy(tmp_path: Path, redis_server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path, redis_server.socket_path)
    yield proxy
    proxy.trap = None
    proxy.close()


@pytest.fixture
async def bench(redis_url: str, proxy: Proxy) -> AsyncIterator[Bench]:
    bench = Bench(redis_url, proxy)
    yield bench
    await bench.close()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["goes on", "is killed"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_at_each_command_the_connection_is_cut_or_the_pool_killed_and_each_run_is_submitted_once(
    bench: Bench, when: When, is_replaced: bool
) -> None:
    """A pool that is killed makes no further round: another one goes on."""
    commands = 0
    for n in range(1, MOST_COMMANDS):
        bench.empty()
        due = bench.make_due("plain", missed=2)
        once = bench.make_due("skipping", overlap="skip", missed=2)
        bench.make_due("refused", unique_key="held")
        bench.pool.add_task("work", unique_key="held")
        trap = bench.proxy.trap = Trap(lambda name: name == "duty", when, n)

        first = bench.duty()
        try:
            await first.step()
        except RedisUnavailable:
            pass
        await bench.fire(bench.duty() if is_replaced else first)

        bench.proxy.trap = None
        assert bench.submitted("plain") == due, trap.passed
        assert bench.outcomes("plain") == ["submitted", "submitted"], trap.passed
        assert bench.submitted("skipping") == once[:1], trap.passed
        assert bench.outcomes("skipping") == ["submitted", "skipped"], trap.passed
        assert bench.outcomes("refused") == ["refused"], trap.passed
        commands = n
        if not trap.closed.is_set():
            break
    assert commands > 5


async def test_three_pools_at_once_submit_each_run_once(bench: Bench) -> None:
    due = {f"s{number}": bench.make_due(f"s{number}", missed=3) for number in range(60)}
    skipping = bench.make_due("skipping", overlap="skip", missed=3)

    await asyncio.gather(*(bench.fire(bench.duty()) for _ in range(3)))

    for name, expected in due.items():
        assert bench.submitted(name) == expected
        assert bench.outcomes(name) == ["submitted"] * 3
    assert bench.submitted("skipping") == skipping[:1]
    assert bench.outcomes("skipping") == ["submitted", "skipped", "skipped"]


async def test_a_change_and_a_firing_pool_never_mix(bench: Bench) -> None:
    """The schedule is changed all the time while it is due: each run has the task of one revision."""
    expected = bench.make_due("s", missed=30)

    async def change() -> None:
        for number in range(40):
            await asyncio.to_thread(
                bench.pool.set_schedule,
                "s",
                Every("1h", catch_up="all", overlap="allow"),
                TaskSpec(type="work", payload={"n": number}),
            )

    await asyncio.gather(change(), bench.fire(bench.duty()), bench.fire(bench.duty()))
    await bench.fire(bench.duty())

    assert bench.submitted("s") == expected


async def test_ten_thousand_schedules_cost_an_idle_pool_one_round_trip(bench: Bench, proxy: Proxy) -> None:
    bench.make_due("s")
    hash_of: dict[str, str] = {k.decode(): v.decode() for k, v in bench.redis.hgetall("taskpool:schedule:s").items()}
    later_s = bench.redis.time()[0] + 86_400
    with bench.redis.pipeline(transaction=False) as pipeline:
        for number in range(10_000):
            pipeline.hset(f"taskpool:schedule:n{number}", mapping={**hash_of, "next_ms": later_s * 1000})
            pipeline.zadd("taskpool:schedules:due", {f"n{number}": later_s})
            pipeline.zadd("taskpool:schedules", {f"n{number}": 0})
        pipeline.execute()
    bench.pool.remove_schedule("s")
    duty = bench.duty()
    await duty.step()
    trap = proxy.trap = Trap(lambda name: name == "duty", "before", 1000)

    for _ in range(5):
        await duty.step()

    assert trap.passed == ["EVALSHA", "TIME"] * 5
