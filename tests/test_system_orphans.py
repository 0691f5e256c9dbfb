"""Processes that a task starts die with it, also those that left its session and whose parents have ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines

TASKS = """
import os, subprocess, sys, time
from taskpool import TaskContext, task

CODE = '''
import os, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0: time.sleep(600)
with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()} {os.getsid(0)}\\\\n")
time.sleep(600)
'''


def start_daemon(note: str) -> None:
    subprocess.run([sys.executable, "-c", CODE, note], check=True)


@task("daemon")
def daemon(ctx: TaskContext, note: str, how: str = "hang") -> int:
    start_daemon(note)
    while how == "hang":
        time.sleep(0.01)
    return os.getpid()


@task("coroutine")
async def coroutine(ctx: TaskContext, note: str) -> int:
    start_daemon(note)
    return os.getpid()


@task("litter")
def litter(count: int) -> int:
    for _ in range(count):
        subprocess.run(["sh", "-c", "true & exit"], check=True)
    return os.getpid()


@task("pid")
def pid() -> int:
    return os.getpid()
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    module = tmp_path / "orphans.py"
    module.write_text(TASKS)
    return module


@pytest.fixture
def workers(redis_url: str, tmp_path: Path, module: Path) -> Iterator[WorkerPool]:
    with WorkerPool(redis_url, tmp_path / "log", tasks=str(module), max_crashes=1) as workers:
        yield workers


def daemon(note: Path) -> int:
    """The daemon that a task has started, in a session of its own."""
    (line,) = eventually(lambda: lines(note))
    pid, session = map(int, line.split())
    assert session not in (pid, os.getsid(0))
    return pid


@pytest.mark.parametrize("force", [False, True])
def test_a_daemon_dies_with_its_stopped_task(workers: WorkerPool, tmp_path: Path, force: bool) -> None:
    task = workers.pool.add_task("daemon", {"note": str(tmp_path / "note")})
    pid = daemon(tmp_path / "note")

    workers.pool.kill_task(task.id, grace_s=30, force=force)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.STOPPED
    assert not is_running(pid)


def test_a_daemon_dies_with_the_process_of_its_task(workers: WorkerPool, tmp_path: Path) -> None:
    task = workers.pool.add_task("daemon", {"note": str(tmp_path / "note")})
    pid = daemon(tmp_path / "note")
    (worker,) = workers.pids()

    os.kill(worker, signal.SIGKILL)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.FAILED
    assert not is_running(pid)


def test_a_daemon_dies_with_the_pool(workers: WorkerPool, tmp_path: Path) -> None:
    workers.pool.add_task("daemon", {"note": str(tmp_path / "note")})
    pid = daemon(tmp_path / "note")

    workers.send(signal.SIGKILL)

    eventually(lambda: not is_running(pid))


def test_a_daemon_dies_with_the_fork_server(workers: WorkerPool, tmp_path: Path) -> None:
    task = workers.pool.add_task("daemon", {"note": str(tmp_path / "note")})
    pid = daemon(tmp_path / "note")
    (fork_server,) = psutil.Process(workers.process.pid).children()

    fork_server.kill()
    workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    eventually(lambda: not is_running(pid))


def test_the_end_of_one_process_leaves_the_daemons_of_another(redis_url: str, tmp_path: Path, module: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", tasks=str(module), workers=2) as workers:
        owner = workers.pool.wait(workers.pool.add_task("daemon", {"note": str(tmp_path / "note"), "how": "leave"}).id)
        pid = daemon(tmp_path / "note")
        (other,) = [worker for worker in workers.pids() if worker != owner.result]

        os.kill(other, signal.SIGKILL)
        eventually(lambda: other not in workers.pids() and len(workers.pids()) == 2)
        assert is_running(pid)

        os.kill(owner.result, signal.SIGKILL)
        eventually(lambda: not is_running(pid))


def test_a_daemon_of_a_process_of_many_tasks_dies_with_it(redis_url: str, tmp_path: Path, module: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", tasks=str(module), slots=4) as workers:
        owner = workers.pool.wait(workers.pool.add_task("coroutine", {"note": str(tmp_path / "note")}).id)
        pid = daemon(tmp_path / "note")

        os.kill(owner.result, signal.SIGKILL)

        eventually(lambda: not is_running(pid))


@pytest.mark.parametrize("slots", [1, 4])
def test_a_process_to_which_many_dead_orphans_fell_is_replaced(
    redis_url: str, tmp_path: Path, module: Path, slots: int
) -> None:
    with WorkerPool(redis_url, tmp_path / "log", tasks=str(module), slots=slots) as workers:
        pool = workers.pool
        littered = pool.wait(pool.add_task("litter", {"count": 70}).id, timeout_s=PATIENCE_S)

        eventually(lambda: littered.result not in workers.pids())

        assert pool.wait(pool.add_task("pid").id, timeout_s=PATIENCE_S).result != littered.result
