"""Waiting for the end of a task: what is told with a message, what is read, and what a wait survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from redis import Redis

from taskpool import Registry, TaskSpec, TaskStatus, WaitTimeout, task
from taskpool.errors import InvalidPayload, UnknownDependency
from taskpool.pool import TaskPool
from tests.support import eventually


@task("repeat")
def repeat(text: str, times: int = 1) -> str:
    """Give back a text, several times."""
    return text * times


@task("fall")
def fall() -> None:
    """Fail."""
    raise RuntimeError("fell")


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    registry = Registry()
    registry.add(repeat)
    registry.add(fall)
    with TaskPool(redis_url, registry=registry) as pool:
        yield pool


def work_off(redis_url: str, registry: Registry | None, redis: Redis, *, tasks: int = 1) -> threading.Thread:
    """A worker of its own thread that runs so many tasks, each as soon as somebody listens to it."""

    def work() -> None:
        with TaskPool(redis_url, registry=registry) as worker:
            for number in range(tasks):
                eventually(lambda: redis.pubsub_channels("taskpool:task:*"))
                # The one listened to may be the one before, while the next isn't there yet.
                running = eventually(lambda: worker.run_task(["default"], worker="w", attempt_id=f"a{number}"))  # noqa: B023
                worker.execute_task(running)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_wait_gets_the_record_that_a_look_would_get(redis_url: str, redis: Redis, pool: TaskPool) -> None:
    id = pool.add_task("repeat", {"text": "a", "times": 3}).id
    worker = work_off(redis_url, pool.registry, redis)

    ended = pool.wait(id, timeout_s=30)

    worker.join()
    assert ended.result == "aaa"
    assert ended == pool.get(id)


def test_submitting_and_waiting_at_once_gets_the_same(redis_url: str, redis: Redis, pool: TaskPool) -> None:
    worker = work_off(redis_url, pool.registry, redis)

    ended = pool.add_and_wait(TaskSpec(type="repeat", payload={"text": "b"}, tags=["t"]), wait_s=10)

    worker.join()
    assert (ended.status, ended.result, ended.tags) == (TaskStatus.DONE, "b", ("t",))
    assert ended == pool.get(ended.id)


def test_a_result_too_large_for_the_message_is_read(redis_url: str, redis: Redis, pool: TaskPool) -> None:
    worker = work_off(redis_url, pool.registry, redis)

    ended = pool.add_and_wait(TaskSpec(type="repeat", payload={"text": "c", "times": 5000}), wait_s=10)

    worker.join()
    assert ended.result == "c" * 5000
    assert ended == pool.get(ended.id)


def test_a_failure_is_told_and_read(redis_url: str, redis: Redis, pool: TaskPool) -> None:
    worker = work_off(redis_url, pool.registry, redis)

    ended = pool.add_and_wait(TaskSpec(type="fall"), wait_s=10)

    worker.join()
    assert ended.status is TaskStatus.FAILED
    assert ended.error == "RuntimeError: fell"
    assert ended == pool.get(ended.id)


def test_waits_one_after_the_other_share_a_connection_and_leave_one_subscription(
    redis_url: str, redis: Redis, pool: TaskPool
) -> None:
    worker = work_off(redis_url, pool.registry, redis, tasks=3)

    results = [pool.add_and_wait(TaskSpec(type="repeat", payload={"text": text}), wait_s=10).result for text in "xyz"]

    worker.join()
    assert results == ["x", "y", "z"]
    assert len(redis.pubsub_channels("taskpool:task:*")) == 1
    assert len([client for client in redis.client_list() if client["name"] == "taskpool-wait"]) == 1


def test_a_wait_that_takes_too_long_says_how_the_task_stands(pool: TaskPool) -> None:
    with pytest.raises(WaitTimeout) as late:
        pool.add_and_wait(TaskSpec(type="repeat", payload={"text": "d"}), wait_s=0)

    assert late.value.record.status is TaskStatus.QUEUED


def test_what_is_refused_is_refused_before_anybody_waits(redis: Redis, pool: TaskPool) -> None:
    with pytest.raises(InvalidPayload):
        pool.add_and_wait(TaskSpec(type="repeat", payload={}))
    with pytest.raises(UnknownDependency):
        pool.add_and_wait(TaskSpec(type="repeat", payload={"text": "e"}, depends_on=["nobody"]))

    assert redis.keys("rq:job:*") == []


def test_a_script_that_redis_has_forgotten_is_sent_anew(redis_url: str, redis: Redis, pool: TaskPool) -> None:
    redis.script_flush()
    worker = work_off(redis_url, pool.registry, redis)

    ended = pool.add_and_wait(TaskSpec(type="repeat", payload={"text": "f"}), wait_s=10)

    worker.join()
    assert ended.result == "f"
