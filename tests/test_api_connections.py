"""What clients that trickle, stall or flood cost the API process, and what others notice of it: nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from api.auth.rate_limit import network
from api.connections import NO_LINGER, Connections, LimitedProtocol
from taskpool import TaskPool, TaskSpec
from taskpool.redis.embedded import RedisServer
from taskpool.settings import Settings
from tests.api_client import api_process, publish_types
from tests.raw_client import connect, rest
from tests.support import PATIENCE_S, eventually

CROWD = 500
QUICK = {"TASKPOOL_HEADER_TIMEOUT_S": "0.5", "TASKPOOL_WRITE_TIMEOUT_S": "0.5"}
REQUEST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
ECHO = {"type": "echo", "payload": {"message": "hi"}}


@pytest.fixture(scope="module")
def impatient(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API that gives its clients half a second."""
    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log", **QUICK) as (_, url):
        yield url


def answer_on(client: socket.socket, request: bytes = REQUEST) -> bytes:
    """The answer to one request on a connection that stays open."""
    client.sendall(request)
    received = client.recv(65536)
    while not received.endswith(b"}"):
        received += client.recv(65536)
    return received


def kind(answer: bytes) -> str:
    """The kind of a problem, as it came over the wire."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    kind: str = json.loads(body)["type"]
    return kind.rpartition(":")[2]


@contextmanager
def trickling(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Clients that send a header a byte at a time, all of them again and again."""
    over = threading.Event()
    with ExitStack() as stack:
        crowd = [stack.enter_context(connect(url)) for _ in range(count)]
        for client in crowd:
            client.sendall(b"POST /tasks HTTP/1.1\r\nx-slow: ")

        def trickle() -> None:
            while not over.wait(0.02):
                for client in crowd:
                    with suppress(OSError):
                        client.send(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            yield crowd
        finally:
            over.set()
            thread.join()


def is_held_open(client: socket.socket) -> bool:
    """Whether the server has neither answered nor ended it."""
    client.setblocking(False)
    try:
        return not client.recv(1) and False
    except BlockingIOError:
        return True
    finally:
        client.settimeout(PATIENCE_S)


def test_five_hundred_trickling_clients_are_not_noticed_by_others(redis_url: str, tmp_path: Path) -> None:
    publish_types(redis_url)
    with (
        api_process(redis_url, tmp_path / "log", TASKPOOL_HEADER_TIMEOUT_S="120") as (_, url),
        trickling(url, CROWD) as crowd,
    ):
        accepted = [httpx.post(url + "/tasks", json=ECHO) for _ in range(3)]
        read = httpx.get(url + accepted[0].headers["location"])

        assert [answer.status_code for answer in (*accepted, read)] == [202, 202, 202, 200]
        assert all(map(is_held_open, crowd))


def test_trickling_clients_are_cut(impatient: str) -> None:
    with trickling(impatient, CROWD) as crowd:
        answers = [rest(client) for client in crowd]

    # A reset may have overtaken the answer: they were still sending.
    assert {kind(answer) for answer in answers if answer} == {"headers-timeout"}
    assert {answer[:13] for answer in answers} <= {b"HTTP/1.1 408 ", b""}


def test_a_client_that_says_nothing_is_cut_without_an_answer(impatient: str) -> None:
    with connect(impatient) as client:
        assert rest(client) == b""


def test_a_connection_that_is_kept_alive_may_rest_but_not_trickle(impatient: str) -> None:
    with connect(impatient) as resting, connect(impatient) as trickling, connect(impatient) as later:
        assert answer_on(resting).startswith(b"HTTP/1.1 200 ")
        assert answer_on(trickling).startswith(b"HTTP/1.1 200 ")
        trickling.sendall(b"GET /livez HTTP/1.1\r\nx-slow: ")

        assert kind(rest(trickling)) == "headers-timeout"
        assert rest(later) == b""
        assert answer_on(resting).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("start", [b"GET /" + b"x" * 80_000, b"GET / HTTP/1.1\r\n" + b"x-much: x\r\n" * 8000])
def test_headers_without_end_are_refused(impatient: str, start: bytes) -> None:
    with connect(impatient) as client:
        client.sendall(start)

        assert kind(rest(client)) == "headers-too-large"


def test_a_request_that_is_not_http_gets_a_problem_like_every_error(impatient: str) -> None:
    with connect(impatient) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")

        assert kind(rest(client)) == "invalid-http"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/livez", b"200"),
        (b"HTTP://LOCALHOST/livez", b"200"),
        (b"http://evil.example/livez", b"400"),
        (b"http://localhost:1/livez", b"400"),
        (b"http://localhost@evil.example/livez", b"400"),
        (b"http://user@localhost/livez", b"400"),
        (b"ws://evil.example/livez", b"400"),
        (b"*", b"404"),
    ],
)
def test_a_target_with_a_host_names_the_same_as_the_header(impatient: str, target: bytes, status: bytes) -> None:
    with connect(impatient) as client:
        client.sendall(b"GET %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % target)

        assert rest(client).split(b" ")[1] == status


def test_a_head_that_follows_a_request_that_waits_is_bounded_too(impatient: str, redis_url: str) -> None:
    publish_types(redis_url)
    id = httpx.post(impatient + "/tasks", json=ECHO).json()["id"]

    with connect(impatient) as client:
        client.sendall(f"GET /tasks/{id}?wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        with suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\n" + b"x-much: x\r\n" * 100_000)

        assert rest(client) == b""


def test_an_unneeded_body_does_not_keep_a_connection_open(impatient: str) -> None:
    with connect(impatient) as client:
        unwanted = b"GET /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 1000
        assert answer_on(client, unwanted).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"x")

        assert rest(client) == b""


def test_a_client_that_has_closed_its_own_side_is_answered_or_closed_soon(impatient: str, redis_url: str) -> None:
    body = json.dumps(ECHO).encode()
    post = b"POST /tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    publish_types(redis_url)
    with TaskPool(redis_url) as pool:
        (waiting,) = pool.add_tasks([TaskSpec(type="echo", payload={"message": "hi"}, delay_s=600)])
    asked = {
        "a task": (post % (len(body), body), [b"202"]),
        "three requests": (b"GET /types HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2 + REQUEST, [b"200"] * 3),
        "a wait": (b"GET /tasks/%b?wait=30 HTTP/1.1\r\nhost: localhost\r\n\r\n" % waiting.id.encode(), []),
        "half a body": (post % (len(body), body[:5]), []),
    }
    for what, (request, expected) in asked.items():
        with connect(impatient) as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            assert re.findall(rb"HTTP/1.1 (\d+)", rest(client)) == expected, what


def test_a_client_that_leaves_several_requests_behind_is_no_error(redis_url: str, tmp_path: Path) -> None:
    publish_types(redis_url)
    with TaskPool(redis_url) as pool:
        (waiting,) = pool.add_tasks([TaskSpec(type="echo", payload={"message": "hi"}, delay_s=600)])
    with api_process(redis_url, tmp_path / "log") as (_, url):
        path = f"/tasks/{waiting.id}?wait=1"
        with connect(url) as client:
            client.sendall(b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode() * 3)
            assert httpx.get(url + "/livez").status_code == 200  # by now the three have arrived
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

        assert httpx.get(url + path, timeout=PATIENCE_S).status_code == 200
        assert httpx.get(url + path, timeout=PATIENCE_S).status_code == 200

    assert "ERROR" not in (tmp_path / "log").read_text()


def test_a_client_that_does_not_read_its_answer_is_cut(impatient: str, redis_url: str) -> None:
    publish_types(redis_url)
    with TaskPool(redis_url) as pool:
        pool.add_tasks([TaskSpec(type="echo", payload={"message": "x" * 40_000})] * 500)

    with connect(impatient, buffer_bytes=4096) as client:
        client.sendall(b"GET /tasks?limit=500 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = client.recv(2048)
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        eventually(lambda: httpx.get(impatient + "/livez").status_code == 200)
        eventually(lambda: is_cut(client))

        assert len(rest(client)) < length


def test_of_clients_that_do_not_read_some_are_cut_before_their_answers_fill_the_memory(
    redis_url: str, tmp_path: Path
) -> None:
    publish_types(redis_url)
    with TaskPool(redis_url) as pool:
        pool.add_tasks([TaskSpec(type="echo", payload={"message": "x" * 40_000})] * 100)
    patient = {**QUICK, "TASKPOOL_WRITE_TIMEOUT_S": "300"}

    with (
        api_process(redis_url, tmp_path / "log", module=("tests.impatient_api", "32"), **patient) as (_, url),
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(url, buffer_bytes=4096)) for _ in range(6)]
        for client in clients:
            client.sendall(b"GET /tasks?limit=100 HTTP/1.1\r\nhost: localhost\r\n\r\n")

        eventually(lambda: any(map(is_cut, clients)))

        assert not all(map(is_cut, clients))
        assert httpx.get(url + "/livez").status_code == 200


def is_cut(client: socket.socket) -> bool:
    """Whether the other side has reset it, whatever is still to be read."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7  # TCP_CLOSE


@pytest.mark.parametrize("setting", ["TASKPOOL_MAX_CONNECTIONS", "TASKPOOL_MAX_CONNECTIONS_PER_ADDRESS"])
def test_one_connection_too_many_is_refused_until_another_ends(redis_url: str, tmp_path: Path, setting: str) -> None:
    with api_process(redis_url, tmp_path / "log", **{setting: "3"}) as (_, url):
        with ExitStack() as stack:
            first = [stack.enter_context(connect(url)) for _ in range(3)]
            assert [answer_on(client)[:13] for client in first] == [b"HTTP/1.1 200 "] * 3

            with connect(url) as client:
                refused = rest(client)

            assert kind(refused) == "too-many-connections"
            assert b"retry-after: 1\r\n" in refused
            assert answer_on(first[0]).startswith(b"HTTP/1.1 200 ")

        eventually(lambda: httpx.get(url + "/livez").status_code == 200)


def test_an_address_is_one_of_ipv4_or_a_network_of_ipv6() -> None:
    addresses = [
        "192.0.2.1",
        "::ffff:192.0.2.1",
        "2001:db8::1",
        "2001:db8::ffff",
        "2001:db8:0:1::1",
        "fe80::1%eth0",
        "x:",
    ]

    assert [network(address) for address in addresses] == [
        "192.0.2.1", "192.0.2.1", "2001:db8::", "2001:db8::", "2001:db8:0:1::", "fe80::", "x:",
    ]  # fmt: skip


def test_no_more_connections_are_counted_on_than_there_are_files() -> None:
    assert Connections(Settings(max_connections=1 << 40))._most < 1 << 40


def test_the_log_says_once_a_minute_that_no_connection_is_left(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(Settings(max_connections=0))
    one: Any = SimpleNamespace(client=None)
    for _ in range(3):
        assert connections.admit(one) is not None

    assert [record.message for record in caplog.records] == [
        "all 0 connections are in use; new ones are refused. Raise TASKPOOL_MAX_CONNECTIONS"
    ]


async def test_a_connection_that_has_ended_is_freed_at_once() -> None:
    connections = Connections(Settings())
    config = uvicorn.Config(Starlette(), lifespan="off", log_config=None)
    loop = asyncio.get_running_loop()
    made: list[weakref.ref[LimitedProtocol]] = []

    def connection() -> LimitedProtocol:
        protocol = LimitedProtocol(config=config, server_state=ServerState(), app_state={}, registry=connections)
        made.append(weakref.ref(protocol))
        return protocol

    server = await loop.create_server(connection, "127.0.0.1")
    gc.disable()
    try:
        async with asyncio.timeout(PATIENCE_S), server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(REQUEST)
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
            writer.close()
            while len(connections) or made[0]() is not None:
                await asyncio.sleep(0)
    finally:
        gc.enable()
