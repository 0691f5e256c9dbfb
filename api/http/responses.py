"""The API's responses: JSON documents, pages of listings, and ETags where clients poll."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
from msgspec import UNSET
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .prefix import public_path

Header = tuple[bytes, bytes]
Headers = Iterable[Header]


JSON: Final = b"application/json"

_encode: Final = msgspec.json.Encoder().encode


class Json(Response):
    """A response with its whole body: `document` as JSON, or nothing. Caches never store it. `unread_body`: part of the
    request's body wasn't read, so the connection is closed after the response."""

    def __init__(
        self,
        document: Any = UNSET,
        *,
        status: int = 200,
        headers: Headers = (),
        media_type: bytes = JSON,
        unread_body: bool = False,
    ) -> None:
        # Not by Starlette's constructor, which would encode the headers again for every response.
        self.status_code, self.background, self.unread_body, self.body = status, None, unread_body, b""
        self.raw_headers = [*headers, (b"cache-control", b"no-store")]
        if document is not UNSET:
            self.body = _encode(document)
            self.raw_headers += ((b"content-type", media_type), (b"content-length", b"%d" % len(self.body)))
        if unread_body:
            self.raw_headers.append((b"connection", b"close"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. If the request is a WebSocket's handshake, it is refused with this response."""
        response = "http.response" if scope["type"] == "http" else "websocket.http.response"
        await send({"type": f"{response}.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": f"{response}.body", "body": self.body, "more_body": False})


def location(scope: Scope, path: str) -> Header:
    """The header that names what was created, at `path` of this API."""
    return b"location", public_path(scope, path).encode()


def next_page(scope: Scope, query: msgspec.Struct, cursor: str | None) -> list[Header]:
    """The Link to the next page of the listing at this path, with `query` and the cursor; empty without a cursor."""
    if cursor is None:
        return []
    given = {**msgspec.to_builtins(query), "cursor": cursor}
    parameters = urlencode({name: value for name, value in given.items() if value is not None and value is not False})
    path = public_path(scope, quote(scope["path"].removeprefix(scope.get("root_path", ""))))
    return [(b"link", f'<{path}?{parameters}>; rel="next"'.encode())]


def page(document: Any, scope: Scope, query: msgspec.Struct) -> Json:
    """A page of a listing, with a Link to its `next_cursor`."""
    return Json(document, headers=next_page(scope, query, document.next_cursor))


def tagged(document: Any, request_headers: Headers) -> Json:
    """`document` as JSON with an ETag, or 304 if the client has it already. The tag is made of the bytes, so it changes
    whenever they do, whichever program wrote the task."""
    answer = Json(document)
    tag = b'"%b"' % blake2b(answer.body, digest_size=9).hexdigest().encode()
    for name, value in request_headers:
        if name == b"if-none-match" and (
            value.strip() == b"*" or tag in [each.strip().removeprefix(b"W/") for each in value.split(b",")]
        ):
            return Json(status=304, headers=[(b"etag", tag)])
    answer.raw_headers.append((b"etag", tag))
    return answer
