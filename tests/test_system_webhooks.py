"""Webhooks with real processes: told by a worker pool, and by another one when the first dies in the middle."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from taskpool import TaskPool, keys
from taskpool.settings import Settings
from tests.receiver import Receiver, receiver
from tests.support import eventually
from tests.worker_pool import WorkerPool

ALLOW: Any = {"webhook_allow": "127.0.0.0/8"}


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as state:
        yield state


def submit(redis_url: str, url: str) -> str:
    """A task that calls back there."""
    with TaskPool(redis_url, settings=Settings(webhook_allow=("127.0.0.0/8",))) as pool:
        return pool.add_task("act", {"do": "ok"}, callback_url=url).id


def end_leases(redis: Any) -> None:
    """Let the lease of every delivery end."""
    for key in redis.keys(keys.WEBHOOKS_SENDING + "*"):
        redis.zadd(key, dict.fromkeys(redis.zrange(key, 0, -1), 1))
        redis.zadd(keys.WEBHOOKS_LANES, {key.decode().removeprefix(keys.WEBHOOKS_SENDING): 1})


def test_a_pool_that_is_killed_while_it_sends_has_it_sent_again_by_the_next(
    redis: Redis, redis_url: str, tmp_path: Path, server: Receiver
) -> None:
    with WorkerPool(redis_url, tmp_path / "first", **ALLOW) as workers:
        id = submit(redis_url, server.url("/hang"))
        eventually(lambda: server.hanging, 30)
        workers.send(signal.SIGKILL)
        workers.end()
    end_leases(redis)

    with WorkerPool(redis_url, tmp_path / "second", **ALLOW):
        eventually(lambda: len(server.requests) == 2, 30)

    first, second = server.requests
    assert first.id == second.id
    assert first.body == second.body
    assert second.message["subject"] == id


def test_a_pool_that_drains_loses_no_delivery(redis_url: str, tmp_path: Path, server: Receiver) -> None:
    with WorkerPool(redis_url, tmp_path / "first", grace_s=20, **ALLOW) as workers:
        submit(redis_url, server.url("/trickle-body"))
        eventually(lambda: server.requests, 30)
        workers.send(signal.SIGTERM)
        assert workers.end() == 0

    with WorkerPool(redis_url, tmp_path / "second", **ALLOW) as workers:
        submit(redis_url, server.url("/last"))
        eventually(lambda: server.at("/last"), 30)

    assert len(server.at("/trickle-body")) == 1
