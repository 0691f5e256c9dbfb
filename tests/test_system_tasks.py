"""Tasks run by real processes: what they return, raise, report, and wait for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from taskpool import TaskSpec, TaskStatus
from taskpool.redis.keys import split_name
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, pool_with_redis, started


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[WorkerPool]:
    """One pool for all tests of this file: none of them harms it."""
    with pool_with_redis(tmp_path_factory.mktemp("workers"), redis_binary, workers=2) as workers:
        yield workers


@pytest.fixture
def redis(workers: WorkerPool) -> Iterator[Redis]:
    """A client of the pool's Redis, which is not emptied between the tests."""
    with Redis.from_url(workers.pool.redis_url) as client:
        yield client


def test_a_task_runs_to_done_and_its_result_is_kept(workers: WorkerPool) -> None:
    record = workers.result("ok")

    assert record.status is TaskStatus.DONE
    assert record.result["attempt"] == 1
    assert record.result["pid"] in workers.pids()


def test_a_coroutine_runs_in_a_process_of_one_slot(workers: WorkerPool) -> None:
    record = workers.result(type="act_async")

    assert record.status is TaskStatus.DONE
    assert record.result["pid"] in workers.pids()


def test_what_a_task_raises_fails_it_with_its_own_traceback(workers: WorkerPool) -> None:
    record = workers.result("fail")

    assert record.status is TaskStatus.FAILED
    assert record.error == "ValueError: as asked"
    assert record.failure is not None
    assert record.failure["reason"] == "exception"
    assert "tasks_for_tests.py" in record.failure["traceback"]


@pytest.mark.parametrize(("do", "status"), [("fork_and_return", 0), ("fork_and_exit", 3), ("fork_and_raise", 1)])
def test_what_a_task_forks_ends_where_its_code_does(workers: WorkerPool, do: str, status: int) -> None:
    types = ["act"] if do == "fork_and_raise" else ["act", "act_async"]
    records = [workers.result(do, type=type) for type in types]

    assert {(record.status, record.result) for record in records} == {(TaskStatus.DONE, status)}
    assert workers.result("ok").status is TaskStatus.DONE


def test_a_failed_attempt_is_retried_while_attempts_are_left(workers: WorkerPool) -> None:
    record = workers.result("fail_once", max_attempts=2)

    assert (record.status, record.result, record.attempt) == (TaskStatus.DONE, "the second time", 2)


def test_a_result_that_is_not_json_fails_the_task_with_the_reason(workers: WorkerPool) -> None:
    record = workers.result("not_json")

    assert record.status is TaskStatus.FAILED
    assert record.failure is not None
    assert record.failure["reason"] == "result_not_json"


def test_the_last_progress_and_every_log_line_arrive_before_the_end(workers: WorkerPool, redis: Redis) -> None:
    record = workers.result("report")

    assert record.progress == {"done": 100, "total": 100, "note": "step 100"}
    assert redis.xlen(f"taskpool:log:{record.id}") == 101


def test_progress_of_a_task_that_goes_on_is_seen(workers: WorkerPool, redis: Redis, tmp_path: Path) -> None:
    task = workers.submit("report_and_hang", until=tmp_path / "go")

    eventually(lambda: workers.pool.get(task.id).progress == {"done": 1, "total": 2})
    eventually(lambda: redis.xlen(f"taskpool:log:{task.id}"))

    (tmp_path / "go").touch()
    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.DONE


def test_a_task_reads_the_results_of_those_it_depends_on(workers: WorkerPool) -> None:
    parent = workers.submit("ok")

    child = workers.result("parents", depends_on=[parent.id])

    assert child.result == {parent.id: workers.pool.get(parent.id).result}


def test_a_type_of_another_queue_is_served_without_being_asked_for(workers: WorkerPool) -> None:
    task = workers.pool.add_task("elsewhere", {"n": 1})

    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == 2


def test_a_delayed_task_is_queued_when_its_time_has_come(workers: WorkerPool) -> None:
    record = workers.result("ok", delay_s=0.3)

    assert record.status is TaskStatus.DONE
    assert record.run_at is not None
    assert record.started_at is not None
    assert record.started_at >= record.run_at


def test_tasks_of_one_queue_start_in_the_order_they_were_added(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log") as workers:
        specs = [TaskSpec(type="act", payload={"note": str(tmp_path / "order")}) for _ in range(50)]

        tasks = workers.pool.add_tasks(specs)
        ended = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in tasks]

        starts = [record.started_at for record in ended]
        assert starts == sorted(starts, key=str)
        assert len(lines(tmp_path / "order")) == 50


def test_an_idle_process_sees_what_a_plain_rq_producer_queues(workers: WorkerPool, redis: Redis) -> None:
    job = Queue("default", connection=redis, serializer=JSONSerializer).enqueue(
        "taskpool.runner.run", "act", {"do": "ok"}
    )

    assert workers.pool.wait(job.id, timeout_s=PATIENCE_S).result["attempt"] == 1


def test_a_job_that_calls_anything_else_is_left_alone(workers: WorkerPool, redis: Redis, tmp_path: Path) -> None:
    planted = Queue("default", connection=redis, serializer=JSONSerializer).enqueue(
        "os.system", f"touch {tmp_path / 'planted'}"
    )
    pickled = Queue("default", connection=redis).enqueue("os.system", f"touch {tmp_path / 'planted'}")

    behind = workers.pool.add_task("act", {"do": "ok"})
    record = workers.pool.wait(behind.id, timeout_s=PATIENCE_S)

    assert record.status is TaskStatus.DONE
    assert redis.lrange("rq:queue:default", 0, -1) == [planted.id.encode(), pickled.id.encode()]
    assert not (tmp_path / "planted").exists()
    for job in (planted, pickled):
        job.delete()


def test_what_ran_is_counted_by_type_queue_and_outcome(workers: WorkerPool) -> None:
    def counted(queue: str) -> dict[tuple[str, ...], int]:
        fields = {split_name(field): value for field, value in workers.pool.counters().items()}
        return {field: value for field, value in fields.items() if queue in field}

    workers.pool.wait(workers.pool.add_task("elsewhere", {"n": 1}).id, timeout_s=PATIENCE_S)
    done = len(workers.pool.list_tasks(type="elsewhere").items)

    eventually(lambda: counted("elsewhere").get(("tasks", "done", "elsewhere", "elsewhere")) == done)
    for bucket in ("run_bucket", "wait_bucket"):
        assert sum(value for field, value in counted("elsewhere").items() if field[0] == bucket) == done


def test_each_process_leads_its_own_group_below_the_fork_server(workers: WorkerPool) -> None:
    where = workers.result("where").result

    assert where["group"] == where["pid"]
    assert where["parent"] != workers.process.pid


def test_a_task_may_have_processes_of_its_own_and_end_them(workers: WorkerPool) -> None:
    assert workers.result("multiprocess").result == -signal.SIGTERM


def test_a_worker_shows_what_it_runs(workers: WorkerPool, tmp_path: Path) -> None:
    task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
    pid = started(tmp_path / "note")

    shown = eventually(lambda: [worker for worker in workers.pool.workers() if worker.current])

    assert [(worker.pid, worker.state, worker.current) for worker in shown] == [(pid, "busy", (task.id,))]
    (tmp_path / "go").touch()
    assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).status is TaskStatus.DONE
