"""Fixtures: one private redis-server per test process on a unix socket, emptied before each test that asks for it.

And how tests run side by side: `scripts/test` shares them out among more processes than there are cores, since most of
them wait. Each process has its own Redis, directories and ports, so no test meets another one's.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool.redis.embedded import RedisServer, ServerVersion, find_redis_server
from tests.loop_watch import Watch, WatchedLoop, watching
from tests.states import World
from tests.support import PATIENCE_S, eventually

pytest_plugins = ("tests.api_contract",)

# HTTPX's own timeout is 5 s, which is too short for a slow and busy machine.
for phase in ("connect", "read", "write", "pool"):
    setattr(inspect.signature(httpx.get).parameters["timeout"].default, phase, PATIENCE_S)

# redis-py reads its own version from its package for each connection, which takes longer than to connect.
metadata.version = functools.cache(metadata.version)

# The bytecode of the tests is kept, but not that of task files that tests write, and change within a second.
WRITES_NO_BYTECODE, sys.dont_write_bytecode = sys.dont_write_bytecode, False

# Tests see the defaults, whatever the shell that runs them has set.
TEST_REDIS = os.environ.get("TASKPOOL_TEST_REDIS")
TEST_CONTAINERS = os.environ.get("TASKPOOL_TEST_CONTAINERS")
SCREENSHOTS = os.environ.get("TASKPOOL_SCREENSHOTS")
for name in [name for name in os.environ if name.startswith("TASKPOOL_")]:
    del os.environ[name]

BROWSER = Path(__file__).parent / "browser"
BROWSER_S = 150
"""About how long all browser tests take together."""

START_PROCESSES = (
    "client",
    "compose",
    "dashboard",
    "demo",
    "docs_examples",
    "killpoints",
    "packaging",
    "redis_",
    "rq_",
    "system_",
    "up",
    "workflow_clients",
    "zz_",
)
"""How the names of the test files begin that start processes: they come after the quick ones."""

EACH_SERVER = (
    "beside_rq", "counts_over", "embedded", "history", "keyring", "listing", "locks", "parents", "queue", "redis_",
    "rq_plain", "rq_reads", "rq_strangers", "script_", "secrets", "server_version", "sharing_limits", "status", "store",
    "add_nodes", "system_beside_rq", "system_rq", "timekeeping", "wait", "webhook_outbox", "workers_housekeeping",
    "workflow_deaths", "workflow_machine", "workflows", "why",
)  # fmt: skip
"""How the names of the test files begin whose results can depend on the Redis server: CI runs them with each one.

What becomes of tasks whose processes die, freeze or are stopped is tested with each server by one soak (test_zz_chaos).
"""


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: three processes more than cores, because tests wait for about half of their time."""
    return (os.cpu_count() or 1) + 3


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, tests are handed out one by one and in order; those that share fixtures together, to one process: a
    file that makes one for all its tests, and all browser tests.

    (`--dist loadgroup`, made for that, does nothing with pytest 9.2 and xdist 3.8.)
    """
    from xdist.scheduler import LoadScopeScheduling

    def unit(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if (config.rootpath / file).parent == BROWSER:
            return BROWSER.name
        return file if _shares_fixtures(config.rootpath / file) else nodeid

    config.option.loadscopereorder = False
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = unit
    return scheduler


@functools.cache
def _shares_fixtures(file: Path) -> bool:
    return file.parent == BROWSER or 'scope="module"' in file.read_text()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first, long ones last. Side by side the other way round, so that all processes end at about one time.

    And those are marked that CI runs with each server (`-m each_server`).
    """
    for item in items:
        name = item.path.name.removeprefix("test_")
        if name.startswith(EACH_SERVER):
            item.add_marker("each_server")
        if name.startswith(START_PROCESSES) or item.path.parent == BROWSER:
            item.add_marker("processes")
    is_side_by_side = hasattr(config, "workerinput")

    def duration(item: pytest.Item) -> int:
        """About how long it takes, in seconds; for a test that is handed out with others, all of them."""
        if item.path.parent == BROWSER:
            return BROWSER_S
        if long := item.get_closest_marker("long"):
            return int(long.kwargs["about_s"])
        starts_processes = item.get_closest_marker("processes") is not None
        return 0 if not starts_processes else 5 if _shares_fixtures(item.path) else 2

    items.sort(key=duration, reverse=is_side_by_side)


def pytest_collection_finish() -> None:
    """The test files are imported."""
    sys.dont_write_bytecode = WRITES_NO_BYTECODE


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Side by side: tells the other processes what was in variables that are no longer in the environment."""
    node.workerinput |= {"redis_binary": TEST_REDIS, "screenshots": SCREENSHOTS}


@pytest.fixture(scope="session")
def redis_binary(pytestconfig: pytest.Config) -> str | None:
    """The redis-server that TASKPOOL_TEST_REDIS names; None: the one `taskpool up` would take."""
    worker_input: dict[str, Any] = getattr(pytestconfig, "workerinput", {"redis_binary": TEST_REDIS})
    binary: str | None = worker_input["redis_binary"]
    return binary


@pytest.fixture(scope="session")
def screenshots(pytestconfig: pytest.Config) -> Path | None:
    """The folder that TASKPOOL_SCREENSHOTS names: browser tests leave a picture of every page there."""
    worker_input: dict[str, Any] = getattr(pytestconfig, "workerinput", {"screenshots": SCREENSHOTS})
    return None if worker_input["screenshots"] is None else Path(worker_input["screenshots"]).resolve()


def pytest_report_header() -> str:
    """Which server the tests run with."""
    return f"server: {ServerVersion.from_program(find_redis_server(TEST_REDIS))}"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory, redis_binary: str | None) -> Iterator[RedisServer]:
    """The run's Redis. A test that stops or kills Redis starts one of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary=redis_binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer, request: pytest.FixtureRequest) -> str:
    """The URL of an empty Redis. No worker of an earlier test waits there: one that is just being killed would still
    claim the first task, because Redis carries out what it has sent."""
    with Redis.from_url(redis_server.url) as client:
        if not _shares_fixtures(request.path):
            eventually(lambda: not client.info("clients")["blocked_clients"])
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="module")
def api_url(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API on the run's Redis. Its connections are there, too: tests of other files don't see it."""
    from tests.api_client import api_process

    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log") as (_, url):
        yield url


@pytest.fixture(params=["redis", "api"])
def way(request: pytest.FixtureRequest, redis_url: str) -> list[str]:
    """Flags with which the commands reach an empty Redis: directly, or through the API."""
    return ["--redis-url", redis_url] if request.param == "redis" else ["--server", request.getfixturevalue("api_url")]


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
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Every `async def` test runs on asyncio."""
    return "asyncio", {"loop_factory": WatchedLoop}


@pytest.fixture(autouse=True)
def no_request_keeps_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test of the API in which a request took too much of the event loop's CPU time in one go."""
    if not request.path.name.removeprefix("test_").startswith(("api_", "events_", "hub")):
        yield
        return
    watch = _watch()
    watch.found.clear()
    with watching(watch):
        yield
    assert not watch.found, "\n".join(watch.found)


@functools.cache
def _watch() -> Watch:
    return Watch(of_requests_alone=True)
