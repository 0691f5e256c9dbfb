"""Fixtures: one private redis-server per test run on a unix socket, emptied before each test that asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from redis import Redis

from taskpool.redis_server import RedisServer
from tests.states import World

# Tests see the defaults, whatever the shell that runs them has set.
TEST_REDIS = os.environ.get("TASKPOOL_TEST_REDIS")
for name in [name for name in os.environ if name.startswith("TASKPOOL_")]:
    del os.environ[name]


@pytest.fixture(scope="session")
def redis_binary() -> str | None:
    """The redis-server that TASKPOOL_TEST_REDIS names; None: the one `taskpool up` would take."""
    return TEST_REDIS


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[RedisServer]:
    """The run's Redis. A test that stops or kills Redis starts one of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of an empty Redis; it answers in bytes."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def world(redis: Redis, redis_url: str) -> Iterator[World]:
    """An empty Redis with a store on it, to seed with tasks and to compare as a whole."""
    world = World(redis, redis_url)
    yield world
    world.store.close()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Every `async def` test runs on asyncio."""
    return "asyncio"
