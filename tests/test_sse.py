"""Server-Sent Events as the WHATWG has them, whatever the pieces in which they arrive."""

from __future__ import annotations

from itertools import pairwise

import httpx
import httpx_sse
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.events import sse
from taskpool.client.values import EventStream, Message


def read(*pieces: bytes, last_id: str = "") -> list[Message]:
    stream = EventStream(last_id)
    return [message for piece in pieces for message in stream.feed(piece)]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (b"data: one\n\n", [Message("message", "one", "")]),
        (b"data:one\r\n\r\n", [Message("message", "one", "")]),
        (b"data:  one\r\r", [Message("message", " one", "")]),
        (b"data: a\ndata:\ndata: c\n\n", [Message("message", "a\n\nc", "")]),
        (b"data\n\n", [Message("message", "", "")]),
        (b"data: a: b\n\n", [Message("message", "a: b", "")]),
        (b"event: snapshot\nid: 7\ndata: x\n\n", [Message("snapshot", "x", "7")]),
        (b"event: lost\n\ndata: x\n\n", [Message("message", "x", "")]),
        (b"id: 7\ndata: x\n\ndata: y\n\n", [Message("message", "x", "7"), Message("message", "y", "7")]),
        (b"id: 7\n\ndata: y\n\n", [Message("message", "y", "7")]),
        (b"id: 7\ndata: x\n\nid\ndata: y\n\n", [Message("message", "x", "7"), Message("message", "y", "")]),
        (b"id: 1\x002\ndata: x\n\n", [Message("message", "x", "")]),
        (b": keep-alive\n\nretry: 2000\n\n", []),
        (b"retry: 2000\nid: 7\ndata: x\n\n", [Message("message", "x", "7")]),
        (b"retry: 2000\n: keep-alive\n: keep-alive\nid: 7\ndata: x\n\n", [Message("message", "x", "7")]),
        (b"data: x\n\n: keep-alive\ndata: y\n\n", [Message("message", "x", ""), Message("message", "y", "")]),
        (b"data: x\n: keep-alive\ndata: y\n\n", [Message("message", "x\ny", "")]),
        (b"other: x\n: comment\ndata: x\n\n", [Message("message", "x", "")]),
        (b"\xef\xbb\xbfdata: x\n\n", [Message("message", "x", "")]),
        (b"data: x\n\n\xef\xbb\xbfdata: y\n\n", [Message("message", "x", "")]),
        (b"data: incomplete\n", []),
        (b"data: \xff\n\n", [Message("message", "\ufffd", "")]),
        ("data: é\u2028\n\n".encode(), [Message("message", "é\u2028", "")]),
    ],
)
def test_a_stream_is_read_by_the_rules(text: bytes, messages: list[Message]) -> None:
    assert read(text) == messages
    assert read(*[text[at : at + 1] for at in range(len(text))]) == messages


def test_what_goes_on_keeps_the_last_id() -> None:
    assert read(b"data: x\n\n", last_id="7") == [Message("message", "x", "7")]


def test_a_message_comes_as_soon_as_a_carriage_return_ends_it() -> None:
    stream = EventStream()

    assert stream.feed(b"data: x\r\r") == [Message("message", "x", "")]
    assert stream.feed(b"\ndata: y\r\n\r") == [Message("message", "y", "")]
    assert stream.feed(b"\n") == []


TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\r\n\0\ufeff\x85\u2028\u2029\x0b\x1c: ")))
JSON = st.recursive(TEXTS | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))


def read_by_lines(text: str) -> list[dict[str, str]]:
    """The messages for a reader that takes whatever Python does for the end of a line."""
    messages: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if not line:
            messages.append({})
        elif name:
            messages[-1][name] = value
    return messages[:-1]


def read_with_httpx_sse(stream: bytes) -> list[httpx_sse.ServerSentEvent]:
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return list(httpx_sse.EventSource(response).iter_sse())


@given(st.lists(JSON, min_size=1, max_size=4), st.sampled_from(["", "snapshot"]), st.integers(0, 2))
def test_what_is_written_is_read_as_it_was(documents: list[object], event: str, comments: int) -> None:
    ids = [f"{place}-0" for place in range(len(documents))]
    silence = sse.KEEP_ALIVE * comments
    blocks = [sse.message(id, document, event) for id, document in zip(ids, documents, strict=True)]
    stream = sse.RETRY + silence + silence.join(blocks) + silence

    ours, theirs, by_lines = read(stream), read_with_httpx_sse(stream), read_by_lines(stream.decode())

    name = event or "message"
    assert [(each.event, each.id) for each in ours] == [(name, id) for id in ids]
    assert [(each.event, each.id) for each in theirs] == [(name, id) for id in ids]
    assert [(each.get("event", "message"), each["id"]) for each in by_lines] == [(name, id) for id in ids]
    data = [[each.data for each in ours], [each.data for each in theirs], [each["data"] for each in by_lines]]
    assert [[msgspec.json.decode(each.encode()) for each in received] for received in data] == [documents] * 3
    assert theirs[0].retry == sse.RETRY_MS


@given(st.lists(st.binary(max_size=20)))
def test_any_bytes_are_read(pieces: list[bytes]) -> None:
    assert read(*pieces) == read(b"".join(pieces))


PARTS = [b"data: a", b"data:b", b"id: 1", b"event: e", b": c", b"\n", b"\r", b"\r\n", b"\n\n"]


@given(st.lists(st.sampled_from(PARTS)), st.lists(st.integers(0, 60), max_size=5))
def test_the_pieces_make_no_difference(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]

    assert read(*[text[start:end] for start, end in pairwise(edges)]) == read(text)
