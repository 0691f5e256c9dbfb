"""What sending to a URL that others chose needs besides a connection: names looked up, and errors put into words."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final

from taskpool.webhooks.target import Address

MOST_LOOKUPS: Final = 256
"""More than are sent at once: a lookup may go on when nobody waits for it any more."""
SHOWN_CHARS: Final = 200

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class NotSent(Exception):
    """Raised when there was no answer; the text is for those who may read what became of the request."""


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
                self._under_way -= 1

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


def shown(what: str, error: Exception) -> str:
    """An error of the network for readers; the addresses in it are nobody's business."""
    return f"{what}: {_why(error, list(_behind(error)))}"[:SHOWN_CHARS]


def system_tls() -> ssl.SSLContext:
    """Trusts the certificates that the system's programs trust. Takes longer than most requests."""
    import httpcore  # noqa: F401  # with the rest of what takes long
    import httpx

    return httpx.create_ssl_context()


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
    if isinstance(error, httpcore.LocalProtocolError):
        return "it isn't sent, because a header isn't allowed in HTTP"
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
