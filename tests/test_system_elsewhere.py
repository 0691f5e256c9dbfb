"""Pools that don't load the same tasks: what one of them doesn't know is left to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool import TaskStatus
from tests.support import eventually
from tests.worker_pool import TASKS, WorkerPool, pool_with_redis


@pytest.fixture
def redis_url(tmp_path: Path, redis_binary: str | None) -> Iterator[str]:
    """A Redis that knows the types of a pool which has ended."""
    with pool_with_redis(tmp_path, redis_binary) as ended:
        ended.process.terminate()
        ended.end()
        yield ended.pool.redis_url


@pytest.mark.parametrize("slots", [1, 2])
def test_a_task_waits_for_a_pool_that_knows_its_type(redis_url: str, tmp_path: Path, slots: int) -> None:
    with WorkerPool(redis_url, tmp_path / "without.log", tasks="", slots=slots) as without:
        ids = [without.submit("ok", max_attempts=1).id for _ in range(3)]
        eventually(lambda: all(without.pool.get(id).snoozes > 0 for id in ids))

        with WorkerPool(redis_url, tmp_path / "with.log", tasks=TASKS) as with_it:
            records = [with_it.pool.wait(id, timeout_s=120) for id in ids]

    assert [(record.status, record.attempt) for record in records] == [(TaskStatus.DONE, 1)] * 3
    assert all("left to another one" in (record.history[0].error or "") for record in records)
    assert (tmp_path / "without.log").read_text().count("the task type 'act' isn't known here") == 1


def test_a_task_whose_type_is_no_longer_served_fails(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "without.log", tasks="", type_grace_s=0.001) as without:
        record = without.result("ok")

    assert record.status is TaskStatus.FAILED
    assert record.reason == "unknown_task"
    assert record.error == "this worker doesn't know the task type 'act'"
