"""Sends one webhook through the guard of targets, reads a little of the answer, and is over in 15 seconds whatever the
other side does.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from taskpool.webhooks.network import NotSent, Resolve, Resolver, system_tls
from taskpool.webhooks.target import Allowed, Target, parse_target

ANSWER_S: Final = 14.0
BODY_S: Final = 1.0
"""An attempt takes at most 15 seconds: to the status, and then for what else is sent."""
CONNECT_S: Final = 5.0
"""One address may take so long: the next one has its chance."""
MOST_BODY_BYTES: Final = 64 * 1024

if TYPE_CHECKING:
    import httpcore


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
            self._tls = await asyncio.to_thread(system_tls)
        from taskpool.webhooks import guarded

        async with AsyncExitStack() as opened:
            try:
                async with asyncio.timeout(self._answer_s):
                    target = parse_target(url, self._allowed)
                    response = await guarded.send(
                        "POST", target, _headers(target, headers, body), body, allowed=self._allowed,
                        resolve=self._resolve, tls=self._tls, connect_s=CONNECT_S, opened=opened,
                    )  # fmt: skip
            except TimeoutError:
                raise NotSent(f"no answer within {self._answer_s:g} s") from None
            except ValueError as fault:
                raise NotSent(f"not allowed: {fault}") from None
            await _read_a_little(response)
        said = {name.lower(): value for name, value in response.headers}
        return Answer(response.status, _retry_after_s(said.get(b"retry-after")))


def _headers(target: Target, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
    told = {
        "host": target.authority,
        "user-agent": f"taskpool/{version('taskpool')}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "accept-encoding": "identity",
        "connection": "close",
        **headers,
    }
    return [(name.encode(), value.encode()) for name, value in told.items()]


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
