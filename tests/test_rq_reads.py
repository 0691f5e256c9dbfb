"""RQ's own classes and its `rq` command read our tasks, and change nothing by looking."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from taskpool import TaskPool
from taskpool.redis import scripts
from taskpool.tasks.registry import Registry
from taskpool.types import RunningTask, TaskStatus
from tests.rq_processes import TASKS, numbers, rq

S = TaskStatus


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    """A pool that runs the tasks of these tests in this process."""
    with TaskPool(redis_url, registry=Registry([TASKS], builtins=True)) as pool:
        yield pool


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """RQ's view of the default queue."""
    return Queue("default", connection=redis, serializer=JSONSerializer)


def claim(pool: TaskPool, *, lease_s: float = 15) -> RunningTask:
    """Start the next task."""
    running = pool.run_task(["default"], worker="ann", attempt_id="attempt1", lease_s=lease_s)
    assert running is not None
    return running


def run(pool: TaskPool) -> TaskStatus:
    """Run the next task here; how it ended."""
    return pool.execute_task(claim(pool))


def fetch(redis: Redis, id: str) -> Job:
    """A task as RQ's job."""
    return Job.fetch(id, connection=redis, serializer=JSONSerializer)


def test_job_fetch_restores_the_call_and_the_options(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("echo", {"message": {"a": [1, None]}}, timeout_s=7, result_ttl_s=60, failure_ttl_s=120)

    job = fetch(redis, task.id)

    assert job.func_name == "taskpool.runner.run"
    assert job.args == ["echo", {"message": {"a": [1, None]}}]
    assert job.kwargs == {}
    assert job.description == "echo(message={'a': [1, None]})"
    assert (job.origin, job.timeout, job.result_ttl, job.failure_ttl) == ("default", 7, 60, 120)
    assert job.created_at == job.enqueued_at == task.created_at
    assert job.get_status() is JobStatus.QUEUED
    assert job.get_position() == 0


def test_a_job_follows_its_task_to_the_end(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("echo", {"message": 1})
    job = fetch(redis, task.id)
    running = claim(pool)

    assert job.get_status() is JobStatus.STARTED
    pool.execute_task(running)

    assert job.is_finished
    job = fetch(redis, task.id)
    record = pool.get(task.id)
    assert (job.started_at, job.ended_at, job.worker_name) == (record.started_at, record.ended_at, "ann")
    assert (job.latest_result(), job.return_value()) == (None, None)  # success is kept in the hash, not in a stream


def test_a_failed_job_has_the_traceback_as_its_latest_result(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("read", {"path": "/no/such/file"})
    run(pool)

    job = fetch(redis, task.id)
    result = job.latest_result()

    assert job.is_failed
    assert result is not None
    assert (result.type, result.worker_name, result.execution_id) == (Result.Type.FAILED, "ann", "attempt1")
    assert result.exc_string is not None
    assert "FileNotFoundError" in result.exc_string


def test_a_stopped_job_has_stopped_as_its_latest_result(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("hold", {"path": "/no/such/file"})
    running = claim(pool)
    pool.kill_task(task.id)
    pool.execute_task(running)

    job = fetch(redis, task.id)
    result = job.latest_result()

    assert job.is_stopped
    assert result is not None
    assert result.type is Result.Type.STOPPED


def test_queue_and_registries_hold_the_ids(pool: TaskPool, queue: Queue) -> None:
    done = pool.add_task("echo", {"message": 1})
    run(pool)
    failed = pool.add_task("read", {"path": "/no/such/file"})
    run(pool)
    started = pool.add_task("echo", {"message": 2})
    claim(pool)
    canceled = pool.add_task("echo", {"message": 3})
    pool.remove_task(canceled.id)
    queued = [pool.add_task("echo", {"message": n}).id for n in range(3)]
    first = pool.add_task("echo", {"message": 0}, front=True)
    scheduled = pool.add_task("echo", {"message": 4}, delay_s=3600)
    deferred = pool.add_task("collect", depends_on=[queued[0]])

    assert [each.name for each in Queue.all(connection=queue.connection)] == ["default"]
    assert queue.job_ids == [first.id, *queued]
    assert [job.id for job in queue.get_jobs()] == queue.job_ids
    assert queue.started_job_registry.get_job_ids() == [started.id]
    assert queue.started_job_registry.get_job_and_execution_ids() == [(started.id, "attempt1")]
    assert queue.finished_job_registry.get_job_ids() == [done.id]
    assert queue.failed_job_registry.get_job_ids() == [failed.id]
    assert queue.canceled_job_registry.get_job_ids() == [canceled.id]
    assert queue.deferred_job_registry.get_job_ids() == [deferred.id]
    assert queue.scheduled_job_registry.get_job_ids() == [scheduled.id]
    due = queue.scheduled_job_registry.get_scheduled_time(scheduled.id) - scheduled.created_at
    assert abs(due - timedelta(hours=1)) < timedelta(minutes=1)


def test_info_has_the_numbers_of_every_queue(pool: TaskPool, redis_url: str) -> None:
    for _ in range(2):
        pool.add_task("echo", {"message": 1})
        run(pool)
    pool.add_task("read", {"path": "/no/such/file"})
    run(pool)
    pool.add_task("echo", {"message": 2})
    claim(pool)
    for n in range(4):
        pool.add_task("echo", {"message": n})
    pool.add_task("echo", {"message": 3}, queue="mails")

    lines = rq(redis_url, "info", "--raw", "--only-queues").splitlines()

    assert sorted(lines) == [
        "queue default 4, 1 executing, 2 finished, 1 failed",
        "queue mails 1, 0 executing, 0 finished, 0 failed",
    ]


def test_looking_fails_no_task_whose_lease_has_ended(pool: TaskPool, queue: Queue, redis_url: str) -> None:
    task = pool.add_task("echo", {"message": 1})
    claim(pool, lease_s=0.001)

    shown = rq(redis_url, "info", "--raw", "--only-queues")

    assert "1 executing, 0 finished, 0 failed" in shown
    assert queue.started_job_registry.count == 1
    assert pool.get(task.id).status is S.IN_PROGRESS
    failure = {"reason": "crashed", "message": "lost"}
    crash = scripts.crash(
        task.id, "attempt1", "default", error="lost", failure=failure, max_crashes=3, only_expired=True
    )
    assert pool.store.run(crash) == "queued"  # our reaper still sees when the lease ended


def test_looking_keeps_every_record_that_is_to_be_kept(pool: TaskPool, redis: Redis, redis_url: str) -> None:
    ids = [pool.add_task("echo", {"message": 1}).id, pool.add_task("read", {"path": "/no/such/file"}).id]
    for _ in ids:
        run(pool)
    ids.append(pool.add_task("echo", {"message": 2}, delay_s=0.001).id)
    ids.append(pool.add_task("collect", depends_on=ids[2:]).id)
    before = {key: redis.zrange(key, 0, -1) for key in redis.keys("rq:*:default") if redis.type(key) == b"zset"}

    rq(redis_url, "info")

    assert {key: redis.zrange(key, 0, -1) for key in before} == before
    assert [pool.get(id).status for id in ids] == [S.DONE, S.FAILED, S.SCHEDULED, S.WAITING]


def test_suspend_and_resume_hold_and_release_every_claim(pool: TaskPool, redis_url: str) -> None:
    pool.add_task("echo", {"message": 1})
    rq(redis_url, "suspend")
    held = pool.run_task(["default"], worker="ann", attempt_id="attempt1")

    rq(redis_url, "resume")

    assert held is None
    assert run(pool) is S.DONE


def test_the_commands_requeue_and_empty_leave_our_state_right(pool: TaskPool, redis_url: str) -> None:
    task = pool.add_task("read", {"path": "/no/such/file"})
    run(pool)

    shown = rq(redis_url, "requeue", "--queue", "default", "--all", "-S", "json")

    assert "Requeueing 1 jobs" in shown
    assert pool.get(task.id).status is S.QUEUED
    assert run(pool) is S.FAILED
    assert pool.get(task.id).attempt == 2

    for n in range(3):
        pool.add_task("echo", {"message": n})
    shown = rq(redis_url, "empty", "default")

    assert "3 jobs removed from default queue" in shown
    assert (numbers(pool).queued, numbers(pool).failed) == (0, 1)
    assert pool.get_queue().items == ()


def test_a_requeued_task_that_kept_crashing_may_crash_as_often_again(pool: TaskPool, redis_url: str) -> None:
    task = pool.add_task("echo", {"message": 1})

    def crash() -> str:
        claim(pool)
        failure = {"reason": "crashed", "message": "it died"}
        return pool.store.run(
            scripts.crash(task.id, "attempt1", "default", error="it died", failure=failure, max_crashes=3)
        )

    first_life = [crash() for _ in range(3)]

    rq(redis_url, "requeue", "--queue", "default", "--all", "-S", "json")

    assert first_life == [crash() for _ in range(3)] == ["queued", "queued", "failed"]


def test_a_job_that_rq_cancels_is_a_canceled_task_for_as_long_as_any(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("echo", {"message": 1}, expires_in_s=3600)
    child = pool.add_task("collect", depends_on=[task.id])

    fetch(redis, task.id).cancel()
    word = pool.store.run(scripts.purge(task.id, "rq:canceled:default"))

    assert word == "early"
    record = pool.get(task.id)
    assert (record.status, record.reason) == (S.CANCELED, "canceled")
    assert record.ended_at is not None
    assert numbers(pool).canceled == 1
    assert pool.store.run(scripts.release(task.id)) == []
    assert pool.get(child.id).status is S.CANCELED
    assert pool.store.run(scripts.purge(task.id, "rq:canceled:default")) == "early"
    kept_s = redis.zscore("rq:canceled:default", task.id) - record.ended_at.timestamp()  # type: ignore[operator]
    assert round(kept_s) == task.failure_ttl_s
    assert redis.zcard("taskpool:expiring") == 0


def test_a_registry_forgets_a_task_that_has_another_life(pool: TaskPool, redis: Redis) -> None:
    task = pool.add_task("echo", {"message": 1})
    pool.add_task("collect", depends_on=[task.id])
    redis.zadd("rq:finished:default", {task.id: 1})  # as RQ leaves a job that it repeats

    word = pool.store.run(scripts.purge(task.id, "rq:finished:default"))

    assert word == "queued"
    assert pool.get(task.id).status is S.QUEUED
    assert redis.zcard("rq:finished:default") == 0
