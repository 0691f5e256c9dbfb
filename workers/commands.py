"""The supervisor's ears: RQ's commands and our stop messages for all its processes, and what is due soon, on one
connection.

A message lost while the connection was away costs only speed: heartbeats see the same requests on the record, and
housekeeping looks by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from hiredis import ReplyError

from taskpool import keys
from taskpool.connection.address import Address
from taskpool.connection.async_wire import AsyncWire
from taskpool.errors import RedisUnavailable

PING_S: Final = 10.0
REPLY_S: Final = 5.0


class CommandChannel:
    """Listens on each named worker's channel. `on_command` gets the worker's name and the command, `on_soon` in how
    many seconds a task is due."""

    def __init__(
        self,
        redis_url: str,
        on_command: Callable[[str, Mapping[str, Any]], None],
        on_soon: Callable[[float], None],
    ) -> None:
        self._on_command, self._on_soon = on_command, on_soon
        self.changed = asyncio.Event()
        self._wanted: frozenset[str] = frozenset()
        self._heard: frozenset[str] = frozenset()
        self._wire = AsyncWire(
            Address.parse(redis_url), name="taskpool-commands", on_push=self._push, on_lost=self._forget
        )

    def listen_to(self, names: frozenset[str]) -> None:
        """Sets the workers whose channels are heard."""
        self._wanted = frozenset([keys.SOON, *[keys.COMMANDS + name for name in names]])
        self.changed.set()

    async def step(self) -> float:
        """One round of the duty: subscribes to what is wanted and makes sure that Redis is there.

        Raises:
            RedisUnavailable: the connection is lost.
        """
        wanted = self._wanted
        changes = [("SUBSCRIBE", channel) for channel in wanted - self._heard]
        changes += [("UNSUBSCRIBE", channel) for channel in self._heard - wanted]
        # A half-open connection is silent for ever: the PING finds out.
        for reply in await self._wire.exchange([*changes, ("PING",)], REPLY_S):
            if isinstance(reply, ReplyError):
                raise RedisUnavailable(f"Redis refused to let us listen: {reply}")
        self._heard = wanted
        return PING_S

    def close(self) -> None:
        """Closes the connection."""
        self._wire.close()

    def _forget(self) -> None:
        self._heard = frozenset()
        self.changed.set()

    def _push(self, push: list[Any]) -> None:
        channel, data = push[1].decode(), push[2]
        if channel == keys.SOON:
            if data.isdigit():
                self._on_soon(min(int(data), keys.SOON_MS) / 1000)
            return
        try:
            command = msgspec.json.decode(data, type=dict[str, Any])
        except (ValueError, RecursionError):  # anybody may publish anything there
            return
        self._on_command(channel.removeprefix(keys.COMMANDS), command)
