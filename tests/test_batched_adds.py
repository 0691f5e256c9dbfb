"""Plain submissions of the same moment share a call, and each is stored, audited, refused and answered for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from taskpool import AsyncTaskPool, QueueFull, RedisUnavailable, Registry, TaskSpec, TaskStatus
from taskpool.access.audit import Actor, read_audit
from taskpool.operations.queue import Submitted
from taskpool.redis.add_script import MOST
from taskpool.settings import Settings
from tests.states import World

ECHO = TaskSpec(type="echo", payload={"message": 1})


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[AsyncTaskPool]:
    registry = Registry(builtins=True)
    async with AsyncTaskPool(redis_url, registry=registry, settings=Settings(max_queue_depth=100)) as pool:
        await pool.submit(ECHO)  # from here on it is connected, and Redis knows the script
        yield pool


async def submit(pool: AsyncTaskPool, count: int) -> list[Submitted | BaseException]:
    """As many at the same moment, each by another."""
    names = [Actor(key=None, name=f"caller-{number}", project=None, address="") for number in range(count)]
    return await asyncio.gather(*[pool.submit(ECHO, by=by) for by in names], return_exceptions=True)


def calls(world: World) -> int:
    count: int = world.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    return count


async def test_those_of_one_moment_are_stored_by_one_call_in_the_order_in_which_they_came(
    pool: AsyncTaskPool, world: World
) -> None:
    before = calls(world)

    submitted = await submit(pool, MOST)

    ids = [each.receipts[0].id for each in submitted if isinstance(each, Submitted)]
    assert calls(world) == before + 1
    assert [queued.record.id for queued in (await pool.get_queue()).items][1:] == ids
    assert len(set(ids)) == MOST


async def test_a_call_takes_no_more_than_so_many_of_them(pool: AsyncTaskPool, world: World) -> None:
    before = calls(world)

    await submit(pool, 2 * MOST + 1)

    assert calls(world) == before + 3


async def test_each_has_its_own_entry_in_the_audit(pool: AsyncTaskPool) -> None:
    submitted = await submit(pool, 3)

    page = await pool.store.carry_out(read_audit(limit=3))
    assert {(each.entry.name, each.entry.about) for each in page.items} == {
        (f"caller-{number}", each.receipts[0].id)
        for number, each in enumerate(submitted)
        if isinstance(each, Submitted)
    }


async def test_one_with_an_option_has_a_call_of_its_own(pool: AsyncTaskPool, world: World) -> None:
    before = calls(world)
    later = TaskSpec(type="echo", payload={"message": 1}, delay_s=100)

    first, second, third = await asyncio.gather(pool.submit(ECHO), pool.submit(later), pool.submit(ECHO))

    assert calls(world) == before + 2
    assert [each.receipts[0].status for each in (first, second, third)] == [
        TaskStatus.QUEUED,
        TaskStatus.SCHEDULED,
        TaskStatus.QUEUED,
    ]


async def test_where_there_is_no_room_for_all_those_are_stored_for_which_there_is(pool: AsyncTaskPool) -> None:
    await pool.submit_many([ECHO] * 90)

    submitted = await submit(pool, 12)

    assert [isinstance(each, Submitted) for each in submitted] == [True] * 9 + [False] * 3
    assert all(isinstance(each, QueueFull) for each in submitted[9:])
    assert (await pool.queues())[0].queued == 100


async def test_all_waiting_calls_fail_when_redis_is_gone(redis_url: str) -> None:
    async with AsyncTaskPool("unix:///nowhere/redis.sock", registry=Registry(builtins=True)) as pool:
        submitted = await submit(pool, 3)

    assert [type(each) for each in submitted] == [RedisUnavailable] * 3


async def test_a_task_whose_caller_has_left_is_stored_like_the_others(pool: AsyncTaskPool, world: World) -> None:
    leaving = asyncio.create_task(pool.submit(ECHO))
    staying = asyncio.create_task(pool.submit(ECHO))
    await asyncio.sleep(0)  # both have been taken

    leaving.cancel()

    await staying
    assert leaving.cancelled() or leaving.cancelling()
    assert len((await pool.get_queue()).items) == 3
