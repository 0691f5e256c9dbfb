"""The API as a process: how it starts, what it does to hostile connections, Redis going away, and its end."""

from __future__ import annotations

import gc
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import uvicorn
from redis import Redis
from starlette.applications import Starlette

from api.connections import Connections
from api.server import MIDDLE_COLLECTIONS_A_FULL_ONE, _Server
from taskpool.redis.embedded import RedisServer
from taskpool.settings import Settings
from tests.api_client import JSON, ROOT, api_process, environment, publish_types
from tests.support import PATIENCE_S, eventually

ECHO = {"type": "echo", "payload": {"message": "hi"}}
MIB = 1 << 20
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
    b"authorization: Bearer tp_" + b"0" * 12 + b"_" + b"0" * 43 + b"\r\n\r\n"
)
"""A WebSocket's, with a key that must be looked up."""


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log") as running:
        yield running


@pytest.fixture
def url(server: tuple[Any, str], redis_url: str) -> str:
    publish_types(redis_url)
    return server[1]


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE_S)


def exchange(url: str, request: bytes) -> bytes:
    """What comes back to these bytes until the server closes the connection."""
    with connect(url) as connection:
        connection.sendall(request)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def head(*headers: str, path: str = "/tasks") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


def start_failing(redis_url: str, **variables: str) -> tuple[int, list[str]]:
    """The exit status and the lines on stderr of an API that can't start."""
    done = subprocess.run(
        [sys.executable, "-m", "taskpool_api"],
        env=environment(redis_url, **variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


def test_it_serves(url: str) -> None:
    response = httpx.post(url + "/tasks", json=ECHO)

    assert response.status_code == 202
    assert httpx.get(url + response.headers["location"]).json()["payload"] == {"message": "hi"}
    assert httpx.get(url + "/readyz").status_code == 200
    assert "server" not in response.headers


def test_a_port_in_use_is_one_line_and_status_2(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])

        status, lines = start_failing(redis_url, TASKPOOL_PORT=port)

    assert status == 2
    assert lines == [
        f"api: can't listen on 127.0.0.1:{port}: address already in use; set TASKPOOL_PORT or TASKPOOL_HOST"
    ]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"TASKPOOL_REDIS_URL": "redis://127.0.0.1:1"}, "127.0.0.1:1"),
        ({"TASKPOOL_REDIS_URL": "", "TASKPOOL_DATA_DIR": "/nowhere"}, "no Redis runs"),
        ({"TASKPOOL_HOST": "203.0.113.7"}, "can't listen on 203.0.113.7"),
        ({"TASKPOOL_HOST": "no.such.host.invalid"}, "can't listen on no.such.host.invalid"),
        ({"TASKPOOL_PROT": "1"}, "did you mean TASKPOOL_PORT?"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line_and_status_2(
    redis_url: str, variables: dict[str, str], says: str
) -> None:
    status, lines = start_failing(redis_url, **variables)

    assert (status, len(lines)) == (2, 1), lines
    assert says in lines[0]


def test_too_few_files_are_one_line_and_status_2(redis_url: str) -> None:
    ended = subprocess.run(
        ["sh", "-c", f"ulimit -n 60 && exec {sys.executable} -m taskpool_api"],
        env=environment(redis_url), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert ended.returncode == 2
    assert ended.stderr == (
        "api: this process may have 60 files open, and the API needs more than 64: raise the limit with ulimit -n\n"
    )


def test_an_endless_body_costs_no_memory_and_ends_in_413(server: tuple[Any, str], url: str) -> None:
    process = psutil.Process(server[0].pid)
    before = process.memory_info().rss
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    with connect(url) as connection:
        connection.sendall(head("transfer-encoding: chunked"))
        try:
            for _ in range(64 * MIB // 65536):
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it stopped reading
        answer = rest(connection)

    # A reset may have overtaken the answer: what it was is shown by the test below.
    assert answer.startswith(b"HTTP/1.1 413 ") or answer == b""
    assert process.memory_info().rss - before < 16 * MIB


def test_a_body_over_the_limit_is_answered_even_while_it_is_sent(url: str) -> None:
    response = httpx.post(url + "/tasks", content=(b"x" * 65536 for _ in range(10)), headers=JSON)

    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert response.json()["max_bytes"] == 256 * 1024


def test_a_length_over_the_limit_is_refused_before_the_body_is_asked_for(url: str) -> None:
    answer = exchange(url, head("content-length: 999999999999", "expect: 100-continue"))

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_length_that_is_too_short_cuts_the_body_off(url: str) -> None:
    body = json.dumps(ECHO).encode()

    answer = exchange(url, head(f"content-length: {len(body) - 1}") + body)

    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_leaves_halfway_is_forgotten(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("content-length: 100") + b'{"type":')

    assert httpx.get(url + "/livez").status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /tasks?x=\xff HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"GET http://[ HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /tasks/%zz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    ],
)
def test_what_is_hardly_http_gets_a_4xx(url: str, request_bytes: bytes) -> None:
    answer = exchange(url, request_bytes)

    assert answer.startswith(b"HTTP/1.1 4"), answer


def test_a_client_that_leaves_is_not_waited_for(url: str, redis: Redis) -> None:
    id = httpx.post(url + "/tasks", json=ECHO).json()["id"]
    channel = f"taskpool:task:{id}"

    with connect(url) as connection:
        connection.sendall(f"GET /tasks/{id}?wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        eventually(lambda: redis.pubsub_numsub(channel)[0][1] == 1)

    eventually(lambda: redis.pubsub_numsub(channel)[0][1] == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_it_ends_waiting_requests_get_the_present_state(
    redis_url: str, redis: Redis, tmp_path: Path, number: signal.Signals
) -> None:
    publish_types(redis_url)
    answers: list[httpx.Response] = []
    with api_process(redis_url, tmp_path / "log") as (process, url):
        id = httpx.post(url + "/tasks", json=ECHO).json()["id"]
        waiting = threading.Thread(
            target=lambda: answers.append(httpx.get(f"{url}/tasks/{id}?wait=60", timeout=PATIENCE_S))
        )
        waiting.start()
        eventually(lambda: redis.pubsub_numsub(f"taskpool:task:{id}")[0][1] == 1)

        process.send_signal(number)
        status = process.wait(PATIENCE_S)
        waiting.join(PATIENCE_S)

    assert status == 0
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "queued")]
    assert (tmp_path / "log").read_text().count("\n") == 1  # "listening on ...", no noise at the end


def test_while_redis_is_away_it_says_503_and_then_serves_again(tmp_path: Path, redis_binary: str | None) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis", binary=redis_binary)
    redis.start()
    try:
        publish_types(redis.url)
        with api_process(redis.url, tmp_path / "log") as (_, url), httpx.Client(base_url=url) as client:
            assert client.post("/tasks", json=ECHO).status_code == 202

            redis.stop()
            answers = [client.post("/tasks", json=ECHO), client.get("/tasks/x"), client.get("/tasks/x?wait=5")]
            answers += [client.get(path) for path in ("/tasks", "/queues", "/types", "/workers", "/readyz", "/metrics")]

            assert {answer.status_code for answer in answers} == {503}
            handshake = exchange(url, HANDSHAKE)
            assert handshake.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: " in handshake.lower()
            assert {answer.json()["type"].rpartition(":")[2] for answer in answers} == {"redis-unavailable"}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
            assert client.get("/livez").status_code == 200

            redis.start()
            publish_types(redis.url)
            eventually(lambda: client.get("/readyz").status_code == 200)
            eventually(lambda: client.post("/tasks", json=ECHO).status_code == 202)
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        redis.stop()


async def test_what_a_server_starts_with_is_never_looked_through_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: uvicorn.Server, sockets: object = None) -> None:
        """It doesn't serve."""

    app = Starlette()
    usual = gc.get_threshold()
    monkeypatch.setattr(uvicorn.Server, "startup", nothing)
    try:
        await _Server(uvicorn.Config(app), app, Connections(Settings())).startup()

        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == (*usual[:2], MIDDLE_COLLECTIONS_A_FULL_ONE)
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)
