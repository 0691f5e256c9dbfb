"""Processes that are frozen: what they wake up to is no longer theirs, and what they didn't see was no attempt.

The moment between a claim and its task's first line is held still that way.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from taskpool import TaskRecord, TaskStatus, WaitTimeout
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines


@contextmanager
def frozen_with_a_claim(workers: WorkerPool, directory: Path, do: str) -> Iterator[tuple[TaskRecord, Path]]:
    """Freezes the process at the doorbells: Redis carries out the claim behind it, and the answer isn't read."""
    process = psutil.Process(workers.pids()[0])
    numbers = itertools.count()

    def freeze() -> tuple[TaskRecord, Path] | None:
        note, until = (directory / f"{name}-{next(numbers)}" for name in ("note", "until"))
        process.suspend()
        task = workers.submit(do, note=note, until=until)
        if workers.pool.get(task.id).status is TaskStatus.IN_PROGRESS:
            return task, note
        process.resume()  # it wasn't there
        until.touch()
        workers.pool.wait(task.id, timeout_s=PATIENCE_S)
        return None

    try:
        found = eventually(freeze)
        assert found
        yield found
    finally:
        process.resume()


@pytest.mark.parametrize("slots", [1, 4])
def test_a_claim_that_a_frozen_process_finds_when_its_lease_is_over_is_not_run(
    redis_url: str, tmp_path: Path, slots: int
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1, slots=slots) as workers:
        (pid,) = workers.pids()
        with frozen_with_a_claim(workers, tmp_path, "ok") as (task, note):
            eventually(lambda: workers.pool.get(task.id).status is TaskStatus.QUEUED)
        record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

        assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
        assert [attempt.outcome for attempt in record.history] == ["given_back", "done"]
        assert lines(note) == [f"{pid} 1"]


@pytest.mark.parametrize("force", [False, True])
def test_a_stop_that_comes_before_the_first_line_of_a_claimed_task_stops_it(
    redis_url: str, tmp_path: Path, force: bool
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=6) as workers:
        with frozen_with_a_claim(workers, tmp_path, "hang") as (task, _):
            asked = workers.pool.kill_task(task.id, grace_s=30, force=force)
        record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

        assert asked.status is TaskStatus.STOPPING
        assert (record.status, record.attempt) == (TaskStatus.STOPPED, 1)
        assert workers.result("ok").status is TaskStatus.DONE


@pytest.mark.parametrize("slots", [1, 4])
def test_a_process_whose_supervisor_is_frozen_claims_nothing_until_it_goes_on(
    redis_url: str, tmp_path: Path, slots: int
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=2, slots=slots) as workers:

        def is_left() -> TaskRecord | None:
            task = workers.submit()
            try:
                workers.pool.wait(task.id, timeout_s=1)
            except WaitTimeout:
                return task
            return None

        workers.send(signal.SIGSTOP)
        left = eventually(is_left)
        assert left is not None
        assert workers.pool.get(left.id).status is TaskStatus.QUEUED

        workers.send(signal.SIGCONT)
        record = workers.pool.wait(left.id, timeout_s=PATIENCE_S)

        assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
