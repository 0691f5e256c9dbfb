"""Every buffer from the socket to the handler has a bound, and every state of a connection a deadline."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from api import connections as connections_module
from api import server
from api.connections import MOST_HEADERS, MOST_PIPELINED, MOST_REFUSED
from api.events.websocket import MAX_MESSAGE_BYTES
from api.http import body
from taskpool.redis.embedded import RedisServer
from taskpool.settings import Settings
from tests.api_client import ROOT, api_process, publish_types
from tests.keys import make_key
from tests.raw_client import connect, rest
from tests.support import PATIENCE_S, eventually

QUICK = {"TASKPOOL_HEADER_TIMEOUT_S": "0.5", "TASKPOOL_WRITE_TIMEOUT_S": "0.5", "TASKPOOL_IDLE_TIMEOUT_S": "1"}
MIB = 1 << 20
Running = tuple[psutil.Process, str]
HOST = b"host: localhost\r\n"
JSON = b"content-type: application/json\r\n"
ECHO = b'{"type":"echo","payload":{"message":"hi"}}'
LAST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST /tasks HTTP/1.1\r\n" + HOST + JSON + b"transfer-encoding: chunked\r\n"
BODY = b"\r\n%x\r\n%b\r\n0\r\n" % (len(ECHO), ECHO)
"""All of a chunked body but its trailers and the blank line behind them."""
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
)


@pytest.fixture(scope="module")
def running(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An API process with its usual times, and its URL. It asks for keys."""
    log = tmp_path_factory.mktemp("api") / "log"
    make_key(redis_server.url)
    with api_process(redis_server.url, log) as (process, url):
        yield psutil.Process(process.pid), url
    assert "Traceback" not in log.read_text()


@pytest.fixture
def url(running: Running, redis_url: str) -> str:
    publish_types(redis_url)
    return running[1]


@pytest.fixture
def key(redis_url: str) -> bytes:
    """The header of a key that may do all but what admins do."""
    return b"authorization: Bearer " + make_key(redis_url).encode() + b"\r\n"


@pytest.fixture(scope="module")
def impatient(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An API that gives its clients a second or two, and asks for no key."""
    log = tmp_path_factory.mktemp("api") / "log"
    with api_process(redis_server.url, log, module=("tests.impatient_api", "20", "clients"), **QUICK) as (process, url):
        yield psutil.Process(process.pid), url
    assert "Traceback" not in log.read_text()


def exchange(url: str, *parts: bytes) -> bytes:
    """What comes back to these bytes until the server ends the connection; it may do so before all are sent."""
    with connect(url) as client:
        with suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
        return rest(client)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def frame(opcode: int, payload: bytes = b"", *, is_last: bool = True) -> bytes:
    """A frame of a WebSocket client, of less than 126 bytes."""
    return bytes((opcode | 0x80 * is_last, 0x80 | len(payload))) + b"\0\0\0\0" + payload


TRAILERS = [b"x-t: " + b"y" * 1000 + b"\r\n"] * 40_000
ONE_TRAILER = [b"x-t: ", *[b"y" * 65536] * 640]
EXTENSION = [b"\r\n1;x=", *[b"y" * 65536] * 640]


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize(
    "parts",
    [[BODY, *TRAILERS], [BODY, *ONE_TRAILER], EXTENSION, [BODY + b"".join(TRAILERS[:100]) + b"\r\n"]],
    ids=["trailers", "one trailer", "chunk extension", "trailers in one piece"],
)
def test_what_a_client_sends_beside_its_body_is_bounded(
    running: Running, key: bytes, has_key: bool, parts: list[bytes], redis: Redis
) -> None:
    process, url = running
    before = process.memory_info().rss

    received = exchange(url, CHUNKED + (key if has_key else b""), *parts)

    assert process.memory_info().rss - before < 16 * MIB
    # More is sent than is dropped: a reset may overtake the answer.
    assert set(statuses(received)) <= ({431} if has_key else {401, 431})
    assert redis.keys("rq:job:*") == []


@pytest.mark.parametrize(
    "trailer",
    [
        b"Authorization: Bearer tp_0_0",
        b"X-Forwarded-For: 203.0.113.7",
        b"X-Forwarded-Prefix: /evil",
        b"Host: evil.example",
        b"Origin: https://evil.example",
        b"Content-Type: text/plain",
        b"Idempotency-Key: other",
        b"Expect: 100-continue",
        b"Connection: upgrade\r\nUpgrade: websocket",
        b"x-y: z\r\n" * 1000 + b"x-y: z",
    ],
)
def test_trailers_are_no_headers(url: str, key: bytes, redis: Redis, trailer: bytes) -> None:
    received = exchange(url, CHUNKED + key + BODY + trailer + b"\r\n\r\n" + LAST)

    assert statuses(received) == [202, 200]
    assert b"\r\nlocation: /tasks/" in received


@pytest.mark.parametrize("trailer", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_trailers_that_speak_of_the_body_are_refused(url: str, key: bytes, redis: Redis, trailer: bytes) -> None:
    received = exchange(url, CHUNKED + key + BODY + trailer + b"\r\n\r\n" + LAST)

    assert statuses(received) == [400]
    assert redis.keys("rq:job:*") == []


@pytest.mark.parametrize("path", [b"GET /tasks", b"GET /readyz", b"GET /tasks/x/events"])
def test_a_header_that_identifies_the_caller_may_come_only_once(url: str, key: bytes, path: bytes) -> None:
    other = b"authorization: Bearer tp_000000000000_0\r\n"
    for given in (key + other, other + key, key + key, b"authorization:\r\n" + key):
        received = exchange(url, path + b" HTTP/1.1\r\nconnection: close\r\n" + HOST + given + b"\r\n")

        assert statuses(received) == [200] if b"readyz" in path else [400]
        assert b"Authorization must be sent once" in received or b"readyz" in path


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HOST + HOST, 400),
        (b"GET /livez HTTP/1.0\r\n" + HOST + HOST, 400),
        (b"GET /livez HTTP/1.0\r\n", 200),
        (HANDSHAKE.replace(HOST, b""), 400),
        (HANDSHAKE.replace(HOST, HOST + HOST), 400),
        (b"GET /livez HTTP/1.1\r\nconnection: close\r\n" + HOST + b"a: b\r\n" * (MOST_HEADERS - 2), 200),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"a: b\r\n" * MOST_HEADERS, 431),
        (HANDSHAKE + b"a: b\r\n" * MOST_HEADERS, 431),
        (HANDSHAKE + b"cookie: " + b"x" * 9000 + b"\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"a: " + b"x" * 70_000 + b"\r\n", 431),
        (b"GET /livez?" + b"x" * 65_000 + b"&a" * 300 + b" HTTP/1.1\r\n" + HOST, 431),
        (b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST, 400),
    ],
)
def test_a_head_that_can_not_be_served_is_answered_as_every_error(url: str, head: bytes, status: int) -> None:
    received = exchange(url, head + b"\r\n")

    assert statuses(received) == [status]
    assert (b"application/problem+json" in received) == (status != 200)
    assert b"\r\nconnection: close\r\n" in received
    assert b"\r\nx-content-type-options: nosniff\r\n" in received


def test_a_handshake_may_have_long_headers(url: str, key: bytes) -> None:
    with connect(url) as client:
        client.sendall(HANDSHAKE + key + (b"cookie: " + b"x" * 8000 + b"\r\n") * 7 + b"\r\n")

        assert statuses(client.recv(4096)) == [101]


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
@pytest.mark.parametrize("length", [b"content-length: %d\r\n\r\n" % len(ECHO) + ECHO, None])
def test_a_request_with_a_body_that_offers_an_upgrade_is_served_without_it(
    url: str, key: bytes, upgrade: bytes, length: bytes | None
) -> None:
    head = b"POST /tasks HTTP/1.1\r\n" + HOST + JSON + key + b"connection: upgrade, http2-settings\r\n"
    head += b"upgrade: " + upgrade + b"\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    received = exchange(url, head + (length or b"transfer-encoding: chunked\r\n" + BODY + b"\r\n") + LAST)

    assert statuses(received) == [202, 200]


def test_requests_that_wait_for_answers_are_bounded_in_number_and_answered_in_order(url: str, key: bytes) -> None:
    received = exchange(url, b"GET /livez HTTP/1.1\r\n%b\r\n" % HOST * 50_000)

    assert statuses(received) == [200] * (MOST_PIPELINED + 1)
    assert received.count(b"connection: close") == 1


def test_what_is_no_request_ends_the_connection_behind_the_answers_before_it(url: str) -> None:
    assert statuses(exchange(url, b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n\0\0\0\r\n\r\n")) == [200]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([frame(1, b"a", is_last=False), *[frame(0, is_last=False) * 1000] * 1000], 1008),
        ([frame(1, b"{}") * 30_000] * 10, 1008),
        ([frame(9, b"x" * 125) * 500] * 600, None),
    ],
    ids=["empty parts of a message", "messages in one piece", "pings"],
)
def test_a_socket_that_floods_costs_no_memory_and_is_closed(
    running: Running, url: str, key: bytes, frames: list[bytes], code: int | None
) -> None:
    process, _ = running
    before = process.memory_info().rss

    with connect(url, buffer_bytes=4096) as client:
        client.sendall(HANDSHAKE + key + b"\r\n")
        assert statuses(client.recv(4096)) == [101]
        with suppress(ConnectionError):
            for each in frames:
                client.sendall(each)
        held = process.memory_info().rss - before
        received = rest(client) if code is not None else b""

    assert held < 16 * MIB
    assert received == b"" or (code or 0).to_bytes(2, "big") in received  # a reset may overtake the answer


STATES = {
    "nothing": b"",
    "blank lines": b"\r\n\r\n",
    "half a request line": b"GET /liv",
    "half a header": b"GET /livez HTTP/1.1\r\nhost: loc",
    "half a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00",
    "half a body": b"POST /tasks HTTP/1.1\r\n" + HOST + JSON + b"content-length: 100\r\n\r\n{",
    "half a chunk": CHUNKED + b"\r\n10\r\n{",
    "half a trailer": CHUNKED + BODY + b"x-y: ",
    "half a body that is asked for": b"POST /tasks HTTP/1.1\r\nexpect: 100-continue\r\n"
    + HOST
    + JSON
    + b"content-length: 100\r\n\r\n",
    "half a body that is not read": b"GET /livez HTTP/1.1\r\n" + HOST + b"content-length: 100\r\n\r\n{",
    "half a body of a path that isn't there": b"POST /x HTTP/1.1\r\n" + HOST + b"content-length: 100\r\n\r\n{",
    "half a body that is too large": b"POST /tasks HTTP/1.1\r\n" + HOST + JSON + b"content-length: 1000000\r\n\r\n{",
    "half a body of a request that waits": b"GET /tasks/%b?wait=60 HTTP/1.1\r\n"
    + HOST
    + b"content-length: 100000\r\n\r\n"
    + b"x" * 70_000,
    "half a body of a stream": b"GET /events HTTP/1.1\r\n" + HOST + b"content-length: 100\r\n\r\n{",
    "idle": b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "idle behind blank lines": b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n\r\n\r\n",
    "half a head behind an answer": b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\nGET /",
    "half a head behind a request that waits": b"GET /tasks/%b?wait=60 HTTP/1.1\r\n" + HOST + b"\r\nGET /",
    "a request that waits": b"GET /tasks/%b?wait=60 HTTP/1.1\r\n" + HOST + b"\r\n",
    "requests behind one that waits": b"GET /tasks/%b?wait=60 HTTP/1.1\r\n" + HOST + b"\r\n" + CHUNKED + b"\r\n",
    "half a handshake": HANDSHAKE,
    "a handshake with a body": HANDSHAKE + b"content-length: 10\r\n\r\n",
    "a handshake with half a body": HANDSHAKE + b"content-length: 10\r\n\r\n12345",
    "a handshake in chunks": HANDSHAKE + b"transfer-encoding: chunked\r\n\r\n",
    "a handshake with many headers": HANDSHAKE + b"a: b\r\n" * 200 + b"\r\n",
    "a handshake with a long line": HANDSHAKE + b"a: " + b"x" * 9000 + b"\r\n\r\n",
    "a handshake without its key": HANDSHAKE.replace(b"sec-websocket-key", b"x") + b"\r\n",
    "a handshake of another method": HANDSHAKE.replace(b"GET", b"POST") + b"content-length: 10\r\n\r\n",
    "a handshake behind a request that waits": b"GET /tasks/%b?wait=60 HTTP/1.1\r\n"
    + HOST
    + b"\r\n"
    + HANDSHAKE
    + b"\r\n",
    "an upgrade to something else": HANDSHAKE.replace(b"websocket\r", b"h2c\r") + b"\r\n",
    "a socket that answers no ping": HANDSHAKE + b"\r\n",
    "a socket with half a message": HANDSHAKE + b"\r\n" + frame(1, b"x", is_last=False),
    "a socket that answers no close": HANDSHAKE + b"\r\n",
}


def connections(process: psutil.Process) -> int:
    """How many connections a process has, those included that only its client has closed."""
    return sum(each.status != psutil.CONN_LISTEN for each in process.net_connections("tcp"))


def test_every_state_of_a_connection_ends(impatient: Running, redis_url: str) -> None:
    process, url = impatient
    publish_types(redis_url)
    id = httpx.post(url + "/tasks", content=ECHO, headers={"content-type": "application/json"}).json()["id"]

    with ExitStack() as stack:
        clients = {state: stack.enter_context(connect(url)) for state in STATES}
        for state, client in clients.items():
            client.sendall(STATES[state].replace(b"%b", id.encode()))
        said = clients["a socket that answers no close"]
        assert statuses(said.recv(4096)) == [101]
        with suppress(ConnectionError):
            said.sendall(frame(1, b"{}") * 30)  # too many bad messages
        received = {state: rest(client) for state, client in clients.items()}
        eventually(lambda: connections(process) == 0)  # though no client has closed its side

    seen = {state: statuses(answer) for state, answer in received.items()}
    assert {state: seen[state] for state in STATES if seen[state] and seen[state][-1] >= 500} == {}
    assert seen["half a body"] == seen["half a chunk"] == seen["half a trailer"] == [408]
    assert seen["half a body that is asked for"] == [100, 408]
    assert seen["half a header"] == seen["half a request line"] == seen["half a handshake"] == [408]
    assert seen["half a head behind an answer"] == [200, 408]
    assert seen["a request that waits"] == seen["half a head behind a request that waits"] == [200]
    assert seen["a handshake with many headers"] == [431]
    assert seen["nothing"] == seen["blank lines"] == []


def test_connections_for_which_there_is_no_room_end_though_their_clients_stay(redis_url: str, tmp_path: Path) -> None:
    with (
        ExitStack() as stack,
        api_process(redis_url, tmp_path / "log", TASKPOOL_MAX_CONNECTIONS="1", **QUICK) as (process, url),
    ):
        eventually(lambda: connections(psutil.Process(process.pid)) == 0)
        held = stack.enter_context(connect(url))
        held.sendall(b"GET /events HTTP/1.1\r\n" + HOST + b"\r\n")
        assert statuses(held.recv(4096)) == [200]
        refused = [stack.enter_context(connect(url)) for _ in range(2 * MOST_REFUSED)]

        assert {tuple(statuses(rest(client))) for client in refused[:MOST_REFUSED]} == {(503,)}
        eventually(lambda: connections(psutil.Process(process.pid)) == 1)


def test_handshakes_that_wait_for_redis_leave_no_traceback_when_the_server_ends(
    tmp_path: Path, redis_binary: str | None
) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis", binary=redis_binary)
    redis.start()
    try:
        key = b"authorization: Bearer " + make_key(redis.url).encode() + b"\r\n"
        with api_process(redis.url, tmp_path / "log") as (process, url), connect(url) as client:
            os.kill(redis.pid or 0, signal.SIGSTOP)
            client.sendall(HANDSHAKE + key + b"\r\n")
            assert httpx.get(url + "/livez").status_code == 200

            process.send_signal(signal.SIGTERM)
            answer = rest(client)
            os.kill(redis.pid or 0, signal.SIGCONT)
            status = process.wait(PATIENCE_S)
    finally:
        redis.stop()

    assert (status, statuses(answer)) == (0, [503])
    assert (tmp_path / "log").read_text().count("\n") == 1  # "listening on ..."


def test_the_end_of_a_server_leaves_no_traceback_whatever_state_its_connections_are_in(
    redis_url: str, tmp_path: Path
) -> None:
    publish_types(redis_url)
    with ExitStack() as stack:
        with api_process(redis_url, tmp_path / "log") as (process, url):
            id = httpx.post(url + "/tasks", content=ECHO, headers={"content-type": "application/json"}).json()["id"]
            clients = [stack.enter_context(connect(url)) for _ in STATES]
            for client, start in zip(clients, STATES.values(), strict=True):
                client.sendall(start.replace(b"%b", id.encode()))
            assert httpx.get(url + "/livez").status_code == 200

            process.send_signal(signal.SIGTERM)
            status = process.wait(PATIENCE_S)
        for client in clients:
            rest(client)

    assert status == 0
    assert (tmp_path / "log").read_text().count("\n") == 1  # "listening on ..."


def test_the_docs_have_the_bounds_that_the_code_has() -> None:
    text = (ROOT / "docs" / "api.md").read_text().partition("## Limits of a connection\n")[2].partition("\n## ")[0]
    settings = ("max_body_bytes", "header_timeout_s", "write_timeout_s", "idle_timeout_s")
    figures = [
        f"{connections_module.MOST_HEAD_BYTES // 1024} KiB, {MOST_HEADERS} headers",
        f"{connections_module.DROPPED_BYTES // MIB} MiB more",
        f"answers before them | {MOST_PIPELINED} |",
        f"{MOST_REFUSED} of these at a time",
        f"{HIGH_WATER_LIMIT // 1024} KiB and one read",
        f"{MAX_MESSAGE_BYTES // 1024} KiB, {server.MAX_FRAMES:,} parts",
        f"half a body that is read | {body.BODY_TIMEOUT_S:g} s",
        f"answer pings within {server.PONG_S:g} s",
        f"{connections_module.END_BODY_S:g} s for half a body, {server.DRAIN_S} s for answers",
    ]

    assert [figure for figure in figures if figure not in text] == []
    for name in settings:
        default = getattr(Settings(), name)
        shown = f"{default // 1024} KiB" if name == "max_body_bytes" else f"{default:g}"
        assert f"`TASKPOOL_{name.upper()}` ({shown})" in text
