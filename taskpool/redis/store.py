# Generated from taskpool/redis/async_store.py by scripts/generate. Don't edit this file.
"""Runs calls and plans on Redis, for programs that block.

The store decides when calls are sent again: a script that Redis doesn't know with its text, and calls that are all
marked `again` once more after a lost connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from taskpool.errors import RedisUnavailable
from taskpool.lifecycle import ConnectionsInUse
from taskpool.redis.address import Address
from taskpool.redis.calls import Call, Part, Plan
from taskpool.redis.connection import Wire
from taskpool.redis.replies import WrongServer, has_errors, timeout_of, unknown_scripts, values, with_text

T = TypeVar("T")


class Transport(Protocol):
    """A connection, or several: sends commands together, and returns their raw replies (errors as values) in order."""

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]: ...
    def close(self) -> None: ...


class Store:
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
        timeout_s = timeout_of(calls)
        try:
            replies = self._transport.exchange([call.command for call in calls], timeout_s)
        except RedisUnavailable as error:
            if isinstance(error, ConnectionsInUse) or not all(call.again for call in calls):
                raise
            self._on_retry(error)
            replies = self._transport.exchange([call.command for call in calls], timeout_s)
        if not has_errors(replies):
            return [call.read(reply) for call, reply in zip(calls, replies, strict=True)]
        for at in unknown_scripts(replies):
            (replies[at],) = self._transport.exchange([with_text(calls[at])], timeout_s)
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
                found: list[Any] = []
                try:
                    if calls:
                        found = self.run_many(calls)
                    else:
                        time.sleep(0)
                except Exception as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(found)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._transport.close()
