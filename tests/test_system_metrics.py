"""What real worker processes count: after N tasks the counters say N, also when pools come and go."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskpool import TaskPool, TaskStatus
from taskpool.operations.insight.builds import build_of
from taskpool.redis.keys import split_name
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

TASKS = """
import os
import signal

from taskpool import Retry, Snooze, TaskContext, task

SEEN = set()


@task("act", max_attempts=2)
def act(ctx: TaskContext, how: str = "ok") -> None:
    is_first = ctx.id not in SEEN
    SEEN.add(ctx.id)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fail" or how == "retry" and is_first:
        raise Retry("no luck", after_s=0.01)
    if how == "snooze" and is_first:
        raise Snooze("not yet", after_s=0.01)
    if how == "ask":
        ctx.ask("go", "Go on?")


@task("other")
def other() -> None: ...
"""


def outcomes(counters: Mapping[str, int], *types: str) -> dict[str, int]:
    """How many attempts ended how, and how many tasks were submitted."""
    totals: Counter[str] = Counter()
    for field, n in counters.items():
        metric, *labels = split_name(field)
        if metric in ("tasks", "submitted") and (not types or labels[-2] in types):
            totals[labels[0] if metric == "tasks" else metric] += n
    return dict(totals)


@pytest.mark.parametrize("slots", [1, 4])
def test_after_so_many_tasks_the_counters_say_so(redis_url: str, tmp_path: Path, slots: int) -> None:
    module = tmp_path / "counted.py"
    module.write_text(TASKS)
    settings = {"workers": 1, "slots": slots, "tasks": str(module), "max_crashes": 1}
    pool = TaskPool(redis_url)

    with WorkerPool(redis_url, tmp_path / "log", **settings) as workers:
        dead = pool.add_task("act", {"how": "die"})  # what its process has counted by then is lost with it
        assert pool.wait(dead.id, timeout_s=PATIENCE_S).reason == "crashed"
        eventually(lambda: len(workers.pids()) == 1)
        hows = ["ok"] * 50 + ["fail", "retry", "retry", "snooze", "snooze", "snooze"]
        added = [pool.add_task("act", {"how": how}) for how in hows]
        added += [pool.add_task("other") for _ in range(20)]
        asking = pool.add_task("act", {"how": "ask"})
        eventually(lambda: pool.get(asking.id).status is TaskStatus.WAITING_CONFIRMATION)
        pool.answer(asking.id, True)
        for task in (*added, asking):
            assert pool.wait(task.id, timeout_s=PATIENCE_S).status.is_terminal
        (build,) = {worker.build for worker in pool.workers()}
        workers.send(signal.SIGTERM)
        assert workers.end() == 0
    canceled, late = [pool.add_task("other", delay_s=delay_s) for delay_s in (1000, 0)]
    pool.kill_task(canceled.id)
    with WorkerPool(redis_url, tmp_path / "log2", **settings) as workers:
        pool.wait(late.id, timeout_s=PATIENCE_S)
        workers.send(signal.SIGTERM)
        assert workers.end() == 0

    counters = pool.counters()
    assert outcomes(counters, "act") == {
        "submitted": 58, "done": 56, "failed": 1, "retried": 3, "snoozed": 3, "asked": 1, "crashed": 1,
    }  # fmt: skip
    assert outcomes(counters, "other") == {"submitted": 22, "done": 21, "canceled": 1}
    runs = sum(n for field, n in counters.items() if field.startswith("run_bucket|act|"))
    assert runs == 56 + 1 + 3 + 3 + 1
    assert build == build_of([str(module)])
    by_build = {series.build: sum(series.done) for series in pool.stats("1h", by="build").series}
    assert by_build == {build: 77, "": 0}
    assert [each.build for each in pool.stats().builds] == [build]
    pool.close()


def test_a_pool_names_its_build(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", build="v1.2.3") as workers:
        assert {worker.build for worker in workers.pool.workers()} == {"v1.2.3"}
        assert workers.result().status is TaskStatus.DONE
        (known,) = workers.pool.stats().builds

    assert known.build == "v1.2.3"
