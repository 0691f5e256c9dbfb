"""The API's responses: JSON documents, pages of listings, and ETags where clients poll."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .prefix import public_path

Header = tuple[bytes, bytes]
Headers = Iterable[Header]


JSON: Final = b"application/json"

_encode: Final = msgspec.json.Encoder().encode
_NO_STORE: Final = (b"cache-control", b"no-store")
_CLOSE: Final = (b"connection", b"close")


class BufferedResponse(Response):
    """A response with its whole body, never stored by caches. Its headers are encoded already, because Starlette would
    encode them again for every response. `unread_body`: part of the request's body wasn't read, so the connection is
    closed after the response."""

    def __init__(self, status: int, headers: Headers = (), body: bytes = b"", *, unread_body: bool = False) -> None:
        self.status_code, self.body, self.background, self.unread_body = status, body, None, unread_body
        self.raw_headers = [*headers, _NO_STORE]
        if unread_body:
            self.raw_headers.append(_CLOSE)


class Json(BufferedResponse):
    """`document` as JSON."""

    def __init__(
        self,
        document: Any,
        *,
        status: int = 200,
        headers: Headers = (),
        media_type: bytes = JSON,
        unread_body: bool = False,
    ) -> None:
        body = _encode(document)
        headers = ((b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers)
        super().__init__(status, headers, body, unread_body=unread_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. If the request is a WebSocket's handshake, it is refused with this response."""
        response = "http.response" if scope["type"] == "http" else "websocket.http.response"
        await send({"type": f"{response}.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": f"{response}.body", "body": self.body, "more_body": False})


class NoContent(BufferedResponse):
    """204."""

    def __init__(self) -> None:
        super().__init__(204)


def location(scope: Scope, path: str) -> Header:
    """The header that names what was created, at `path` of this API."""
    return b"location", public_path(scope, path).encode()


def next_page(scope: Scope, path: str, query: msgspec.Struct, cursor: str | None) -> list[Header]:
    """The Link to the next page of a listing: `path` of this API with `query` and the cursor; empty without a
    cursor."""
    if cursor is None:
        return []
    given = {**msgspec.to_builtins(query), "cursor": cursor}
    parameters = urlencode({name: value for name, value in given.items() if value not in (None, False)})
    return [(b"link", f'<{public_path(scope, path)}?{parameters}>; rel="next"'.encode())]


def page(document: Any, scope: Scope, path: str, query: msgspec.Struct) -> Json:
    """A page of a listing, with a Link to its `next_cursor`."""
    return Json(document, headers=next_page(scope, path, query, document.next_cursor))


def tag_of(body: bytes) -> bytes:
    """The ETag of a body. It is made of the bytes, so it changes whenever they do, whichever program wrote the task."""
    return b'"%b"' % blake2b(body, digest_size=9).hexdigest().encode()


def has_tag(headers: Headers, tag: bytes) -> bool:
    """Whether If-None-Match says that the client has the body with this tag."""
    for name, value in headers:
        if name == b"if-none-match" and (
            value.strip() == b"*" or tag in [each.strip().removeprefix(b"W/") for each in value.split(b",")]
        ):
            return True
    return False


def tagged(document: Any, request_headers: Headers) -> Response:
    """`document` as JSON with an ETag, or 304 if the client has it already."""
    answer = Json(document)
    tag = tag_of(bytes(answer.body))
    if has_tag(request_headers, tag):
        return BufferedResponse(304, [(b"etag", tag)])
    answer.raw_headers.append((b"etag", tag))
    return answer
