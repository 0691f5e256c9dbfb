"""Reading a body: what the headers must say, where reading stops, and what happens to the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.http import body
from api.http.body import read_json, read_optional_json
from api.http.problems import Problem

LIMIT = 100
JSON = (b"content-type", b"application/json")


class Client:
    """A client's side of one request: hands out chunks, counts how many were asked for."""

    def __init__(self, *chunks: bytes, endless: bool = False, leaves: bool = False) -> None:
        self._messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": endless or leaves or at < len(chunks)}
            for at, chunk in enumerate(chunks, 1)
        ]
        self._endless, self._leaves = endless, leaves
        self.asked = 0

    async def receive(self) -> Message:
        self.asked += 1
        if self.asked <= len(self._messages):
            return self._messages[self.asked - 1]
        if self._leaves:
            return {"type": "http.disconnect"}
        assert self._endless, "read past the end"
        return self._messages[-1]


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": headers}


async def refused(client: Client, headers: Sequence[tuple[bytes, bytes]]) -> Problem:
    with pytest.raises(Problem) as refusal:
        await read_json(scope(*headers), client.receive, LIMIT)
    return refusal.value


@pytest.mark.parametrize(
    "media_type",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b'application/json;charset="UTF-8"',
        b"application/json ; ",
    ],
)
async def test_json_in_utf_8_is_taken_however_it_is_spelled(media_type: bytes) -> None:
    assert await read_json(scope((b"content-type", media_type)), Client(b"[1]").receive, LIMIT) == [1]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"")],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/jsonp")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [(b"content-type", b"application/json, text/plain")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"application/json;" + b" " * 60_000 + b"x")],
        [(b"content-type", b"\xff\xfe")],
        [JSON, (b"content-encoding", b"gzip")],
        [JSON, (b"transfer-encoding", b"gzip, chunked")],
        [JSON, (b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")],
    ],
)
async def test_what_says_it_is_something_else_is_refused_unread(headers: list[tuple[bytes, bytes]]) -> None:
    client = Client(b"[1]")

    problem = await refused(client, headers)

    assert (problem.kind, problem.unread_body, client.asked) == ("unsupported-media-type", True, 0)


async def test_a_body_may_come_in_pieces_and_have_just_the_limit() -> None:
    text = b'"' + b"x" * (LIMIT - 2) + b'"'

    assert await read_json(scope(JSON), Client(text[:1], b"", text[1:60], text[60:]).receive, LIMIT) == "x" * 98


@pytest.mark.parametrize("length", [b"101", b"9" * 5000])
async def test_a_length_over_the_limit_is_refused_before_anything_is_read(length: bytes) -> None:
    client = Client(b"[1]", endless=True)

    problem = await refused(client, [JSON, (b"content-length", length)])

    assert (problem.kind, problem.unread_body, client.asked) == ("body-too-large", True, 0)


async def test_reading_stops_at_the_limit_whatever_the_length_says() -> None:
    client = Client(b"x" * 30, endless=True)

    problem = await refused(client, [JSON, (b"content-length", b"7")])

    assert (problem.kind, problem.unread_body, client.asked) == ("body-too-large", True, 4)


async def test_a_body_that_was_too_large_but_is_over_leaves_the_connection_usable() -> None:
    problem = await refused(Client(b"x" * 101), [JSON])

    assert (problem.kind, problem.unread_body) == ("body-too-large", False)


async def test_an_empty_body_is_not_json() -> None:
    assert (await refused(Client(b""), [JSON])).kind == "invalid-json"


async def test_a_body_that_does_not_come_ends_in_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.001)

    class Slow(Client):
        async def receive(self) -> Message:
            import asyncio

            await asyncio.Event().wait()
            raise AssertionError

    problem = await refused(Slow(), [JSON])

    assert (problem.kind, problem.unread_body) == ("body-timeout", True)


async def test_a_client_that_leaves_gets_no_answer() -> None:
    with pytest.raises(ClientDisconnect):
        await read_json(scope(JSON), Client(b"[", leaves=True).receive, LIMIT)


async def test_where_the_body_is_optional_none_means_an_empty_object() -> None:
    none = scope((b"content-length", b"0"))

    assert await read_optional_json(none, Client().receive, LIMIT) == {}
    assert await read_optional_json(scope(JSON, (b"content-length", b"2")), Client(b"[]").receive, LIMIT) == []


async def test_where_the_body_is_optional_one_that_is_there_must_be_json() -> None:
    with pytest.raises(Problem) as refusal:
        await read_optional_json(scope((b"transfer-encoding", b"chunked")), Client(b"{}").receive, LIMIT)

    assert refusal.value.kind == "unsupported-media-type"
