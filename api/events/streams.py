"""The streams of events this process serves: how many, that they end with it, and that they end with their key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Final, TypeVar

from starlette.types import Scope

from taskpool.errors import RedisUnavailable
from taskpool.operations.status import Position
from taskpool.redis.replies import ReplyFault
from taskpool.settings import Settings

from ..auth.caller import Caller
from ..auth.gate import Gate
from ..auth.rate_limit import network
from ..http.problems import Problem, retry_after
from .client_queue import Outlet
from .hub import Hub
from .subscriptions import Mishaps, Subscription, Wanted

T = TypeVar("T")

RETRY_AFTER_S: Final = 5
OPENED_AT_ONCE: Final = 2
"""Subscriptions that WebSockets begin at the same time in this process. The rest waits, first come, first served: so
other requests get their turn, however many subscriptions come at once."""
LONGEST_REST_S: Final = 0.05
"""Behind each of them there is a rest as long as it took, but no longer than this."""
MOST_SUBSCRIPTIONS_OF: Final = 10_000
"""Subscriptions of one key or address, over all its WebSockets: an event may have to be told to each."""
LOOK_AT_KEYS_S: Final = 20.0
"""How often it is asked whether the callers' keys are still good."""


class TooManySubscriptions(Exception):
    """Raised for a subscription too many of a key or an address; the text says so."""


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
        self._subscribed: Counter[Outlet] = Counter()
        self._subscribed_of: Counter[tuple[str, str]] = Counter()
        self._turns = asyncio.Semaphore(OPENED_AT_ONCE)
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
                _add(self._open_of, name, -1)
            self._count(outlet, caller, -self._subscribed[outlet])
        for subscription in subscriptions:
            self.hub.close(subscription)

    async def charge(self, scope: Scope) -> None:
        """Count a message of a client. Raises Problem: 429; RedisUnavailable."""
        await self._gate.charge(scope)

    async def subscribe(self, wanted: Wanted, outlet: Outlet, *, name: str, after: Position | None) -> Subscription:
        """One more subscription of a client that may have many, once it is its turn.

        Raises:
            TooManySubscriptions
            TaskNotFound, RedisUnavailable: as `Hub.open`.
        """
        caller = self._open[outlet]
        for kind, whose in _names(caller):
            if self._subscribed_of[kind, whose] >= MOST_SUBSCRIPTIONS_OF:
                raise TooManySubscriptions(f"this {kind} has {MOST_SUBSCRIPTIONS_OF:,} subscriptions already")
        self._count(outlet, caller, 1)
        try:
            await self._turns.acquire()
            loop = asyncio.get_running_loop()
            began_mono = loop.time()
            try:
                return await self.hub.open(wanted, outlet, name=name, after=after)
            finally:  # the turn ends later; this returns at once, so that the first messages can be sent
                loop.call_later(min(loop.time() - began_mono, LONGEST_REST_S), self._turns.release)
        except BaseException:
            if outlet in self._open:
                self._count(outlet, caller, -1)
            raise

    def unsubscribe(self, subscription: Subscription) -> None:
        """One that `subscribe` made has ended."""
        self.hub.close(subscription)
        if (caller := self._open.get(subscription.outlet)) is not None:
            self._count(subscription.outlet, caller, -1)

    def _count(self, outlet: Outlet, caller: Caller, more: int) -> None:
        _add(self._subscribed, outlet, more)
        for name in _names(caller):
            _add(self._subscribed_of, name, more)

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


def _add(counts: Counter[T], name: T, more: int) -> None:
    """Count, and forget what counts for nothing."""
    counts[name] += more
    if not counts[name]:
        del counts[name]
