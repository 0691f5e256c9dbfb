"""Sends one webhook: resolves its host once, checks every address, connects to one of them, reads a little, and is over
in 15 seconds whatever the other side does. No redirects, no proxies, no cookies, no connection used twice.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from taskpool.webhooks.target import Address, Allowed, Target, check_addresses, parse_target

ANSWER_S: Final = 14.0
BODY_S: Final = 1.0
"""An attempt takes at most 15 seconds: to the status, and then for what else is sent."""
CONNECT_S: Final = 5.0
"""One address may take so long: the next one has its chance."""
MOST_ADDRESSES: Final = 3
MOST_BODY_BYTES: Final = 64 * 1024
MOST_LOOKUPS: Final = 256
"""More than are sent at once: a lookup may go on when nobody waits for it any more."""
SHOWN_CHARS: Final = 200

if TYPE_CHECKING:
    import httpcore

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class NotSent(Exception):
    """Raised when there was no answer; the text is for whoever reads the log of deliveries."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint answered: its status, and how many seconds it asked to be left alone."""

    status_code: int
    retry_after_s: float | None = None


class Sender:
    """Sends webhooks. `resolve` gives a host's addresses; `tls` says whose certificates are trusted."""

    def __init__(
        self,
        allowed: Allowed,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._allowed, self._tls, self._answer_s = allowed, tls, answer_s
        self._resolve = resolve or Resolver().resolve

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST the body.

        Raises:
            NotSent: the URL or an address isn't allowed, or there was no answer in time.
        """
        if self._tls is None:  # the import and the certificates take longer than the loop should stand still
            self._tls = await asyncio.to_thread(_system_tls)
        async with AsyncExitStack() as connections:
            try:
                async with asyncio.timeout(self._answer_s):
                    target = parse_target(url, self._allowed)
                    addresses = await self._addresses(target)
                    check_addresses(target, addresses, self._allowed)
                    request = _request(target, headers, body)
                    response = await self._post(request, addresses[:MOST_ADDRESSES], connections)
            except TimeoutError:
                raise NotSent(f"no answer within {self._answer_s:g} s") from None
            except ValueError as fault:
                raise NotSent(f"not allowed: {fault}") from None
            await _read_a_little(response)
        said = {name.lower(): value for name, value in response.headers}
        return Answer(response.status, _retry_after_s(said.get(b"retry-after")))

    async def _post(
        self, request: httpcore.Request, addresses: Sequence[Address], connections: AsyncExitStack
    ) -> httpcore.Response:
        """Tries one address after the other until one takes the connection; the request is sent once."""
        import httpcore

        from workers.webhook_line import Line

        for number, address in enumerate(addresses, start=1):
            line = Line(address)
            connections.push_async_callback(line.aclose)
            # A connection for each message: one that stayed open would be found by its host, whatever that is by then.
            connection = httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=line)
            try:
                return await connection.handle_async_request(request)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                if number == len(addresses):
                    raise NotSent(_shown("can't connect", error)) from None
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
                raise NotSent(_shown("no answer", error)) from None
        raise AssertionError("there is at least one address")

    async def _addresses(self, target: Target) -> Sequence[Address]:
        if target.address is not None:
            return [target.address]
        try:
            addresses = await self._resolve(target.host, target.port)
        except OSError as error:
            raise NotSent(f"the host {target.host} can't be resolved: {error.strerror or error}") from None
        if not addresses:
            raise NotSent(f"the host {target.host} has no address")
        return addresses


class Resolver:
    """The system's resolver, in threads of its own: a name server that hangs keeps nothing else from the threads of the
    loop, nor a supervisor from its end."""

    def __init__(self) -> None:
        self._under_way = 0

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of a host, in the order the system prefers.

        Raises:
            OSError: there are none, or too many lookups hang.
        """
        if self._under_way >= MOST_LOOKUPS:
            raise OSError("too many lookups are waiting for name servers")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[Address]] = loop.create_future()

        def look_up() -> None:
            try:
                rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answer: Sequence[Address] | OSError = list(dict.fromkeys(ip_address(row[4][0]) for row in rows))
            except (OSError, UnicodeError, ValueError) as error:
                answer = error if isinstance(error, OSError) else OSError("not the name of a host")
            try:
                loop.call_soon_threadsafe(self._end, found, answer)
            except RuntimeError:  # the loop has ended meanwhile
                pass

        self._under_way += 1
        threading.Thread(target=look_up, name="resolver", daemon=True).start()
        return await found

    def _end(self, found: asyncio.Future[Sequence[Address]], answer: Sequence[Address] | OSError) -> None:
        self._under_way -= 1
        if found.done():  # nobody waits any more
            return
        if isinstance(answer, OSError):
            found.set_exception(answer)
        else:
            found.set_result(answer)


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> httpcore.Request:
    """The request in the name of the host: it is the host's certificate that must be valid."""
    import httpcore

    told = {
        "host": target.authority,
        "user-agent": f"taskpool/{version('taskpool')}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "accept-encoding": "identity",
        "connection": "close",
        **headers,
    }
    return httpcore.Request(
        "POST",
        httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path),
        headers=[(name.encode(), value.encode()) for name, value in told.items()],
        content=body,
        extensions={"timeout": {"connect": CONNECT_S}},
    )


async def _read_a_little(response: httpcore.Response) -> None:
    """Some servers call it an error when nobody reads their answer. What it says isn't kept: the status decides."""
    import httpcore

    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > MOST_BODY_BYTES:
                    break
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        pass


def _retry_after_s(header: bytes | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date; None when it says nothing."""
    if header is None:
        return None
    text = header.decode("latin-1")
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _shown(what: str, error: Exception) -> str:
    """An error of the network for readers; the addresses in it are nobody's business."""
    return f"{what}: {_why(error, list(_behind(error)))}"[:SHOWN_CHARS]


def _why(error: Exception, behind: Sequence[BaseException]) -> str:
    import httpcore

    tls = [each for each in behind if isinstance(each, ssl.SSLError)]
    for fault in tls:
        if isinstance(fault, ssl.SSLCertVerificationError):
            return f"the certificate isn't valid: {fault.verify_message}"
    for each in behind:
        if isinstance(each, OSError) and not isinstance(each, ssl.SSLError) and each.errno:
            return os.strerror(each.errno).lower()  # "connection refused", "no route to host"
    if tls:
        reason = tls[0].reason
        return f"TLS error: {reason.replace('_', ' ').lower()}" if reason else "TLS error"
    if isinstance(error, httpcore.TimeoutException):
        return "timed out"
    if isinstance(error, httpcore.RemoteProtocolError):
        return "what it sent isn't HTTP" if len(behind) > 1 else "the connection was closed"
    return type(error).__name__


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if each is not None and each not in seen:
            seen.append(each)
            waiting += [each.__cause__, each.__context__]
            yield each


def _system_tls() -> ssl.SSLContext:
    import httpcore  # noqa: F401  # with the rest of what takes long
    import httpx

    return httpx.create_ssl_context()
