"""Carries out a client's steps with httpx: one runner that blocks, one that awaits. The only file that knows httpx."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Final, TypeVar

import httpx

from taskpool.client.request import Answer, Lost, Plan, Read, Request, Send, Sleep, Tell
from taskpool.errors import ConfigurationError
from taskpool.settings import redact_url

T = TypeVar("T")

FAILURES: Final = (httpx.TransportError, httpx.DecodingError)
NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
OK: Final = 200
KEPT: Final = 100
"""Connections that are kept while nothing uses them."""


class Server:
    """Where the API is and who asks; and how long an answer may take. Raises: ConfigurationError."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"the server {redact_url(url)!r} is not a URL: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise ConfigurationError(f"the server {redact_url(url)!r} is not a URL like http://localhost:8080")
        if parsed.userinfo:
            raise ConfigurationError("the server's URL takes no user and password: there are API keys")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigurationError("the API key must be one word of ASCII, like tp_<id>_<secret>")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.options: dict[str, Any] = {
            "headers": {} if api_key is None else {"authorization": f"Bearer {api_key}"},
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=KEPT),
            # A proxy of the surroundings has nothing to do with a server on this machine.
            "mounts": {"http://": None, "https://": None} if _is_here(parsed.host) else None,
        }

    def request(self, client: httpx.Client | httpx.AsyncClient, request: Request[Any]) -> httpx.Request:
        """The request as httpx sends it."""
        return client.build_request(
            request.method,
            self.url + request.path,
            params=request.query or None,
            headers=dict(request.headers),
            content=request.body,
            timeout=httpx.Timeout(self.timeout_s, read=self.timeout_s + request.waits_s),
        )

    def lost(self, error: Exception) -> Lost:
        """What an exception of httpx means."""
        why = str(error) or "the connection was cut"
        if isinstance(error, httpx.TimeoutException):
            why = "it took too long"
        was_sent = not isinstance(error, NEVER_SENT)
        return Lost(f"the API at {self.url} {'gave no answer' if was_sent else 'cannot be reached'}: {why}", was_sent)


class Runner:
    """Carries out one plan, blocking."""

    def __init__(self, client: httpx.Client, server: Server) -> None:
        self._client, self._server = client, server
        self._stream: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def result(self, plan: Plan[T]) -> T:
        """What the plan returns."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None if isinstance(step, Tell) else self._do(step)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            self._close()

    def told(self, plan: Plan[object]) -> Iterator[Any]:
        """What the plan tells."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None
                if isinstance(step, Tell):
                    yield step.value
                else:
                    reply = self._do(step)
        except StopIteration:
            return
        finally:
            self._close()

    def _do(self, step: Send | Read | Sleep) -> Any:
        if isinstance(step, Sleep):
            return time.sleep(step.seconds)
        return self._read() if isinstance(step, Read) else self._send(step.request)

    def _send(self, request: Request[Any]) -> Answer | Lost:
        self._close()
        try:
            response = self._client.send(self._server.request(self._client, request), stream=True)
            if request.streams and response.status_code == OK:
                self._stream, self._pieces = response, response.iter_bytes()
                return Answer(OK, response.headers)
            try:
                return Answer(response.status_code, response.headers, response.read())
            finally:
                response.close()
        except FAILURES as error:
            return self._server.lost(error)

    def _read(self) -> bytes | None:
        try:
            return next(self._pieces, None)
        except FAILURES:
            return None

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class AsyncRunner:
    """Carries out one plan, awaiting."""

    def __init__(self, client: httpx.AsyncClient, server: Server) -> None:
        self._client, self._server = client, server
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def result(self, plan: Plan[T]) -> T:
        """What the plan returns."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None if isinstance(step, Tell) else await self._do(step)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            await self._close()

    async def told(self, plan: Plan[object]) -> AsyncGenerator[Any]:
        """What the plan tells."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None
                if isinstance(step, Tell):
                    yield step.value
                else:
                    reply = await self._do(step)
        except StopIteration:
            return
        finally:
            await self._close()

    async def _do(self, step: Send | Read | Sleep) -> Any:
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        return await (self._read() if isinstance(step, Read) else self._send(step.request))

    async def _send(self, request: Request[Any]) -> Answer | Lost:
        await self._close()
        try:
            response = await self._client.send(self._server.request(self._client, request), stream=True)
            if request.streams and response.status_code == OK:
                self._stream, self._pieces = response, response.aiter_bytes()
                return Answer(OK, response.headers)
            try:
                return Answer(response.status_code, response.headers, await response.aread())
            finally:
                await response.aclose()
        except FAILURES as error:
            return self._server.lost(error)

    async def _read(self) -> bytes | None:
        try:
            return None if self._pieces is None else await anext(self._pieces, None)
        except FAILURES:
            return None

    async def _close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
