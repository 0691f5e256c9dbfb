"""What clients subscribe to: which events a subscription wants, how far it has got, and how the hub finds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import task_document
from taskpool.operations.listing import Filter, list_tasks
from taskpool.operations.records import fetch
from taskpool.operations.status import START, UNKNOWN, Attributes, Position, attributes_of, attributes_told, newest
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.types import TaskStatus

from ..http.query import Filter as Criteria
from .client_queue import ClientQueue, Snapshot, Step, Steps

MOST_KNOWN: Final = 50_000
MOST_TASKS: Final = 100
"""The snapshot of a filter shows this many tasks, the newest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One task (`task`), or all tasks that match the rest and that the caller may see; None matches all.

    `project` is the caller's: tasks of other projects don't exist for it. `snapshots`: send the tasks' state first.
    """

    project: str | None
    task: str | None = None
    status: TaskStatus | None = None
    queue: str | None = None
    type: str | None = None
    tag: str | None = None
    snapshots: bool = True

    @classmethod
    def of(
        cls, project: str | None, criteria: Criteria | None, *, task: str | None = None, snapshots: bool = True
    ) -> Wanted:
        """What a caller of this project wants: one task, or the tasks that match the criteria."""
        if criteria is None:
            return cls(project, task, snapshots=snapshots)
        return cls(project, task, criteria.status, criteria.queue, criteria.type, criteria.tag, snapshots)

    @property
    def channel(self) -> str:
        """The Redis channel of these events."""
        return keys.FIREHOSE if self.task is None else keys.CHANNEL + self.task

    def sees(self, project: str | None) -> bool:
        """Whether tasks of this project exist for the caller."""
        return self.project is None or self.project == project

    def matches(self, step: Step) -> bool:
        """Whether an event is wanted. Unless `task` is set, the attributes of the event's task must be known."""
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
    """One of a client's subscriptions.

    `after`: events up to this position were queued or aren't wanted. `seen`: by task, the last event that a snapshot
    includes. `sent`: the position up to which the client has taken its messages.
    """

    wanted: Wanted
    queue: ClientQueue
    name: str = ""
    after: Position = START
    sent: Position = START
    seen: Mapping[str, int] = field(default_factory=dict)
    live: bool = False
    closed: bool = False

    def deliver(self, steps: Sequence[Step], *, bounded: bool) -> None:
        """Queue the wanted ones of these events, which are in order. `bounded`: drop them if the client is too slow."""
        if self.closed or not steps:
            return
        wanted, seen = self.wanted, self.seen
        new = [
            step
            for step in steps
            if step.at > self.after
            and wanted.matches(step)
            and not (seen and step.event.seq <= seen.get(step.event.id, 0))
        ]
        self.after = max(self.after, steps[-1].at)
        if new:
            (self.queue.offer if bounded else self.queue.put)(Steps(self, new))


async def take_snapshot(pool: AsyncTaskPool, subscription: Subscription) -> None:
    """Queue the state of a subscription's tasks. The subscription is behind at that position then.

    Raises:
        TaskNotFound: the task doesn't exist any more.
        RedisUnavailable
    """
    wanted = subscription.wanted
    # The position is read first, so that no event is lost. Events between the two reads come again: `seen` drops them.
    if wanted.task is not None:
        at, record = await pool.store.run_many([newest(), fetch(wanted.task)])
        records: Sequence[Any] = [record]
    else:
        at, records = await pool.store.run(newest()), []
        if wanted.snapshots:
            filter = Filter(wanted.status, wanted.queue, wanted.type, wanted.tag, wanted.project)
            records = (await pool.store.carry_out(list_tasks(filter, limit=MOST_TASKS))).items
    subscription.seen = {record.id: record.seq for record in records}
    subscription.after = subscription.sent = at
    if wanted.snapshots:
        subscription.queue.put(Snapshot(subscription, at, [task_document(record) for record in records]))


class AttributeCache:
    """The type, queue, tags and project of the tasks seen last. They never change.

    Only a task's first event carries them.
    """

    def __init__(self, store: AsyncStore, most: int = MOST_KNOWN) -> None:
        self._store = store
        self._most = most
        self._known: dict[str, Attributes] = {}

    async def of(self, id: str) -> Attributes | None:
        """A task's attributes, read from Redis; None if it doesn't exist. Raises: RedisUnavailable."""
        attributes = await self._store.run(attributes_of(id))
        if attributes is not None:
            self._learn(id, attributes)
        return attributes

    def resolve_known(self, step: Step) -> bool:
        """Set an event's attributes if they are known here: whether they are."""
        step.attributes = attributes_told(step.event)
        if step.attributes is not None:
            self._learn(step.event.id, step.attributes)
        else:
            step.attributes = self._known.get(step.event.id)
        return step.attributes is not None

    async def resolve(self, steps: Sequence[Step]) -> None:
        """Set the attributes of events in order, with one round trip for all that aren't known here.

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
            del self._known[next(iter(self._known))]  # the oldest
        self._known[id] = attributes


Trait = tuple[str, str | None]
ANY: Final[Trait] = ("", None)


class Subscribers:
    """The subscriptions of all clients.

    A subscription to a filter is indexed by its most selective criterion, so that an event costs as much as the
    subscriptions that it may concern, not as all of them.
    """

    def __init__(self) -> None:
        self._by_task: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._by_trait: defaultdict[Trait, set[Subscription]] = defaultdict(set)
        self.touched: set[str] = set()
        """Channels whose subscribers have changed since they were last looked at."""

    def __bool__(self) -> bool:
        return bool(self._by_task or self._by_trait)

    def __iter__(self) -> Iterator[Subscription]:
        for subscriptions in (*self._by_trait.values(), *self._by_task.values()):
            yield from subscriptions

    @property
    def has_filters(self) -> bool:
        """Whether there are subscriptions to more than one task."""
        return bool(self._by_trait)

    def add(self, subscription: Subscription) -> None:
        """Add a subscription."""
        wanted = subscription.wanted
        self.touched.add(wanted.channel)
        if wanted.task is None:
            self._by_trait[_trait(wanted)].add(subscription)
        else:
            self._by_task[wanted.task].add(subscription)

    def discard(self, subscription: Subscription) -> None:
        """Remove a subscription, if it is here."""
        wanted = subscription.wanted
        self.touched.add(wanted.channel)
        index: Any = self._by_trait if wanted.task is None else self._by_task
        name = _trait(wanted) if wanted.task is None else wanted.task
        if name in index:
            index[name].discard(subscription)
            if not index[name]:
                del index[name]

    def tasks(self) -> list[str]:
        """The tasks that have subscriptions of their own."""
        return list(self._by_task)

    def live_to(self, task: str) -> list[Subscription]:
        """The live subscriptions to this task alone."""
        return [each for each in self._by_task.get(task, ()) if each.live]

    def live_for(self, step: Step) -> list[Subscription]:
        """The live subscriptions that may want this event."""
        found = [self._by_task.get(step.event.id, ())]
        if self._by_trait:
            found += [self._by_trait.get(trait, ()) for trait in _traits(step)]
        return [each for subscriptions in found for each in subscriptions if each.live]

    def wants(self, channel: str) -> bool:
        """Whether any subscription needs this channel."""
        if channel == keys.FIREHOSE:
            return bool(self._by_trait)
        return channel.removeprefix(keys.CHANNEL) in self._by_task

    def touch_all(self) -> None:
        """Mark all channels as changed."""
        self.touched.update([keys.CHANNEL + id for id in self._by_task])
        if self._by_trait:
            self.touched.add(keys.FIREHOSE)


def _trait(wanted: Wanted) -> Trait:
    """The most selective criterion: few tasks share a tag, many a status."""
    for name in ("tag", "queue", "type", "project", "status"):
        value = getattr(wanted, name)
        if value is not None:
            return name, value
    return ANY


def _traits(step: Step) -> Iterator[Trait]:
    """All criteria that an event meets."""
    of = step.attributes or UNKNOWN
    yield from (ANY, ("queue", of.queue), ("type", of.type), ("project", of.project), ("status", step.event.status))
    for tag in of.tags:
        yield "tag", tag
