"""Jobs that others put into RQ's queues: calls of our entry point run, all else is refused and executes nothing.

That is with TASKPOOL_FOREIGN_JOBS=refuse. By default, other jobs are left alone: see test_script_foreign.py.
"""

from __future__ import annotations

import base64
import pickle
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from taskpool import TaskPool
from taskpool.redis import scripts
from taskpool.redis.embedded import RedisServer
from taskpool.redis.keys import ENTRY_POINT
from taskpool.settings import Settings
from taskpool.tasks.registry import Registry
from taskpool.types import TaskRecord, TaskStatus
from tests.rq_processes import TASKS, Dashboard, dashboard, numbers, traces, workers
from tests.support import PATIENCE_S

S = TaskStatus


@pytest.fixture(scope="module")
def pages(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """rq-dashboard, and a worker of ours on the default queue."""
    directory = tmp_path_factory.mktemp("dashboard")
    with (
        dashboard(redis_server.url, directory) as pages,
        workers(redis_server.url, directory, count=1, TASKPOOL_FOREIGN_JOBS="refuse"),
    ):
        yield pages


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    """A pool that runs the tasks of these tests in this process, and refuses all other jobs."""
    settings = Settings(foreign_jobs="refuse")
    with TaskPool(redis_url, settings=settings, registry=Registry([TASKS], builtins=True)) as pool:
        yield pool


@pytest.fixture
def queue(redis: Redis) -> Queue:
    """A queue as a program with plain RQ has it; our worker process doesn't serve it."""
    return Queue("plain", connection=redis, serializer=JSONSerializer)


def run(pool: TaskPool) -> TaskStatus:
    """Run the next task of that queue here; how it ended."""
    running = pool.run_task(["plain"], worker="ann", attempt_id="attempt1")
    assert running is not None
    return pool.execute_task(running)


# --- calls of our entry point ---------------------------------------------------------------------------------


def test_a_plain_enqueue_of_our_entry_point_is_a_task(pool: TaskPool, queue: Queue) -> None:
    job = queue.enqueue(ENTRY_POINT, "echo", {"message": [1, None]}, job_id="my-job_1", job_timeout=7)

    record = pool.get("my-job_1")
    assert (record.type, record.payload, record.status) == ("echo", {"message": [1, None]}, S.QUEUED)
    assert (record.queue, record.timeout_s, record.attempt) == ("plain", 7, 0)
    assert [item.record for item in pool.get_queue("plain").items] == [record]
    assert pool.list_tasks(queue="plain").items == (record,)

    assert run(pool) is S.DONE

    record = pool.get("my-job_1")
    assert (record.status, record.result, record.attempt) == (S.DONE, [1, None], 1)
    assert record.started_at is not None
    assert record.ended_at is not None
    assert pool.list_tasks(type="echo").items == (record,)
    assert numbers(pool, "plain").done == 1
    assert job.get_status() is JobStatus.FINISHED
    assert queue.finished_job_registry.get_job_ids() == ["my-job_1"]


def test_our_workers_find_it_without_a_doorbell(pages: Dashboard, pool: TaskPool, redis: Redis) -> None:
    job = Queue("default", connection=redis, serializer=JSONSerializer).enqueue(ENTRY_POINT, "echo", {"message": 1})

    assert pool.wait(job.id, timeout_s=PATIENCE_S).result == 1


def test_removing_it_leaves_nothing(pool: TaskPool, queue: Queue, redis: Redis) -> None:
    job = queue.enqueue(ENTRY_POINT, "echo", {"message": 1})
    run(pool)

    pool.remove_task(job.id)

    assert traces(redis, pool, job.id) == []


def test_one_that_fails_can_be_retried_by_hand(pool: TaskPool, queue: Queue, tmp_path: Path) -> None:
    file = tmp_path / "file"
    job = queue.enqueue(ENTRY_POINT, "read", {"path": str(file)})
    assert run(pool) is S.FAILED
    file.write_text("there")

    pool.retry_task(job.id)

    assert run(pool) is S.DONE
    assert pool.get(job.id).result == "there"


def test_one_that_rq_scheduled_is_queued_by_our_housekeeping(pool: TaskPool, queue: Queue, redis: Redis) -> None:
    job = queue.enqueue_in(timedelta(hours=1), ENTRY_POINT, "echo", {"message": 1})
    assert pool.get(job.id).status is S.SCHEDULED
    assert pool.store.run(scripts.promote(job.id, "plain")) == "early"

    redis.zadd(queue.scheduled_job_registry.key, {job.id: 0})
    assert pool.store.run(scripts.promote(job.id, "plain")) == "ok"

    assert pool.get(job.id).status is S.QUEUED
    assert run(pool) is S.DONE


def test_a_payload_that_does_not_fit_fails_the_task(pool: TaskPool, queue: Queue) -> None:
    job = queue.enqueue(ENTRY_POINT, "echo", {"massage": 1})

    assert run(pool) is S.FAILED
    assert pool.get(job.id).reason == "invalid_payload"


def test_a_type_that_is_not_registered_fails_the_task(pool: TaskPool, queue: Queue) -> None:
    job = queue.enqueue(ENTRY_POINT, "os.system", {"command": "true"})

    assert run(pool) is S.FAILED
    assert pool.get(job.id).reason == "unknown_task"


# --- everything else ------------------------------------------------------------------------------------------


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.fixture
def loot(tmp_path: Path) -> Path:
    """The file that whatever is executed makes."""
    loot = tmp_path / "loot"
    pickle.loads(pickle.dumps(Planted(loot)))
    assert loot.exists(), "the trap works"
    loot.unlink()
    return loot


def refused(pool: TaskPool, id: str) -> TaskRecord:
    """The record of a job that was refused."""
    record = pool.get(id)
    assert (record.status, record.reason, record.type) == (S.FAILED, "unknown_task", "unknown")
    assert record.error is not None
    assert record.error.startswith("refused: ")
    return record


@pytest.mark.parametrize("function", ["os.system", "subprocess.getoutput", "taskpool.runner.kill_task", ""])
def test_any_other_function_is_refused(function: str, pool: TaskPool, queue: Queue, loot: Path) -> None:
    job = queue.enqueue("os.system", f"touch {loot}")
    job.func_name = function
    job.save()
    assert (pool.get(job.id).type, pool.get(job.id).payload) == ("unknown", None)

    assert run(pool) is S.FAILED

    record = refused(pool, job.id)
    assert record.error == f"refused: it calls {function!r}, and only registered task types are run"
    assert not loot.exists()
    assert record in pool.list_tasks().items
    assert record in pool.list_tasks(status=S.FAILED).items


@pytest.mark.parametrize(
    "data",
    [
        b"[",
        b"",
        b"null",
        b'["taskpool.runner.run", null, ["echo", {}]]',
        b'["taskpool.runner.run", "os", ["echo", {}], {}]',
        b'["taskpool.runner.run", null, [], {}]',
        b'["taskpool.runner.run", null, [["echo"], {}], {}]',
        b'["taskpool.runner.run", null, ["echo", {}, 1], {}]',
        b'["taskpool.runner.run", null, ["echo", {}], {"more": 1}]',
        b'["taskpool.runner.run", null, "ec", {}]',
        b'["taskpool.runner.run", null, ["echo", \xff], {}]',
        b'{"taskpool.runner.run": null, "b": 1, "c": 2, "d": 3}',
        zlib.compress(b"[1, 2"),
        zlib.compress(b'["taskpool.runner.run", null, ["echo", {}], {}]')[:-4],
    ],
)
def test_data_that_is_no_call_of_it_is_refused(data: bytes, pool: TaskPool, queue: Queue, redis: Redis) -> None:
    job = queue.enqueue(ENTRY_POINT, "echo", {"message": 1})
    redis.hset(f"rq:job:{job.id}", "data", data)
    assert pool.get(job.id).type == "unknown"

    assert run(pool) is S.FAILED
    refused(pool, job.id)


def plant(redis: Redis, job: Job, loot: Path) -> None:
    """Put pickles that make a file wherever RQ keeps something serialised."""
    poison = pickle.dumps((Planted(loot),) * 4)
    for field in ("data", "result", "meta"):
        redis.hset(job.key, field, poison if field != "data" else zlib.compress(poison))
    redis.xadd(f"rq:results:{job.id}", {"type": 1, "return_value": base64.b64encode(poison)})


def test_a_pickle_executes_nothing_in_our_workers_or_our_api(
    pages: Dashboard, pool: TaskPool, redis: Redis, loot: Path
) -> None:
    job = Job.create(ENTRY_POINT, ["echo", {}], connection=redis, serializer=JSONSerializer, origin="default")
    job.save()
    plant(redis, job, loot)

    Queue("default", connection=redis, serializer=JSONSerializer).push_job_id(job.id)
    redis.hset(job.key, "status", "queued")
    record = pool.wait(job.id, timeout_s=PATIENCE_S)

    assert record == refused(pool, job.id)
    assert record.error == "refused: its data is not JSON (pickle is never loaded)"
    assert pool.list_tasks(queue="default").items == pool.list_tasks().items == (record,)
    assert not loot.exists()


@pytest.mark.parametrize("raw", [False, True])
def test_a_pickle_executes_nothing_in_this_process(
    raw: bool, pool: TaskPool, queue: Queue, redis: Redis, loot: Path
) -> None:
    job = queue.enqueue(ENTRY_POINT, "echo", {"message": 1})
    plant(redis, job, loot)
    if raw:
        redis.hset(job.key, "data", pickle.dumps((Planted(loot),) * 4))

    assert pool.get(job.id).type == "unknown"
    assert run(pool) is S.FAILED
    redis.hset(job.key, "status", "finished")

    assert pool.get(job.id).result is None
    assert pool.list_tasks(queue="plain").items == (pool.get(job.id),)
    assert not loot.exists()


def test_a_pickle_executes_nothing_in_the_dashboard(
    pages: Dashboard, pool: TaskPool, queue: Queue, redis: Redis, loot: Path
) -> None:
    job = queue.enqueue(ENTRY_POINT, "echo", {"message": 1})
    run(pool)
    plant(redis, job, loot)

    (row,) = pages.jobs("finished", "plain")
    page = pages.job(job.id)
    assert pages.client.get(f"/0/view/job/{job.id}").status_code == 200

    assert row["id"] == page["id"] == job.id
    assert page["result"] == "(not JSON: left unread)"
    assert not loot.exists()


def test_a_pickle_executes_nothing_under_the_dashboards_buttons(
    pages: Dashboard, pool: TaskPool, queue: Queue, redis: Redis, loot: Path
) -> None:
    jobs = [queue.enqueue(ENTRY_POINT, "read", {"path": "/no/such/file"}) for _ in range(3)]
    for job in jobs:
        assert run(pool) is S.FAILED
        plant(redis, job, loot)

    pages.press(f"job/{jobs[0].id}/requeue")
    pages.press("requeue/plain")
    for _ in jobs:
        assert run(pool) is S.FAILED
    pages.press(f"job/{jobs[0].id}/delete")
    pages.press("queue/plain/failed/empty")

    assert pages.jobs("failed", "plain") == []
    assert not loot.exists()
