"""Files that browsers load: with an ETag, compressed, under a content policy."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    media_type: str
    plain: bytes

    @property
    def etag(self) -> str:
        """It is weak, because the compressed form has the same."""
        return f'W/"{hash_of(self.plain)}"'


def send(file: File, request: Request, policy: str, *, cache_control: str, vary: str) -> Response:
    """The response with this file, compressed if the client accepts that, or 304. `policy`: its content policy."""
    headers = {"cache-control": cache_control, "content-security-policy": policy, "etag": file.etag, "vary": vary}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    body = file.plain
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        body = packed(body)
    return Response(body, headers=headers, media_type=file.media_type)


@lru_cache(maxsize=256)
def packed(plain: bytes) -> bytes:
    """The compressed form."""
    return gzip.compress(plain, mtime=0)


@lru_cache(maxsize=1024)
def hash_of(data: bytes) -> str:
    """The beginning of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
