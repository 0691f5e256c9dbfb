"""Hooks at the start and the end of a worker process and around each attempt, and what a fork must not share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines

TASKS = str(Path(__file__).with_name("tasks_for_hooks.py"))
S = TaskStatus


def pool_of(redis_url: str, directory: Path, fault: str = "", **settings: Any) -> WorkerPool:
    env = {"HOOKS_NOTE": str(directory / "note"), "HOOKS_FAULT": fault}
    return WorkerPool(redis_url, directory / "log", tasks=TASKS, env=env, **settings)


def noted(directory: Path, pid: int) -> list[str]:
    """What a process noted."""
    return [line.partition(" ")[2] for line in lines(directory / "note") if line.startswith(f"{pid} ")]


@pytest.fixture(params=[1, 4], ids=["slots 1", "slots 4"])
def slots(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
def workers(redis_url: str, tmp_path: Path, slots: int) -> Iterator[WorkerPool]:
    with pool_of(redis_url, tmp_path, slots=slots) as workers:
        yield workers


def run(workers: WorkerPool, type: str, **payload: Any) -> Any:
    """The record of a task at its end."""
    return workers.pool.wait(workers.pool.add_task(type, payload).id, timeout_s=PATIENCE_S)


def test_a_process_runs_its_hooks_and_exit_handlers_in_order(workers: WorkerPool, tmp_path: Path) -> None:
    (pid,) = workers.pids()
    assert run(workers, "spans").status is S.DONE

    workers.send(signal.SIGTERM)

    assert workers.end() == 0
    assert noted(tmp_path, pid) == ["start", "start async", "stop async", "stop", "atexit"]


def test_attempt_hooks_surround_plain_and_async_tasks_and_see_what_they_raise(
    workers: WorkerPool, tmp_path: Path
) -> None:
    (pid,) = workers.pids()

    assert run(workers, "spans").result == "outer spans, inner"
    assert run(workers, "spans_async").result == "outer spans_async, inner"
    assert run(workers, "raises").error == "ValueError: as asked"
    refused = run(workers, "refused")

    assert (refused.status, refused.error) == (S.FAILED, "PermissionError: not this one")
    assert noted(tmp_path, pid)[2:] == ["outer saw it"]


def test_attempt_hooks_surround_the_coroutine_that_a_plain_function_returns(
    workers: WorkerPool, tmp_path: Path
) -> None:
    (pid,) = workers.pids()

    assert run(workers, "returns_coroutine").result == "outer returns_coroutine, inner"
    failed = run(workers, "returns_coroutine", fault=True)

    assert failed.error == "ValueError: as asked"
    assert failed.failure["traceback"].count("tasks_for_hooks.py") >= 1
    assert "taskpool" not in failed.failure["traceback"].replace("taskpool.py", "")
    assert noted(tmp_path, pid)[2:] == ["outer saw it"]


def test_each_process_has_its_own_random_numbers_and_no_one_removes_the_fork_servers_files(
    redis_url: str, tmp_path: Path
) -> None:
    with pool_of(redis_url, tmp_path, workers=2) as workers:
        (first, second) = workers.pids()
        found: dict[int, float] = {}
        while len(found) < 2:
            pid, seeded, number, _ = run(workers, "numbers").result
            assert seeded == pid
            found[pid] = number

        assert set(found) == {first, second}
        assert len(set(found.values())) == 2

        workers.pool.add_task("raises")
        dismissed = eventually(lambda: [worker for worker in workers.pool.workers() if worker.pid == first])[0]
        end_in_order(workers, dismissed.name)
        eventually(lambda: "atexit" in noted(tmp_path, first))

        assert run(workers, "numbers").result[3] is True  # the directory made at import


def end_in_order(workers: WorkerPool, name: str) -> None:
    """Has one process end after its task, as RQ's shutdown command does."""
    (worker,) = [worker for worker in workers.pool.workers() if worker.name == name]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)


@pytest.mark.parametrize("fault", ["stop", "atexit"])
def test_a_hook_that_fails_at_the_end_keeps_no_other_from_running(redis_url: str, tmp_path: Path, fault: str) -> None:
    with pool_of(redis_url, tmp_path, fault) as workers:
        (pid,) = workers.pids()
        workers.send(signal.SIGTERM)

        assert workers.end() == 0
        assert noted(tmp_path, pid)[2:] == ["stop async", "stop", "atexit"]
        log = workers.log.read_text()
        assert "the stop fails" in log if fault == "stop" else "in atexit callback" in log


def test_a_handler_that_hangs_ends_with_its_time(redis_url: str, tmp_path: Path) -> None:
    with pool_of(redis_url, tmp_path, "hang", grace_s=60) as workers:
        workers.send(signal.SIGTERM)

        assert workers.end() == 0
        assert "took longer than 5 s" in workers.log.read_text()


def test_a_process_whose_start_hook_fails_is_tried_again(redis_url: str, tmp_path: Path) -> None:
    workers = pool_of(redis_url, tmp_path, "start")
    try:
        eventually(lambda: "died at start-up (exit status 1), 2 times in a row" in workers.log.read_text())

        assert "RuntimeError: the start fails" in workers.log.read_text()
    finally:
        workers.__exit__(None, None, None)
