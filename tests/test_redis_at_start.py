"""A Redis that can't serve at the moment when a part starts: the part waits, and needs no restart."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError

from taskpool import ConfigurationError, RedisUnavailable, TaskPool, TaskStatus
from taskpool.redis.embedded import RedisServer, check_redis, wait_for_redis
from taskpool.redis.replies import may_pass
from tests.api_client import api_process, publish_types
from tests.proxy import Proxy, Refuse
from tests.support import PATIENCE_S, eventually
from tests.test_redis_error_replies import all_with
from tests.worker_pool import TASKS

ECHO = {"type": "echo", "payload": {"message": "hi"}}
INSIDE = "ERR Error running script (call to f_91913c1f5d40822a73f1acdb77f4d87c20420e10): @user_script:2: "
PASSING = (
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NEWWORD of a later release",
    "ERR a text of a later release",
)
WRITES = (
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "OOM command not allowed when used memory > 'maxmemory'.",
    f"{INSIDE}@user_script: 2: -NOREPLICAS Not enough good replicas to write.",
)
LASTING = (
    "NOPERM this user has no permissions to run the 'info' command",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "DENIED Redis is running in protected mode because protected mode is enabled",
    "READONLY You can't write against a read only replica.",
    "MOVED 3999 127.0.0.1:6381",
    "ERR unknown command 'EVAL', with args beginning with: ",
    f"{INSIDE}The user executing the script can't run this command or subcommand",
    "ERR wrong number of arguments for 'info' command",
)


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(tmp_path: Path, server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path, server.socket_path)
    yield proxy
    proxy.close()


def writes_with(error: str) -> Refuse:
    """Refuses scripts alone: reads work."""
    return lambda name, words: error if words[0] in (b"EVAL", b"EVALSHA") else None


@contextmanager
def starting(module: str, redis_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A part that may not be able to start yet."""
    variables = {
        "TASKPOOL_REDIS_URL": redis_url,
        "TASKPOOL_PORT": "0",
        "TASKPOOL_WORKERS": "1",
        "TASKPOOL_TASKS": TASKS,
        "TASKPOOL_BUILTINS": "echo",
    }
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", module], env={**os.environ, **variables}, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.parametrize("error", PASSING)
def test_a_start_waits_while_redis_cannot_be_read(proxy: Proxy, error: str) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            proxy.refuse = None

    proxy.refuse = all_with(error)
    with pytest.raises(RedisUnavailable, match=error[:7]):
        check_redis(proxy.url)
    wait_for_redis(proxy.url, sleep=wait)

    assert len(waits) == 3


@pytest.mark.parametrize("error", WRITES)
def test_a_start_does_not_wait_for_writes(proxy: Proxy, error: str, caplog: pytest.LogCaptureFixture) -> None:
    proxy.refuse = writes_with(error)

    wait_for_redis(proxy.url, sleep=lambda seconds: pytest.fail("it waits"))

    assert "takes no writes now" in caplog.text


@pytest.mark.parametrize("error", LASTING)
@pytest.mark.parametrize("refuse", [all_with, writes_with])
def test_what_only_a_setting_changes_ends_the_start(proxy: Proxy, refuse: Any, error: str) -> None:
    proxy.refuse = refuse(error)

    with pytest.raises(ConfigurationError):
        wait_for_redis(proxy.url, sleep=lambda seconds: pytest.fail("it waits"))

    assert not may_pass(error)


def test_a_start_waits_while_redis_has_too_many_clients(server: RedisServer) -> None:
    with Redis.from_url(server.url, single_connection_client=True) as admin:
        admin.config_set("maxclients", 1)
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            admin.config_set("maxclients", 100)

        wait_for_redis(server.url, sleep=wait)

    assert len(waits) == 1


def test_parts_that_start_while_writes_are_refused_serve_when_they_work(server: RedisServer, tmp_path: Path) -> None:
    with Redis.from_url(server.url) as admin, TaskPool(server.url) as pool:
        publish_types(server.url)
        admin.config_set("min-replicas-to-write", 1)
        with (
            starting("workers", server.url, tmp_path / "log") as workers,
            api_process(server.url, tmp_path / "api") as (api, url),
        ):
            refused = [httpx.post(f"{url}/tasks", json=ECHO), httpx.get(f"{url}/readyz")]
            eventually(lambda: "Redis is away" in (tmp_path / "log").read_text())
            assert (workers.poll(), api.poll()) == (None, None)

            admin.config_set("min-replicas-to-write", 0)
            eventually(lambda: httpx.get(f"{url}/readyz").status_code == 200)
            added = httpx.post(f"{url}/tasks", json=ECHO)
            record = pool.wait(added.json()["id"], timeout_s=PATIENCE_S)

        assert [answer.status_code for answer in refused] == [503, 503]
        assert (record.status, record.attempt) == (TaskStatus.DONE, 1)
        assert workers.returncode == 0
        assert "Traceback" not in (tmp_path / "log").read_text() + (tmp_path / "api").read_text()


def test_parts_that_start_while_a_script_blocks_redis_serve_when_it_ends(server: RedisServer, tmp_path: Path) -> None:
    with Redis.from_url(server.url) as admin:
        admin.config_set("lua-time-limit", 1)

        def block() -> None:
            with suppress(RedisError), Redis.from_url(server.url, socket_timeout=None) as client:
                client.eval("while true do end", 0)

        blocking = threading.Thread(target=block)
        blocking.start()
        try:
            eventually(lambda: _is_busy(admin))
            with (
                starting("workers", server.url, tmp_path / "log") as workers,
                starting("api", server.url, tmp_path / "api") as api,
            ):
                eventually(lambda: "can't serve now: BUSY" in (tmp_path / "log").read_text())
                eventually(lambda: "can't serve now: BUSY" in (tmp_path / "api").read_text())
                assert (workers.poll(), api.poll()) == (None, None)

                admin.script_kill()
                eventually(lambda: ", queues: " in (tmp_path / "log").read_text())
                eventually(lambda: "listening on" in (tmp_path / "api").read_text())
        finally:
            with suppress(RedisError):
                admin.script_kill()
            blocking.join()


def _is_busy(admin: Any) -> bool:
    try:
        admin.ping()
    except RedisError:
        return True
    return False


def test_a_pool_that_waits_to_start_ends_by_a_signal(proxy: Proxy, tmp_path: Path) -> None:
    proxy.refuse = all_with(PASSING[0])
    with starting("workers", proxy.url, tmp_path / "log") as workers:
        eventually(lambda: "waiting to start" in (tmp_path / "log").read_text())
        workers.terminate()

        assert workers.wait(PATIENCE_S) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
