"""Reading a request's body: bounded in bytes and time, and only when it says that it is JSON.

Nothing is kept beyond the limit, whatever Content-Length claims, so a request costs at most the limit.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from api.begun import Begun
from api.problems import Problem
from api.strict_json import InvalidJson, decode

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
