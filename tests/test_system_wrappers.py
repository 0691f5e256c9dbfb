"""A task gives the same result in a process with one slot as in one with many, however its function is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskRecord, TaskStatus
from tests.support import PATIENCE_S
from tests.worker_pool import WorkerPool, pool_with_redis, started

TASKS = str(Path(__file__).with_name("tasks_for_wrappers.py"))
RESULTS = {
    "blocking": 1,
    "handing_on": 1,
    "plain": 1,
    "later": 1,
    "future": 1,
    "nested": 1,
    "partial": 3,
    "callable": 1,
    "lambda": 1,
    "class": 1,
}


@pytest.fixture(scope="module", params=[1, 4], ids="slots={}".format)
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None
) -> Iterator[WorkerPool]:
    folder = tmp_path_factory.mktemp("workers")
    with pool_with_redis(folder, redis_binary, slots=request.param, tasks=TASKS) as workers:
        yield workers


def run(workers: WorkerPool, type: str, payload: dict[str, Any], **options: Any) -> TaskRecord:
    return workers.pool.wait(workers.pool.add_task(type, payload, **options).id, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("type", RESULTS)
def test_what_awaits_gives_its_result(workers: WorkerPool, type: str) -> None:
    record = run(workers, type, {"a": 1})

    assert (record.status, record.result) == (TaskStatus.DONE, RESULTS[type])


def test_an_async_generator_is_no_result(workers: WorkerPool) -> None:
    record = run(workers, "generator", {"a": 1})

    assert record.failure is not None
    assert record.failure["reason"] == "result_not_json"
    assert record.error == "its result is not JSON: an object of the type async_generator has no JSON form"


def test_a_plain_function_that_needs_an_event_loop_fails_and_says_what_to_do(workers: WorkerPool) -> None:
    record = run(workers, "loopless", {"a": 1})

    assert record.error is not None
    assert record.error.startswith("RuntimeError: no running event loop (no event loop runs in a plain function: write")


def test_an_exception_behind_a_wrapper_is_the_tasks(workers: WorkerPool) -> None:
    assert run(workers, "raising", {"a": 1}).error == "ValueError: no 1"


def test_a_coroutine_behind_a_wrapper_is_awaited_in_the_main_thread(workers: WorkerPool) -> None:
    assert run(workers, "threaded", {}).result is True


def test_a_coroutine_behind_a_wrapper_ends_with_its_timeout(workers: WorkerPool, tmp_path: Path) -> None:
    record = run(workers, "hanging", {"note": str(tmp_path / "note")}, timeout_s=0.5)

    assert record.failure is not None
    assert record.failure["reason"] == "timeout"
    assert record.crashes == 0


def test_a_coroutine_behind_a_wrapper_can_be_stopped(workers: WorkerPool, tmp_path: Path) -> None:
    id = workers.pool.add_task("hanging", {"note": str(tmp_path / "note")}).id
    started(tmp_path / "note", 1)

    workers.pool.kill_task(id, grace_s=30)

    record = workers.pool.wait(id, timeout_s=PATIENCE_S)
    assert (record.status, record.crashes) == (TaskStatus.STOPPED, 0)
