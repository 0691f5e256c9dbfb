"""Stops and timeouts: asked first, then SIGTERM, then SIGKILL; `stopped` only when nothing of the task is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from taskpool import TaskRecord, TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines, pool_with_redis, started


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    """One pool for all tests of this file: it must outlive what they do to its processes."""
    with pool_with_redis(tmp_path_factory.mktemp("workers"), redis_binary, workers=1) as workers:
        yield workers


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


def running(workers: WorkerPool, do: str, note: Path, **options: Any) -> tuple[TaskRecord, int]:
    """A task whose code has begun, and the process it runs in."""
    task = workers.submit(do, note=note, **options)
    return task, started(note)


def spawned(note: Path) -> int:
    """The process that the task has started."""
    return int(eventually(lambda: [line for line in lines(note) if line.startswith("spawned")])[0].split()[1])


def test_a_task_is_interrupted_where_it_is_and_tidies_up(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "tidy", note)

    workers.pool.kill_task(task.id, grace_s=30)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.reason) == (TaskStatus.STOPPED, "stopped")
    assert lines(note)[-1] == "tidied"
    assert workers.result("ok").result["pid"] == pid  # nothing was left behind, so the process goes on


def test_a_coroutine_is_cancelled(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "hang", note, type="act_async")

    workers.pool.kill_task(task.id, grace_s=30)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.STOPPED
    assert lines(note)[-1] == "left"
    assert workers.result("ok").result["pid"] == pid


def test_a_task_that_ends_well_when_asked_is_done(workers: WorkerPool, note: Path) -> None:
    task, _ = running(workers, "yield_to_stop", note)

    workers.pool.kill_task(task.id, grace_s=30)

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == "cancelled: True"


def test_a_task_that_ignores_it_is_killed_after_its_grace(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "ignore", note)

    asked = workers.pool.kill_task(task.id, grace_s=0.2)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert asked.status is TaskStatus.STOPPING
    assert record.status is TaskStatus.STOPPED
    assert lines(note)[1:] == ["ignored"]
    assert not is_running(pid)


def test_force_kills_at_once(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "tidy", note)

    workers.pool.kill_task(task.id, force=True)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.STOPPED
    assert lines(note)[1:] == []
    assert not is_running(pid)


@pytest.mark.parametrize(("do", "force"), [("spawn", False), ("spawn_and_ignore", False), ("spawn_and_ignore", True)])
def test_nothing_of_a_stopped_task_is_left(workers: WorkerPool, note: Path, do: str, force: bool) -> None:
    task, _ = running(workers, do, note)
    pid = spawned(note)

    workers.pool.kill_task(task.id, grace_s=0.2, force=force)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.STOPPED
    assert not is_running(pid)


def test_a_thread_left_behind_ends_with_its_process(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "thread", note)

    workers.pool.kill_task(task.id, grace_s=30)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.crashes) == (TaskStatus.STOPPED, 1)
    assert not is_running(pid)


def test_force_overtakes_a_stop_that_waits(workers: WorkerPool, note: Path) -> None:
    task, _ = running(workers, "ignore", note)

    workers.pool.kill_task(task.id, grace_s=600)
    eventually(lambda: lines(note)[1:])
    workers.pool.kill_task(task.id, force=True)

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED


def test_a_sooner_stop_overtakes_one_that_waits_and_a_later_one_does_not(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "ignore", note)
    workers.pool.kill_task(task.id, grace_s=600)
    eventually(lambda: lines(note)[1:])

    workers.pool.kill_task(task.id, grace_s=0.5)
    workers.pool.kill_task(task.id, grace_s=600)

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED
    assert not is_running(pid)


def test_a_sooner_stop_whose_message_is_lost_is_seen_by_a_heartbeat(
    redis_url: str, redis: Redis, tmp_path: Path, note: Path
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as workers:
        task, _ = running(workers, "ignore", note)
        workers.pool.kill_task(task.id, grace_s=600)
        eventually(lambda: lines(note)[1:])

        redis.hset(f"rq:job:{task.id}", mapping={"stop_grace_s": 0.5})

        assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED


def test_a_stop_whose_message_is_lost_is_seen_by_a_heartbeat(
    redis_url: str, redis: Redis, tmp_path: Path, note: Path
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as workers:
        task, _ = running(workers, "hang", note)

        redis.hset(f"rq:job:{task.id}", mapping={"stop_ms": 1, "stop_grace_s": 30, "stop_force": ""})

        assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED


def test_a_late_stop_does_not_hit_the_next_task(workers: WorkerPool, note: Path, tmp_path: Path) -> None:
    for _ in range(20):
        task = workers.submit("ok")
        workers.pool.kill_task(task.id, grace_s=30)
        follower = workers.result("ok")

        assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status.is_terminal
        assert follower.status is TaskStatus.DONE


def test_a_timeout_interrupts_the_task_and_fails_it(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "tidy", note, timeout_s=1)

    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.FAILED
    assert record.failure is not None
    assert record.failure["reason"] == "timeout"
    assert "_wait" in record.failure["traceback"]
    assert lines(note)[-1] == "tidied"
    assert workers.result("ok").result["pid"] == pid


def test_a_timeout_cancels_a_coroutine(workers: WorkerPool, note: Path) -> None:
    task, _ = running(workers, "hang", note, type="act_async", timeout_s=1)

    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.failure is not None
    assert record.failure["reason"] == "timeout"
    assert lines(note)[-1] == "left"


def test_a_task_that_ignores_its_timeout_is_killed_and_not_run_again(workers: WorkerPool, note: Path) -> None:
    task, pid = running(workers, "ignore", note, timeout_s=1)

    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.attempt, record.crashes) == (TaskStatus.FAILED, 1, 0)
    assert record.failure is not None
    assert record.failure["reason"] == "timeout"
    assert not is_running(pid)


def test_short_tasks_after_a_long_one_keep_their_own_timeouts(workers: WorkerPool, note: Path) -> None:
    assert workers.result("hang", seconds=0.05, timeout_s=30).status is TaskStatus.DONE
    assert workers.result("hang", seconds=0.05, timeout_s=2).status is TaskStatus.DONE

    slow = workers.result("hang", seconds=2.5, timeout_s=600)
    late = workers.result("hang", seconds=30, timeout_s=0.3)

    assert slow.status is TaskStatus.DONE
    assert late.failure is not None
    assert late.failure["reason"] == "timeout"
