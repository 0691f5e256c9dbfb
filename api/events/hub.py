"""Events from Redis to all clients of this process, over one connection.

A subscription starts *behind*, at a position in the stream of events. The hub subscribes to its channel, reads the
events since then from the stream, and from then on the subscription is *live*: it gets events as they are published.
When the connection is lost, every live subscription is behind again, at the position up to which all events had
arrived. So no event is missed or sent twice. If the stream doesn't reach back to a position, the client learns that
events were lost, and gets the present state.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import RedisUnavailable, TaskNotFound, WorkflowNotFound
from taskpool.operations.flow.workflows import fetch_workflow, workflow_is_there
from taskpool.operations.status import (
    START,
    Position,
    events_after,
    holds,
    is_there,
    moved_task,
    newest,
    oldest,
    reaches_back,
    read_event,
)
from taskpool.redis import keys
from taskpool.redis.calls import Call, redis_ms
from taskpool.redis.replies import ReplyFault

from .client_queue import ClientQueue, Gone, Live, Resync, Step
from .metrics import EventMetrics
from .subscriptions import AttributeCache, Subscribers, Subscription, Wanted, take_snapshot

logger = logging.getLogger("api")

RETRY_S: Final = 0.5
"""The pause before the next attempt after a failure."""
MARK_S: Final = 3.0
"""How often the hub reads the newest position of the stream, and looks whether followed tasks still exist. After a lost
connection, it reads the stream from there. This also detects a connection that no longer answers."""
CHUNK: Final = 500
"""Events in one read of the stream."""
MOST_ARRIVING: Final = 20_000
"""Events that may wait for their tasks' attributes."""
LOG_AGAIN_S: Final = 60.0
"""How often the same kind of bug is logged."""
CHECK_S: Final = 2.0
"""The shortest time between two checks whether tasks exist."""
MOST_CHECKED: Final = 1000
"""Tasks in one check."""


class LogThrottle:
    """Logs the failures of a loop that continues: an unavailable Redis once until `recovered`, each kind of bug once a
    minute. `name` is the name of the loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._silent_until_mono: dict[type[Exception], float] = {}

    def log(self, error: Exception) -> None:
        """Log a failure, unless the same one was logged lately."""
        kind, now_mono = type(error), time.monotonic()
        if now_mono < self._silent_until_mono.get(kind, -math.inf):
            return
        if isinstance(error, RedisUnavailable | ReplyFault):
            self._silent_until_mono[kind] = math.inf
            logger.warning("%s: %s; trying again", self._name, error)
        else:
            self._silent_until_mono[kind] = now_mono + LOG_AGAIN_S
            logger.error("%s: a bug; trying again", self._name, exc_info=error)

    def recovered(self) -> None:
        """Redis answers again."""
        times = self._silent_until_mono
        self._silent_until_mono = {kind: until_mono for kind, until_mono in times.items() if until_mono < math.inf}


class RoundRobin:
    """The followed tasks in turn, at most `most` in each check, so that a check costs little however many there are.

    A task's record that was deleted by hand publishes no event, so that only a check detects it."""

    def __init__(self, tasks: Callable[[], list[str]], most: int = MOST_CHECKED) -> None:
        self._tasks, self._most = tasks, most
        self._left: list[str] = []
        self._checked_mono = -math.inf

    def take(self) -> list[str]:
        """The tasks to check now; none if the last check was less than CHECK_S ago."""
        now_mono = time.monotonic()
        if now_mono < self._checked_mono + CHECK_S:
            return []
        self._checked_mono = now_mono
        waiting = self._left or self._tasks()
        self._left = waiting[self._most :]
        return waiting[: self._most]


class Hub:
    """The subscriptions of this process's clients. `open` starts one, `close` ends it."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool, self._store, self._connection = pool, pool.store, pool.subscriptions
        self._connection.when_lost.append(self._lost)
        self.metrics = EventMetrics()
        self._log = LogThrottle("events")
        self._attributes = AttributeCache(pool.store)
        self._all = Subscribers()
        self._checks = RoundRobin(self._all.tasks)
        self._behind: set[Subscription] = set()
        self._channels: set[str] = set()
        self._losses = 0
        self._horizon = START
        """All events up to this position have been delivered to live subscriptions."""
        self._is_reading = False
        self._since_read: list[Step] = []
        """Events that arrived since the last read of the stream."""
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._arriving: deque[Step] = deque()
        self._resolver: asyncio.Task[None] | None = None
        self._restarts: set[asyncio.Task[None]] = set()

    async def open(self, wanted: Wanted, queue: ClientQueue, *, name: str = "", after: Position | None) -> Subscription:
        """Start a subscription: queue the present state and later events, or with `after` the events since then.

        Raises: TaskNotFound, WorkflowNotFound (also if its project isn't the caller's), RedisUnavailable."""
        subscription = Subscription(wanted, queue, name)
        if wanted.task is not None and not wanted.sees(await self._project_of(wanted, wanted.task)):
            raise wanted.not_found
        if after is None:
            await take_snapshot(self._pool, subscription)
        else:
            subscription.after = subscription.sent = after
        self._all.add(subscription)
        self._follow(subscription)
        return subscription

    async def _project_of(self, wanted: Wanted, id: str) -> str | None:
        """The project of a task or workflow. Raises: TaskNotFound, WorkflowNotFound, RedisUnavailable."""
        if wanted.is_workflow:
            return (await self._store.carry_out(fetch_workflow(id, with_nodes=False))).project
        attributes = await self._attributes.of(id)
        if attributes is None:
            raise wanted.not_found
        return attributes.project

    def close(self, subscription: Subscription) -> None:
        """End a subscription."""
        subscription.closed, subscription.live = True, False
        self._behind.discard(subscription)
        self._all.discard(subscription)
        self._wake.set()

    def drop(self, subscription: Subscription, events: int) -> None:
        """End a subscription that lost this many events because its client was too slow."""
        self.metrics.lost("slow", events)
        self.close(subscription)

    def go_on(self) -> None:
        """A client has room again for events that it missed."""
        self._wake.set()

    def end(self) -> None:
        """Stop all work. The pool closes the connection."""
        self._forget_arriving()
        for task in (*self._restarts, *([self._worker] if self._worker else [])):
            task.cancel()

    # --- the connection: one task subscribes, catches up, and reads the newest position ---------------------------

    def _follow(self, subscription: Subscription) -> None:
        self._behind.add(subscription)
        self._wake.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._update_channels()
                if not self._all:
                    return  # `open` starts the next worker
                if ready := self._ready():
                    self._is_reading = True
                    await self._catch_up(ready)
                if not self._ready() and not self._wake.is_set():
                    await self._mark()
            except Exception as error:  # whatever it is: without this task, no client gets events
                self._failed(error)
                await asyncio.sleep(RETRY_S)
                continue
            finally:
                self._is_reading = False
            self._log.recovered()
            if not self._ready():
                with suppress(TimeoutError):
                    async with asyncio.timeout(MARK_S):  # `wait_for` may lose a cancellation (Python 3.11)
                        await self._wake.wait()

    def _ready(self) -> set[Subscription]:
        """Subscriptions that are behind, whose channels are subscribed to, and whose clients have room."""
        return {each for each in self._behind if each.wanted.channel in self._channels and each.queue.has_room}

    async def _update_channels(self) -> None:
        touched, self._all.touched = self._all.touched, set()
        try:
            if unused := {each for each in touched & self._channels if not self._all.wants(each)}:
                self._channels -= unused
                await self._connection.ignore(self._receive, unused)
            if new := {each for each in touched - self._channels if self._all.wants(each)}:
                losses = self._losses
                await self._connection.listen(self._receive, new)
                if keys.FIREHOSE in new:
                    self._attributes.clear()
                if losses == self._losses:
                    self._channels |= new
        except BaseException:
            self._all.touched |= touched
            raise

    def _failed(self, error: Exception) -> None:
        """Log the failure. Some subscriptions may have missed events: all read them from the stream."""
        self._log.log(error)
        self._lost()

    def _lost(self) -> None:
        """No events arrive any more: live subscriptions are behind again, at the horizon."""
        self._losses += 1
        for name in self._channels:
            self._connection.forget(self._receive, name.encode())
        self._channels.clear()
        self._all.touch_all()
        self._forget_arriving()
        for subscription in self._all:
            if subscription.live:
                # Without room, its client reads slowly: what it gets later is late because of that.
                subscription.live, subscription.was_cut = False, subscription.queue.has_room
                subscription.after = max(subscription.after, self._horizon)
                self._behind.add(subscription)
        self._horizon = START  # the next Redis may be another one, whose clock is behind
        self._wake.set()

    async def _mark(self) -> None:
        """Move the horizon to the end of the stream, and end subscriptions to tasks that don't exist any more.

        Redis sends these replies after all messages that it published before, so those have arrived."""
        losses, ids = self._losses, self._checks.take()
        looks = [workflow_is_there(id) if self._all.are_to_workflow(id) else is_there(id) for id in ids]
        end, *exist = await self._timed(self._connection.read_many, newest(), *looks)
        if losses == self._losses and not self._arriving:
            self._horizon = max(self._horizon, end)
            for id, exists in zip(ids, exist, strict=True):
                for subscription in () if exists else self._all.live_to(id):
                    self._end(subscription)

    async def _timed(self, read: Callable[[list[Call[Any]]], Awaitable[list[Any]]], *calls: Call[Any]) -> list[Any]:
        """The values of these calls. Redis's time is read in the same round trip."""
        sent_mono = time.monotonic()
        *values, now_ms = await read([*calls, redis_ms()])
        self.metrics.clock.note(now_ms, sent_mono, time.monotonic())
        return values

    def _end(self, subscription: Subscription) -> None:
        """Its task doesn't exist any more."""
        subscription.queue.put(Gone(subscription))
        self.close(subscription)

    # --- behind: from the stream ----------------------------------------------------------------------------------

    async def _catch_up(self, behind: set[Subscription]) -> None:
        """Bring these subscriptions up to now, in one pass over the stream. Clients without room drop out of it."""
        losses = self._losses
        if places := list({each.after for each in behind} - {START}):
            found = await self._store.run_many([holds(place) for place in places])
            gone = {place for place, is_there in zip(places, found, strict=True) if not is_there}
            for subscription in [each for each in behind if each.after in gone]:
                behind.discard(subscription)
                self._start_over(subscription)
        position = min((subscription.after for subscription in behind), default=START)
        while behind:
            # Events that arrived before this read are in it. Later ones are delivered at the end.
            self._since_read.clear()
            chunk, first = await self._timed(self._store.run_many, events_after(position, CHUNK), oldest())
            if chunk.end > position and not reaches_back(first, position):  # trimmed faster than it was read
                for subscription in behind:
                    self._start_over(subscription)
                return
            await self._deliver_chunk(behind, [Step(event) for event in chunk.events], position)
            position = chunk.end
            if chunk.is_last:
                break
        late: set[Step] = set()
        for subscription in behind:
            subscription.after = max(subscription.after, position)
            if losses == self._losses and subscription in self._behind:
                subscription.queue.put(Live(subscription))
                delivered = subscription.deliver(self._since_read, bounded=True)  # if this fails, it still is behind
                late.update(delivered if subscription.was_cut else ())
                self._behind.discard(subscription)
                subscription.live, subscription.was_cut = not subscription.closed, False
        self._count(late)

    async def _deliver_chunk(self, behind: set[Subscription], steps: Sequence[Step], since: Position) -> None:
        if any(subscription.wanted.task is None for subscription in behind):
            await self._attributes.resolve(steps)
        by_task: defaultdict[str, list[Step]] = defaultdict(list)
        for step in steps:
            by_task[step.event.id].append(step)
        late: set[Step] = set()
        for subscription in tuple(behind):
            task = subscription.wanted.task
            if subscription.queue.has_room:
                delivered = subscription.deliver(steps if task is None else by_task.get(task, ()), bounded=False)
                late.update(delivered if subscription.was_cut else ())
            else:
                subscription.after = max(subscription.after, since)
                subscription.was_cut = False
                behind.discard(subscription)
        self._count(late)

    def _count(self, late: set[Step]) -> None:
        """Count events that clients would have had earlier, if the connection hadn't been lost. What a client asks for
        that wasn't there isn't late."""
        for step in late:
            self.metrics.delivered(step.event.at_ms)

    def _start_over(self, subscription: Subscription) -> None:
        """The stream doesn't hold all that this subscription missed."""
        self._behind.discard(subscription)
        subscription.was_cut = False
        restart = asyncio.create_task(self._restart(subscription))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)

    async def _restart(self, subscription: Subscription) -> None:
        """Tell the client that events were lost, and send the present state."""
        has_resync = False
        while not subscription.closed:
            try:
                subscription.after = await self._store.run(newest())
                if not has_resync:
                    subscription.queue.put(Resync(subscription, subscription.after, "trimmed"))
                    self.metrics.lost("trimmed")
                    has_resync = True
                await take_snapshot(self._pool, subscription)
            except (TaskNotFound, WorkflowNotFound):
                self._end(subscription)
            except Exception as error:  # whatever it is: the client waits for the state
                self._log.log(error)
                await asyncio.sleep(RETRY_S)
                continue
            if not subscription.closed:
                self._follow(subscription)
            return

    # --- live: from the channels ----------------------------------------------------------------------------------

    def _receive(self, message: bytes) -> None:
        try:
            event = read_event(message)
            if not event.stream:  # published again, by hand
                return
            step = Step(event)
        except (KeyError, ValueError):  # no event, or of another release; reading the stream skips it, too
            if (moved := moved_task(message)) is not None:
                self._attributes.forget(moved)
            return
        except msgspec.DecodeError:  # if it was an event, it is in the stream
            self._lost()
            return
        try:
            if self._arriving or (self._all.has_filters and not self._attributes.resolve_known(step)):
                self._wait_for_attributes(step)
            else:
                self._deliver(step)
        except Exception as error:  # otherwise it would end the connection for all that share it
            self._failed(error)

    def _wait_for_attributes(self, step: Step) -> None:
        """Deliver this event, and in order all that arrive meanwhile, once its task's attributes are known."""
        self._arriving.append(step)
        if len(self._arriving) > MOST_ARRIVING:
            self._lost()
        elif self._resolver is None or self._resolver.done():
            self._resolver = asyncio.create_task(self._resolve())

    async def _resolve(self) -> None:
        while self._arriving:
            steps = list(self._arriving)
            try:
                await self._attributes.resolve(steps)
                for _ in steps:
                    self._deliver(self._arriving.popleft())
            except (RedisUnavailable, ReplyFault):
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # no code awaits this task: without this, the events would wait for ever
                self._failed(error)
                return

    def _forget_arriving(self) -> None:
        self._arriving.clear()
        if self._resolver is not None:
            self._resolver.cancel()
            self._resolver = None

    def _deliver(self, step: Step) -> None:
        if step.at <= self._horizon:  # it came on its task's channel and on the common one, or was published by hand
            return
        if self._is_reading:
            self._since_read.append(step)
        delivered = [subscription.deliver((step,), bounded=True) for subscription in self._all.live_for(step)]
        if any(delivered):
            self.metrics.delivered(step.event.at_ms)
        self._horizon = step.at  # all live subscriptions have it
