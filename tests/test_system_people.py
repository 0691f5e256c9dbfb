"""Tasks that ask people, in real worker processes: with one slot, with many, and in a plain RQ worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from taskpool import Confirm, Registry, TaskPool, TaskRecord, TaskStatus
from tests.rq_processes import TASKS as RQ_TASKS
from tests.rq_processes import rq
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

S = TaskStatus
TASKS = str(Path(__file__).with_name("tasks_for_people.py"))


@pytest.fixture(params=[1, 4], ids=["one slot", "four slots"])
def workers(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[WorkerPool]:
    with WorkerPool(redis_url, tmp_path / "log", tasks=TASKS, slots=request.param) as workers:
        yield workers


def parked(pool: TaskPool, id: str) -> TaskRecord:
    """The task once it has asked."""

    def asked() -> TaskRecord | None:
        record = pool.get(id)
        return record if record.question is not None else None

    found = eventually(asked)
    assert found is not None
    return found


def queue_with_rq(redis: Redis, id: str) -> None:
    """Queue a task with RQ's own tools, whatever it waits for."""
    job = Job.fetch(id, connection=redis, serializer=JSONSerializer)
    job.set_status(JobStatus.QUEUED)
    Queue("default", connection=redis, serializer=JSONSerializer).push_job_id(id)


def test_a_task_that_asks_holds_no_worker_and_continues_with_the_answer(workers: WorkerPool) -> None:
    pool = workers.pool
    ids = [pool.add_task("asks").id for _ in range(5)]  # more than there are slots
    for id in ids:
        record = parked(pool, id)
        assert (record.status, record.attempt, [past.outcome for past in record.history]) == (
            S.WAITING_CONFIRMATION, 0, ["asked"],
        )  # fmt: skip
    assert pool.wait(pool.add_task("echo", {"message": 1}).id, timeout_s=PATIENCE_S).result == 1

    for id in ids:
        pool.answer(id, True, question="go")

    results = [pool.wait(id, timeout_s=PATIENCE_S) for id in ids]
    assert [(record.result["answer"], record.result["attempt"]) for record in results] == [(True, 1)] * 5
    assert {record.crashes for record in results} == {0}


def test_a_coroutine_asks_and_its_checkpoint_stays(workers: WorkerPool) -> None:
    id = workers.pool.add_task("asks_async").id
    parked(workers.pool, id)

    workers.pool.answer(id, False)

    assert workers.pool.wait(id, timeout_s=PATIENCE_S).result == {"answer": False, "state": [1, 1]}


def test_housekeeping_closes_questions_that_nobody_answers(workers: WorkerPool) -> None:
    pool = workers.pool
    asks = pool.add_task("asks", {"timeout": 0.2})
    confirmed = pool.add_task("echo", {"message": 1}, confirm=Confirm(timeout=0.2, default="confirm"))
    rejected = pool.add_task("echo", {"message": 1}, confirm=Confirm(timeout=0.2))

    ended = [pool.wait(task.id, timeout_s=PATIENCE_S) for task in (asks, confirmed, rejected)]

    assert [record.status for record in ended] == [S.DONE, S.DONE, S.CANCELED]
    assert ended[0].result["answer"] is False
    assert ended[0].answers[0].how == "default"


def test_a_killed_process_loses_nothing_of_a_checkpoint(workers: WorkerPool) -> None:
    record = workers.pool.wait(workers.pool.add_task("dies_on_the_way").id, timeout_s=PATIENCE_S)

    assert record.status is S.DONE, record.error
    assert record.result == [10, 11, 22, 23]


def test_a_plain_rq_worker_runs_nothing_that_a_person_has_not_confirmed(redis_url: str, redis: Redis) -> None:
    with TaskPool(redis_url, registry=Registry([RQ_TASKS])) as pool:
        id = pool.add_task("asks", confirm="Really?").id
        queue_with_rq(redis, id)

        rq(redis_url, "worker", "-S", "json", "--burst", "default")

        assert "a person has to confirm it first" in (pool.get(id).error or "")
        assert pool.retry_task(id).status is S.WAITING_CONFIRMATION


def test_our_workers_put_back_what_rqs_tools_queue(workers: WorkerPool, redis: Redis) -> None:
    pool = workers.pool
    id = pool.add_task("echo", {"message": 1}, confirm="Really?").id
    queue_with_rq(redis, id)

    eventually(lambda: not redis.exists("rq:queue:default") and pool.get(id).status is S.WAITING_CONFIRMATION)

    pool.confirm(id)
    record = pool.wait(id, timeout_s=PATIENCE_S)
    assert (record.result, record.attempt) == (1, 1)


def test_a_plain_rq_worker_fails_a_task_that_asks_and_says_why(redis_url: str) -> None:
    with TaskPool(redis_url, registry=Registry([RQ_TASKS])) as pool:
        id = pool.add_task("asks").id

        rq(redis_url, "worker", "-S", "json", "--burst", "default")

        record = pool.get(id)
        assert record.status is S.FAILED
        assert "a plain RQ worker runs this task, and can't ask a person" in (record.error or "")
