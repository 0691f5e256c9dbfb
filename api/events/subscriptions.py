"""What goes wrong in a loop that goes on all the same: it is logged once, not each time it is tried again.

Whose event it is: the type, queue, tags and project of tasks, which events after the first don't repeat; and the
events that wait until that is known.

What one client wants to hear of, and how far it has been told: nothing twice, nothing left out.

How things stand when a subscription begins, and from which position of the stream its events follow.

Who is subscribed to what: by task, and to all.

Subscriptions that missed more than the stream still has: each is told so, and how things stand now.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import RedisUnavailable, TaskNotFound
from taskpool.operations.documents import task_document
from taskpool.operations.listing import Filter, list_tasks
from taskpool.operations.records import fetch
from taskpool.operations.status import START, UNKNOWN, Attributes, Position, attributes_of, attributes_told, newest
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.types import TaskStatus

from .client_queue import Outlet, Resync, Snapshot, Step, Steps

AGAIN_S: Final = 60.0
"""A bug that stays is told again after so long."""

logger = logging.getLogger("api")


class Mishaps:
    """The errors of what is called `name`: a Redis that is away until it is `over`, each kind of bug once a minute."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: dict[type[Exception], float] = {}

    def note(self, error: Exception) -> None:
        """Log it, unless it was told."""
        kind, now_mono = type(error), time.monotonic()
        if now_mono < self._told.get(kind, -math.inf):
            return
        if isinstance(error, RedisUnavailable | ReplyFault):
            self._told[kind] = math.inf
            logger.warning("%s: %s; trying again", self._name, error)
        else:
            self._told[kind] = now_mono + AGAIN_S
            logger.error("%s: a bug; trying again", self._name, exc_info=error)

    def over(self) -> None:
        """Redis is there."""
        self._told = {kind: until_mono for kind, until_mono in self._told.items() if until_mono < math.inf}


MOST_KNOWN: Final = 50_000
MOST_ARRIVING: Final = 20_000
RETRY_S: Final = 0.5
"""Between two tries to reach a Redis that is away."""


class AttributeCache:
    """The attributes of the tasks met last. They never change, so what is known needs no second look."""

    def __init__(self, store: AsyncStore, most: int = MOST_KNOWN) -> None:
        self._store = store
        self._most = most
        self._known: dict[str, Attributes] = {}

    async def of(self, id: str) -> Attributes | None:
        """A task's attributes; None: there is no such task. Raises: RedisUnavailable."""
        attributes = await self._store.run(attributes_of(id))
        if attributes is not None:
            self._learn(id, attributes)
        return attributes

    def resolve_known(self, step: Step) -> bool:
        """Set an event's attributes if they are known: False if they aren't."""
        step.attributes = attributes_told(step.event)
        if step.attributes is not None:
            self._learn(step.event.id, step.attributes)
        else:
            step.attributes = self._known.get(step.event.id)
        return step.attributes is not None

    async def resolve(self, steps: Sequence[Step]) -> None:
        """Set the attributes of events in order, asking Redis once for all that aren't known.

        Raises:
            RedisUnavailable
        """
        unknown = [step for step in steps if step.attributes is None and not self.resolve_known(step)]
        if not unknown:
            return
        ids = list(dict.fromkeys(step.event.id for step in unknown))
        found = dict(zip(ids, await self._store.run_many([attributes_of(id) for id in ids]), strict=True))
        for id, attributes in found.items():
            if attributes is not None:
                self._learn(id, attributes)
        for step in unknown:
            step.attributes = found[step.event.id] or UNKNOWN

    def _learn(self, id: str, attributes: Attributes) -> None:
        if id not in self._known and len(self._known) >= self._most:
            del self._known[next(iter(self._known))]  # the one learned first
        self._known[id] = attributes


class Arriving:
    """Events as they arrive: each is passed on in its turn, once it is known whose it is.

    `too_many` is called when more wait than may, `failed` when they can't be passed on; both must `clear`.
    """

    def __init__(
        self,
        attributes: AttributeCache,
        pass_on: Callable[[Step], None],
        *,
        too_many: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._attributes, self._pass_on = attributes, pass_on
        self._too_many, self._failed = too_many, failed
        self._waiting: deque[Step] = deque()
        self._resolver: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, step: Step, *, by_attributes: bool) -> None:
        """Pass this on next; `by_attributes` if anybody needs them."""
        if self._waiting or (by_attributes and not self._attributes.resolve_known(step)):
            self._waiting.append(step)
            if len(self._waiting) > MOST_ARRIVING:
                self._too_many()
            elif self._resolver is None or self._resolver.done():
                self._resolver = asyncio.create_task(self._resolve())
        else:
            self._pass_on(step)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        if self._resolver is not None:
            self._resolver.cancel()
            self._resolver = None

    async def _resolve(self) -> None:
        while self._waiting:
            steps = list(self._waiting)
            try:
                await self._attributes.resolve(steps)
                for _ in steps:
                    self._pass_on(self._waiting.popleft())
            except (RedisUnavailable, ReplyFault):
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # nobody awaits this: unsaid, what waits would wait for ever
                self._failed(error)
                return


@dataclass(frozen=True, slots=True)
class Wanted:
    """One task (`task`), or all tasks that fit the rest and that the caller may see; None fits all.

    `project` is the caller's: if it has one, the tasks of others don't exist for it. `snapshots`: tell first how things
    stand.
    """

    project: str | None
    task: str | None = None
    status: TaskStatus | None = None
    queue: str | None = None
    type: str | None = None
    tag: str | None = None
    snapshots: bool = True

    def sees(self, project: str | None) -> bool:
        """Whether a task of this project exists for the caller."""
        return self.project is None or self.project == project

    def fits(self, step: Step) -> bool:
        """Whether an event is wanted. The attributes of its task must be known, unless it is wanted by id."""
        if self.task is not None:
            return step.event.id == self.task
        of = step.attributes or UNKNOWN
        return (
            self.sees(of.project)
            and (self.status is None or step.event.status is self.status)
            and (self.queue is None or of.queue == self.queue)
            and (self.type is None or of.type == self.type)
            and (self.tag is None or self.tag in of.tags)
        )


@dataclass(eq=False, slots=True)
class Subscription:
    """One of a client's subscriptions. `after`: what came up to here was told, or isn't wanted. `seen`: the last step
    that a snapshot showed of each task. `sent`: up to where its messages have left for the client."""

    wanted: Wanted
    outlet: Outlet
    name: str = ""
    after: Position = START
    sent: Position = START
    seen: Mapping[str, int] = field(default_factory=dict)
    live: bool = False
    closed: bool = False
    extra: Any = None

    def tell(self, steps: Sequence[Step], *, bounded: bool) -> None:
        """Tell of what is wanted among these events, which come in order; `bounded` if the client may be too slow."""
        if self.closed or not steps:
            return
        wanted, seen = self.wanted, self.seen
        fresh = [
            step
            for step in steps
            if step.at > self.after
            and wanted.fits(step)
            and not (seen and step.event.seq <= seen.get(step.event.id, 0))
        ]
        self.after = max(self.after, steps[-1].at)
        if fresh:
            item = Steps(self, fresh)
            if bounded:
                self.outlet.offer(item)
            else:
                self.outlet.put(item)


MOST_TASKS: Final = 100
"""How many tasks the snapshot of a filter shows, the newest."""


async def take_snapshot(pool: AsyncTaskPool, subscription: Subscription) -> None:
    """Tell a subscription how its task stands, or its tasks; it is behind at that position then.

    Raises:
        TaskNotFound: there is no such task any more.
        RedisUnavailable
    """
    wanted = subscription.wanted
    # The position first: what happened before it is in what is read after it. What happened in between is seen there
    # and told once more, which `seen` keeps back.
    if wanted.task is not None:
        at, record = await pool.store.run_many([newest(), fetch(wanted.task)])
        subscription.seen = {record.id: record.seq}
        documents = [task_document(record)]
    else:
        at = await pool.store.run(newest())
        if wanted.snapshots:
            filter = Filter(wanted.status, wanted.queue, wanted.type, wanted.tag, wanted.project)
            page = await pool.store.carry_out(list_tasks(filter, limit=MOST_TASKS))
            subscription.seen = {record.id: record.seq for record in page.items}
            documents = [task_document(record) for record in page.items]
    subscription.after = subscription.sent = at
    if wanted.snapshots:
        subscription.outlet.put(Snapshot(subscription, at, documents))


Trait = tuple[str, str | None]
ANY: Final[Trait] = ("", None)


class Subscribers:
    """The subscriptions of all clients. Those to more than one task are found by what they want most of all: a tag, a
    queue and so on; so an event costs as much as those that it may concern, not as many as there are."""

    def __init__(self) -> None:
        self._to_task: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._to_more: defaultdict[Trait, set[Subscription]] = defaultdict(set)
        self.touched: set[str] = set()
        """The channels that may be wanted now and weren't when somebody last looked, or the other way round: to look at
        all of them would take long."""

    def __bool__(self) -> bool:
        return bool(self._to_task or self._to_more)

    def __iter__(self) -> Iterator[Subscription]:
        for subscriptions in (*self._to_more.values(), *self._to_task.values()):
            yield from subscriptions

    @property
    def are_to_more(self) -> bool:
        """Whether anybody follows more than one task."""
        return bool(self._to_more)

    def add(self, subscription: Subscription) -> None:
        """One more."""
        wanted = subscription.wanted
        self.touched.add(channel(wanted))
        if wanted.task is None:
            self._to_more[_trait(wanted)].add(subscription)
        else:
            self._to_task[wanted.task].add(subscription)

    def discard(self, subscription: Subscription) -> None:
        """One less, if it is one."""
        wanted = subscription.wanted
        self.touched.add(channel(wanted))
        if wanted.task is None:
            _discard(self._to_more, _trait(wanted), subscription)
        else:
            _discard(self._to_task, wanted.task, subscription)

    def tasks(self) -> list[str]:
        """The single tasks that are followed."""
        return list(self._to_task)

    def live_to(self, task: str) -> list[Subscription]:
        """Those who are live and follow this task alone."""
        return [each for each in self._to_task.get(task, ()) if each.live]

    def live_for(self, step: Step) -> list[Subscription]:
        """Those who are live and may want this event."""
        found = [self._to_task.get(step.event.id, ())]
        if self._to_more:
            found += [self._to_more.get(trait, ()) for trait in _traits(step)]
        return [each for subscriptions in found for each in subscriptions if each.live]

    def wants(self, channel: str) -> bool:
        """Whether anybody wants what Redis tells there."""
        return bool(self._to_more) if channel == keys.FIREHOSE else channel.removeprefix(keys.CHANNEL) in self._to_task

    def touch_all(self) -> None:
        """Look at all channels again."""
        self.touched.update([keys.CHANNEL + id for id in self._to_task])
        if self._to_more:
            self.touched.add(keys.FIREHOSE)


def channel(wanted: Wanted) -> str:
    """Where Redis tells of what is wanted."""
    return keys.FIREHOSE if wanted.task is None else keys.CHANNEL + wanted.task


def _trait(wanted: Wanted) -> Trait:
    """What an event must have to be wanted; the first that is asked for, as few have the same tag and many a status."""
    for name in ("tag", "queue", "type", "project", "status"):
        value = getattr(wanted, name)
        if value is not None:
            return name, value
    return ANY


def _traits(step: Step) -> Iterator[Trait]:
    """What an event has."""
    of = step.attributes or UNKNOWN
    yield from (ANY, ("queue", of.queue), ("type", of.type), ("project", of.project), ("status", step.event.status))
    for tag in of.tags:
        yield "tag", tag


def _discard(sets: defaultdict[Any, set[Subscription]], name: Any, subscription: Subscription) -> None:
    if name in sets:
        sets[name].discard(subscription)
        if not sets[name]:
            del sets[name]


class Restarts:
    """Those under way. `go_on` is called with one that is behind at a new position, `end` if its task is gone."""

    def __init__(
        self,
        pool: AsyncTaskPool,
        mishaps: Mishaps,
        *,
        go_on: Callable[[Subscription], None],
        end: Callable[[Subscription], None],
    ) -> None:
        self._pool, self._mishaps = pool, mishaps
        self._go_on, self._end = go_on, end
        self._under_way: set[asyncio.Task[None]] = set()

    def start(self, subscription: Subscription) -> None:
        """Begin with one more."""
        restart = asyncio.create_task(self._restart(subscription))
        self._under_way.add(restart)
        restart.add_done_callback(self._under_way.discard)

    def cancel(self) -> None:
        """End all."""
        for restart in self._under_way:
            restart.cancel()

    async def _restart(self, subscription: Subscription) -> None:
        told = False
        while not subscription.closed:
            try:
                subscription.after = await self._pool.store.run(newest())
                if not told:
                    subscription.outlet.put(Resync(subscription, subscription.after, "trimmed"))
                    told = True
                await take_snapshot(self._pool, subscription)
            except TaskNotFound:
                self._end(subscription)
            except Exception as error:  # whatever it is: its client waits to be told how things stand
                self._mishaps.note(error)
                await asyncio.sleep(RETRY_S)
                continue
            if not subscription.closed:
                self._go_on(subscription)
            return
