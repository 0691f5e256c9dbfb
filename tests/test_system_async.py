"""Processes of several slots: coroutines on one event loop, the rest in threads."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from taskpool import TaskPool, TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines, pool_with_redis, started

SLOTS = 8


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    """One pool for all tests of this file: it must outlive what they do to its processes."""
    with pool_with_redis(tmp_path_factory.mktemp("workers"), redis_binary, slots=SLOTS) as workers:
        yield workers


def start_all(workers: WorkerPool, note: Path, type: str, **options: object) -> list[str]:
    """As many tasks as there are slots, all running at once."""
    tasks = [workers.submit("hang", type=type, note=note, **options) for _ in range(SLOTS)]
    started(note, SLOTS)
    return [task.id for task in tasks]


@pytest.mark.parametrize("type", ["act_async", "act"])
def test_one_process_runs_as_many_tasks_at_once_as_it_has_slots(workers: WorkerPool, tmp_path: Path, type: str) -> None:
    ids = start_all(workers, tmp_path / "note", type, until=tmp_path / "go")

    (shown,) = eventually(lambda: [worker for worker in workers.pool.workers() if len(worker.current) == SLOTS])
    (tmp_path / "go").touch()

    assert {workers.pool.wait(id, timeout_s=PATIENCE_S).status for id in ids} == {TaskStatus.DONE}
    assert {line.split()[0] for line in lines(tmp_path / "note") if line != "left"} == {str(shown.pid)}


def test_a_stop_cancels_one_coroutine_and_no_other(workers: WorkerPool, tmp_path: Path) -> None:
    first, *others = start_all(workers, tmp_path / "note", "act_async", until=tmp_path / "go")

    workers.pool.kill_task(first, grace_s=30)
    stopped = workers.pool.wait(first, timeout_s=PATIENCE_S)
    (tmp_path / "go").touch()

    assert stopped.status is TaskStatus.STOPPED
    assert {workers.pool.wait(id, timeout_s=PATIENCE_S).attempt for id in others} == {1}


def test_a_timeout_cancels_one_coroutine_and_no_other(workers: WorkerPool, tmp_path: Path) -> None:
    ids = start_all(workers, tmp_path / "note", "act_async", until=tmp_path / "go", timeout_s=30)
    workers.pool.kill_task(ids.pop(), grace_s=30)
    late = workers.submit("hang", type="act_async", timeout_s=0.5)

    record = workers.pool.wait(late.id, timeout_s=PATIENCE_S)
    (tmp_path / "go").touch()

    assert record.failure is not None
    assert record.failure["reason"] == "timeout"
    assert {workers.pool.wait(id, timeout_s=PATIENCE_S).status for id in ids} == {TaskStatus.DONE}


def test_a_task_in_a_thread_that_looks_ends_with_its_timeout_or_a_stop(workers: WorkerPool, tmp_path: Path) -> None:
    (pid,) = eventually(lambda: pids if len(pids := workers.pids()) == 1 else None)
    stopped = workers.submit("cooperate", note=tmp_path / "note")
    late = workers.submit("cooperate", note=tmp_path / "note", timeout_s=1)
    started(tmp_path / "note", 2)

    workers.pool.kill_task(stopped.id, grace_s=30)
    record = workers.pool.wait(late.id, timeout_s=PATIENCE_S)

    assert workers.pool.wait(stopped.id, timeout_s=PATIENCE_S).status is TaskStatus.STOPPED
    assert record.failure is not None
    assert record.failure["reason"] == "timeout"
    assert workers.pids() == [pid]


def test_a_stop_that_only_a_kill_can_carry_out_costs_the_neighbours_no_attempt(
    workers: WorkerPool, tmp_path: Path
) -> None:
    neighbour = workers.submit("hang_once", note=tmp_path / "neighbour")
    started(tmp_path / "neighbour")
    hog = workers.submit("hog", type="act_async", note=tmp_path / "hog")
    pid = started(tmp_path / "hog")

    workers.pool.kill_task(hog.id, grace_s=0.2)
    stopped = workers.pool.wait(hog.id, timeout_s=PATIENCE_S)

    assert stopped.status is TaskStatus.STOPPED
    assert not is_running(pid)
    record = workers.pool.wait(neighbour.id, timeout_s=PATIENCE_S)
    assert (record.result, record.attempt, record.crashes) == ("the second time", 1, 0)


def test_a_killed_process_costs_none_of_its_tasks_an_attempt(workers: WorkerPool, tmp_path: Path) -> None:
    ids = start_all(workers, tmp_path / "note", "act_async", until=tmp_path / "go")

    os.kill(started(tmp_path / "note"), signal.SIGKILL)
    started(tmp_path / "note", SLOTS + 1)
    (tmp_path / "go").touch()

    ended = [workers.pool.wait(id, timeout_s=PATIENCE_S) for id in ids]
    assert {(record.status, record.attempt, record.crashes) for record in ended} == {(TaskStatus.DONE, 1, 0)}
    assert all(record.history[0].outcome == "given_back" for record in ended)
    assert all("none is charged" in (record.history[0].error or "") for record in ended)


@pytest.mark.parametrize("killer", ["die", "leave"])
def test_a_task_that_keeps_killing_its_process_fails_and_its_neighbours_are_done(
    workers: WorkerPool, tmp_path: Path, killer: str
) -> None:
    types = ("act_async", "act")
    neighbours = [workers.submit("hang", type=types[n % 2], note=tmp_path / "note", seconds=0.5) for n in range(4)]
    started(tmp_path / "note", 4)

    poison = [workers.submit(killer) for _ in range(2)]

    failed = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in poison]
    ended = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in neighbours]
    assert {(record.status, record.crashes) for record in failed} == {(TaskStatus.FAILED, 3)}
    assert {record.failure["reason"] for record in failed if record.failure} == {"crashed"}
    assert {(record.status, record.attempt, record.crashes) for record in ended} == {(TaskStatus.DONE, 1, 0)}
    assert workers.result("ok").status is TaskStatus.DONE


def test_a_suspect_waits_until_it_can_run_alone_while_other_tasks_go_on(workers: WorkerPool, tmp_path: Path) -> None:
    long = workers.submit("hang", type="act_async", note=tmp_path / "long", until=tmp_path / "go")
    started(tmp_path / "long")
    suspect = workers.submit("ok", delay_s=3600)
    with Redis.from_url(workers.pool.redis_url) as redis:
        redis.hset(f"rq:job:{suspect.id}", "suspect", 1)
        redis.zadd("rq:scheduled:default", {suspect.id: 1})  # it is due
    eventually(lambda: workers.pool.get(suspect.id).history)

    others = [workers.result("ok") for _ in range(3)]
    waiting = eventually(lambda: record if (record := workers.pool.get(suspect.id)).snoozes else None)
    (tmp_path / "go").touch()

    assert {record.status for record in others} == {TaskStatus.DONE}
    assert "it has to run alone" in (waiting.history[-1].error or "")
    assert workers.pool.wait(long.id, timeout_s=PATIENCE_S).attempt == 1
    assert workers.pool.wait(suspect.id, timeout_s=PATIENCE_S).attempt == 1


def test_a_shutdown_lets_coroutines_end_and_puts_the_rest_back(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", slots=2, grace_s=1) as workers:
        short = workers.submit("hang", type="act_async", note=tmp_path / "note", until=tmp_path / "go")
        long = workers.submit("hang", type="act_async", note=tmp_path / "note")
        started(tmp_path / "note", 2)

        workers.send(signal.SIGTERM)
        (tmp_path / "go").touch()

        assert workers.end() == 0
        assert workers.pool.get(short.id).status is TaskStatus.DONE
        record = workers.pool.get(long.id)
        assert (record.status, record.attempt, record.crashes) == (TaskStatus.QUEUED, 0, 0)


def test_many_short_tasks_share_the_loop(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", slots=50, workers=2) as workers, TaskPool(redis_url) as pool:
        tasks = [workers.submit("ok", type="act_async") for _ in range(300)]

        assert {pool.wait(task.id, timeout_s=PATIENCE_S).status for task in tasks} == {TaskStatus.DONE}
        eventually(lambda: redis.zcard("rq:wip:default") == 0)


def test_reports_of_tasks_side_by_side_stay_apart(workers: WorkerPool) -> None:
    tasks = [workers.submit("report") for _ in range(SLOTS)]

    ended = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in tasks]

    assert [record.progress for record in ended] == [{"done": 100, "total": 100, "note": "step 100"}] * SLOTS
    with Redis.from_url(workers.pool.redis_url) as redis:
        assert [redis.xlen(f"taskpool:log:{task.id}") for task in tasks] == [101] * SLOTS


@pytest.mark.parametrize("type", ["act_async", "act"])
@pytest.mark.parametrize(("do", "status"), [("fork_and_return", 0), ("fork_and_exit", 3)])
def test_what_a_task_forks_ends_where_its_code_does(workers: WorkerPool, type: str, do: str, status: int) -> None:
    record = workers.result(do, type=type)

    assert (record.status, record.result) == (TaskStatus.DONE, status)
