"""Processes that are frozen: what they wake up to is no longer theirs, and what they didn't see was no attempt."""

from __future__ import annotations

import itertools
from pathlib import Path

import psutil
import pytest

from taskpool import TaskRecord, TaskStatus
from tests.support import eventually
from tests.worker_pool import WorkerPool, lines


@pytest.mark.parametrize("slots", [1, 4])
def test_a_claim_that_a_frozen_process_finds_when_its_lease_is_over_is_not_run(
    redis_url: str, tmp_path: Path, slots: int
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1, slots=slots) as workers:
        process = psutil.Process(workers.pids()[0])
        notes = (tmp_path / f"note-{number}" for number in itertools.count())

        def freeze_it_with_a_claim() -> tuple[TaskRecord, Path] | None:
            """Frozen at the doorbells: Redis carries out the claim behind it, and nobody reads the answer."""
            process.suspend()
            note = next(notes)
            task = workers.submit("ok", note=note)
            if workers.pool.get(task.id).status is TaskStatus.IN_PROGRESS:
                return task, note
            process.resume()  # it wasn't there
            workers.pool.wait(task.id, timeout_s=30)
            return None

        try:
            found = eventually(freeze_it_with_a_claim)
            assert found
            task, note = found
            eventually(lambda: workers.pool.get(task.id).status is TaskStatus.QUEUED)
        finally:
            process.resume()
        record = workers.pool.wait(task.id, timeout_s=30)

        assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
        assert [attempt.outcome for attempt in record.history] == ["given_back", "done"]
        assert lines(note) == [f"{process.pid} 1"]
