"""What costs most of what a client may ask for, in a whole API process: no request keeps its event loop for long.

`api_process` fails where one does. Here are the requests that were made to; the rest of the suite has all others.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis.embedded import RedisServer
from taskpool.redis.store import Store
from taskpool.types import TypeInfo
from tests.api_client import JSON, api_process
from tests.support import PATIENCE_S

LIMIT = 256 * 1024
INTEGERS = {"type": "array", "items": {"type": "integer"}}
TYPE = TypeInfo(
    name="heavy",
    queue="default",
    schema={
        "type": "object",
        "properties": {
            "numbers": INTEGERS,
            "either": {"anyOf": [INTEGERS, {"type": "array", "items": {"type": "boolean"}}, {"type": "null"}]},
            "token": {"type": "string", "writeOnly": True},
            "any": {},
            "unique": {"type": "array", "uniqueItems": True},
            "pattern": {"type": "string", "pattern": "^(a+)+$"},
        },
        "additionalProperties": False,
    },
)


POOL = PoolInfo(id="p", host="h", pid=1, queues=("default",), types=("heavy",), workers=())


@pytest.fixture(scope="module")
def client(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of an API with a task type whose payload may be anything."""
    url = redis_server.url
    store = Store(url)
    store.run(publish(POOL, [TYPE], ttl_s=3600))
    store.close()
    with (
        api_process(url, tmp_path_factory.mktemp("api") / "log", TASKPOOL_AUTH="off") as (_, address),
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        yield client


def filled(item: str, between: str = "[%s]") -> str:
    """A document as long as a body may be, made of this item."""
    room = LIMIT - len(between) - 100
    return between % ",".join([item] * (room // (len(item) + 1)))


def heavy(payload: str) -> str:
    return f'{{"type":"heavy","payload":{payload}}}'


def batch(tasks: Any) -> str:
    return json.dumps({"tasks": list(tasks)}, separators=(",", ":"))


DEEP = "[" * 60 + "]" * 60
SUBMISSIONS: dict[str, tuple[str, int]] = {
    "14,000 unknown fields": (json.dumps({f"timeout_{number}": 0 for number in range(12_000)}), 422),
    "a long unknown field": (json.dumps({"timeout_s" * 25_000: 0}), 422),
    "a long type": (json.dumps({"type": "heavy" * 50_000}), 422),
    "numbers": (heavy(filled("1", '{"numbers":[%s]}')), 202),
    "lists": (heavy(filled("[]", '{"any":[%s]}')), 202),
    "nulls": (heavy(filled("[null]", '{"any":[%s]}')), 202),
    "objects": (heavy(filled('{"":0}', '{"any":[%s]}')), 202),
    "deep lists": (heavy(filled(DEEP, '{"any":[%s]}')), 202),
    "deep lists and a text like a name": (heavy(filled(DEEP, '{"any":["\\":",%s]}')), 202),
    "a name twice behind many": (heavy(filled("[]", '{"any":[%s],"any":0}')), 400),
    "a secret beside much": (heavy(filled("1", '{"token":"canary","numbers":[%s]}')), 202),
    "wrong items": (heavy(filled('"x"', '{"numbers":[%s]}')), 422),
    "a wrong last item": (heavy(filled("1", '{"numbers":[%s,"x"]}')), 422),
    "items that fit no branch": (heavy(filled('"x"', '{"either":[%s]}')), 422),
    "unknown members": (heavy(json.dumps({f"f{number}": 0 for number in range(18_000)})), 422),
    "many the same": (heavy(filled('{"a":[0]}', '{"unique":[%s]}')), 422),
    "a pattern that could go back": (heavy('{"pattern":"%s!"}' % ("a" * (LIMIT - 200))), 422),
    "parents": (json.dumps({"type": "heavy", "depends_on": [f"task{number}" for number in range(10_000)]}), 422),
    "wrong parents": (json.dumps({"type": "heavy", "depends_on": ["a b"] * 10_000}), 422),
    "tags": (json.dumps({"type": "heavy", "tags": ["a b"] * 30_000}), 422),
}
EVERYTHING: dict[str, Any] = {
    "timeout_s": 5,
    "tags": ["a", "b"],
    "max_attempts": 3,
    "expires_in_s": 600,
    "callback_url": "https://example.org/done",
}
BATCHES: dict[str, tuple[str, int]] = {
    "options of their own": (
        batch(
            {"type": "heavy", "timeout_s": n + 0.5, "result_ttl_s": n + 1, "queue": f"q{n % 50}"} for n in range(999)
        ),
        202,
    ),
    "all that there is": (
        batch(
            {
                "type": "heavy",
                "payload": {"any": [n] * 10},
                "timeout_s": 5,
                "tags": ["a", "b"],
                "unique_key": str(n),
                "max_attempts": 3,
                "expires_in_s": 600,
                "delay_s": n,
                "callback_url": "https://example.org/done",
            }
            for n in range(999)
        ),
        202,
    ),
    "large payloads": (batch({"type": "heavy", "payload": {"numbers": [1] * 100}} for _ in range(999)), 202),
    "all wrong": (batch({"type": "heavy", "tag": n, "on_conflict": "no", "delay_s": "x"} for n in range(999)), 422),
    "wrong payloads": (batch({"type": "heavy", "payload": {"either": ["x"] * 20}} for _ in range(999)), 422),
    "unknown types": (batch({"type": f"heavy{n}"} for n in range(999)), 422),
    "one key twice": (batch({"type": "heavy", "unique_key": str(n % 998)} for n in range(999)), 422),
    "too many": (filled("{}", '{"tasks":[%s]}'), 422),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_submission_costs_little_in_one_go(client: httpx.Client, name: str) -> None:
    body, expected = SUBMISSIONS[name]
    assert len(body) <= LIMIT

    response = client.post("/tasks", content=body, headers=JSON)

    assert response.status_code == expected
    assert len(response.content) < 60_000


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}], ids=["", "once"])
def test_a_batch_costs_little_in_one_go(client: httpx.Client, name: str, headers: dict[str, str]) -> None:
    body, expected = BATCHES[name]
    assert len(body) <= LIMIT
    if headers:
        headers = {"idempotency-key": name.replace(" ", "-")}

    response = client.post("/tasks/batch", content=body, headers=JSON | headers)

    assert response.status_code == (409 if headers and "all that there is" in name else expected), response.text[:300]


LONG = "9" * 60_000
READS: list[tuple[str, dict[str, str], int]] = [
    (f"/tasks?limit={LONG}", {}, 400),
    (f"/tasks?cursor={'W1tb' * 256}", {}, 400),
    (f"/tasks?{'&'.join(f'statu{n}=1' for n in range(32))}", {}, 400),
    (f"/tasks?{'&' * 60_000}", {}, 400),
    (f"/tasks/x?wait={LONG}", {}, 400),
    (f"/tasks/{'x' * 60_000}", {}, 404),
    (f"/queues/{'x' * 60_000}", {}, 200),
    ("/types", {"if-none-match": "x, " * 20_000 + "x"}, 200),
    ("/types", {"accept": "x, " * 20_000 + "x"}, 200),
    ("/events", {"last-event-id": LONG}, 400),
    ("/tasks/x/logs?follow=1&format=events", {"last-event-id": "W1tb" * 15_000}, 400),
    ("/openapi.json", {}, 200),
    ("/asyncapi.json", {}, 200),
    ("/metrics", {}, 200),
    ("/queues", {}, 200),
    ("/workers", {}, 200),
    ("/tasks?limit=200", {}, 200),
    ("/queues/default?limit=500", {}, 200),
]


@pytest.mark.parametrize(("path", "headers", "expected"), READS, ids=[each[0][:40] for each in READS])
def test_a_read_costs_little_in_one_go(client: httpx.Client, path: str, headers: dict[str, str], expected: int) -> None:
    response = client.get(path, headers=headers)

    assert response.status_code == expected


OTHERS: dict[str, tuple[str, str, int]] = {
    "types of a key": ("/keys", json.dumps({"name": "k", "types": ["a b"] * 30_000}), 422),
    "queues of a key": ("/keys", json.dumps({"name": "k", "queues": [f"q{number}" for number in range(20_000)]}), 422),
    "scopes of a key": ("/keys", json.dumps({"name": "k", "scopes": ["tasks:read"] * 15_000}), 422),
    "unknown fields of a key": ("/keys", json.dumps({f"nam{number}": 0 for number in range(15_000)}), 422),
    "types of a webhook": ("/webhooks", json.dumps({"url": "https://example.org/", "types": ["a b"] * 30_000}), 422),
    "events of a webhook": ("/webhooks", json.dumps({"url": "https://example.org/", "events": ["dne"] * 30_000}), 422),
    "the URL of a webhook": ("/webhooks", json.dumps({"url": "https://" + "a." * 100_000}), 422),
    "how to stop": ("/tasks/x/stop", json.dumps({f"grace{number}": 0 for number in range(15_000)}), 422),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_change_costs_little_in_one_go(client: httpx.Client, name: str) -> None:
    path, body, expected = OTHERS[name]
    assert len(body) <= LIMIT

    response = client.post(path, content=body, headers=JSON)

    assert response.status_code == expected, response.text[:300]
    assert len(response.content) < 60_000


FRAMES: dict[str, tuple[bytes, bytes]] = {
    "pings": (b"\x89\x80\0\0\0\0", b""),
    "parts": (b"\x00\x80\0\0\0\0", b"too many parts"),
    "messages": (b"\x81\x8d\0\0\0\0" + b'{"op":"ping"}', b'{"op":"pong"}'),
    "nonsense": (b"\x81\x81\0\0\0\0{", b"invalid-json"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_tiny_frames_of_a_socket_cost_little_in_one_go(client: httpx.Client, name: str) -> None:
    frame, answer = FRAMES[name]
    handshake = (
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=PATIENCE_S) as connection:
        connection.sendall(handshake)
        assert connection.recv(4096).startswith(b"HTTP/1.1 101")
        with suppress(OSError):  # it may be cut off
            begin = b"\x01\x80\0\0\0\0" if name == "parts" else b""
            connection.sendall(begin + frame * (LIMIT // len(frame)) + b"\x88\x82\0\0\0\0\x03\xe8")
        heard = b""
        with suppress(OSError):
            while chunk := connection.recv(65_536):
                heard = (heard + chunk)[:1_000_000]

    assert answer in heard
    assert client.get("/livez").status_code == 200
