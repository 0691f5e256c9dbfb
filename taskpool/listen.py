"""Waits for a task's events: a subscription that says when to look again. What is true is always read from the record.

Pub/sub alone loses messages, so nobody waits longer than `LOOK_AGAIN_S` without looking.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from taskpool import keys
from taskpool.async_wire import AsyncWire
from taskpool.errors import RedisUnavailable
from taskpool.wire import Address, Wire

LOOK_AGAIN_S: Final = 1.0
_ENDS: Final = (b'"status":"done"', b'"status":"failed"', b'"status":"stopped"', b'"status":"canceled"')


class Listener:
    """One blocking subscription to one task's channel; a context manager.

    Raises: RedisUnavailable.
    """

    def __init__(self, redis_url: str, id: str) -> None:
        self._wire = Wire(Address.parse(redis_url), name="taskpool-wait")
        self._channel = keys.CHANNEL + id

    def __enter__(self) -> Listener:
        self._wire.exchange([("SUBSCRIBE", self._channel)], LOOK_AGAIN_S * 5)
        return self

    def __exit__(self, *exc: object) -> None:
        self._wire.close()

    def wait_for_end(self, timeout_s: float) -> None:
        """Return when the task's end is told, or after `timeout_s`."""
        while (message := self._wire.next_reply(timeout_s)) is not None:
            if any(mark in message[2] for mark in _ENDS):
                return


class AsyncListener:
    """One subscription connection for all waiters of an event loop, opened when first used."""

    def __init__(self, redis_url: str) -> None:
        self._wire = AsyncWire(
            Address.parse(redis_url), name="taskpool-wait", on_push=self._told, on_lost=self._wake_all
        )
        self._waiters: dict[bytes, set[asyncio.Event]] = {}

    async def subscribe(self, id: str) -> asyncio.Event:
        """An event that is set when the task's end is told. Give it back with `unsubscribe`.

        Raises:
            RedisUnavailable
        """
        channel = (keys.CHANNEL + id).encode()
        told = asyncio.Event()
        waiters = self._waiters.setdefault(channel, set())
        waiters.add(told)
        try:
            # Also when others wait for it already: after a lost connection theirs is gone, and once more is harmless.
            await self._wire.exchange([("SUBSCRIBE", channel)], LOOK_AGAIN_S * 5)
        except RedisUnavailable:
            self._forget(channel, told)
            raise
        return told

    async def unsubscribe(self, id: str, told: asyncio.Event) -> None:
        """Stop listening; the last waiter of a task ends its subscription."""
        channel = (keys.CHANNEL + id).encode()
        self._forget(channel, told)
        if channel not in self._waiters:
            await self._wire.exchange([("UNSUBSCRIBE", channel)], LOOK_AGAIN_S * 5)

    def close(self) -> None:
        """Wake everyone who waits, and close the connection."""
        self._wake_all()
        self._wire.close()

    def _forget(self, channel: bytes, told: asyncio.Event) -> None:
        waiters = self._waiters.get(channel, set())
        waiters.discard(told)
        if not waiters:
            self._waiters.pop(channel, None)

    def _told(self, message: list[Any]) -> None:
        if any(mark in message[2] for mark in _ENDS):
            for told in self._waiters.get(message[1], ()):
                told.set()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for told in waiters:
                told.set()
