"""Fixtures: one private redis-server per test process on a unix socket, emptied before each test that asks for it.

And how tests run side by side: `scripts/test` shares them out among more processes than there are cores, since most of
them wait. Each process has its own Redis, directories and ports, so no test meets another one's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from redis import Redis

from taskpool.redis_server import RedisServer
from tests.states import World

# Tests see the defaults, whatever the shell that runs them has set.
TEST_REDIS = os.environ.get("TASKPOOL_TEST_REDIS")
for name in [name for name in os.environ if name.startswith("TASKPOOL_")]:
    del os.environ[name]

START_PROCESSES = ("compose", "demo", "killpoints", "redis_", "rq_", "system_", "up", "zz_")
"""How the names of the test files begin that start processes: they come after the quick ones."""


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: two processes more than cores."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first, long ones last. Side by side the long ones first: all others run while they wait.

    The tests of one file that share a fixture stay in one process.
    """
    is_side_by_side = hasattr(config, "workerinput")

    def turn(item: pytest.Item) -> int:
        if item.get_closest_marker("long"):
            return 0 if is_side_by_side else 3
        return 2 if item.path.name.removeprefix("test_").startswith(START_PROCESSES) else 1

    items.sort(key=turn)
    for item in items:
        if is_side_by_side and _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _shares_a_fixture(item: pytest.Item) -> bool:
    """True if a fixture of the test's is made once for its file."""
    defined: Mapping[str, Sequence[Any]] = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    return any(definitions[-1].scope == "module" for definitions in defined.values())


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
