"""What stands in RQ's registry of workers: entered once, renewed while they live, and gone when they have left."""

from __future__ import annotations

import os

import pytest
from redis import Redis

from workers.registration import PoolWorker, Registrar
from workers.shared_memory import Counters


@pytest.fixture
def worker(redis: Redis) -> PoolWorker:
    return PoolWorker(
        "pool.1",
        ("default",),
        pid=os.getpid(),
        connection=redis,
        pool="pool",
        runs=list,
        counters=lambda: Counters(True, 0, 0, 0.0),
        on_stop_job=lambda id: None,
        on_kill=lambda: None,
        on_shutdown=lambda: None,
    )


def registered(redis: Redis) -> tuple[set[bytes], set[bytes]]:
    return redis.smembers("rq:workers"), redis.smembers("rq:workers:default")  # type: ignore[return-value]


def test_a_worker_can_be_entered_again_when_the_answer_to_the_first_time_was_lost(
    redis: Redis, worker: PoolWorker
) -> None:
    registrar = Registrar(redis)
    registrar.enter(worker)

    registrar.enter(worker)

    assert registered(redis) == ({b"rq:worker:pool.1"}, {b"rq:worker:pool.1"})


def test_a_renewal_that_comes_too_late_does_not_bring_back_a_worker_that_left(redis: Redis, worker: PoolWorker) -> None:
    registrar = Registrar(redis)
    registrar.enter(worker)
    registrar.leave(worker)

    registrar.renew([worker])

    assert registered(redis) == (set(), set())
    assert redis.hexists("rq:worker:pool.1", "death")


def test_a_renewal_enters_a_worker_anew_that_redis_has_lost(redis: Redis, worker: PoolWorker) -> None:
    registrar = Registrar(redis)
    registrar.enter(worker)
    redis.flushall()

    registrar.renew([worker])

    assert registered(redis) == ({b"rq:worker:pool.1"}, {b"rq:worker:pool.1"})
