"""A frozen fork server: its workers are watched, recovered, stopped and replaced all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines, started

# The lease is 60 s (see WorkerPool): what is settled within a test wasn't settled by its end.


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[WorkerPool]:
    with WorkerPool(redis_url, tmp_path / "log", workers=2) as workers:
        yield workers


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


def freeze(workers: WorkerPool) -> psutil.Process:
    (fork_server,) = psutil.Process(workers.process.pid).children()
    fork_server.suspend()
    return fork_server


def test_a_worker_that_dies_is_recovered_and_replaced_and_the_others_go_on(workers: WorkerPool, note: Path) -> None:
    task = workers.submit("hang_once", note=note)
    first = started(note)
    beside = workers.submit("work", note=note.with_name("beside"), until=note.with_name("until"))
    pid = started(note.with_name("beside"))
    fork_server = freeze(workers)

    os.kill(first, signal.SIGKILL)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.crashes) == ("the second time", 1)
    assert record.history[0].error == (
        "crashed: its worker process ended with signal SIGKILL (killed from outside, or out of memory)"
    )
    assert is_running(pid)
    note.with_name("until").touch()
    other = workers.pool.wait(beside.id, timeout_s=PATIENCE_S)
    assert (other.status, other.attempt, other.history) == (TaskStatus.DONE, 1, ())
    eventually(lambda: not is_running(fork_server.pid))
    eventually(lambda: len(workers.descendants()) == 3)
    assert f"fork server {fork_server.pid} doesn't answer: worker process {first} has died" in workers.log.read_text()


def test_a_stop_is_verified_and_ends_processes_that_left_the_group(workers: WorkerPool, note: Path) -> None:
    task = workers.submit("spawn_apart", note=note)
    pid = started(note)
    apart = int(eventually(lambda: [line for line in lines(note) if line.startswith("spawned")])[0].split()[1])
    freeze(workers)

    workers.pool.kill_task(task.id, force=True)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.reason) == (TaskStatus.STOPPED, "stopped")
    assert not is_running(pid)
    assert not is_running(apart)


def test_ends_that_it_reports_when_it_goes_on_are_ignored(workers: WorkerPool, note: Path) -> None:
    task = workers.submit("work", note=note, until=note.with_name("until"))
    busy = started(note)
    (idle,) = set(workers.pids()) - {busy}
    fork_server = freeze(workers)
    os.kill(idle, signal.SIGKILL)
    eventually(lambda: "another fork server is started" in workers.log.read_text())

    fork_server.resume()
    eventually(lambda: len(set(workers.pids()) - {busy, idle}) == 2)
    note.with_name("until").touch()

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).attempt == 1
    eventually(lambda: not is_running(fork_server.pid))
    assert [workers.result("ok").status for _ in range(5)] == [TaskStatus.DONE] * 5
    assert "Traceback" not in workers.log.read_text()


def test_one_that_is_frozen_while_nothing_happens_is_replaced(workers: WorkerPool) -> None:
    before = workers.pids()
    fork_server = freeze(workers)

    eventually(lambda: not is_running(fork_server.pid))

    eventually(lambda: len(workers.pids()) == 2 and not set(before) & set(workers.pids()))
    assert workers.result("ok").status is TaskStatus.DONE


def test_a_pool_with_a_frozen_one_drains(workers: WorkerPool, note: Path) -> None:
    freeze(workers)

    workers.send(signal.SIGTERM)

    assert workers.end() == 0
