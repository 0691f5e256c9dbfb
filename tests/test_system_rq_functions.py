"""Chosen functions of plain RQ jobs (TASKPOOL_RQ_FUNCTIONS), from real RQ producers, run by our workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Callback, Queue, Retry
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from taskpool import TaskPool, TaskStatus
from taskpool.redis.embedded import RedisServer
from taskpool.redis.keys import ENTRY_POINT
from tests import rq_functions
from tests.rq_processes import environment, process, workers
from tests.support import PATIENCE_S, eventually

S = TaskStatus
MODULE = "tests.rq_functions"
NAMES = ("add", "add_later", "who", "fail", "fail_once", "sleep", "nothing", "Tools.double")
CHOSEN = ",".join(f"{MODULE}.{name}" for name in NAMES)


@pytest.fixture(scope="module", autouse=True)
def pool_of_ours(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two workers of ours on the default queue that may run the chosen functions."""
    directory = tmp_path_factory.mktemp("functions")
    with workers(redis_server.url, directory, count=2, TASKPOOL_RQ_FUNCTIONS=CHOSEN):
        yield


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url) as pool:
        yield pool


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(connection=redis, serializer=JSONSerializer)


def ended(job: Job) -> Job:
    """The job as RQ reads it, once it has ended."""
    final = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)
    eventually(lambda: job.get_status() in final)
    job.refresh()  # type: ignore[no-untyped-call]
    return job


@pytest.mark.parametrize(
    "call",
    [
        (rq_functions.add, {"args": (1,), "kwargs": {"b": 2}}, {"sum": 3}),
        (rq_functions.add_later, {"args": (1, 2)}, 3),
        (rq_functions.nothing, {}, None),
        (f"{MODULE}.Tools.double", {"args": (4,)}, 8),
    ],
)
def test_rq_reads_the_result_of_a_function_that_ran_here(
    queue: Queue, pool: TaskPool, redis: Redis, call: tuple[Any, dict[str, Any], Any]
) -> None:
    function, arguments, result = call

    job = ended(queue.enqueue(function, **arguments, result_ttl=700))

    assert job.get_status() is JobStatus.FINISHED
    assert job.return_value() == result
    latest = job.latest_result()
    assert latest is not None
    assert latest.type is Result.Type.SUCCESSFUL
    assert job.id in queue.finished_job_registry.get_job_ids()
    assert 600 < redis.ttl(f"rq:results:{job.id}") <= 760
    record = pool.get(job.id)
    assert (record.status, record.result, record.attempt) == (S.DONE, result, 1)
    assert record.type == (function if isinstance(function, str) else f"{MODULE}.{function.__name__}")
    assert record.payload["args"] == list(arguments.get("args", ()))


def test_a_failure_is_retried_as_rqs_retry_says_and_its_traceback_is_rqs(
    queue: Queue, pool: TaskPool, tmp_path: Path
) -> None:
    note = tmp_path / "note"

    job = ended(queue.enqueue(rq_functions.fail, str(note), retry=Retry(max=2)))

    assert job.get_status() is JobStatus.FAILED
    assert note.read_text() == "xxx"
    latest = job.latest_result()
    assert latest is not None
    assert "ValueError: no luck" in str(latest.exc_string)
    assert (pool.get(job.id).attempt, job.retries_left) == (3, 0)


def test_a_retry_that_works_ends_the_job_well(queue: Queue, tmp_path: Path) -> None:
    job = ended(queue.enqueue(rq_functions.fail_once, str(tmp_path / "note"), retry=Retry(max=2, interval=1)))

    assert job.return_value() == "the second time"


def test_rqs_time_limit_holds(queue: Queue, pool: TaskPool) -> None:
    job = ended(queue.enqueue(rq_functions.sleep, 60, job_timeout=1))

    assert job.get_status() is JobStatus.FAILED
    assert pool.get(job.id).reason == "timeout"


def test_what_waits_for_it_in_rq_is_queued_when_it_has_ended(queue: Queue) -> None:
    parent = queue.enqueue(rq_functions.add, 1)
    child = queue.enqueue(rq_functions.add, 2, depends_on=parent)

    assert ended(child).return_value() == {"sum": 2}


def test_a_failed_parent_keeps_its_child_waiting_as_in_rq(queue: Queue, tmp_path: Path) -> None:
    parent = queue.enqueue(rq_functions.fail, str(tmp_path / "note"))
    child = queue.enqueue(rq_functions.add, 2, depends_on=parent)

    assert ended(parent).get_status() is JobStatus.FAILED
    eventually(lambda: not queue.connection.exists("taskpool:outbox:rq"))
    assert child.get_status() is JobStatus.DEFERRED


def test_a_task_that_names_a_function_as_its_type_gets_the_arguments_of_a_call_or_fails(
    queue: Queue, pool: TaskPool
) -> None:
    call = {"args": [1], "kwargs": {"b": 5}}

    fine = ended(queue.enqueue(ENTRY_POINT, f"{MODULE}.add", call))
    faulty = ended(queue.enqueue(ENTRY_POINT, f"{MODULE}.add", {"a": 1}))

    assert pool.get(fine.id).result == {"sum": 6}
    assert pool.get(faulty.id).reason == "invalid_payload"


def test_other_functions_pickles_and_jobs_with_callbacks_are_left_in_the_queue(queue: Queue, redis: Redis) -> None:
    left = [
        queue.enqueue("os.getcwd").id,
        Queue(connection=redis).enqueue(rq_functions.add, 1).id,
        queue.enqueue(rq_functions.add, 1, on_success=Callback(f"{MODULE}.nothing")).id,
    ]
    done = queue.enqueue(rq_functions.add, 1)

    assert ended(done).return_value() == {"sum": 1}
    assert queue.job_ids == left


def test_our_workers_and_a_plain_rq_worker_share_a_queue_and_each_job_runs_once(
    queue: Queue, pool: TaskPool, redis_url: str, tmp_path: Path
) -> None:
    command = ("rq.cli", "worker", "-S", "json", "--name", "beside", "default", "--url", redis_url)
    with process(command, environment(redis_url), tmp_path / "worker.log"):
        eventually(lambda: any(info.name == "beside" for info in pool.workers()))
        jobs = [queue.enqueue(rq_functions.add, n, b=1) for n in range(30)]
        foreign = [queue.enqueue("os.getcwd") for _ in range(3)]
        eventually(pool.types)  # our workers publish them again, because the test began with an empty Redis
        tasks = [pool.add_task("echo", {"message": n}) for n in range(10)]

        assert [ended(job).return_value() for job in jobs] == [{"sum": n + 1} for n in range(30)]
        assert all(ended(job).return_value() for job in foreign)
        assert [pool.wait(task.id, timeout_s=PATIENCE_S).result for task in tasks] == list(range(10))
    assert [len(job.results()) for job in jobs] == [1] * 30
    assert {job.worker_name for job in foreign} == {"beside"}


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("tests.rq_functions.subtract", "'tests.rq_functions.subtract': tests.rq_functions has no 'subtract'"),
        ("no_such_module.f", "'no_such_module.f' can't be imported: there is no module 'no_such_module'"),
        ("add", "'add' isn't the name of a function"),
        ("os;system", "'os;system' isn't the name of a function"),
        (f"{MODULE}.NOT_A_FUNCTION", f"'{MODULE}.NOT_A_FUNCTION' is not a function but int"),
        ("taskpool.runner.run", "'taskpool.runner.run' runs tasks"),
        (f"{MODULE}.Tools", f"'{MODULE}.Tools' is not a function but type"),
    ],
)
def test_a_name_that_is_no_function_ends_the_pool_at_its_start(redis_url: str, names: str, complaint: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "taskpool_workers"],
        env=environment(redis_url, TASKPOOL_RQ_FUNCTIONS=names),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 2
    assert f"TASKPOOL_RQ_FUNCTIONS: {complaint}" in done.stderr
    assert "Traceback" not in done.stderr
