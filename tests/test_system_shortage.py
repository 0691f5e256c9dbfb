"""Out of file descriptors: what runs goes on, what can't be started is tried again, and no healthy task pays for it."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines

TASKS = """
import os, threading, time
from taskpool import TaskContext, task

KEPT = []


@task("leak")
def leak(note: str, until: str = "") -> int:
    while True:
        try:
            KEPT.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    write_last(note)
    while until and not os.access(until, os.F_OK):
        time.sleep(0.01)
    return os.getpid()


def write_last(note: str) -> None:
    os.close(KEPT.pop())
    with open(note, "a") as file:
        file.write(f"{os.getpid()}\\n")
    KEPT.append(os.open(os.devnull, os.O_RDONLY))


@task("healthy")
def healthy(seconds: float = 0) -> int:
    time.sleep(seconds)
    with open(os.devnull):
        return os.getpid()


@task("healthy_later")
def healthy_later(note: str) -> int:
    is_first = not os.path.exists(note)
    with open(note, "a") as file:
        file.write("begun\\n")
    while is_first:
        time.sleep(0.01)
    return os.getpid()


@task("no_threads")
async def no_threads() -> int:
    def refuse(self):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse
    return os.getpid()


@task("healthy_async")
async def healthy_async() -> int:
    with open(os.devnull):
        return os.getpid()
"""


@pytest.fixture(params=[1, 4])
def slots(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def workers(redis_url: str, tmp_path: Path, slots: int) -> Iterator[WorkerPool]:
    module = tmp_path / "leaks.py"
    module.write_text(TASKS)
    with WorkerPool(redis_url, tmp_path / "log", tasks=str(module), slots=slots) as workers:
        (pid,) = workers.pids()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (256, 256))
        yield workers


def test_a_process_whose_tasks_leak_is_replaced_before_the_next_task(workers: WorkerPool, tmp_path: Path) -> None:
    leaky = workers.pool.add_task("leak", {"note": str(tmp_path / "note")})

    first = workers.pool.wait(leaky.id, timeout_s=PATIENCE_S)
    healthy = [workers.pool.add_task(type) for type in ("healthy", "healthy_async")]
    records = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in healthy]

    assert (first.status, first.attempt) == (TaskStatus.DONE, 1)
    assert [(record.status, record.attempt, record.crashes) for record in records] == [(TaskStatus.DONE, 1, 0)] * 2
    eventually(lambda: not is_running(first.result))
    assert "Traceback" not in workers.log.read_text()
    assert "ulimit -n" in workers.log.read_text()


def test_an_outcome_is_written_though_its_task_left_no_descriptor_for_a_new_connection(
    workers: WorkerPool, tmp_path: Path, redis: Redis
) -> None:
    payload = {"note": str(tmp_path / "note"), "until": str(tmp_path / "until")}
    task = workers.pool.add_task("leak", payload)
    pid = int(eventually(lambda: lines(tmp_path / "note"))[0])

    redis.client_kill_filter(_type="normal", skipme=True)
    (tmp_path / "until").touch()
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.attempt, record.result) == (TaskStatus.DONE, 1, pid)
    assert workers.pool.wait(workers.pool.add_task("healthy").id, timeout_s=PATIENCE_S).result != pid
    eventually(lambda: not is_running(pid))
    assert "Traceback" not in workers.log.read_text()


@pytest.mark.parametrize("slots", [4], indirect=True)
def test_a_task_for_which_no_thread_can_be_started_runs_elsewhere_and_pays_nothing(workers: WorkerPool) -> None:
    first = workers.pool.wait(workers.pool.add_task("no_threads").id, timeout_s=PATIENCE_S)

    record = workers.pool.wait(workers.pool.add_task("healthy").id, timeout_s=PATIENCE_S)

    assert (record.status, record.attempt, record.crashes) == (TaskStatus.DONE, 1, 0)
    assert record.result != first.result
    assert [attempt.outcome for attempt in record.history] == ["snoozed", "done"]
    assert "no more processes or threads are allowed" in workers.log.read_text()


@pytest.mark.parametrize("slots", [1], indirect=True)
def test_a_fork_server_without_descriptors_logs_that_and_goes_on_when_there_are_some(workers: WorkerPool) -> None:
    (pid,) = workers.pids()
    fork_server = psutil.Process(pid).parent()
    assert fork_server is not None
    before = resource.prlimit(fork_server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(fork_server.pid, resource.RLIMIT_NOFILE, (4, before[1]))

    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "a worker process can't be started: this process has too many" in workers.log.read_text())
    resource.prlimit(fork_server.pid, resource.RLIMIT_NOFILE, before)

    assert workers.pool.wait(workers.pool.add_task("healthy").id, timeout_s=PATIENCE_S).result != pid
    assert is_running(fork_server.pid)
    assert "Traceback" not in workers.log.read_text()


@pytest.mark.parametrize("slots", [1], indirect=True)
def test_a_supervisor_without_descriptors_waits_and_says_what_to_do(
    workers: WorkerPool, tmp_path: Path, redis: Redis
) -> None:
    task = workers.pool.add_task("healthy_later", {"note": str(tmp_path / "note")})
    eventually(lambda: lines(tmp_path / "note"))
    before = resource.prlimit(workers.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(workers.process.pid, resource.RLIMIT_NOFILE, (4, before[1]))

    redis.client_kill_filter(_type="normal", skipme=True)
    redis.client_kill_filter(_type="pubsub", skipme=True)
    eventually(lambda: "Too many open files" in workers.log.read_text())
    assert "Redis is away" in workers.log.read_text()
    assert "ulimit -n" in workers.log.read_text()
    (pid,) = (worker.pid for worker in workers.pool.workers())
    os.kill(pid, signal.SIGKILL)
    resource.prlimit(workers.process.pid, resource.RLIMIT_NOFILE, before)

    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)
    assert (record.status, record.crashes) == (TaskStatus.DONE, 1)
    assert "Traceback" not in workers.log.read_text()
