"""Taking what is there already without the price of a timeout: most bodies have arrived before anybody asks.

JSON as a service should take it: RFC 8259 without the parts on which readers disagree (compare RFC 7493).

Refused, besides bad syntax and NaN: a name twice in one object, nesting deeper than MAX_DEPTH, integers beyond 64
bits, numbers beyond a double, lone surrogates. Whatever passes means the same to every reader behind us.

Reading a request's body: bounded in bytes and time, and only when it says that it is JSON.

Nothing is kept beyond the limit, whatever Content-Length claims, so a request costs at most the limit.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from taskpool.tasks.payload.encode import DEEPEST
from taskpool.tasks.payload.faults import pointer, shown

from .problems import Problem

T = TypeVar("T")


class Begun(Generic[T]):
    """Something awaitable, taken as far as it goes without waiting. `is_done`: it went to its end, `value` has what it
    gave; else `await` goes on with it. What it raises on the way is raised here."""

    __slots__ = ("_going", "_waits_for", "is_done", "value")

    value: T

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self._going = awaitable.__await__()
        try:
            self._waits_for: Any = next(self._going)
            self.is_done = False
        except StopIteration as end:
            self.value = end.value
            self.is_done = True

    def __await__(self) -> Generator[Any, Any, T]:
        """What it gives in the end: the loop is handed what it waits for, as it would have been."""
        going: Any = self._going
        waits_for = self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as failure:
                    waits_for = going.throw(failure)
                else:
                    waits_for = going.send(sent)
        except StopIteration as end:
            value: T = end.value
            return value


MAX_DEPTH: Final = DEEPEST + 3
"""A payload may be nested DEEPEST deep; a batch puts it three levels down."""
LEAST_INTEGER: Final = -(1 << 63)
MOST_INTEGER: Final = (1 << 64) - 1

_decode: Final = msgspec.json.Decoder().decode

# A name ends with a quote and a colon. Text may look like that too (":x", "a\": "), so what this finds is the
# number of members of all objects, or more.
_name_ends: Final = re.compile(rb'"[ \t\r\n]*:').findall


class InvalidJson(Exception):
    """Raised when a document isn't strict JSON. `pointer` says where, None when that can't be told."""

    def __init__(self, detail: str, pointer: str | None = None) -> None:
        super().__init__(detail)
        self.detail, self.pointer = detail, pointer


def decode(raw: bytes) -> Any:
    """The value of one JSON document in UTF-8.

    Raises:
        InvalidJson: it isn't one, or not a strict one.
    """
    try:
        value = _decode(raw)
    except RecursionError:
        raise InvalidJson(f"the document is nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise InvalidJson(f"the document isn't UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:
        raise InvalidJson(_readable(str(error), raw)) from None
    members = _members((value,), 0)
    if raw.count(b":") != members and len(_name_ends(raw)) != members:
        _refuse_repeated_names(raw)
    return value


def _members(container: Any, depth: int) -> int:
    """How many members all objects in `container` have, which is itself at `depth`. Raises InvalidJson."""
    if depth > MAX_DEPTH:
        raise InvalidJson(f"the document is nested deeper than {MAX_DEPTH}")
    count = 0
    values = container
    if type(container) is dict:
        count = len(container)
        values = container.values()
    for value in values:
        kind = type(value)
        if kind is dict or kind is list:
            count += _members(value, depth + 1)
        elif kind is int and not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise InvalidJson("an integer is out of range: it needs more than 64 bits")
    return count


class _Object(list[tuple[str, Any]]):
    """An object as its members were written, none dropped."""


def _refuse_repeated_names(raw: bytes) -> None:
    """The second reading, for documents where some text looks like a name: it sees each member."""
    for steps in _repeated(json.loads(raw, object_pairs_hook=_Object), ()):
        raise InvalidJson(f"the name {shown(str(steps[-1]))!r} occurs twice in one object", pointer(steps, ""))


def _repeated(value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Where a name occurs again, in the order of the document."""
    if not isinstance(value, list):
        return
    seen = set()
    for step, item in value if isinstance(value, _Object) else enumerate(value):
        if isinstance(value, _Object) and step in seen:
            yield (*at, step)
        seen.add(step)
        yield from _repeated(item, (*at, step))


def _readable(fault: str, raw: bytes) -> str:
    """What msgspec found wrong, in words for somebody who sees only the document."""
    if "surrogate" in fault or ("truncated" in fault and b"\\ud" in raw.lower()):
        return "a string holds half of a surrogate pair, or the document ends too early"
    if "range" in fault:
        return "a number is out of range"
    if "truncated" in fault:
        return "the document ends too early"
    return fault.replace("JSON is", "the document is")


SMALL: Final = 32 * 1024
"""A larger body is read by a thread: that may take 0.1 s for 256 KB, and can't be cut into slices."""
_reader: Final = ThreadPoolExecutor(1, "json")  # one, so that the event loop shares Python's lock with no more
BODY_TIMEOUT_S: Final = 30.0
"""How long a body may take to arrive."""

_is_json: Final = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*(?:charset="?utf-8"?[ \t]*)?)*', re.IGNORECASE
).fullmatch
_ACCEPT: Final = (b"accept", b"application/json")
_ACCEPT_ENCODING: Final = (b"accept-encoding", b"identity")


async def read_json(scope: Scope, receive: Receive, limit: int) -> Any:
    """The body's value; `limit` is in bytes.

    Raises:
        Problem: 400 not strict JSON; 408 too slow; 413 over the limit; 415 not JSON by its headers.
        ClientDisconnect: the client left.
    """
    _check_headers(scope, limit)
    raw = await _read(receive, limit)
    if not raw:
        raise Problem("invalid-json", "the body is empty; send a JSON object")
    try:
        if len(raw) <= SMALL:
            return decode(raw)
        return await asyncio.get_running_loop().run_in_executor(_reader, decode, raw)
    except InvalidJson as fault:
        errors = [] if fault.pointer is None else [{"pointer": fault.pointer, "detail": fault.detail}]
        raise Problem("invalid-json", fault.detail, errors=errors) from None


async def read_optional_json(scope: Scope, receive: Receive, limit: int) -> Any:
    """Like `read_json`; a request without a body stands for an empty object, whatever its media type."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return await read_json(scope, receive, limit)
    return {}


def _check_headers(scope: Scope, limit: int) -> None:
    """Refuse by the headers alone, before the client is asked for the body (Expect: 100-continue)."""
    media_type = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length":
            # Digits that int() wouldn't take in one piece are too large as well.
            if value.isdigit() and (len(value) > 18 or int(value) > limit):
                raise _too_large(limit, unread=True)
        elif (name == b"content-encoding" and value.lower() != b"identity") or (
            name == b"transfer-encoding" and value.lower() != b"chunked"
        ):
            detail = "the body must not be compressed"
            raise Problem("unsupported-media-type", detail, headers=[_ACCEPT_ENCODING], unread_body=True)
    if media_type != b"application/json" and (media_type is None or not _is_json(media_type)):
        detail = "send Content-Type: application/json"
        if media_type is not None:
            detail += f", not {media_type.decode('latin-1')[:80]!r}"
        raise Problem("unsupported-media-type", detail, headers=[_ACCEPT], unread_body=True)


async def _read(receive: Receive, limit: int) -> bytes:
    first = Begun(receive())
    if first.is_done and not first.value.get("more_body", False):
        return _chunk(first.value, 0, limit)
    received = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            message = first.value if first.is_done else await first
            while True:
                received += _chunk(message, len(received), limit)
                if not message.get("more_body", False):
                    return bytes(received)
                message = await receive()
    except TimeoutError:
        detail = f"the body must arrive within {BODY_TIMEOUT_S:g} s"
        raise Problem("body-timeout", detail, unread_body=True) from None


def _chunk(message: Message, before: int, limit: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    chunk: bytes = message.get("body", b"")
    if before + len(chunk) > limit:
        raise _too_large(limit, unread=message.get("more_body", False))
    return chunk


def _too_large(limit: int, *, unread: bool) -> Problem:
    return Problem("body-too-large", f"a body may have at most {limit} bytes", unread_body=unread, max_bytes=limit)
