"""A Redis that is there and won't have us: said in one line at the start; later, waited for until it changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, started

ECHO = {"type": "echo", "payload": {"message": "hi"}}
RIGHTS = ("~rq:*", "~taskpool:*", "&rq:*", "&taskpool:*", "+@all", "-@dangerous", "+info", "+client")


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def admin(server: RedisServer) -> Iterator[Any]:
    """A connection that was made before Redis became difficult."""
    with Redis.from_url(server.url, single_connection_client=True) as admin:
        admin.ping()
        yield admin


def as_user(server: RedisServer, user: str, password: str) -> str:
    return server.url.replace("unix://", f"unix://{user}:{password}@")


def end_of(module: str, redis_url: str) -> tuple[int, str]:
    """The exit status of a part, and all it said."""
    ended = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, "TASKPOOL_REDIS_URL": redis_url, "TASKPOOL_PORT": "0"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize("module", ["workers", "api"])
def test_a_wrong_password_ends_the_start(server: RedisServer, admin: Any, module: str) -> None:
    admin.config_set("requirepass", "right")

    status, text = end_of(module, as_user(server, "", "wrong-secret"))

    assert status == 2
    assert "refuses the user or the password" in text
    assert (text.count("\n"), "secret" in text) == (1, False)


@pytest.mark.parametrize("missing", [*(right for right in RIGHTS if right[0] in "~&"), "+@all", "+info", "+client"])
def test_missing_rights_end_the_start(server: RedisServer, admin: Any, missing: str) -> None:
    rights = [right for right in RIGHTS if right != missing] + ([f"-{missing[1:]}"] if missing[0] == "+" else [])
    admin.execute_command("ACL", "SETUSER", "someone", "on", ">secret", "resetchannels", *rights)

    status, text = end_of("workers", as_user(server, "someone", "secret"))

    assert status == 2
    assert "its user needs ~rq:*" in text or "refuses us" in text or "doesn't let us" in text
    assert (text.count("\n"), "secret" in text) == (1, False)


def test_the_rights_that_are_asked_for_are_enough(server: RedisServer, admin: Any, tmp_path: Path) -> None:
    admin.execute_command("ACL", "SETUSER", "someone", "on", ">secret", "resetchannels", *RIGHTS)
    url = as_user(server, "someone", "secret")

    with WorkerPool(url, tmp_path / "log", lease_s=1) as workers, api_process(url, tmp_path / "api") as (_, api):
        task = workers.submit("report")
        answer = httpx.get(f"{api}/tasks/{task.id}?wait=20", timeout=PATIENCE_S)

        assert answer.json()["status"] == "done"
        assert [
            httpx.get(api + path, timeout=PATIENCE_S).status_code
            for path in ("/readyz", "/metrics", "/queues", "/workers")
        ] == [200] * 4
        assert "Redis is away" not in workers.log.read_text()
        assert "Traceback" not in workers.log.read_text()


@pytest.mark.parametrize("module", ["workers", "api"])
def test_a_replica_ends_the_start(server: RedisServer, admin: Any, module: str) -> None:
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")

    status, text = end_of(module, server.url)

    assert status == 2
    assert "read-only replica; name its master, 127.0.0.1:1" in text
    assert text.count("\n") == 1


def disconnect_all(admin: Any) -> None:
    for kind in ("normal", "pubsub"):
        admin.execute_command("CLIENT", "KILL", "TYPE", kind)


def test_a_changed_password_is_reported_and_waited_for(server: RedisServer, admin: Any, tmp_path: Path) -> None:
    admin.config_set("requirepass", "s3cret")
    url = as_user(server, "", "s3cret")
    with (
        WorkerPool(url, tmp_path / "log", lease_s=20) as workers,
        api_process(url, tmp_path / "api") as (_, api),
        httpx.Client(base_url=api, timeout=PATIENCE_S) as client,
    ):
        task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
        started(tmp_path / "note")

        admin.config_set("requirepass", "another")
        disconnect_all(admin)
        eventually(lambda: "WRONGPASS" in workers.log.read_text())
        (tmp_path / "go").touch()
        answers = [client.post("/tasks", json=ECHO), client.get("/readyz")]

        assert [answer.status_code for answer in answers] == [503, 503]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        assert client.get("/livez").status_code == 200
        assert "WRONGPASS" in (tmp_path / "api").read_text()

        admin.config_set("requirepass", "s3cret")
        record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)
        eventually(lambda: client.post("/tasks", json=ECHO).status_code == 202)

        assert (record.result, record.attempt, record.crashes) == ("slept", 1, 0)
        eventually(lambda: "Redis is back" in workers.log.read_text())
        said = workers.log.read_text() + (tmp_path / "api").read_text()
        assert workers.log.read_text().count("Redis is away") == 1
        assert "s3cret" not in said
        assert "Traceback" not in said


def test_a_master_that_becomes_a_replica_is_waited_for(server: RedisServer, admin: Any, tmp_path: Path) -> None:
    with (
        WorkerPool(server.url, tmp_path / "log", lease_s=3) as workers,
        api_process(server.url, tmp_path / "api") as (_, api),
        httpx.Client(base_url=api, timeout=PATIENCE_S) as client,
    ):
        task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
        started(tmp_path / "note")

        admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        eventually(lambda: "READONLY" in workers.log.read_text())
        (tmp_path / "go").touch()
        answers = [client.post("/tasks", json=ECHO), client.get("/readyz")]

        assert [answer.status_code for answer in answers] == [503, 503]
        assert client.get(f"/tasks/{task.id}").status_code == 200  # what it has can be read

        admin.execute_command("REPLICAOF", "NO", "ONE")
        record = workers.pool.wait(task.id, timeout_s=PATIENCE_S)
        eventually(lambda: client.post("/tasks", json=ECHO).status_code == 202)

        assert (record.result, record.attempt, record.crashes) == ("slept", 1, 0)
        assert workers.result("ok").status is TaskStatus.DONE
        assert workers.log.read_text().count("Redis is away") == 1
        assert "Traceback" not in workers.log.read_text()
