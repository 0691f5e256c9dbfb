"""Shutdown: no more claims, running tasks may finish, and the rest goes back to the front of its queue."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskStatus
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, started


def test_running_tasks_finish_and_queued_ones_stay(redis_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log") as workers:
        running = workers.submit("hang", note=note, until=tmp_path / "go")
        waiting = workers.submit("ok")
        started(note)

        workers.send(signal.SIGTERM)
        eventually(lambda: "draining" in workers.log.read_text())
        (tmp_path / "go").touch()

        assert workers.end() == 0
        assert workers.pool.get(running.id).result == "slept"
        assert workers.pool.get(waiting.id).status is TaskStatus.QUEUED


@pytest.mark.parametrize("do", ["hang", "ignore", "spawn"])
def test_a_task_that_exceeds_the_grace_is_put_back_without_costing_an_attempt(
    redis_url: str, tmp_path: Path, do: str
) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", grace_s=0.3) as workers:
        running = workers.submit(do, note=note)
        waiting = workers.submit("ok")
        started(note)

        workers.send(signal.SIGTERM)

        assert workers.end() == 0
        record = workers.pool.get(running.id)
        assert (record.status, record.attempt, record.crashes) == (TaskStatus.QUEUED, 0, 0)
        assert "exception" not in workers.log.read_text()
        assert [item.record.id for item in workers.pool.get_queue().items] == [running.id, waiting.id]


def test_a_second_signal_does_not_wait(redis_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", grace_s=3600) as workers:
        running = workers.submit("hang", note=note)
        started(note)

        workers.send(signal.SIGINT)
        eventually(lambda: "draining" in workers.log.read_text())
        workers.send(signal.SIGINT)

        assert workers.end() == 0
        assert workers.pool.get(running.id).status is TaskStatus.QUEUED


def test_a_stop_that_was_asked_for_outlives_the_shutdown(redis_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log", grace_s=0.3) as workers:
        running = workers.submit("ignore", note=note)
        started(note)

        workers.pool.kill_task(running.id, grace_s=3600)
        eventually(lambda: lines(note)[1:])
        workers.send(signal.SIGTERM)

        assert workers.end() == 0
        assert workers.pool.get(running.id).status is TaskStatus.STOPPED


def test_a_drained_pool_leaves_nothing_of_itself_in_redis(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", workers=3) as workers:
        workers.result("ok")
        everything = workers.descendants()

        workers.send(signal.SIGTERM)

        assert workers.end() == 0
        assert not any(process.is_running() for process in everything)
        assert redis.scard("rq:workers") == 0
        assert redis.zcard("taskpool:pools") == 0
        assert workers.pool.workers() == []
        assert [info.name for info in workers.pool.types() if info.served_by] == []


def test_a_process_that_gets_sigterm_from_outside_finishes_what_it_runs(redis_url: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with WorkerPool(redis_url, tmp_path / "log") as workers:
        task = workers.submit("hang", note=note, until=tmp_path / "go")
        pid = started(note)

        for process in workers.descendants():  # as a service manager does, which signals all of them
            process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()

        assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).attempt == 1
        assert workers.result("ok").result["pid"] != pid
