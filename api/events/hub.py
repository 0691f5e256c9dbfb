"""Which of the followed tasks are looked at next: a record that somebody deletes by hand tells nobody of it.

Events from Redis to every client of this process, over one subscribed connection.

A subscription begins *behind*, at a position of the stream of events. The hub subscribes to its channel, reads from the
stream what came since, and from then on it is *live*: told what is published. When the connection is lost, all that are
live are behind again, at the last position up to which all was heard. So nobody misses an event or gets one twice;
who was away for longer than the stream reaches back is told so.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import TaskNotFound
from taskpool.operations.status import (
    START,
    Position,
    events_after,
    holds,
    is_there,
    newest,
    oldest,
    reaches_back,
    read_event,
)

from .client_queue import Gone, Live, Outlet, Step
from .subscriptions import (
    RETRY_S,
    Arriving,
    AttributeCache,
    Mishaps,
    Restarts,
    Subscribers,
    Subscription,
    Wanted,
    channel,
    take_snapshot,
)

LOOK_S: Final = 2.0
"""How long at least lies between two looks, however often the hub could make one."""
MOST_AT_ONCE: Final = 1000


class Rota:
    """Each task in its turn, `most` at a time, so that a look costs little however many are followed."""

    def __init__(self, tasks: Callable[[], list[str]], most: int = MOST_AT_ONCE) -> None:
        self._tasks, self._most = tasks, most
        self._waiting: list[str] = []
        self._looked_mono = -math.inf

    def take(self) -> list[str]:
        """Those whose turn it is; none, if it is too early."""
        now_mono = time.monotonic()
        if now_mono < self._looked_mono + LOOK_S:
            return []
        self._looked_mono = now_mono
        self._waiting = self._waiting or self._tasks()
        ids = self._waiting[-self._most :]
        del self._waiting[-self._most :]
        return ids


MARK_S: Final = 3.0
"""How often the hub looks how far the stream is, and which followed tasks are gone: that far nothing needs to be read
again after a cut, and a connection that no longer answers is found out."""
CHUNK: Final = 500


class Hub:
    """The subscriptions of this process's clients. `open` starts one, `close` ends it."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool, self._store, self._connection = pool, pool.store, pool.subscriptions
        self._connection.when_lost(self._lost)
        self._attributes = AttributeCache(pool.store)
        self._all = Subscribers()
        self._rota = Rota(self._all.tasks)
        self._behind: set[Subscription] = set()
        self._channels: set[str] = set()
        self._cuts = 0
        self._horizon = START
        self._arriving = Arriving(self._attributes, self._spread, too_many=self._lost, failed=self._failed)
        self._reading = False
        self._since_read: list[Step] = []
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._mishaps = Mishaps("events")
        self._restarts = Restarts(pool, self._mishaps, go_on=self._follow, end=self._end)

    async def open(self, wanted: Wanted, outlet: Outlet, *, name: str = "", after: Position | None) -> Subscription:
        """Tell `outlet` of what is wanted: how it stands now and what follows, or with `after` what came since then.

        Raises:
            TaskNotFound: there is no such task, or none that the caller may see.
            RedisUnavailable
        """
        subscription = Subscription(wanted, outlet, name)
        await self.check(wanted)
        if after is None:
            await take_snapshot(self._pool, subscription)
        else:
            subscription.after = subscription.sent = after
        self._all.add(subscription)
        self._follow(subscription)
        return subscription

    async def check(self, wanted: Wanted) -> None:
        """Return if the task that is wanted exists for the caller.

        Raises:
            TaskNotFound
            RedisUnavailable
        """
        if wanted.task is not None:
            attributes = await self._attributes.of(wanted.task)
            if attributes is None or not wanted.sees(attributes.project):
                raise TaskNotFound(wanted.task)

    def close(self, subscription: Subscription) -> None:
        """Tell it nothing more."""
        subscription.closed, subscription.live = True, False
        self._behind.discard(subscription)
        self._all.discard(subscription)
        self._wake.set()

    def go_on(self) -> None:
        """A client has room again for what it missed."""
        self._wake.set()

    def end(self) -> None:
        """Stop working; the connection is the pool's to close."""
        self._arriving.clear()
        self._restarts.cancel()
        if self._worker is not None:
            self._worker.cancel()

    # --- the connection: one task subscribes, catches up, looks how far the stream is -----------------------------

    def _follow(self, subscription: Subscription) -> None:
        """Go on with one who is behind."""
        self._behind.add(subscription)
        self._wake.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._listen()
                if not self._all:
                    return  # `open` starts the next one
                if ready := self._ready():
                    self._reading = True
                    await self._catch_up(ready)
                if not self._ready() and not self._wake.is_set():
                    await self._mark()
            except Exception as error:  # the outermost loop of all that is told: without it nobody hears of anything
                self._failed(error)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._reading = False
            self._mishaps.over()
            if not self._ready():
                with suppress(TimeoutError):
                    async with asyncio.timeout(MARK_S):  # `wait_for` may swallow the end of this task (Python 3.11)
                        await self._wake.wait()

    def _ready(self) -> set[Subscription]:
        """Those who are behind, whose channels are listened to, and whose clients have room for what they missed."""
        return {each for each in self._behind if channel(each.wanted) in self._channels and each.outlet.has_room}

    async def _listen(self) -> None:
        touched, self._all.touched = self._all.touched, set()
        try:
            if gone := {each for each in touched & self._channels if not self._all.wants(each)}:
                self._channels -= gone
                await self._connection.ignore(self._hear, gone)
            if new := {each for each in touched - self._channels if self._all.wants(each)}:
                cuts = self._cuts
                await self._connection.listen(self._hear, new)
                if cuts == self._cuts:
                    self._channels |= new
        except BaseException:
            self._all.touched |= touched
            raise

    def _failed(self, error: Exception) -> None:
        """Something went wrong: whoever may not have been told all is told the rest from the stream."""
        self._mishaps.note(error)
        self._lost()

    def _lost(self) -> None:
        """Nothing is heard any more: what was live is behind from the last position up to which all was heard."""
        self._cuts += 1
        for name in self._channels:
            self._connection.forget(self._hear, name.encode())
        self._channels.clear()
        self._all.touch_all()
        self._arriving.clear()
        for subscription in self._all:
            if subscription.live:
                subscription.live = False
                subscription.after = max(subscription.after, self._horizon)
                self._behind.add(subscription)
        self._horizon = START  # the next Redis may be another one, whose clock is behind
        self._wake.set()

    async def _mark(self) -> None:
        """What the stream holds up to now was heard: Redis answers behind its messages. So was what the tasks had to
        tell that are gone by now."""
        cuts, ids = self._cuts, self._rota.take()
        end, *found = await self._connection.read_many([newest(), *map(is_there, ids)])
        if cuts == self._cuts and not self._arriving:
            self._horizon = max(self._horizon, end)
            for id, is_found in zip(ids, found, strict=True):
                if not is_found:
                    for subscription in self._all.live_to(id):
                        self._end(subscription)

    def _end(self, subscription: Subscription) -> None:
        """Its task is gone: nothing more will come."""
        subscription.outlet.put(Gone(subscription))
        self.close(subscription)

    # --- behind: from the stream ----------------------------------------------------------------------------------

    async def _catch_up(self, behind: set[Subscription]) -> None:
        """Bring those who are ready up to now, in one pass over the stream. Who has no room left drops out of it."""
        cuts = self._cuts
        if places := list({each.after for each in behind} - {START}):
            found = await self._store.run_many([holds(place) for place in places])
            gone = {place for place, is_there in zip(places, found, strict=True) if not is_there}
        else:
            gone = set()
        for subscription in [each for each in behind if each.after in gone]:
            behind.discard(subscription)
            self._start_over(subscription)
        position = min((subscription.after for subscription in behind), default=START)
        while behind:
            # Whoever heard of it before the next read finds it in there; what is heard from here on is told below.
            self._since_read.clear()
            chunk, first = await self._store.run_many([events_after(position, CHUNK), oldest()])
            if chunk.end > position and not reaches_back(first, position):  # trimmed faster than read
                for subscription in behind:
                    self._start_over(subscription)
                return
            await self._tell(behind, [Step(event) for event in chunk.events], position)
            position = chunk.end
            if chunk.is_last:
                break
        for subscription in behind:
            subscription.after = max(subscription.after, position)
            if cuts == self._cuts and subscription in self._behind:
                subscription.outlet.put(Live(subscription))
                subscription.tell(self._since_read, bounded=True)  # if that fails it still is behind
                self._behind.discard(subscription)
                subscription.live = not subscription.closed

    async def _tell(self, behind: set[Subscription], steps: Sequence[Step], since: Position) -> None:
        if any(subscription.wanted.task is None for subscription in behind):
            await self._attributes.resolve(steps)
        by_task: defaultdict[str, list[Step]] = defaultdict(list)
        for step in steps:
            by_task[step.event.id].append(step)
        for subscription in tuple(behind):
            task = subscription.wanted.task
            if subscription.outlet.has_room:
                subscription.tell(steps if task is None else by_task.get(task, ()), bounded=False)
            else:
                subscription.after = max(subscription.after, since)
                behind.discard(subscription)

    def _start_over(self, subscription: Subscription) -> None:
        """The stream no longer has all that it missed: tell it so, and how things stand."""
        self._behind.discard(subscription)
        self._restarts.start(subscription)

    # --- live: from the channels ----------------------------------------------------------------------------------

    def _hear(self, message: bytes) -> None:
        try:
            event = read_event(message)
            if not event.stream:  # told again, by hand
                return
            step = Step(event)
        except (KeyError, ValueError):  # another release's; the stream is read without it, too
            return
        except msgspec.DecodeError:  # the stream says what it was, if it was an event
            self._lost()
            return
        try:
            self._arriving.take(step, by_attributes=self._all.are_to_more)
        except Exception as error:  # raised to whoever reads the connection, it would end that for all who share it
            self._failed(error)

    def _spread(self, step: Step) -> None:
        if step.at <= self._horizon:  # heard on a task's channel and on the firehose, or told again by hand
            return
        if self._reading:
            self._since_read.append(step)
        for subscription in self._all.live_for(step):
            subscription.tell((step,), bounded=True)
        self._horizon = step.at  # everyone was told
