"""Tasks that add tasks, in worker processes: attempts fail, and their processes are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskStatus
from tests.support import PATIENCE_S
from tests.worker_pool import WorkerPool, lines

S = TaskStatus
TASKS = str(Path(__file__).with_name("tasks_for_adding.py"))


@pytest.mark.parametrize("slots", [1, 3])
def test_worker_processes_run_it(redis_url: str, redis: Redis, tmp_path: Path, slots: int) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, slots=slots, max_crashes=5) as workers:
        payloads = [{"note": str(note), "attempts": 2}, {"note": str(note), "attempts": 2, "kills": True}]
        parents = [workers.pool.add_task(type, payload) for type in ("add", "add_async") for payload in payloads]
        ended = [workers.pool.wait(parent.id, timeout_s=PATIENCE_S) for parent in parents]

        assert [record.status for record in ended] == [S.DONE] * 4, [record.error for record in ended]
        ids = {id for record in ended for id in record.result}
        results = [workers.pool.wait(id, timeout_s=PATIENCE_S).result for id in ids]

    assert sorted(results) == [1] * 16 + [2] * 4
    if slots == 1:  # else a leaf may run in the process that another task kills, and runs again
        assert sorted(lines(note)) == ["1"] * 16 + ["2"] * 4
    assert redis.zcard("taskpool:type:leaf") == 20


@pytest.mark.parametrize("slots", [1, 3])
def test_processes_that_a_task_forks_may_use_its_context(
    redis_url: str, redis: Redis, tmp_path: Path, slots: int
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, slots=slots) as workers:
        ended = [workers.pool.wait(workers.pool.add_task("add_forked").id, timeout_s=PATIENCE_S) for _ in range(3)]

    assert [record.status for record in ended] == [S.DONE] * 3, [record.error for record in ended]
    assert redis.zcard("taskpool:type:leaf") == 15
