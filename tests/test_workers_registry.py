"""RQ's registry of workers: a worker is added once, renewed while it lives, and removed when it has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from redis import Redis

from workers.fork_client import ForkClient, ProcessHandle
from workers.registration import PoolWorker, WorkerRegistry
from workers.shared_memory import SharedMemory


@pytest.fixture
def worker(redis: Redis) -> Iterator[PoolWorker]:
    memory = SharedMemory.create(blocks=1, lanes=1)
    client = ForkClient(memory, on_failure=lambda client: None)
    process = ProcessHandle("pool.1", os.getpid(), memory.block(0), client, ("default",))
    yield PoolWorker(process, "pool", redis)
    memory.close()


def registered(redis: Redis) -> tuple[set[bytes], set[bytes]]:
    return redis.smembers("rq:workers"), redis.smembers("rq:workers:default")  # type: ignore[return-value]


def test_a_worker_can_be_registered_again_when_the_first_reply_was_lost(redis: Redis, worker: PoolWorker) -> None:
    registry = WorkerRegistry(redis)
    registry.add(worker)

    registry.add(worker)

    assert registered(redis) == ({b"rq:worker:pool.1"}, {b"rq:worker:pool.1"})


def test_a_renewal_that_comes_too_late_does_not_bring_back_a_worker_that_left(redis: Redis, worker: PoolWorker) -> None:
    registry = WorkerRegistry(redis)
    registry.add(worker)
    registry.remove(worker)

    registry.renew([worker])

    assert registered(redis) == (set(), set())
    assert redis.hexists("rq:worker:pool.1", "death")


def test_a_renewal_registers_a_worker_again_that_redis_has_lost(redis: Redis, worker: PoolWorker) -> None:
    registry = WorkerRegistry(redis)
    registry.add(worker)
    redis.flushall()

    registry.renew([worker])

    assert registered(redis) == ({b"rq:worker:pool.1"}, {b"rq:worker:pool.1"})
