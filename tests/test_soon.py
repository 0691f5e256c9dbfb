"""Tasks that become due before the next round of housekeeping are announced and promoted in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from taskpool import AsyncTaskPool, Registry, TaskSpec, TaskStatus
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.keys import SOON_MS
from taskpool.settings import Settings
from taskpool.tasks.attempt import Outcome
from workers.duties import CommandChannel, Outage
from workers.housekeeping import Housekeeping

LATER = TaskSpec(type="echo", payload={"message": 1}, delay_s=60)


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[AsyncTaskPool]:
    async with AsyncTaskPool(redis_url, registry=Registry(builtins=True)) as pool:
        yield pool


@pytest.fixture
async def published(redis_url: str) -> AsyncIterator[asyncio.Queue[float]]:
    """The seconds until due tasks, as a supervisor receives them."""
    published: asyncio.Queue[float] = asyncio.Queue()
    channel = CommandChannel(redis_url, lambda worker, command: None, published.put_nowait)
    await channel.step()
    yield published
    channel.close()


async def next_of(published: asyncio.Queue[float]) -> float:
    return await asyncio.wait_for(published.get(), 30)


async def test_only_a_short_delay_is_published(pool: AsyncTaskPool, published: asyncio.Queue[float]) -> None:
    await pool.add_tasks([LATER, TaskSpec(type="echo", payload={"message": 1}, delay_s=0.25)])

    assert await next_of(published) == 0.25
    assert published.empty()


async def test_a_time_is_published_too(pool: AsyncTaskPool, published: asyncio.Queue[float]) -> None:
    status = TaskStatus.QUEUED
    while status is not TaskStatus.SCHEDULED:  # this machine was slower than the delay
        soon = datetime.now(UTC) + timedelta(seconds=0.9)
        status = (await pool.add_task("echo", {"message": 1}, run_at=soon)).status

    assert 0 < await next_of(published) <= SOON_MS / 1000


async def test_a_retry_is_published(pool: AsyncTaskPool, published: asyncio.Queue[float]) -> None:
    await pool.add_task("echo", {"message": 1})
    running = await pool.run_task(["default"], worker="w", attempt_id="a")
    assert running is not None

    outcome = Outcome(TaskStatus.SCHEDULED, error="x", failure={"reason": "retry"}, delay_s=0.2)
    await pool.update_status(running, outcome)

    assert await next_of(published) == 0.2


async def test_housekeeping_wakes_for_the_first_due_task(redis_url: str) -> None:
    housekeeping = Housekeeping(AsyncStore(redis_url), Outage(), Settings())

    housekeeping.wake_in(600)
    housekeeping.wake_in(0)
    housekeeping.wake_in(300)

    await asyncio.wait_for(housekeeping.wake.wait(), 30)
