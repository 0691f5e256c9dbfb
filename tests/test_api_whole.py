"""Answers written whole: over the wire they equal the answers in two ASGI messages, and no header can be two."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api import routing
from taskpool.redis.embedded import RedisServer
from tests.api_client import JSON, api, api_process, publish_types
from tests.support import PATIENCE_S

ECHO = {"type": "echo", "payload": {"message": "hi"}}
OURS = ("date", "content-length", "etag", "location")
"""Headers whose values differ from answer to answer."""


@pytest.fixture(scope="module")
def url(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log") as (_, url):
        yield url


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S)


def headers(response: httpx.Response) -> dict[str, str]:
    return {name: "" if name in OURS else value for name, value in response.headers.items() if name != "date"}


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", "/tasks", {"json": ECHO}),
        ("GET", "/tasks", {}),
        ("HEAD", "/tasks", {}),
        ("GET", "/tasks/missing", {}),
        ("GET", "/tasks?status=none", {}),
        ("DELETE", "/tasks", {}),
        ("POST", "/tasks", {"content": "{", "headers": JSON}),
        ("GET", "/livez", {}),
        ("GET", "/nowhere", {}),
    ],
)
async def test_an_answer_in_one_write_equals_the_answer_in_asgi_messages(
    url: str, redis_url: str, method: str, path: str, sent: dict[str, Any]
) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client, httpx.AsyncClient(base_url=url) as wired:
        in_messages = await client.request(method, path, **sent)
        written = await wired.request(method, path, **sent)

    assert written.status_code == in_messages.status_code
    assert headers(written) == headers(in_messages)
    assert "date" in written.headers
    assert bool(written.content) == bool(in_messages.content)


def test_head_and_body_come_in_one_piece_on_a_connection_that_is_kept(url: str) -> None:
    with connect(url) as client:
        for _ in range(2):
            client.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            piece = client.recv(65536)

            head, _, body = piece.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"content-length: %d" % len(body) in head
            assert body == b'{"status":"ok"}'


@pytest.mark.parametrize("version", [b"1.0\r\n\r\n", b"1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"])
def test_a_connection_that_is_not_kept_gets_connection_close_and_ends(url: str, version: bytes) -> None:
    received = b""
    with connect(url) as client:
        client.sendall(b"GET /livez HTTP/" + version)
        while chunk := client.recv(65536):
            received += chunk

    assert b"\r\nconnection: close\r\n" in received
    assert received.endswith(b'{"status":"ok"}')


def test_what_was_asked_at_once_is_answered_in_order(url: str) -> None:
    with connect(url) as client:
        client.sendall(
            b"".join([b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path for path in (b"livez", b"x", b"")])
        )
        received = b""
        while b'"links"' not in received:
            received += client.recv(65536)

    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404", b"200"]


def test_not_modified_has_no_body(url: str, redis_url: str) -> None:
    publish_types(redis_url)
    with httpx.Client(base_url=url) as client:
        path = client.post("/tasks", json=ECHO).headers["location"]
        tag = client.get(path).headers["etag"]
        again = client.get(path, headers={"if-none-match": tag})
        after = client.get(path)

    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert "content-security-policy" in again.headers
    assert after.status_code == 200


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
def test_a_header_with_a_line_break_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        routing.header_lines([(b"location", value)])


async def test_with_cors_answers_have_the_headers_for_listed_origins(redis_url: str, tmp_path: Path) -> None:
    origin = "https://app.example.org"
    with api_process(redis_url, tmp_path / "log", TASKPOOL_CORS_ORIGINS=origin) as (_, url), httpx.Client() as client:
        plain = client.get(url + "/livez", headers={"origin": origin})
        preflight = client.options(url + "/tasks", headers={"origin": origin, "access-control-request-method": "POST"})

    assert plain.headers["access-control-allow-origin"] == origin
    assert preflight.status_code == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]
