"""The streams of events this process serves: how many, that they end with it, and that they end with their key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Final

from api.access.addresses import network
from api.access.caller import Caller
from api.access.gate import Gate
from api.events.hub import Hub
from api.events.mishaps import Mishaps
from api.events.outlet import Outlet
from api.events.subscription import Subscription
from api.problems import Problem, retry_after
from taskpool.errors import RedisUnavailable
from taskpool.settings import Settings
from taskpool.store import ReplyFault

RETRY_AFTER_S: Final = 5
LOOK_AT_KEYS_S: Final = 20.0
"""How often it is asked whether the callers' keys are still good."""


class Streams:
    """Every client that is told of events has a place here, from `admit` to `release`."""

    def __init__(self, hub: Hub, gate: Gate, settings: Settings, *, look_at_keys_s: float = LOOK_AT_KEYS_S) -> None:
        self.hub = hub
        self._gate = gate
        self._most = settings.max_streams
        self._most_of = {"key": settings.max_streams_per_key, "address": settings.max_streams_per_address}
        self._look_at_keys_s = look_at_keys_s
        self._open: dict[Outlet, Caller] = {}
        self._open_of: Counter[tuple[str, str]] = Counter()
        self._ended = False
        self._guard: asyncio.Task[None] | None = None
        self._mishaps = Mishaps("keys of streams")

    def admit(self, caller: Caller) -> Outlet:
        """A place for one more client.

        Raises:
            Problem: 503, there are as many as there may be; 429, as many with this key or from this address.
        """
        if len(self._open) >= self._most:
            detail = f"this process serves {self._most} streams already (TASKPOOL_MAX_STREAMS)"
            raise Problem("too-many-streams", detail, headers=[retry_after(RETRY_AFTER_S)])
        for kind, name in _names(caller):
            if self._open_of[kind, name] >= self._most_of[kind] > 0:
                setting = f"TASKPOOL_MAX_STREAMS_PER_{kind.upper()}"
                detail = f"this {kind} has {self._most_of[kind]} streams open at this process already ({setting})"
                raise Problem("rate-limited", detail, headers=[retry_after(RETRY_AFTER_S)])
        outlet = Outlet(on_slow=self.hub.close, on_room=self.hub.go_on)
        if self._ended:
            outlet.end("shutdown")
        self._open[outlet] = caller
        self._open_of.update(_names(caller))
        if self._guard is None or self._guard.done():
            self._guard = asyncio.create_task(self._look_at_keys())
        return outlet

    def release(self, outlet: Outlet, *subscriptions: Subscription) -> None:
        """This client has left."""
        caller = self._open.pop(outlet, None)
        if caller is not None:
            for name in _names(caller):
                self._open_of[name] -= 1
                if not self._open_of[name]:
                    del self._open_of[name]
        for subscription in subscriptions:
            self.hub.close(subscription)

    def end(self) -> None:
        """End all streams, and every later one at once: the server stops."""
        self._ended = True
        for outlet in self._open:
            outlet.end("shutdown")

    def close(self) -> None:
        """Stop working."""
        self.end()
        self.hub.end()
        if self._guard is not None:
            self._guard.cancel()

    async def _look_at_keys(self) -> None:
        """End the streams of those who wouldn't be let in any more, as long as there are streams."""
        while self._open:
            await asyncio.sleep(self._look_at_keys_s)
            for caller in set(self._open.values()):
                try:
                    admitted = await self._gate.still_admits(caller)
                except (RedisUnavailable, ReplyFault):  # nothing is told either
                    continue
                except Exception as error:  # nobody awaits this: the others are asked for all the same
                    self._mishaps.note(error)
                    continue
                if not admitted:
                    for outlet in [outlet for outlet, whose in self._open.items() if whose == caller]:
                        outlet.end("revoked", at_once=True)


def _names(caller: Caller) -> Iterator[tuple[str, str]]:
    """What the streams of a caller count for."""
    if caller.key_id is not None:
        yield "key", caller.key_id
    if caller.address:
        yield "address", network(caller.address)
