"""Retries, snoozes and refusals in worker processes, one task at a time and many at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import TaskStatus
from tests.support import PATIENCE_S
from tests.worker_pool import WorkerPool, pool_with_redis

TASKS = """
from taskpool import NonRetryable, Retry, Snooze, TaskContext, task

SEEN = {}


def say(ctx, how):
    SEEN[ctx.id] = SEEN.get(ctx.id, 0) + 1
    if how == "never":
        raise NonRetryable("no such printer")
    if SEEN[ctx.id] == 1:
        raise Retry("busy", after_s=0.05) if how == "retry" else Snooze("not yet", after_s=0.05)
    return ctx.attempt


@task("plain", max_attempts=3)
def plain(ctx: TaskContext, how: str) -> int:
    return say(ctx, how)


@task("coroutine", max_attempts=3)
async def coroutine(ctx: TaskContext, how: str) -> int:
    return say(ctx, how)
"""


@pytest.fixture(scope="module", params=[1, 4])
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None
) -> Iterator[WorkerPool]:
    """One pool for all tests of this file, with one task at a time in its process and with four."""
    directory = tmp_path_factory.mktemp("workers")
    module: Path = directory / "sayings.py"
    module.write_text(TASKS)
    with pool_with_redis(directory, redis_binary, workers=1, slots=request.param, tasks=str(module)) as workers:
        yield workers


@pytest.mark.parametrize("type", ["plain", "coroutine"])
def test_a_task_says_how_it_goes_on(workers: WorkerPool, type: str) -> None:
    pool = workers.pool
    added = [pool.add_task(type, {"how": how}) for how in ("retry", "snooze", "never")]

    retried, snoozed, refused = [pool.wait(task.id, timeout_s=PATIENCE_S) for task in added]

    assert (retried.status, retried.result, retried.snoozes) == (TaskStatus.DONE, 2, 0)
    assert (snoozed.status, snoozed.result, snoozed.snoozes) == (TaskStatus.DONE, 1, 1)
    assert (refused.status, refused.attempt) == (TaskStatus.FAILED, 1)
    assert (refused.error, refused.reason) == ("NonRetryable: no such printer", "non_retryable")
