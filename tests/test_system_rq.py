"""RQ's own tools on our workers: they see every process, and their commands work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Worker
from rq.command import (
    send_kill_horse_command,
    send_shutdown_command,
    send_stop_execution_command,
    send_stop_job_command,
)
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from rq.worker import BaseWorker

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, started


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[WorkerPool]:
    with WorkerPool(redis_url, tmp_path / "log", workers=2) as workers:
        yield workers


def names(redis: Redis) -> list[str]:
    """The workers that RQ lists."""
    return sorted(worker.name for worker in Worker.all(connection=redis, serializer=JSONSerializer))


def test_rq_info_lists_every_process(workers: WorkerPool, redis_url: str) -> None:
    command = [sys.executable, "-m", "rq.cli", "info", "--url", redis_url]

    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "2 workers" in shown
    for pid in workers.pids():
        assert f" {pid})" in shown


def test_rq_reads_a_worker_with_its_state_job_and_counts(workers: WorkerPool, redis: Redis, tmp_path: Path) -> None:
    workers.result("ok")
    task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
    pid = started(tmp_path / "note")

    def busy() -> list[BaseWorker]:
        return [
            worker for worker in Worker.all(connection=redis, serializer=JSONSerializer) if worker.get_state() == "busy"
        ]

    (worker,) = eventually(busy)

    assert worker.pid == pid
    assert worker.queue_names() == ["default", "elsewhere"]
    eventually(lambda: busy()[0].get_current_job_id() == task.id)
    (worker,) = busy()
    job = worker.get_current_job()
    assert job is not None
    assert str(job.description).startswith("act(")
    (tmp_path / "go").touch()


def test_counts_of_a_process_reach_rq_with_its_heartbeat(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as workers:
        workers.result("ok")
        workers.result("fail")

        def counts() -> tuple[int, int]:
            (worker,) = Worker.all(connection=redis, serializer=JSONSerializer)
            return worker.successful_job_count, worker.failed_job_count

        eventually(lambda: counts() == (1, 1))


def test_suspend_holds_every_claim_until_resume(workers: WorkerPool, redis: Redis) -> None:
    suspend(redis)
    task = workers.submit("ok")
    eventually(lambda: redis.llen("taskpool:doorbell:default") == 0)  # somebody looked, and left it
    assert workers.pool.get(task.id).status is TaskStatus.QUEUED

    resume(redis)

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.DONE


def test_stop_job_stops_the_task(workers: WorkerPool, redis: Redis, tmp_path: Path) -> None:
    task = workers.submit("hang", note=tmp_path / "note")
    pid = started(tmp_path / "note")

    send_stop_job_command(redis, task.id, serializer=JSONSerializer)

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED
    assert not is_running(pid)


def test_stop_execution_stops_the_task(workers: WorkerPool, redis: Redis, tmp_path: Path) -> None:
    task = workers.submit("hang", note=tmp_path / "note")
    started(tmp_path / "note")
    attempt_id = redis.hget(f"rq:job:{task.id}", "attempt_id")
    assert isinstance(attempt_id, bytes)
    eventually(lambda: redis.exists(f"rq:execution:{task.id}:{attempt_id.decode()}"))

    send_stop_execution_command(redis, task.id, attempt_id.decode())

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED


def test_an_attempt_that_rq_looks_at_too_early_is_recovered_all_the_same(
    workers: WorkerPool, redis: Redis, tmp_path: Path
) -> None:
    """RQ removes from a worker's executions what it doesn't know, such as an attempt before its first heartbeat."""
    task = workers.submit("hang_once", note=tmp_path / "note")
    pid = started(tmp_path / "note")
    for worker in Worker.all(connection=redis, serializer=JSONSerializer):
        worker.get_current_executions(refresh=True)

    os.kill(pid, signal.SIGKILL)

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == "the second time"


def test_kill_horse_kills_the_process_and_the_task_runs_again(
    workers: WorkerPool, redis: Redis, tmp_path: Path
) -> None:
    task = workers.submit("hang_once", note=tmp_path / "note")
    pid = started(tmp_path / "note")
    worker = redis.hget(f"rq:job:{task.id}", "worker_name")
    assert isinstance(worker, bytes)

    send_kill_horse_command(redis, worker.decode())

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == "the second time"
    assert not is_running(pid)


def test_shutdown_of_one_worker_makes_the_pool_smaller(workers: WorkerPool, redis: Redis) -> None:
    first, second = names(redis)

    send_shutdown_command(redis, first)

    eventually(lambda: names(redis) == [second])
    assert len(workers.pids()) == 1
    assert workers.result("ok").status is TaskStatus.DONE


def test_shutdown_of_every_worker_ends_the_pool(workers: WorkerPool, redis: Redis) -> None:
    for name in names(redis):
        send_shutdown_command(redis, name)

    assert workers.end() == 0
    assert names(redis) == []


def test_workers_that_redis_forgot_are_entered_again(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as workers:
        before = names(redis)

        redis.flushall()

        eventually(lambda: names(redis) == before)
        eventually(lambda: [info.name for info in workers.pool.types() if info.served_by])
        assert workers.result("ok").status is TaskStatus.DONE
