"""The supervisor's standing duties: each a coroutine repeated for ever, whatever Redis does.

A duty whose Redis is away waits and goes on by itself. The log says once that Redis went and once that it is back.

The supervisor's ears: RQ's commands and our stop messages for all its processes, and what is due soon, on one
connection.

A message lost while the connection was away costs only speed: heartbeats see the same requests on the record, and
housekeeping looks by itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from hiredis import ReplyError

from taskpool.errors import RedisFull, RedisUnavailable
from taskpool.redis import keys
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.replies import ReplyFault

log = logging.getLogger("workers")

AWAY_RETRY_S = 0.5
FAULT_RETRY_S = 5.0
FAULT_TRIES = 5
FULL_TOLD_S = 60.0
MOST_REASONS = 5
"""An outage has that many reasons in the log: a lost connection comes first, and why there is no new one after it."""


class Outage:
    """Whether Redis is away, as far as the supervisor's duties see it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._failing: set[object] = set()
        self.back_at: float | None = None
        """When (monotonic) Redis last came back; None while it never was away."""
        self._told_full: float | None = None
        self._reasons: set[str] = set()

    def is_over_for(self, seconds: float) -> bool:
        """Whether Redis is there, and has been for so long since it last was away."""
        return self.over_for_s() > seconds

    def over_for_s(self) -> float:
        """For how many seconds Redis has been there since it last was away: 0 while it is away, infinite if it never
        was."""
        if self._since is not None:
            return 0.0
        return math.inf if self.back_at is None else time.monotonic() - self.back_at

    def note_failure(self, error: RedisUnavailable, who: object = None) -> None:
        """Called for each failed round trip; logs the first one, and each further reason once. A full Redis is there,
        but it's said once a minute."""
        now = time.monotonic()
        if isinstance(error, RedisFull):
            self.note_success(who)
            if self._told_full is None or now - self._told_full >= FULL_TOLD_S:
                self._told_full = now
                log.warning("%s; what runs goes on", error)
            return
        self._failing.add(who)
        if self._since is None:
            self._since, self._reasons = now, {str(error)}
            log.warning("Redis is away: %s; waiting for it to come back", error)
        elif str(error) not in self._reasons and len(self._reasons) < MOST_REASONS:
            self._reasons.add(str(error))
            log.warning("Redis is still away: %s", error)

    def note_success(self, who: object = None) -> None:
        """Called for each round trip that worked; logs that Redis is back when it was, and nobody fails any more.

        Others may succeed all the time: a replica lets itself be read.
        """
        self._failing.discard(who)
        if self._since is not None and not self._failing:
            self.back_at = time.monotonic()
            log.warning("Redis is back after %.1f s", self.back_at - self._since)
            self._since = None


async def repeat(
    name: str,
    step: Callable[[], Awaitable[float]],
    *,
    outage: Outage | None = None,
    wake: asyncio.Event | None = None,
) -> None:
    """Calls `step` for ever; it returns the seconds to wait until the next call, which `wake` cuts short.

    With an `outage` the step uses Redis, and its return says that Redis was there just now: it doesn't wait itself.
    This is a duty's outermost loop: a fault of ours is logged with its trace and the duty goes on.
    """
    while True:
        if wake is not None:
            wake.clear()
        try:
            wait_s = await step()
            if outage is not None:
                outage.note_success(name)
        except RedisUnavailable as error:
            if outage is not None:
                outage.note_failure(error, name)
            await asyncio.sleep(AWAY_RETRY_S)
            continue
        except Exception:
            log.exception("%s failed; it is tried again in %g s", name, FAULT_RETRY_S)
            await asyncio.sleep(FAULT_RETRY_S)
            continue
        await (asyncio.sleep(wait_s) if wake is None else _first_of(wake, wait_s))


async def _first_of(wake: asyncio.Event, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await wake.wait()
    except TimeoutError:
        pass


async def insist(step: Callable[[], Awaitable[None]], outage: Outage) -> None:
    """Calls `step` until it gets through to Redis. A step that fails although Redis serves is tried `FAULT_TRIES` times
    and then given up, with a log line."""
    faults = 0
    while True:
        try:
            await step()
            outage.note_success(step)
            return
        except RedisUnavailable as error:
            outage.note_failure(error, step)
            await asyncio.sleep(AWAY_RETRY_S)
        except ReplyFault as fault:
            outage.note_success(step)
            faults += 1
            if faults == FAULT_TRIES:
                log.error("given up after %d tries: %s", faults, fault)
                return
            log.error("%s; it is tried again in %g s", fault, FAULT_RETRY_S)
            await asyncio.sleep(FAULT_RETRY_S)


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
