"""A plain `rq worker -S json` runs our tasks, and our records say how it went."""

from __future__ import annotations

import os.path
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from taskpool import TaskPool, TaskSpec
from taskpool.operations.flow.upkeep import look_after_workflows
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from taskpool.redis import scripts
from taskpool.redis.calls import Call
from taskpool.redis.keys import ENTRY_POINT, OUTBOX
from taskpool.tasks.node import After
from taskpool.tasks.registry import Registry
from taskpool.types import TaskStatus
from tests.rq_processes import TASKS, environment, numbers, once, process, rq, traces
from tests.support import eventually

S = TaskStatus
WORKER = ("rq.cli", "worker", "-S", "json", "--name", "plain", "default")


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    """A pool that submits, and runs tasks in this process."""
    with TaskPool(redis_url, registry=Registry([TASKS], builtins=True)) as pool:
        yield pool


@pytest.fixture
def plain_worker(pool: TaskPool, redis_url: str, tmp_path: Path) -> Iterator[psutil.Process]:
    """A plain RQ worker that waits for tasks."""
    command = (*WORKER, "--url", redis_url)
    with process(command, environment(redis_url), tmp_path / "worker.log") as worker:
        eventually(lambda: [info.state for info in pool.workers()] == ["idle"])
        yield psutil.Process(worker.pid)


def work(redis_url: str) -> None:
    """Have a plain RQ worker run all that is queued."""
    rq(redis_url, *WORKER[1:], "--burst")


def run(pool: TaskPool) -> TaskStatus:
    """Run the next task here; how it ended."""
    running = pool.run_task(["default"], worker="ann", attempt_id="attempt1")
    assert running is not None
    return pool.execute_task(running)


def tend(pool: TaskPool) -> None:
    """What our housekeeping does for waiting tasks: look after them, then release those whose parents have ended."""
    pool.store.run(scripts.sweep_waiting("default", 1000))
    for id in pool.store.run(Call(("SMEMBERS", OUTBOX), list)):
        pool.store.run(scripts.release(id.decode()))


def begin(pool: TaskPool, gate: Path) -> str:
    """Have the plain worker run a task that goes on until `gate` is there; its id, once its code runs."""
    task = pool.add_task("hold", {"path": str(gate)})
    eventually(lambda: pool.get(task.id).attempt)
    return task.id


def test_tasks_end_as_our_api_says_it(pool: TaskPool, redis: Redis, redis_url: str) -> None:
    done = pool.add_task("echo", {"message": {"a": [1, None]}}, tags=["red"])
    nothing = pool.add_task("echo", {"message": None})
    failed = pool.add_task("read", {"path": "/no/such/file"}, max_attempts=3)
    misfit = pool.add_task("echo", {"message": 1})
    redis.hset(f"rq:job:{misfit.id}", "data", '["taskpool.runner.run", null, ["echo", {}], {}]')
    slow = pool.add_task("hold", {"path": "/no/such/file"}, timeout_s=3)
    foreign = Queue(connection=redis, serializer=JSONSerializer).enqueue(ENTRY_POINT, "nobody_knows", {})

    work(redis_url)

    record = pool.get(done.id)
    assert (record.status, record.result, record.attempt, record.worker) == (S.DONE, {"a": [1, None]}, 1, "plain")
    times = [record.created_at, record.started_at, record.ended_at]
    assert None not in times
    assert times == sorted(times, key=str)
    assert (pool.get(nothing.id).status, pool.get(nothing.id).result) == (S.DONE, None)

    record = pool.get(failed.id)
    assert (record.status, record.attempt, record.reason) == (S.FAILED, 1, "exception")
    assert record.error == "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"
    assert record.failure is not None
    assert "in read" in record.failure["traceback"]
    reasons = {id: (pool.get(id).status, pool.get(id).reason) for id in (misfit.id, foreign.id)}
    assert reasons == {misfit.id: (S.FAILED, "invalid_payload"), foreign.id: (S.FAILED, "unknown_task")}

    assert (pool.get(slow.id).error or "").startswith("JobTimeoutException: ")

    info = numbers(pool)
    assert (info.queued, info.in_progress, info.done, info.failed) == (0, 0, 2, 4)
    assert [each.id for each in pool.list_tasks(tag="red", status=S.DONE).items] == [done.id]
    assert [each.id for each in pool.list_tasks(type="nobody_knows").items] == [foreign.id]


def test_what_it_ran_can_be_retried_and_removed(pool: TaskPool, redis: Redis, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    task = pool.add_task("read", {"path": str(file)})
    work(redis_url)
    file.write_text("there")

    pool.retry_task(task.id)
    assert run(pool) is S.DONE
    record = pool.get(task.id)
    assert (record.result, record.attempt, record.error, record.reason) == ("there", 2, None, None)

    pool.remove_task(task.id)
    assert traces(redis, pool, task.id) == []


def test_it_sees_nothing_of_the_attempt_before(pool: TaskPool, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    failed = pool.add_task("read", {"path": str(file)})
    assert run(pool) is S.FAILED
    stopped = pool.add_task("hold", {"path": str(file)})
    running = pool.run_task(["default"], worker="ann", attempt_id="attempt1")
    assert running is not None
    pool.kill_task(stopped.id)
    assert pool.execute_task(running) is S.STOPPED
    file.write_text("there")

    rq(redis_url, "requeue", "-S", "json", "--queue", "default", "--all")
    work(redis_url)

    for id, result in ((failed.id, "there"), (stopped.id, "released")):
        record = pool.get(id)
        assert (record.status, record.result, record.attempt) == (S.DONE, result, 2)
        assert (record.error, record.failure, record.reason) == (None, None, None)


def test_its_scheduler_queues_our_scheduled_tasks(pool: TaskPool, redis: Redis, redis_url: str) -> None:
    task = pool.add_task("echo", {"message": 1}, delay_s=3600)
    redis.zadd("rq:scheduled:default", {task.id: 1})

    rq(redis_url, *WORKER[1:], "--burst", "--with-scheduler")

    assert pool.get(task.id).result == 1
    assert (numbers(pool).scheduled, numbers(pool).done) == (0, 1)


def test_what_waits_for_its_tasks_is_released(pool: TaskPool, redis_url: str) -> None:
    parents = [pool.add_task("echo", {"message": n}).id for n in range(2)]
    child = pool.add_task("collect", depends_on=parents)
    broken = pool.add_task("read", {"path": "/no/such/file"})
    orphan = pool.add_task("collect", depends_on=[broken.id, parents[0]])

    work(redis_url)
    assert pool.get(child.id).status is S.WAITING
    tend(pool)

    assert pool.get(child.id).status is S.QUEUED
    assert (pool.get(orphan.id).status, pool.get(orphan.id).reason) == (S.CANCELED, "dependency_failed")
    work(redis_url)
    assert pool.get(child.id).result == [0, 1]


def test_a_short_retention_does_not_hide_from_a_child_that_its_parent_is_done(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    brief = pool.add_task("echo", {"message": 1}, result_ttl_s=1)
    foreign = Queue(connection=redis, serializer=JSONSerializer).enqueue(os.path.basename, "/a/b", result_ttl=0)
    child = pool.add_task("collect", depends_on=[brief.id, foreign.id])

    work(redis_url)  # no worker pool of ours lives meanwhile

    assert redis.ttl(f"rq:job:{brief.id}") > 80_000
    tend(pool)
    work(redis_url)
    assert pool.get(child.id).result == [1, "b"]


def test_a_parents_result_that_is_gone_fails_the_task_that_reads_it(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    parent = pool.add_task("echo", {"message": 1})
    work(redis_url)
    child = pool.add_task("collect", depends_on=[parent.id])
    redis.delete(f"rq:job:{parent.id}")

    work(redis_url)

    why = f"the result of task {parent.id} can't be read: its record expired or was removed"
    assert pool.get(child.id).error == f"ParentResultGone: {why}"


def test_it_shows_as_a_worker_and_its_task_as_running(
    pool: TaskPool, plain_worker: psutil.Process, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    id = begin(pool, gate)

    (info,) = pool.workers()
    assert pool.get(id).status is S.IN_PROGRESS
    assert (info.name, info.state, info.pid) == ("plain", "busy", plain_worker.pid)
    assert (info.queues, info.current, info.pool) == (("default",), (id,), None)
    assert numbers(pool).in_progress == 1
    gate.touch()
    assert once(pool, id, S.DONE).result == "released"


def test_a_stop_reaches_it(pool: TaskPool, plain_worker: psutil.Process, tmp_path: Path) -> None:
    id = begin(pool, tmp_path / "gate")
    (horse,) = plain_worker.children()

    pool.kill_task(id)

    assert once(pool, id, S.STOPPED).attempt == 1
    eventually(lambda: not horse.is_running())
    assert once(pool, pool.add_task("echo", {"message": 1}).id, S.DONE).result == 1


def test_what_it_ran_when_it_died_is_taken_back_once_its_lease_ends(
    pool: TaskPool, redis: Redis, plain_worker: psutil.Process, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    id = begin(pool, gate)
    for each in (plain_worker, *plain_worker.children()):
        each.send_signal(signal.SIGKILL)
    ((_, execution_id),) = Queue(connection=redis).started_job_registry.get_job_and_execution_ids()

    def reap() -> str:
        failure = {"reason": "crashed", "message": "lost"}
        return pool.store.run(
            scripts.crash(id, execution_id, "default", error="lost", failure=failure, max_crashes=3, only_expired=True)
        )

    assert reap() == "lost"  # for all we know it is still alive
    redis.zadd("rq:wip:default", {f"{id}:{execution_id}": 1})
    assert reap() == "queued"

    gate.touch()
    assert run(pool) is S.DONE
    record = pool.get(id)
    assert (record.attempt, record.crashes, record.result) == (2, 1, "released")
    assert numbers(pool).in_progress == 0


def test_a_task_that_adds_tasks_fails_and_says_why(pool: TaskPool, redis: Redis, redis_url: str) -> None:
    task = pool.add_task("add", max_attempts=3)

    work(redis_url)

    record = pool.get(task.id)
    assert record.status is S.FAILED
    assert record.error is not None
    assert "a plain RQ worker runs this task, and can't add tasks for it" in record.error
    assert "need `taskpool worker`" in record.error
    assert not redis.exists("taskpool:type:echo")


def test_a_workflow_counts_what_it_ran_and_a_task_that_adds_fails_and_says_why(pool: TaskPool, redis_url: str) -> None:
    nodes = (
        NodeSpec(name="grow", task=TaskSpec(type="grow")),
        NodeSpec(name="rows", map=[TaskSpec(type="echo", payload={"message": n}) for n in range(3)]),
        NodeSpec(name="end", task=TaskSpec(type="echo", payload={"message": 1}), after=(After("rows", "any"),)),
    )
    id = pool.add_workflow(WorkflowSpec(name="test", nodes=nodes)).id

    work(redis_url)
    pool.store.carry_out(look_after_workflows())
    tend(pool)
    work(redis_url)
    pool.store.carry_out(look_after_workflows())

    record = pool.get_workflow(id)
    assert (record.status, record.counts) == ("failed", {"done": 4, "failed": 1})
    (grow,) = pool.list_tasks(workflow=id, node="grow").items
    assert grow.error is not None
    assert "a plain RQ worker runs this task, and can't add tasks" in grow.error
