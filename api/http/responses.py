"""ETags: what a representation is known by, so that who asks again is told only what has changed.

The one kind of response: a JSON document, with its headers made by hand because every request pays for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Headers = Iterable[tuple[bytes, bytes]]


def tag_of(body: bytes) -> bytes:
    """The ETag of a representation: it changes whenever a byte of it does, whoever wrote what it shows."""
    return b'"%b"' % blake2b(body, digest_size=9).hexdigest().encode()


def has_tag(headers: Headers, tag: bytes) -> bool:
    """Whether the sender says, with If-None-Match, that it has this representation."""
    for name, value in headers:
        if name == b"if-none-match" and (
            value.strip() == b"*" or tag in [each.strip().removeprefix(b"W/") for each in value.split(b",")]
        ):
            return True
    return False


JSON: Final = b"application/json"

_encode: Final = msgspec.json.Encoder().encode
_NO_STORE: Final = (b"cache-control", b"no-store")
_CLOSE: Final = (b"connection", b"close")


class BufferedResponse(Response):
    """An answer that is all there; `raw_headers` and `body` are made by hand. `unread_body`: it tells the client not to
    go on with the request's body, since the connection ends with this answer."""

    unread_body = False


class Json(BufferedResponse):
    """`document` as JSON; never stored by caches. `unread_body`: see `BufferedResponse`."""

    def __init__(
        self,
        document: Any,
        *,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] = (),
        media_type: bytes = JSON,
        unread_body: bool = False,
    ) -> None:
        # Instead of Response.__init__, which encodes every header anew.
        self.body = _encode(document)
        self.status_code, self.background, self.unread_body = status, None, unread_body
        self.raw_headers = [
            (b"content-type", media_type),
            (b"content-length", b"%d" % len(self.body)),
            _NO_STORE,
            *headers,
        ]
        if unread_body:
            self.raw_headers.append(_CLOSE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; to a WebSocket's handshake, in the place of the handshake's answer."""
        response = "http.response" if scope["type"] == "http" else "websocket.http.response"
        await send({"type": f"{response}.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": f"{response}.body", "body": self.body, "more_body": False})


class NotModified(BufferedResponse):
    """304: the sender has the representation with this tag."""

    def __init__(self, tag: bytes) -> None:
        self.status_code, self.background, self.body = 304, None, b""
        self.raw_headers = [(b"etag", tag), _NO_STORE]


def tagged(document: Any, request_headers: Headers) -> Response:
    """`document` as JSON with an ETag; 304 for who has it already."""
    answer = Json(document)
    tag = tag_of(bytes(answer.body))
    if has_tag(request_headers, tag):
        return NotModified(tag)
    answer.raw_headers.append((b"etag", tag))
    return answer


class NoContent(Response):
    """204."""

    def __init__(self) -> None:
        super().__init__(status_code=204, headers={"cache-control": "no-store"})
