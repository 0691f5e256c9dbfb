"""Reads a request's body: bounded in bytes and time, and as strict JSON.

Strict means RFC 8259 without the parts on which parsers disagree (compare RFC 7493). Besides syntax errors and NaN,
these are refused: a repeated name in one object, nesting deeper than MAX_DEPTH, integers beyond 64 bits, numbers
beyond a double, and lone surrogates. Every parser reads what passes in the same way.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from taskpool.tasks.payload.encode import DEEPEST
from taskpool.tasks.payload.faults import pointer
from taskpool.validation import shortened

from .problems import Problem
from .responses import JSON

CYCLE: Final = "taskpool.cycle"
"""Where the connection puts uvicorn's object for the request in the ASGI scope."""
BODY_TIMEOUT_S: Final = 30.0
"""How long a body may take to arrive."""
SMALL: Final = 32 * 1024
"""A thread parses larger bodies: 256 KB may take 0.1 s, which would block the event loop."""
MAX_DEPTH: Final = DEEPEST + 3
"""A payload may be nested DEEPEST deep; a batch puts it three levels down."""
LEAST_INTEGER: Final = -(1 << 63)
MOST_INTEGER: Final = (1 << 64) - 1

_parser_thread: Final = ThreadPoolExecutor(1, "json")  # one, so that the event loop competes with one for the GIL
_is_json: Final = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*(?:charset="?utf-8"?[ \t]*)?)*', re.IGNORECASE
).fullmatch
_decode: Final = msgspec.json.Decoder().decode
_name_ends: Final = re.compile(rb'"[ \t\r\n]*:').findall
"""Finds at least one match for each member. Text may look like the end of a name, too: `":x"`, `"a\\": "`."""


async def read_json(
    scope: Scope, receive: Receive, limit: int, then: Callable[[Any], Any] = lambda value: value
) -> Any:
    """What `then` makes of the body's value, in a thread if the body is large; `limit` is in bytes.
    Raises: what `then` raises; Problem 400 not strict JSON; 408 too slow; 413 over the limit; 415 not JSON by its
    headers; ClientDisconnect: the client left."""
    _check_headers(scope, limit)
    cycle = scope.get(CYCLE)
    if cycle is not None and not cycle.more_body:  # it has arrived: a timer would cost 12 % of a submission
        raw = await _read_all(receive, limit)
    else:
        raw = await _read_in_time(receive, limit)
    if not raw:
        raise _invalid("the body is empty; send a JSON object")
    if len(raw) <= SMALL:
        return then(decode(raw))
    return await asyncio.get_running_loop().run_in_executor(_parser_thread, lambda: then(decode(raw)))


async def read_optional_json(scope: Scope, receive: Receive, limit: int) -> Any:
    """Like `read_json`, but a request without a body counts as an empty object, whatever its media type."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return await read_json(scope, receive, limit)
    return {}


def _check_headers(scope: Scope, limit: int) -> None:
    """Check the headers, before the server asks the client for the body (Expect: 100-continue)."""
    media_type = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length":
            if value.isdigit() and (len(value) > 18 or int(value) > limit):  # int() refuses thousands of digits
                raise _too_large(limit, unread=True)
        elif (name == b"content-encoding" and value.lower() != b"identity") or (
            name == b"transfer-encoding" and value.lower() != b"chunked"
        ):
            headers = [(b"accept-encoding", b"identity")]
            raise Problem(
                "unsupported-media-type", "the body must not be compressed", headers=headers, unread_body=True
            )
    if media_type != JSON and (media_type is None or not _is_json(media_type)):
        detail = "send Content-Type: application/json"
        if media_type is not None:
            detail += f", not {media_type.decode('latin-1')[:80]!r}"
        headers = [(b"accept", b"application/json")]
        raise Problem("unsupported-media-type", detail, headers=headers, unread_body=True)


async def _read_in_time(receive: Receive, limit: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_all(receive, limit)
    except TimeoutError:
        detail = f"the body must arrive within {BODY_TIMEOUT_S:g} s"
        raise Problem("body-timeout", detail, unread_body=True) from None


async def _read_all(receive: Receive, limit: int) -> bytes:
    """The whole body. Beyond `limit` it keeps no more than one piece, whatever Content-Length says."""
    received = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        received += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(received) > limit:
            raise _too_large(limit, unread=has_more)
        if not has_more:
            return bytes(received)


def _too_large(limit: int, *, unread: bool) -> Problem:
    return Problem("body-too-large", f"a body may have at most {limit} bytes", unread_body=unread, max_bytes=limit)


def _invalid(detail: str) -> Problem:
    return Problem("invalid-json", detail)


def decode(raw: bytes) -> Any:
    """The value of one JSON document in UTF-8. Raises Problem 400."""
    try:
        value = _decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise _invalid(f"the document isn't UTF-8: {error.reason}") from None
    except msgspec.DecodeError as error:
        raise _invalid(_readable(str(error), raw)) from None
    members = _count_members((value,), 0)
    if raw.count(b":") != members and len(_name_ends(raw)) != members:
        # Some text looks like a name, or a name is repeated. No fast parser reports that: parse again with all members.
        for steps in _repeated_names(json.loads(raw, object_pairs_hook=_Members), ()):
            detail = f"the name {shortened(str(steps[-1]), 200)!r} occurs twice in one object"
            raise Problem("invalid-json", detail, errors=[{"pointer": pointer(steps, ""), "detail": detail}])
    return value


def _count_members(container: Any, depth: int) -> int:
    """The number of members of all objects in `container`, which is itself at `depth`. Raises Problem 400."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    count = 0
    values = container
    if type(container) is dict:
        count = len(container)
        values = container.values()
    for value in values:
        kind = type(value)
        if kind is dict or kind is list:
            count += _count_members(value, depth + 1)
        elif kind is int and not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise _invalid("an integer is out of range: it needs more than 64 bits")
    return count


class _Members(list[tuple[str, Any]]):
    """An object with all its members, repeated names included."""


def _repeated_names(value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """The places of repeated names, in the order of the document."""
    if isinstance(value, list):
        seen = set()
        for step, item in value if isinstance(value, _Members) else enumerate(value):
            if step in seen:
                yield (*at, step)
            seen.add(step)
            yield from _repeated_names(item, (*at, step))


def _too_deep() -> Problem:
    return _invalid(f"the document is nested deeper than {MAX_DEPTH}")


def _readable(fault: str, raw: bytes) -> str:
    """The message of msgspec, in words for a client."""
    if "surrogate" in fault or ("truncated" in fault and b"\\ud" in raw.lower()):
        return "a string holds half of a surrogate pair, or the document ends too early"
    if "range" in fault:
        return "a number is out of range"
    if "truncated" in fault:
        return "the document ends too early"
    return fault.replace("JSON is", "the document is")
