"""Redis goes away, for short and for long, or seems to be there and isn't: all wait, come back, and lose nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from redis import Redis

from taskpool import TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.black_hole import BlackHole
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines, started

ECHO = {"type": "echo", "payload": {"message": "hi"}}
OUTAGES_S = [1, *(pytest.param(outage_s, marks=pytest.mark.long(about_s=outage_s)) for outage_s in (10, 60))]
"""How long Redis is away."""


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, that keeps everything it said yes to."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary, config={"appendonly": "yes", "appendfsync": "always"})
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("outage_s", OUTAGES_S)
def test_an_outage_costs_nothing_but_its_time(server: RedisServer, tmp_path: Path, outage_s: float) -> None:
    with (
        WorkerPool(server.url, tmp_path / "log", workers=2, lease_s=5) as workers,
        api_process(server.url, tmp_path / "api") as (api, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        running = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
        started(tmp_path / "note")
        queued = [client.post("/tasks", json=ECHO).json()["id"] for _ in range(20)]

        server.kill()
        answers = [client.post("/tasks", json=ECHO), client.get(f"/tasks/{running.id}"), client.get("/readyz")]
        (tmp_path / "go").touch()
        with pytest.raises(subprocess.TimeoutExpired):  # no process gives up
            workers.process.wait(outage_s)
        alive = client.get("/livez").status_code, client.get("/readyz").status_code, api.poll()
        server.start()
        records = [workers.pool.wait(id, timeout_s=PATIENCE_S) for id in (running.id, *queued)]

        assert [answer.status_code for answer in answers] == [503] * 3
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        assert alive == (200, 503, None)
        assert {(record.status, record.crashes) for record in records} == {(TaskStatus.DONE, 0)}
        assert len(lines(tmp_path / "note")) == 1
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/tasks", json=ECHO).status_code == 202
        eventually(lambda: len(workers.pids()) == 2)
        assert "Traceback" not in workers.log.read_text() + (tmp_path / "api").read_text()


@pytest.mark.long(about_s=22)
def test_connections_that_fell_silent_are_given_up(server: RedisServer, tmp_path: Path) -> None:
    with ExitStack() as stack:
        hole = BlackHole(tmp_path, server.socket_path)
        stack.callback(hole.close)
        workers = stack.enter_context(WorkerPool(hole.url, tmp_path / "log", workers=2, lease_s=5))
        _, url = stack.enter_context(api_process(hole.url, tmp_path / "api"))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=PATIENCE_S))
        task = workers.submit("hang", note=tmp_path / "note", until=tmp_path / "go")
        started(tmp_path / "note")
        assert client.post("/tasks", json=ECHO).status_code == 202

        hole.swallow()
        (tmp_path / "go").touch()
        answer = client.post("/tasks", json=ECHO)
        records = [workers.pool.wait(id, timeout_s=PATIENCE_S) for id in (task.id, answer.json()["id"])]

        assert answer.status_code == 202  # the connection was given up, and the submission sent again
        assert [(record.status, record.crashes) for record in records] == [(TaskStatus.DONE, 0)] * 2
        assert len(lines(tmp_path / "note")) == 1
        assert workers.result("ok").status is TaskStatus.DONE


def test_scripts_that_redis_forgot_are_sent_again(server: RedisServer, tmp_path: Path) -> None:
    with (
        Redis.from_url(server.url) as redis,
        WorkerPool(server.url, tmp_path / "log", workers=2, lease_s=1) as workers,
        api_process(server.url, tmp_path / "api") as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        ids = []
        for _ in range(20):
            redis.script_flush()
            answer = client.post("/tasks", json=ECHO)
            redis.script_flush()
            ids.append(answer.json()["id"])
        records = [workers.pool.wait(id, timeout_s=PATIENCE_S) for id in ids]

        assert {(record.status, record.attempt, record.crashes) for record in records} == {(TaskStatus.DONE, 1, 0)}
        logged = [line for line in workers.log.read_text().splitlines() if "known security holes" not in line]
        assert len(logged) == 1  # that the pool began
