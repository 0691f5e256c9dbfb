"""Built-in task type `http_request`: one HTTP request, its answer as the result."""

from __future__ import annotations

import asyncio
import base64
import codecs
import functools
import os
import ssl
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from taskpool.settings import Settings
from taskpool.task import task

if TYPE_CHECKING:
    import httpx

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Url = Annotated[str, Meta(pattern="^[hH][tT][tT][pP][sS]?://", max_length=8192, examples=["https://example.com/"])]
Timeout = Annotated[float, Meta(gt=0, le=3600, description="Seconds for the whole request.")]

SHOWN_CHARS: Final = 200


class RequestFailed(Exception):
    """Raised when there was no answer, or one with a status of 400 and more."""


@task("http_request")
async def http_request(
    url: Url, method: Method = "GET", headers: dict[str, str] | None = None, body: Any = None, timeout_s: Timeout = 30
) -> dict[str, Any]:
    """Send an HTTP request; the result has status, headers and body. A status of 400 and more fails the task.

    A body that is text is sent as it is, another JSON value as JSON. Redirects aren't followed. The answer's body
    is text, or base64 when `encoding` says so, and cut to half the largest result when `truncated` says so.
    """
    # Costs a fifth of a second and megabytes: processes that never send a request don't pay.
    import httpx

    try:
        request = httpx.Request(method, url, headers=headers, **_content(body))
    except (httpx.InvalidURL, UnicodeError) as error:
        raise RequestFailed(f"{url!r} isn't a URL: {error}") from None
    limit = Settings.load(os.environ).max_result_bytes // 2
    try:
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(verify=_tls(), timeout=None) as client:
            response = await client.send(request, stream=True)
            content = await _read(response, limit + 1)
            await response.aclose()
    except TimeoutError:
        raise RequestFailed(f"{_shown(request)}: no whole answer within {timeout_s:g} s") from None
    except httpx.RequestError as error:
        raise RequestFailed(f"{_shown(request)}: {type(error).__name__}: {error}") from None
    answer = _body(content, response.charset_encoding, limit)
    if response.status_code >= 400:
        start = f": {answer['body'][:SHOWN_CHARS]}" if answer["body"] and answer["encoding"] == "text" else ""
        raise RequestFailed(
            f"{_shown(request)}: answered {response.status_code} {response.reason_phrase}{start}".rstrip()
        )
    return {"status": response.status_code, "headers": dict(response.headers), **answer}


def _content(body: Any) -> dict[str, Any]:
    if body is None:
        return {}
    return {"content": body} if isinstance(body, str) else {"json": body}


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The body's first `limit` bytes; the rest is never fetched."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def _body(content: bytes, charset: str | None, limit: int) -> dict[str, Any]:
    is_cut = len(content) > limit
    content = content[:limit]
    try:
        # A cut may go through a character: what is left over of it isn't an error then.
        text = codecs.getincrementaldecoder(charset or "utf-8")().decode(content, final=not is_cut)
    except (LookupError, UnicodeDecodeError):
        text = None
    # Control characters take six bytes each in JSON: a binary body that happens to decode is better as base64.
    if text is not None and len(msgspec.json.encode(text)) <= max(limit * 3 // 2, 2 * len(content)):
        return {"body": text, "encoding": "text", "truncated": is_cut}
    return {"body": base64.b64encode(content).decode(), "encoding": "base64", "truncated": is_cut}


def _shown(request: httpx.Request) -> str:
    """The request for a message: credentials and query strings, which often hold a token, are left out."""
    url = request.url
    return f"{request.method} {url.scheme}://{url.netloc.decode()}{url.path}"


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than most requests; it is done once in a process."""
    import httpx

    return httpx.create_ssl_context()
