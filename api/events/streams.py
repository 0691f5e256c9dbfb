"""Every client of this process that follows events: how many there may be, and when they must end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

from taskpool.errors import RedisUnavailable
from taskpool.operations.status import Position
from taskpool.redis.replies import ReplyFault
from taskpool.settings import Settings

from ..auth.caller import Caller
from ..auth.gate import Gate
from ..auth.rate_limit import network
from ..http.problems import Problem, retry_after
from .client_queue import ClientQueue
from .hub import Hub, LogThrottle
from .metrics import Followers, StreamKind
from .subscriptions import Subscription, Wanted

T = TypeVar("T")

RETRY_AFTER_S: Final = 5
OPENED_AT_ONCE: Final = 2
"""Subscriptions of WebSockets that start at the same time in this process. Others wait in order, so that requests get
their turn, however many subscriptions arrive at once."""
LONGEST_PAUSE_S: Final = 0.05
"""After each of them, there is a pause as long as it took, up to this."""
MOST_SUBSCRIPTIONS_OF: Final = 10_000
"""Subscriptions of one key or address, over all its WebSockets. One event may concern all of them."""
CHECK_KEYS_S: Final = 20.0
"""How often the callers' keys are checked."""


async def until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run these until one of them ends, then cancel the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class TooManySubscriptions(Exception):
    """A key or an address has too many subscriptions."""


class Streams:
    """The queues of all clients that follow events, from `admit` to `release`."""

    def __init__(self, hub: Hub, gate: Gate, settings: Settings, *, check_keys_s: float = CHECK_KEYS_S) -> None:
        self.hub, self.gate = hub, gate
        self._most = settings.max_streams
        self._most_of = {"key": settings.max_streams_per_key, "address": settings.max_streams_per_address}
        self._check_keys_s = check_keys_s
        self._open: dict[ClientQueue, Caller] = {}
        self._open_of: Counter[tuple[str, str]] = Counter()
        self._subscribed: Counter[ClientQueue] = Counter()
        self._subscribed_of: Counter[tuple[str, str]] = Counter()
        self._turns = asyncio.Semaphore(OPENED_AT_ONCE)
        self._ended = False
        self._key_check: asyncio.Task[None] | None = None
        self._log = LogThrottle("keys of streams")

    def admit(self, caller: Caller, kind: StreamKind = "events") -> ClientQueue:
        """The queue of one more client. Raises: Problem (503: too many clients; 429: of this key or address)."""
        if len(self._open) >= self._most:
            detail = f"this process serves {self._most} streams already (TASKPOOL_MAX_STREAMS)"
            raise Problem("too-many-streams", detail, headers=[retry_after(RETRY_AFTER_S)])
        for by, name in _names(caller):
            if self._open_of[by, name] >= self._most_of[by] > 0:
                setting = f"TASKPOOL_MAX_STREAMS_PER_{by.upper()}"
                detail = f"this {by} has {self._most_of[by]} streams open at this process already ({setting})"
                raise Problem("rate-limited", detail, headers=[retry_after(RETRY_AFTER_S)])
        queue = ClientQueue(on_slow=self.hub.drop, on_room=self.hub.go_on, kind=kind)
        if self._ended:
            queue.end("shutdown")
        self._open[queue] = caller
        self._open_of.update(_names(caller))
        if self._key_check is None or self._key_check.done():
            self._key_check = asyncio.create_task(self._check_keys())
        return queue

    def release(self, queue: ClientQueue, *subscriptions: Subscription) -> None:
        """The client has left."""
        caller = self._open.pop(queue, None)
        if caller is not None:
            for name in _names(caller):
                _add(self._open_of, name, -1)
            self._count(queue, caller, -self._subscribed[queue])
        for subscription in subscriptions:
            self.hub.close(subscription)

    async def subscribe(self, wanted: Wanted, queue: ClientQueue, *, name: str, after: Position | None) -> Subscription:
        """Start one more subscription of a WebSocket, in turn. Raises: TooManySubscriptions, or as `Hub.open`."""
        caller = self._open[queue]
        for kind, whose in _names(caller):
            if self._subscribed_of[kind, whose] >= MOST_SUBSCRIPTIONS_OF:
                raise TooManySubscriptions(f"this {kind} has {MOST_SUBSCRIPTIONS_OF:,} subscriptions already")
        self._count(queue, caller, 1)
        try:
            await self._turns.acquire()
            loop = asyncio.get_running_loop()
            began_mono = loop.time()
            try:
                return await self.hub.open(wanted, queue, name=name, after=after)
            finally:  # return at once, so that the first messages are sent; the turn ends later
                loop.call_later(min(loop.time() - began_mono, LONGEST_PAUSE_S), self._turns.release)
        except BaseException:
            self._count(queue, caller, -1)
            raise

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription that `subscribe` started."""
        self.hub.close(subscription)
        self._count(subscription.queue, self._open[subscription.queue], -1)

    def _count(self, queue: ClientQueue, caller: Caller, more: int) -> None:
        _add(self._subscribed, queue, more)
        for name in _names(caller):
            _add(self._subscribed_of, name, more)

    def followers(self) -> Followers:
        """What `/metrics` shows of all clients of this process."""
        return self.hub.metrics.now(queue.kind for queue in self._open)

    def end(self) -> None:
        """The server stops: end all streams, and later ones at once."""
        self._ended = True
        for queue in self._open:
            queue.end("shutdown")

    def close(self) -> None:
        """Stop working."""
        self.end()
        self.hub.end()
        if self._key_check is not None:
            self._key_check.cancel()

    async def _check_keys(self) -> None:
        """End streams whose callers would be refused now, as long as there are streams."""
        while self._open:
            await asyncio.sleep(self._check_keys_s)
            for caller in set(self._open.values()):
                try:
                    admitted = await self.gate.still_admits(caller)
                except (RedisUnavailable, ReplyFault):  # no events arrive either
                    continue
                except Exception as error:  # no code awaits this task: continue with the other callers
                    self._log.log(error)
                    continue
                if not admitted:
                    for queue in [queue for queue, whose in self._open.items() if whose == caller]:
                        queue.end("revoked", at_once=True)


def _names(caller: Caller) -> Iterator[tuple[str, str]]:
    """The limits that the streams of a caller count for."""
    if caller.key is not None:
        yield "key", caller.key
    if caller.address:
        yield "address", network(caller.address)


def _add(counts: Counter[T], name: T, more: int) -> None:
    """Add to a count, and remove it at zero."""
    counts[name] += more
    if not counts[name]:
        del counts[name]
