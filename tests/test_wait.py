"""Waiting for the end of a task: what comes with a message, what is read, and what a wait survives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from redis import Redis

from taskpool import AsyncTaskPool, Registry, TaskRecord, TaskSpec, TaskStatus, WaitTimeout, task
from taskpool.errors import InvalidPayload, RedisUnavailable, UnknownDependency
from taskpool.pool import TaskPool
from taskpool.redis.embedded import RedisServer
from tests.support import PATIENCE_S, eventually


@task("repeat")
def repeat(text: str, times: int = 1) -> str:
    """Give back a text, several times."""
    return text * times


@task("fall")
def fall() -> None:
    """Fail."""
    raise RuntimeError("fell")


REGISTRY = Registry()
REGISTRY.add(repeat)
REGISTRY.add(fall)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url, registry=REGISTRY) as pool:
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

    ended = pool.wait(id, timeout_s=PATIENCE_S)

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


def test_a_failure_ends_the_wait_and_is_read(redis_url: str, redis: Redis, pool: TaskPool) -> None:
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


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, that keeps everything it said yes to."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary, config={"appendonly": "yes", "appendfsync": "always"})
    server.start()
    yield server
    server.stop()


def wait_blocking(url: str, id: str, timeout_s: float) -> TaskRecord:
    with TaskPool(url) as pool:
        return pool.wait(id, timeout_s=timeout_s)


def follow_blocking(url: str, id: str, timeout_s: float) -> TaskRecord:
    with TaskPool(url) as pool:
        return list(pool.follow(id, timeout_s=timeout_s))[-1]


def wait_awaiting(url: str, id: str, timeout_s: float) -> TaskRecord:
    async def wait() -> TaskRecord:
        async with AsyncTaskPool(url) as pool:
            return await pool.wait(id, timeout_s=timeout_s)

    return asyncio.run(wait())


def follow_awaiting(url: str, id: str, timeout_s: float) -> TaskRecord:
    async def follow() -> TaskRecord:
        async with AsyncTaskPool(url) as pool:
            return [record async for record in pool.follow(id, timeout_s=timeout_s)][-1]

    return asyncio.run(follow())


WAYS: list[Callable[[str, str, float], TaskRecord]] = [wait_blocking, follow_blocking, wait_awaiting, follow_awaiting]


def test_a_wait_survives_a_restart_of_redis(server: RedisServer) -> None:
    with (
        ThreadPoolExecutor() as threads,
        TaskPool(server.url, registry=REGISTRY) as worker,
        Redis.from_url(server.url) as redis,
    ):
        task = worker.add_task("repeat", {"text": "g"})
        waiting = {way.__name__: threads.submit(way, server.url, task.id, 60) for way in WAYS}
        channel = f"taskpool:task:{task.id}".encode()
        eventually(lambda: redis.pubsub_numsub(channel) == [(channel, len(WAYS))])

        server.kill()
        gave_up = wait(waiting.values(), timeout=1).done
        server.start()
        running = worker.run_task(["default"], worker="w", attempt_id="a", lease_s=60)
        assert running is not None
        worker.execute_task(running)

        assert not gave_up
        assert {way: future.result().result for way, future in waiting.items()} == dict.fromkeys(waiting, "g")


def test_an_outage_that_takes_longer_than_there_is_time_ends_what_had_begun(server: RedisServer) -> None:
    with TaskPool(server.url, registry=REGISTRY) as pool:
        following = pool.follow(pool.add_task("repeat", {"text": "h"}).id, timeout_s=3)
        next(following)

        server.kill()

        with pytest.raises(RedisUnavailable):
            list(following)
