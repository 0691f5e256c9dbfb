"""ETags: what a representation is known by, so that who asks again is told only what has changed."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

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
