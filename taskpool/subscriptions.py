"""The one subscribed connection of an event loop: who listens to which channel, and who is told when it is lost.

It speaks RESP 3, where messages and replies share a connection in the order in which Redis made them: what was asked
behind a subscription is answered after every message that came before. A lost connection isn't restored by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from taskpool import keys
from taskpool.calls import Call
from taskpool.connection.address import Address
from taskpool.connection.async_wire import AsyncWire
from taskpool.errors import RedisUnavailable
from taskpool.store import ReplyFault, WrongServer, values

Heard = Callable[[bytes], None]

REPLY_TIMEOUT_S: Final = 5.0


class Subscriptions:
    """Opened when first used. Raises, from every method that awaits: RedisUnavailable."""

    def __init__(self, redis_url: str) -> None:
        self._wire = AsyncWire(
            Address.parse(redis_url), name="taskpool-wait", on_push=self._pushed, on_lost=self._lost, protocol=3
        )
        self._heard: dict[bytes, set[Heard]] = {}
        self._when_lost: list[Callable[[], None]] = []

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Call `tell` whenever the connection was lost or closed: from then on nothing is heard."""
        self._when_lost.append(tell)

    async def listen(self, heard: Heard, channels: Collection[str]) -> None:
        """Give `heard` every message of these channels (`keys.FIREHOSE`: of all tasks); it is heard once this returns.

        Whoever listens is registered even if this raises; `ignore` ends that.
        """
        names = [channel.encode() for channel in channels]
        for name in names:
            self._heard.setdefault(name, set()).add(heard)
        # Also what others listen to already: after a lost connection theirs is gone, and once more is harmless.
        commands = [("PSUBSCRIBE" if name == _FIREHOSE else "SUBSCRIBE", name) for name in names]
        self._refuse(await self._wire.exchange(commands, REPLY_TIMEOUT_S))

    async def ignore(self, heard: Heard, channels: Collection[str]) -> None:
        """No longer give `heard` the messages of these channels; the last who listens to one ends its subscription."""
        names = [channel.encode() for channel in channels]
        for name in names:
            self.forget(heard, name)
        unheard = [name for name in names if name not in self._heard]
        commands = [("PUNSUBSCRIBE" if name == _FIREHOSE else "UNSUBSCRIBE", name) for name in unheard]
        if commands:
            await self._wire.exchange(commands, REPLY_TIMEOUT_S)

    def forget(self, heard: Heard, name: bytes) -> None:
        """As `ignore`, when the connection is gone anyway."""
        listeners = self._heard.get(name, set())
        listeners.discard(heard)
        if not listeners:
            self._heard.pop(name, None)

    async def read_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The values of calls, in one round trip. By then every message that Redis sent before it was heard."""
        replies = await self._wire.exchange([call.command for call in calls], REPLY_TIMEOUT_S)
        try:
            return values(calls, replies)
        except WrongServer:
            self._wire.close()
            raise

    def close(self) -> None:
        """Close the connection, and tell everyone; the next call opens a new one."""
        self._wire.close()
        self._lost()  # also those who wait without a connection

    def end(self) -> None:
        """As `close`, for good."""
        self._wire.end()
        self._lost()

    def abandon(self) -> None:
        """Let go of the socket when its loop is closed or belongs to the parent process. Nothing is sent."""
        self._wire.abandon()

    def _refuse(self, replies: list[Any]) -> None:
        """Raise for an error in the place of a subscription: Redis can't serve, or doesn't let us."""
        try:
            values([_SUBSCRIBED] * len(replies), replies)
        except RedisUnavailable:
            self._wire.close()
            raise
        except ReplyFault as fault:
            self._wire.close()
            raise RedisUnavailable(str(fault)) from fault

    def _pushed(self, message: list[Any]) -> None:
        # ["message", channel, text] or ["pmessage", pattern, channel, text]
        for heard in tuple(self._heard.get(message[1], ())):
            heard(message[-1])

    def _lost(self) -> None:
        for tell in self._when_lost:
            tell()


_FIREHOSE: Final = keys.FIREHOSE.encode()
_SUBSCRIBED: Final[Call[Any]] = Call((), lambda reply: reply)
