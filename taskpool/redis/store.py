"""Runs calls and plans on Redis: `Store` blocks, `AsyncStore` awaits; what they run and what it means is the same.

What is decided here and nowhere else: what an error reply means, when a script's text is sent, and that only
calls marked `again` are repeated after a lost connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import hiredis

from taskpool.errors import RedisRefused, RedisUnavailable, TaskpoolError
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.calls import Call, Part, Plan
from taskpool.redis.connection import ConnectionsInUse, Wire, unpack
from taskpool.redis.replies import Meaning, meaning_of, unavailable

T = TypeVar("T")

REPLY_TIMEOUT_S: Final = 10.0


class Transport(Protocol):
    """What a store needs of a connection: send commands together, get raw replies (errors as values) in order."""

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same, awaited."""

    async def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]: ...
    def close(self) -> None: ...


class WrongServer(RedisRefused):
    """Raised when the server at the other end of this connection can't serve us; a new connection may find another."""


class ReplyFault(TaskpoolError):
    """Raised when a call fails although Redis serves: a damaged record, or a bug of ours.

    `at` is the place of that call among those that were sent together.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.at = 0
        self._before: Sequence[tuple[Call[Any], Any]] = ()

    @classmethod
    def of(cls, message: str, calls: Sequence[Call[Any]], replies: Sequence[Any], at: int) -> ReplyFault:
        """The fault of the call at `at`, the first one that failed."""
        fault = cls(message)
        fault.at = at
        fault._before = tuple(zip(calls[:at], replies[:at], strict=True))
        return fault

    def value(self, at: int) -> Any:
        """The value of a call before the one that failed: it was carried out."""
        call, reply = self._before[at]
        return call.read(reply)


class Store:
    """Runs calls that block, over one connection, or over a `transport`.

    Threads may share it if they may share its transport: `SharedWire` is made for that. Its own single connection, a
    `Wire`, is for one thread and one process.

    `on_retry` is called with the reason before calls are sent for the second time.

    Raises, from every method: RedisUnavailable.
    """

    def __init__(
        self,
        redis_url: str = "",
        *,
        name: str = "taskpool",
        transport: Transport | None = None,
        on_retry: Callable[[RedisUnavailable], None] = lambda error: None,
    ) -> None:
        self._transport = transport or Wire(Address.parse(redis_url), name=name)
        self._on_retry = on_retry

    def run(self, call: Call[T]) -> T:
        """The value of one call."""
        (value,) = self.run_many((call,))
        return value  # type: ignore[no-any-return]

    def run_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of several calls, sent together and carried out in order: one round trip."""
        timeout_s = _timeout_s(calls)
        try:
            replies = self._transport.exchange([call.command for call in calls], timeout_s)
        except ConnectionsInUse:
            raise
        except RedisUnavailable as error:
            if not all(call.again for call in calls):
                raise
            self._on_retry(error)
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
                calls = plan.send(await self.run_many(calls) if calls else await asyncio.sleep(0, []))
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
        RedisUnavailable: Redis answered one of them with an error that says that it can't serve.
        ReplyFault: one of the calls fails by itself (see `connection.replies`).
    """
    for at, reply in enumerate(replies):
        if isinstance(reply, hiredis.ReplyError):
            if calls[at].reads_faults and meaning_of(str(reply)) is Meaning.FAULT:
                continue
            raise _error_of(calls, replies, at)
    return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]


def _error_of(calls: Sequence[Call[Any]], replies: Sequence[Any], at: int) -> RedisUnavailable | ReplyFault:
    text = str(replies[at])
    meaning = meaning_of(text)
    if meaning is Meaning.FAULT:
        return ReplyFault.of(f"Redis answered: {text}", calls, replies, at)
    wrong = WrongServer(f"Redis can't serve now: {text}") if meaning is Meaning.WRONG_SERVER else None
    error = wrong or unavailable(text, meaning)
    if isinstance(error, RedisRefused):
        error.at = at
    return error
