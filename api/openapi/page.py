"""The files of the page that shows the document: read once, served from memory, compressed for who takes that.

The page needs nothing from any other host, and its policy forbids it: no inline script or style, no eval.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from importlib.resources import files
from typing import Final

from starlette.responses import Response

INDEX: Final = "index.html"
FILES: Final = {
    "docs.js": "text/javascript",
    "docs.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""What the page asks for, by name."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DocsPage:
    """The page's files by name."""

    def __init__(self) -> None:
        self._folder = files("api") / "docs"
        self._loaded: dict[str, tuple[str, bytes, bytes]] = {}

    async def answer(self, name: str, *, takes_gzip: bool, known: str) -> Response:
        """INDEX or one of FILES. `known`: the If-None-Match of the request."""
        if name not in self._loaded:
            self._loaded[name] = await asyncio.to_thread(self._load, name)
        etag, plain, packed = self._loaded[name]
        headers = {
            "cache-control": "no-cache",
            "content-security-policy": POLICY,
            "etag": etag,
            "vary": "Accept-Encoding",
        }
        if etag in known:
            return Response(status_code=304, headers=headers)
        if takes_gzip:
            headers["content-encoding"] = "gzip"
        return Response(packed if takes_gzip else plain, headers=headers, media_type=FILES.get(name, "text/html"))

    def _load(self, name: str) -> tuple[str, bytes, bytes]:
        plain = (self._folder / name).read_bytes()
        return f'W/"{hashlib.sha256(plain).hexdigest()[:20]}"', plain, gzip.compress(plain, mtime=0)
