"""The failure of an attempt that died or was killed: signal, duration, usage, last log lines and stacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskRecord, TaskStatus
from taskpool.redis import keys
from taskpool.redis.calls import Call
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, pool_with_redis

TASKS = """
import os, signal, threading, time
from taskpool import SoftTimeout, Task, TaskContext, TaskStopped, task


@task("die")
def die(ctx: TaskContext, how: str, note: str = "") -> None:
    for number in range(12):
        ctx.log(f"attempt {ctx.attempt}, line {number} " + "." * 600 * (number == 11))
    with open(note, "a") as file:
        file.write("ready\\n")
    while len(open(note).readlines()) < 2 * ctx.attempt:
        time.sleep(0.01)
    if how == "leave":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))


@task("stubborn")
def stubborn(note: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=beside, daemon=True).start()
    while True:
        try:
            dig_in(note)
        except (SoftTimeout, TaskStopped):
            pass


def dig_in(note: str) -> None:
    with open(note, "a") as file:
        file.write("ready\\n")
    while True:
        time.sleep(0.01)


def beside() -> None:
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    directory = tmp_path_factory.mktemp("workers")
    module: Path = directory / "deaths.py"
    module.write_text(TASKS)
    with pool_with_redis(directory, redis_binary, tasks=str(module), max_crashes=1) as workers:
        yield workers


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


def dead(workers: WorkerPool, how: str, note: Path) -> tuple[TaskRecord, dict[str, Any]]:
    """A task that died once its log had arrived, and its failure."""
    task = workers.pool.add_task("die", {"how": how, "note": str(note)})
    eventually(lambda: workers.pool.store.run(_length(task.id)) == 12)
    with note.open("a") as file:
        file.write("go\n")
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)
    assert record.failure is not None
    return record, dict(record.failure)


def _length(id: str) -> Call[int]:
    return Call(("XLEN", keys.LOG + id), int)


def killed(workers: WorkerPool, note: Path, **options: Any) -> dict[str, Any]:
    """The failure of a task that had to be killed."""
    task = workers.pool.add_task("stubborn", {"note": str(note)}, **options)
    eventually(lambda: lines(note))
    if not options:
        workers.pool.kill_task(task.id, grace_s=0.1)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)
    assert record.failure is not None
    return dict(record.failure)


def test_a_crash_report_has_the_signal_the_usage_and_the_last_lines(workers: WorkerPool, note: Path) -> None:
    record, failure = dead(workers, "SIGKILL", note)

    assert (record.status, record.crashes, failure["reason"]) == (TaskStatus.FAILED, 1, "crashed")
    assert (failure["exit"], failure["signal"]) == ("signal SIGKILL", "SIGKILL")
    assert "exit_status" not in failure
    assert failure["ran_s"] > 0
    assert failure["usage"]["max_rss_bytes"] > 10_000_000
    assert failure["usage"]["user_s"] + failure["usage"]["system_s"] > 0
    assert failure["log"][0].startswith("attempt 1, line 2 ")
    assert len(failure["log"]) == 10
    assert len(failure["log"][-1]) == 500
    assert "stacks" not in failure
    assert record.history[0].error == record.error


def test_a_crash_report_of_a_process_that_exits_has_the_status(workers: WorkerPool, note: Path) -> None:
    _, failure = dead(workers, "leave", note)

    assert (failure["exit"], failure["exit_status"]) == ("exit status 7", 7)
    assert "signal" not in failure


def test_a_crash_report_of_a_fatal_error_has_the_stacks(workers: WorkerPool, note: Path) -> None:
    _, failure = dead(workers, "SIGSEGV", note)

    assert failure["signal"] == "SIGSEGV"
    assert failure["stacks"].startswith("Fatal Python error: Segmentation fault")
    assert "in die" in failure["stacks"]


def test_a_crash_report_has_only_lines_of_its_own_attempt(workers: WorkerPool, note: Path) -> None:
    first, _ = dead(workers, "leave", note)
    workers.pool.retry_task(first.id)
    eventually(lambda: workers.pool.store.run(_length(first.id)) == 24)
    with note.open("a") as file:
        file.write("go\n")

    failure = workers.pool.wait(first.id, timeout_s=PATIENCE_S).failure

    assert failure is not None
    assert all(line.startswith("attempt 2") for line in failure["log"])


def test_a_task_that_must_be_killed_to_stop_has_its_stacks_in_the_failure(workers: WorkerPool, note: Path) -> None:
    failure = killed(workers, note)

    assert failure["reason"] == "stopped"
    assert failure["message"] == "stopped on request: its worker process was killed (signal SIGKILL)"
    assert "in dig_in" in failure["stacks"]
    assert "in beside" in failure["stacks"]


def test_a_task_that_ignores_its_timeout_has_its_stacks_in_the_failure(workers: WorkerPool, note: Path) -> None:
    failure = killed(workers, note, timeout_s=1)

    assert failure["reason"] == "timeout"
    assert "in dig_in" in failure["stacks"]
    assert failure["signal"] == "SIGKILL"
    assert failure["ran_s"] > 5
