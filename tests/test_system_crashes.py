"""Processes that die: their tasks are recovered at once, they are replaced, and nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from taskpool import TaskPool, TaskStatus
from tests.support import PATIENCE_S, eventually, is_running
from tests.worker_pool import WorkerPool, lines, started

# Every pool here has a lease of 60 s (see WorkerPool): what is settled within a test wasn't settled by its end.


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[WorkerPool]:
    with WorkerPool(redis_url, tmp_path / "log") as workers:
        yield workers


def test_a_task_whose_process_is_killed_runs_again_at_once(workers: WorkerPool, tmp_path: Path) -> None:
    task = workers.submit("hang_once", note=tmp_path / "note")
    first = started(tmp_path / "note")

    os.kill(first, signal.SIGKILL)
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.status, record.result) == (TaskStatus.DONE, "the second time")
    assert (record.attempt, record.crashes) == (2, 1)
    assert started(tmp_path / "note", 2) != first


def test_a_task_that_keeps_killing_its_process_fails_and_says_how(workers: WorkerPool, tmp_path: Path) -> None:
    record = workers.result("die", note=tmp_path / "note")

    assert record.status is TaskStatus.FAILED
    assert record.crashes == 3
    assert len(lines(tmp_path / "note")) == 3
    assert record.error is not None
    assert "SIGKILL" in record.error
    assert record.failure is not None
    assert (record.failure["reason"], record.failure["exit"]) == ("crashed", "signal SIGKILL")
    assert workers.result("ok").status is TaskStatus.DONE


def test_a_task_that_leaves_the_interpreter_counts_as_crashed(workers: WorkerPool) -> None:
    record = workers.result("leave")

    assert record.status is TaskStatus.FAILED
    assert record.failure is not None
    assert record.failure["exit"] == "exit status 7"


def test_processes_that_a_killed_process_started_are_killed_with_it(workers: WorkerPool, tmp_path: Path) -> None:
    workers.submit("spawn", note=tmp_path / "note")
    pid = started(tmp_path / "note")
    spawned = eventually(lambda: [line for line in lines(tmp_path / "note") if line.startswith("spawned")])

    os.kill(pid, signal.SIGKILL)

    eventually(lambda: not is_running(int(spawned[0].split()[1])))


def test_an_idle_process_that_is_killed_is_replaced(workers: WorkerPool, redis: Redis) -> None:
    (first,) = workers.pids()

    os.kill(first, signal.SIGKILL)

    eventually(lambda: (pids := workers.pids()) and first not in pids)
    assert workers.result("ok").result["pid"] == workers.pids()[0]
    eventually(lambda: redis.scard("rq:workers") == 1)


def test_a_dead_fork_server_is_replaced_and_its_tasks_run_again(workers: WorkerPool, tmp_path: Path) -> None:
    task = workers.submit("hang_once", note=tmp_path / "note")
    first = started(tmp_path / "note")
    (fork_server,) = psutil.Process(workers.process.pid).children()

    fork_server.kill()
    record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.crashes) == ("the second time", 1)
    assert record.history[0].error is not None
    assert record.history[0].error.startswith("crashed: its worker process ended because its fork server died (")
    assert not is_running(first)


def test_a_dead_fork_server_costs_none_of_several_tasks_an_attempt(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", workers=2) as workers:
        tasks = [workers.submit("hang_once", note=tmp_path / f"note{n}") for n in range(2)]
        for n in range(2):
            started(tmp_path / f"note{n}")
        (fork_server,) = psutil.Process(workers.process.pid).children()

        fork_server.kill()
        records = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in tasks]

        assert [(record.result, record.attempt, record.crashes) for record in records] == [
            ("the second time", 1, 0)
        ] * 2


def test_no_process_outlives_a_killed_supervisor(workers: WorkerPool, tmp_path: Path) -> None:
    workers.submit("spawn", note=tmp_path / "note")
    started(tmp_path / "note")
    eventually(lambda: len(lines(tmp_path / "note")) == 2)
    everything = workers.descendants()
    assert len(everything) == 3  # the fork server, the worker process, and what its task started

    workers.send(signal.SIGKILL)

    eventually(lambda: not any(is_running(process.pid) for process in everything))


def test_tasks_of_a_dead_host_are_taken_back_when_their_leases_end(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as first:
        task = first.submit("hang_once", note=tmp_path / "note")
        started(tmp_path / "note")
        first.send(signal.SIGKILL)
        first.end()

    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as second:
        record = second.pool.wait(task.id, timeout_s=PATIENCE_S)

    assert (record.result, record.crashes) == ("the second time", 1)


def test_a_frozen_process_that_lost_its_lease_changes_nothing(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", lease_s=1.5) as frozen:
        task = frozen.submit("hang_once", note=tmp_path / "note", seconds=1)
        started(tmp_path / "note")
        processes = [psutil.Process(frozen.process.pid), *frozen.descendants()]
        for process in processes:
            process.suspend()

        with WorkerPool(redis_url, tmp_path / "log2", lease_s=1.5) as other:
            record = other.pool.wait(task.id, timeout_s=PATIENCE_S)
            for process in processes:
                process.resume()
            assert other.pool.wait(frozen.submit("ok").id, timeout_s=PATIENCE_S).status is TaskStatus.DONE
            eventually(lambda: [worker for worker in other.pool.workers() if worker.current] == [])

        assert record.result == "the second time"
        assert frozen.pool.get(task.id) == record


def test_processes_that_die_at_start_up_are_restarted_ever_more_slowly(redis_url: str, tmp_path: Path) -> None:
    module = tmp_path / "deadly.py"
    module.write_text(
        "import os\n"
        "from taskpool import task\n"
        "os.register_at_fork(after_in_child=lambda: os._exit(3))\n"
        "@task('deadly')\n"
        "def deadly() -> None: ...\n"
    )
    workers = WorkerPool(redis_url, tmp_path / "log", tasks=str(module))
    try:
        eventually(lambda: "died at start-up (exit status 3), 3 times in a row" in workers.log.read_text())

        workers.send(signal.SIGTERM)
        assert workers.end() == 0
        assert workers.log.read_text().count("died at start-up") < 6
    finally:
        workers.__exit__(None, None, None)


def test_a_broken_task_module_is_reported_in_one_line_and_nothing_starts(redis_url: str, tmp_path: Path) -> None:
    module = tmp_path / "broken.py"
    module.write_text("import nothing_of_that_name\n")
    workers = WorkerPool(redis_url, tmp_path / "log", tasks=str(module))
    try:
        assert workers.end() == 2
        assert "nothing_of_that_name" in workers.log.read_text()
        assert "Traceback" not in workers.log.read_text()
    finally:
        workers.__exit__(None, None, None)


def test_a_damaged_record_does_not_stop_the_processes(workers: WorkerPool, redis: Redis) -> None:
    redis.hset("rq:job:damaged", mapping={"status": "queued", "data": b"\x80\x04garbage", "seq": "no number"})
    redis.set("rq:job:wrong-kind", "not a hash")
    for id in ("damaged", "wrong-kind", "missing"):
        redis.rpush("rq:queue:default", id)

    record = workers.result("ok")

    assert record.status is TaskStatus.DONE


def test_a_killed_pool_of_many_tasks_loses_none(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", workers=2) as workers, TaskPool(redis_url) as pool:
        tasks = [workers.submit("ok") for _ in range(300)]
        killed: set[int] = set()
        while pool.get(tasks[-1].id).status is not TaskStatus.DONE and len(killed) < 5:
            for pid in [pid for pid in workers.pids() if pid not in killed][:1]:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

        ended = [pool.wait(task.id, timeout_s=PATIENCE_S) for task in tasks]

        assert {record.status for record in ended} == {TaskStatus.DONE}
