"""A redrive with real processes: the failures of a worker are grouped, and a pool that is replaced drives it on."""

from __future__ import annotations

import signal
from pathlib import Path

from redis import Redis

from taskpool import TaskPool
from taskpool.types import TaskStatus
from taskpool.types.insight import Redrive, RedriveStatus
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

S = TaskStatus
TASKS = str(Path(__file__).with_name("tasks_for_redrive.py"))
COUNT = 60


def test_a_group_is_redriven_by_whichever_pool_lives(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "number"
    file.write_text("{}")
    settings = {"tasks": TASKS, "lease_s": 1}
    with WorkerPool(redis_url, tmp_path / "log", build="b1", **settings) as workers:
        pool = workers.pool
        ids = [pool.add_task("read", {"path": str(file)}).id for _ in range(COUNT)]
        assert {pool.wait(id, timeout_s=PATIENCE_S).status for id in ids} == {S.FAILED}

        (group,) = pool.failures()
        assert (group.error_type, group.count, group.tasks) == ("KeyError", COUNT, COUNT)
        assert group.place.startswith("tasks_for_redrive.py:")
        assert group.place.endswith(" in parsed")
        assert group.builds == {"b1": COUNT}
        assert "number: int = json.loads" in (pool.get_failure(group.fingerprint).traceback or "")

        pool.redrive(group.fingerprint)
        stopped = eventually(lambda: _ended(pool, group.fingerprint))
        assert (stopped.status, stopped.retried) == (RedriveStatus.STOPPED, 1)

        file.write_text('{"number": 7}')
        pool.redrive(group.fingerprint, steps=[1, "all"])
        eventually(lambda: pool.get_redrive(group.fingerprint).retried)
        workers.send(signal.SIGKILL)
        workers.end()
        with WorkerPool(redis_url, tmp_path / "log2", build="b2", **settings) as others:
            done = eventually(lambda: _ended(others.pool, group.fingerprint))
            assert done.status is RedriveStatus.DONE
            assert {others.pool.wait(id, timeout_s=PATIENCE_S).status for id in ids} == {S.DONE}


def _ended(pool: TaskPool, fingerprint: str) -> Redrive | None:
    redrive = pool.get_redrive(fingerprint)
    return redrive if redrive.status is not RedriveStatus.RUNNING else None
