"""The API in trouble: killed before it answered, left by its clients, asked twice. A submission is all or nothing."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis

from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process, publish_types
from tests.support import eventually

ECHO = {"type": "echo", "payload": {"message": "hi"}}
PAUSE_MS = 600_000


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, to hold up."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary)
    server.start()
    publish_types(server.url)
    yield server
    server.stop()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Any]:
    with Redis.from_url(server.url, single_connection_client=True) as client:
        yield client


def send(url: str, path: str, document: Any, length: int | None = None) -> socket.socket:
    """Sends a request and doesn't wait; with a `length` beyond the body it is only its beginning."""
    body = json.dumps(document).encode()
    where = urlsplit(url)
    connection = socket.create_connection((where.hostname, where.port), 10)
    head = f"POST {path} HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


def stored(redis: Any) -> tuple[int, int, int, int]:
    """How many tasks there are, in each of the places in which a task that is queued must be."""
    types = redis.zcard("taskpool:type:echo")
    return len(redis.keys("rq:job:*")), redis.llen("rq:queue:default"), types, redis.xlen("taskpool:events")


@pytest.mark.parametrize(("path", "count"), [("/tasks", 1), ("/tasks/batch", 500)])
def test_an_api_that_is_killed_before_it_answers_leaves_all_or_nothing(
    server: RedisServer, redis: Any, tmp_path: Path, path: str, count: int
) -> None:
    with api_process(server.url, tmp_path / "log") as (api, url):
        assert httpx.post(url + "/tasks", json=ECHO).status_code == 202  # it knows the types, and is connected
        redis.execute_command("CLIENT", "PAUSE", PAUSE_MS, "WRITE")

        with send(url, path, ECHO if count == 1 else {"tasks": [ECHO] * count}) as connection:
            eventually(lambda: redis.info("clients")["blocked_clients"] == 1)  # the script waits to be carried out
            api.kill()
            api.wait()
            redis.execute_command("CLIENT", "UNPAUSE")

            assert connection.recv(1000) == b""
        eventually(lambda: "taskpool" not in {client["name"] for client in redis.client_list()})
        assert stored(redis) in {(1,) * 4, (1 + count,) * 4}


def test_a_client_that_leaves_in_the_middle_of_its_body_submits_nothing(
    server: RedisServer, redis: Any, tmp_path: Path
) -> None:
    with api_process(server.url, tmp_path / "log") as (_, url):
        with send(url, "/tasks", ECHO, length=1000):
            pass
        with send(url, "/tasks/batch", {"tasks": [ECHO, ECHO]}, length=1000):
            pass

        assert httpx.post(url + "/tasks", json=ECHO).status_code == 202
        assert stored(redis) == (1, 1, 1, 1)
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_client_that_leaves_before_the_answer_has_submitted_once(
    server: RedisServer, redis: Any, tmp_path: Path
) -> None:
    with api_process(server.url, tmp_path / "log") as (_, url):
        assert httpx.post(url + "/tasks", json=ECHO).status_code == 202
        redis.execute_command("CLIENT", "PAUSE", PAUSE_MS, "WRITE")
        with send(url, "/tasks", ECHO):
            eventually(lambda: redis.info("clients")["blocked_clients"] == 1)
        redis.execute_command("CLIENT", "UNPAUSE")

        eventually(lambda: stored(redis) == (2, 2, 2, 2))
        assert httpx.get(url + "/readyz").status_code == 200
        assert "Traceback" not in (tmp_path / "log").read_text()


def test_many_waits_that_are_left_cost_nothing_afterwards(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    with api_process(server.url, tmp_path / "log") as (_, url):
        id = httpx.post(url + "/tasks", json=ECHO).json()["id"]
        where = urlsplit(url)
        waits = [http.client.HTTPConnection(str(where.hostname), where.port) for _ in range(50)]
        for wait in waits:
            wait.request("GET", f"/tasks/{id}?wait=60")
        eventually(lambda: redis.pubsub_numsub(f"taskpool:task:{id}")[0][1] == 1)

        for wait in waits:
            wait.close()

        eventually(lambda: redis.pubsub_numsub(f"taskpool:task:{id}")[0][1] == 0)
        assert httpx.get(f"{url}/tasks/{id}").json()["status"] == "queued"


def test_the_same_request_twice_is_two_tasks(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    with api_process(server.url, tmp_path / "log") as (_, url):
        ids = {httpx.post(url + "/tasks", json=ECHO).json()["id"] for _ in range(2)}

        assert len(ids) == 2
        assert stored(redis) == (2, 2, 2, 2)
