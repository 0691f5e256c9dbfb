"""Runs calls and plans on Redis: `Store` blocks, `AsyncStore` awaits; what they run and what it means is the same.

What is decided here and nowhere else: what an error reply means, when a script's text is sent, and that only
calls marked `again` are repeated after a lost connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeVar

import hiredis

from taskpool.calls import Call, Part, Plan
from taskpool.connection.address import Address
from taskpool.connection.async_wire import AsyncWire
from taskpool.connection.wire import Wire, unpack
from taskpool.errors import RedisFull, RedisUnavailable, TaskpoolError

T = TypeVar("T")

REPLY_TIMEOUT_S: Final = 10.0
AWAY: Final = re.compile(
    r"(?:^|: -)(LOADING|MASTERDOWN|READONLY|OOM|CLUSTERDOWN|NOAUTH|NOPERM|WRONGPASS|BUSY|MISCONF)\b"
    r"|^ERR (ACL failure) in script"
)
"""Error replies by which Redis says that it can't serve now; anything else is a fault of ours. Before Redis 7 the word
stands in the middle when a script ran into it: ``ERR Error running script (...): @user_script: 161: -OOM ...``."""


class Transport(Protocol):
    """What a store needs of a connection: send commands together, get raw replies (errors as values) in order."""

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same, awaited."""

    async def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]: ...
    def close(self) -> None: ...


ELSEWHERE: Final = ("READONLY", "MASTERDOWN", "NOAUTH")
"""By which it says that it isn't the one to serve us, or doesn't know us: another connection may find the one."""


class WrongServer(RedisUnavailable):
    """Raised when this connection is of no more use, because of who is at its other end."""


class ReplyFault(TaskpoolError):
    """Raised when Redis answers a call with an error that no operation expects."""


class Store:
    """Runs calls over one blocking connection. Not for two threads at once.

    Raises, from every method: RedisUnavailable.
    """

    def __init__(self, redis_url: str = "", *, name: str = "taskpool", transport: Transport | None = None) -> None:
        self._transport = transport or Wire(Address.parse(redis_url), name=name)

    def run(self, call: Call[T]) -> T:
        """The value of one call."""
        (value,) = self.run_many((call,))
        return value  # type: ignore[no-any-return]

    def run_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of several calls, sent together and carried out in order: one round trip."""
        timeout_s = _timeout_s(calls)
        try:
            replies = self._transport.exchange([call.command for call in calls], timeout_s)
        except RedisUnavailable:
            if not all(call.again for call in calls):
                raise
            replies = self._transport.exchange([call.command for call in calls], timeout_s)
        if not _has_errors(replies):
            return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]
        for at in _unknown_scripts(replies):
            replies[at] = self._transport.exchange([with_text(calls[at])], timeout_s)[0]
        try:
            return values(calls, replies)
        except WrongServer:
            self._transport.close()
            raise

    def carry_out(self, plan: Plan[T]) -> T:
        """The value of a plan."""
        try:
            calls = next(plan)
            while True:
                calls = plan.send(self.run_many(calls) if calls else [])
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._transport.close()


class AsyncStore:
    """Runs calls over one connection shared by all coroutines of a loop; as `Store` otherwise."""

    def __init__(self, redis_url: str = "", *, name: str = "taskpool", transport: AsyncTransport | None = None) -> None:
        self._transport = transport or AsyncWire(Address.parse(redis_url), name=name)

    async def run(self, call: Call[T]) -> T:
        """The value of one call."""
        (value,) = await self.run_many((call,))
        return value  # type: ignore[no-any-return]

    async def run_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of several calls, sent together and carried out in order."""
        timeout_s = _timeout_s(calls)
        try:
            replies = await self._transport.exchange([call.command for call in calls], timeout_s)
        except RedisUnavailable:
            if not all(call.again for call in calls):
                raise
            replies = await self._transport.exchange([call.command for call in calls], timeout_s)
        if not _has_errors(replies):
            return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]
        for at in _unknown_scripts(replies):
            replies[at] = (await self._transport.exchange([with_text(calls[at])], timeout_s))[0]
        try:
            return values(calls, replies)
        except WrongServer:
            self._transport.close()
            raise

    async def carry_out(self, plan: Plan[T]) -> T:
        """The value of a plan."""
        try:
            calls = next(plan)
            while True:
                calls = plan.send(await self.run_many(calls) if calls else [])
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._transport.close()


def _timeout_s(calls: Sequence[Call[Any]]) -> float:
    """Mostly the same, because setting another costs a system call."""
    for call in calls:
        if call.blocks_s:
            break
    else:
        return REPLY_TIMEOUT_S
    return max(REPLY_TIMEOUT_S, REPLY_TIMEOUT_S * 0.9 + sum([call.blocks_s for call in calls]))


def _has_errors(replies: Sequence[Any]) -> bool:
    for reply in replies:  # noqa: SIM110 - a generator costs more than the loop
        if isinstance(reply, hiredis.ReplyError):
            return True
    return False


def _unknown_scripts(replies: Sequence[Any]) -> list[int]:
    return [
        at
        for at, reply in enumerate(replies)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")
    ]


def with_text(call: Call[Any]) -> Sequence[Part]:
    """The same call with the script's text in place of its hash: Redis knows it from then on."""
    assert call.script is not None
    parts = unpack(call.command) if isinstance(call.command, bytes) else call.command
    return ("EVAL", call.script, *parts[2:])


def values(calls: Sequence[Call[Any]], replies: Sequence[Any]) -> list[Any]:
    """What the replies mean to their calls.

    Raises:
        RedisUnavailable: Redis said that it can't serve.
        ReplyFault: it answered with any other error.
    """
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            if away := AWAY.search(text):
                kind = WrongServer if away[1] in ELSEWHERE else RedisFull if away[1] == "OOM" else RedisUnavailable
                raise kind(f"Redis can't serve now: {text}")
            raise ReplyFault(f"Redis answered: {text}")
    return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]
