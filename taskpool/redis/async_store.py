"""Runs calls and plans on Redis, for programs that await.

The store decides when calls are sent again: a script that Redis doesn't know with its text, and calls that are all
marked `again` once more after a lost connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from taskpool.errors import RedisUnavailable
from taskpool.lifecycle import ConnectionsInUse
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.calls import Call, Part, Plan
from taskpool.redis.replies import WrongServer, has_errors, timeout_of, unknown_scripts, values, with_text

T = TypeVar("T")


class AsyncTransport(Protocol):
    """A connection, or several: sends commands together, and returns their raw replies (errors as values) in order."""

    async def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]: ...
    def close(self) -> None: ...


class AsyncStore:
    """Runs calls over a `transport`; without one, over a single connection of its own.

    Callers can share a store if they can share its transport. `on_retry` is called with the reason before calls are
    sent for the second time.

    Raises, from every method: RedisUnavailable.
    """

    def __init__(
        self,
        redis_url: str = "",
        *,
        name: str = "taskpool",
        transport: AsyncTransport | None = None,
        on_retry: Callable[[RedisUnavailable], None] = lambda error: None,
    ) -> None:
        self._transport = transport or AsyncWire(Address.parse(redis_url), name=name)
        self._on_retry = on_retry

    async def run(self, call: Call[T]) -> T:
        """The value of one call."""
        (value,) = await self.run_many((call,))
        return value  # type: ignore[no-any-return]

    async def run_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of several calls, sent together and carried out in order: one round trip."""
        timeout_s = timeout_of(calls)
        try:
            replies = await self._transport.exchange([call.command for call in calls], timeout_s)
        except RedisUnavailable as error:
            if isinstance(error, ConnectionsInUse) or not all(call.again for call in calls):
                raise
            self._on_retry(error)
            replies = await self._transport.exchange([call.command for call in calls], timeout_s)
        if not has_errors(replies):
            return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]
        for at in unknown_scripts(replies):
            (replies[at],) = await self._transport.exchange([with_text(calls[at])], timeout_s)
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
                found: list[Any] = []
                try:
                    if calls:
                        found = await self.run_many(calls)
                    else:
                        await asyncio.sleep(0)
                except Exception as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(found)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._transport.close()
