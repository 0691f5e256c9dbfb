"""Built-in task type `http_request`: one HTTP request, its answer as the result."""

from __future__ import annotations

import asyncio
import base64
import codecs
import functools
import os
import ssl
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from taskpool.settings import Settings
from taskpool.task import task
from taskpool.webhooks.network import NotSent, Resolver, shown, system_tls
from taskpool.webhooks.target import Allowed, Target, parse_target

if TYPE_CHECKING:
    import httpcore
    import httpx

LONGEST_URL: Final = 8192
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Url = Annotated[
    str, Meta(pattern="^[hH][tT][tT][pP][sS]?://", max_length=LONGEST_URL, examples=["https://example.com/"])
]
Timeout = Annotated[float, Meta(gt=0, le=3600, description="Seconds for the whole request.")]

CONNECT_S: Final = 10.0
SHOWN_CHARS: Final = 200
OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"})
"""Headers that say where the request goes and where it ends."""

NO_CHARSETS: Final = frozenset({
    "idna", "punycode", "unicode-escape", "raw-unicode-escape", "base64", "bz2", "hex", "quopri", "rot-13",
    "uu", "zlib",
})  # fmt: skip
"""What Python calls encodings as well: some take for ever with a long text, or make a long text of a short one."""

_resolver: Final = Resolver()


class RequestFailed(Exception):
    """Raised when there was no answer, or one with a status of 400 and more."""


@task("http_request")
async def http_request(
    url: Url, method: Method = "GET", headers: dict[str, str] | None = None, body: Any = None, timeout_s: Timeout = 30
) -> dict[str, Any]:
    """Send an HTTP request; the result has status, headers and body. A status of 400 and more fails the task.

    It reaches public addresses and those that the worker's TASKPOOL_WEBHOOK_ALLOW names. A body that is text is sent as
    it is, another JSON value as JSON. Redirects aren't followed. The answer's body is text, or base64 when `encoding`
    says so, and cut to half the largest result when `truncated` says so.
    """
    # Costs a fifth of a second and megabytes: processes that never send a request don't pay.
    import httpcore
    import httpx

    from taskpool.webhooks import guarded

    settings = Settings.load(os.environ)
    allowed = Allowed(settings.webhook_allow)
    request, target = _request(method, url, headers, body, allowed)
    limit = settings.max_result_bytes // 2
    try:
        async with asyncio.timeout(timeout_s), AsyncExitStack() as opened:
            response = await guarded.send(
                method, target, request.headers.raw, request.content, allowed=allowed, resolve=_resolver.resolve,
                tls=_tls(), connect_s=CONNECT_S, opened=opened,
            )  # fmt: skip
            content = await _read(response, limit + 1)
    except TimeoutError:
        raise RequestFailed(f"{_shown(method, target)}: no whole answer within {timeout_s:g} s") from None
    except NotSent as error:
        raise RequestFailed(f"{_shown(method, target)}: {error}") from None
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise RequestFailed(f"{_shown(method, target)}: {shown('no whole answer', error)}") from None
    answered = httpx.Response(response.status, headers=response.headers, extensions=response.extensions)
    answer = _body(content, answered.charset_encoding, limit)
    if answered.status_code >= 400:
        start = f": {answer['body'][:SHOWN_CHARS]}" if answer["body"] and answer["encoding"] == "text" else ""
        raise RequestFailed(
            f"{_shown(method, target)}: answered {answered.status_code} {answered.reason_phrase}{start}".rstrip()
        )
    return {"status": answered.status_code, "headers": dict(answered.headers), **answer}


def _request(
    method: str, url: str, headers: dict[str, str] | None, body: Any, allowed: Allowed
) -> tuple[httpx.Request, Target]:
    """The request as it is sent, and where it goes. Its URL is checked in the form in which it is sent.

    Raises:
        RequestFailed: there is no such request, or it may not be sent.
    """
    import httpx

    if refused := sorted({name for name in headers or {} if name.strip().lower() in OURS}):
        raise RequestFailed(f"{method}: the header {refused[0]!r} can't be given: it follows from the URL and the body")
    try:
        if "\\" in url:
            raise httpx.InvalidURL("readers of URLs disagree about what a backslash means")
        parsed = httpx.URL(url)
        target = parse_target(str(parsed.copy_with(userinfo=b"", fragment=None)), allowed, longest=3 * LONGEST_URL)
    except (httpx.InvalidURL, UnicodeError):
        raise RequestFailed(f"{method}: the URL isn't one that can be sent to") from None
    except ValueError as fault:
        where = f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"
        raise RequestFailed(f"{method} {where}: not allowed: {fault}") from None
    told = {"accept": "*/*", "accept-encoding": "identity", "user-agent": f"taskpool/{version('taskpool')}"}
    if parsed.userinfo:
        user = f"{parsed.username}:{parsed.password}".encode()
        told["authorization"] = f"Basic {base64.b64encode(user).decode()}"
    told |= {name.strip().lower(): value for name, value in (headers or {}).items()}
    told |= {"host": target.authority, "connection": "close"}
    try:
        return httpx.Request(method, "http://host/", headers=told, **_content(body)), target
    except UnicodeError:
        raise RequestFailed(f"{_shown(method, target)}: a header isn't ASCII") from None


def _content(body: Any) -> dict[str, Any]:
    if body is None:
        return {}
    return {"content": body} if isinstance(body, str) else {"json": body}


async def _read(response: httpcore.Response, limit: int) -> bytes:
    """The body's first `limit` bytes, as they were sent; the rest is never fetched."""
    content = bytearray()
    async for chunk in response.aiter_stream():
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def _body(content: bytes, charset: str | None, limit: int) -> dict[str, Any]:
    is_cut = len(content) > limit
    content = content[:limit]
    try:
        # A cut may go through a character: what is left over of it isn't an error then.
        decoder = codecs.lookup(charset or "utf-8")
        text = None if decoder.name in NO_CHARSETS else decoder.incrementaldecoder().decode(content, final=not is_cut)
    except (LookupError, UnicodeError):
        text = None
    # Control characters take six bytes each in JSON: a binary body that happens to decode is better as base64.
    if text is not None and len(msgspec.json.encode(text)) <= max(limit * 3 // 2, 2 * len(content)):
        return {"body": text, "encoding": "text", "truncated": is_cut}
    return {"body": base64.b64encode(content).decode(), "encoding": "base64", "truncated": is_cut}


def _shown(method: str, target: Target) -> str:
    """The request for a message: query strings, which often hold a token, are left out."""
    return f"{method} {target.scheme}://{target.authority}{target.path.partition('?')[0]}"


@functools.cache
def _tls() -> ssl.SSLContext:
    """It is made once in a process."""
    return system_tls()
