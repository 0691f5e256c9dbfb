"""Something answers where Redis should be, and isn't it: said in so many words; what runs already waits for Redis."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from taskpool import AsyncTaskPool, TaskPool
from taskpool.cli.__main__ import main
from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.operations.waiting import Subscriptions
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.connection import Wire
from taskpool.redis.embedded import RedisServer, check_redis
from tests.api_client import api_process
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool

ECHO = {"type": "echo", "payload": {"message": "hi"}}
SAYS = "what answers there isn't Redis"


class Silent(BaseHTTPRequestHandler):
    """Answers what it doesn't understand as HTTP has it, and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        return None


@contextmanager
def http_server(path: Path) -> Iterator[list[str]]:
    """A server of HTTP on a unix socket, where somebody expects Redis; a mark for each who connected."""
    seen: list[str] = []

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

        def verify_request(self, request: object, client_address: object) -> bool:
            seen.append("connected")
            return True

    server = Server(str(path), Silent)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        path.unlink()


@contextmanager
def refusing_server(path: Path) -> Iterator[str]:
    """A server that says why it refuses everybody, and closes without reading anything, as Redis does; its URL."""
    refusal = b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n"

    class Refusal(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(refusal)

    with socketserver.ThreadingUnixStreamServer(str(path), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[str]:
    with http_server(tmp_path / "http"):
        yield f"unix://{tmp_path / 'http'}"


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, which it starts."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary, config={"appendonly": "yes", "appendfsync": "always"})
    yield server
    server.stop()


def test_the_library_says_that_it_is_not_redis(impostor: str) -> None:
    with TaskPool(impostor) as pool, pytest.raises(RedisUnavailable, match=SAYS):
        pool.get("some-id")


@pytest.mark.parametrize("rest", ["", "?db=1", "?db=1&password=secret"])
def test_a_redis_that_refuses_everybody_is_quoted(tmp_path: Path, rest: str) -> None:
    async def ask(url: str) -> None:
        async with AsyncTaskPool(url) as pool:
            await pool.get("some-id")

    with refusing_server(tmp_path / "redis") as url:
        for _ in range(20):  # it may have closed before anything is sent, or behind that
            with TaskPool(url + rest) as pool, pytest.raises(RedisUnavailable, match="DENIED Redis is running"):
                pool.get("some-id")
            with pytest.raises(RedisUnavailable, match="DENIED Redis is running"):
                asyncio.run(ask(url + rest))


def test_a_connection_that_is_opened_there_is_closed(impostor: str) -> None:
    wire = Wire(Address.parse(impostor), name="test", protocol=3)

    with pytest.raises(RedisUnavailable, match=SAYS):
        wire.send([("PING",)])

    assert wire.closed


def test_a_subscribed_connection_reports_the_impostor(impostor: str) -> None:
    async def listen() -> None:
        await Subscriptions(impostor).listen(lambda message: None, ["some-channel"])

    with pytest.raises(RedisUnavailable, match=SAYS):
        asyncio.run(listen())


def test_each_time_a_new_connection_is_tried(server: RedisServer) -> None:
    async def exchanges() -> None:
        wire = AsyncWire(Address.parse(server.url), name="test")
        with http_server(server.socket_path):
            for _ in range(2):
                with pytest.raises(RedisUnavailable, match=SAYS):
                    await wire.exchange([("PING",)], 5)
        server.start()
        assert await wire.exchange([("PING",)], 5) == [b"PONG"]
        wire.close()

    asyncio.run(exchanges())


def test_the_command_line_says_it_in_one_line(impostor: str) -> None:
    ended = CliRunner().invoke(main, ["queue", "--redis-url", impostor])

    assert ended.exit_code not in (0, 70)
    assert SAYS in ended.stderr
    assert "bug" not in ended.stderr


def test_no_part_starts_there(impostor: str) -> None:
    with pytest.raises(ConfigurationError, match=r"what answers at unix://.* isn't Redis$"):
        check_redis(impostor)


def test_what_runs_waits_until_redis_is_back(server: RedisServer, tmp_path: Path) -> None:
    server.start()
    with (
        WorkerPool(server.url, tmp_path / "log", lease_s=5) as workers,
        api_process(server.url, tmp_path / "api") as (_, api),
        httpx.Client(base_url=api, timeout=PATIENCE_S) as client,
    ):
        server.kill()
        server.socket_path.unlink(missing_ok=True)
        with http_server(server.socket_path) as seen:
            answer = client.post("/tasks", json=ECHO)
            eventually(lambda: len(seen) > 20)
        server.start()
        eventually(lambda: client.get("/readyz").status_code == 200)
        task = client.post("/tasks", json=ECHO).json()

        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "redis-unavailable")
        assert workers.pool.wait(task["id"], timeout_s=PATIENCE_S).status == "done"
        assert "Traceback" not in workers.log.read_text() + (tmp_path / "api").read_text()
