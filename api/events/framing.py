"""How Server-Sent Events are written: the headers of a stream, and its messages.

Readers differ in what they take for a message. Browsers dispatch none without data; httpx-sse and others dispatch one
at each blank line. So a blank line stands behind messages alone: `RETRY` opens the first message's block, and a
comment is one line.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

EVENT_STREAM: Final = b"text/event-stream"
RETRY_MS: Final = 2000
RETRY: Final = b"retry: %d\n" % RETRY_MS
"""Begins a stream; no blank line, so that it belongs to the first message."""
KEEP_ALIVE: Final = b": keep-alive\n"
"""A comment. It may stand between two messages only, not inside one."""
KEEP_ALIVE_S: Final = 15.0
"""After so long without a message: proxies cut what is silent for 30 to 60 s."""

_encode: Final = msgspec.json.Encoder().encode
_LINE_ENDS: Final = re.compile(b"\xc2\x85|\xe2\x80[\xa8\xa9]")
_ESCAPED: Final = {b"\xc2\x85": rb"\u0085", b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029"}


def stream_headers(media_type: bytes = EVENT_STREAM) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that is read while it is written: proxies must neither hold it back nor compress it."""
    return [
        (b"content-type", media_type),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),  # nginx
    ]


def message(id: str, document: Any, event: str = "") -> bytes:
    """One message. Without a name for its `event`, browsers hand it to `onmessage`."""
    return encoded_message(id, _encode(document), event)


def encoded_message(id: str, json: bytes, event: str = "") -> bytes:
    """As `message`, of a document that is JSON already.

    JSON holds no CR or LF. Three more characters end a line for some readers (Python's `splitlines`), though not for
    the standard: they are escaped.
    """
    if _LINE_ENDS.search(json):
        json = _LINE_ENDS.sub(lambda found: _ESCAPED[found[0]], json)
    name = b"event: %s\n" % event.encode() if event else b""
    return b"id: %s\n%sdata: %s\n\n" % (id.encode(), name, json)
