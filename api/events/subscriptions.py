"""What clients subscribe to: which events a subscription wants, how far it has got, and how the hub finds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import TaskNotFound, WorkflowNotFound
from taskpool.operations.documents import Shown, TaskDocument, WorkflowDocument
from taskpool.operations.flow.workflows import fetch_workflow
from taskpool.operations.listing import list_tasks
from taskpool.operations.records import fetch
from taskpool.operations.status import (
    START,
    UNKNOWN,
    Attributes,
    Position,
    attributes_of,
    attributes_told,
    is_of_workflow,
    newest,
)
from taskpool.redis import keys
from taskpool.redis.async_store import AsyncStore
from taskpool.types.control import Filter

from ..http.query import Filter as Criteria
from .client_queue import ClientQueue, Snapshot, Step, Steps

MOST_KNOWN: Final = 50_000
MOST_TASKS: Final = 100
"""The snapshot of a filter shows this many tasks, the newest."""


class Wanted(Filter, frozen=True, kw_only=True):
    """One task (`task`; or the workflow with this id, if `is_workflow`), or all tasks that fit the filter.

    `project` is the caller's: tasks of other projects don't exist for it. `snapshots`: send the tasks' state first."""

    task: str | None = None
    is_workflow: bool = False
    snapshots: bool = True

    @classmethod
    def of(cls, project: str | None, criteria: Criteria, *, snapshots: bool = True) -> Wanted:
        """The tasks that a caller of this project wants, by its criteria."""
        given = {name: getattr(criteria, name) for name in Criteria.__struct_fields__}
        return cls(**given, project=project, snapshots=snapshots)

    @property
    def channel(self) -> str:
        """The Redis channel of these events."""
        return keys.FIREHOSE if self.task is None else keys.CHANNEL + self.task

    @property
    def not_found(self) -> TaskNotFound | WorkflowNotFound:
        """The error if the task or the workflow doesn't exist."""
        return WorkflowNotFound(self.task or "") if self.is_workflow else TaskNotFound(self.task)

    def sees(self, project: str | None) -> bool:
        """Whether tasks of this project exist for the caller."""
        return self.project is None or self.project == project

    def matches(self, step: Step) -> bool:
        """Whether an event is wanted. Unless `task` is set, the attributes of the event's task must be known."""
        if self.task is not None:
            return step.event.id == self.task
        if is_of_workflow(step.event):
            return False
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
    includes. `sent`: the position up to which the client has taken its messages. `was_cut`: it was live until the
    connection to Redis was lost."""

    wanted: Wanted
    queue: ClientQueue
    name: str = ""
    after: Position = START
    sent: Position = START
    seen: Mapping[str, int] = field(default_factory=dict)
    live: bool = False
    closed: bool = False
    was_cut: bool = False

    def deliver(self, steps: Sequence[Step], *, bounded: bool) -> Sequence[Step]:
        """Queue the wanted ones of these events, which are in order, and return them. `bounded`: if the client is too
        slow, drop them."""
        if self.closed or not steps:
            return ()
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
        return new


async def take_snapshot(pool: AsyncTaskPool, subscription: Subscription) -> None:
    """Queue the state of a subscription's tasks. The subscription is behind at that position then. Raises:
    TaskNotFound, WorkflowNotFound, RedisUnavailable."""
    wanted = subscription.wanted
    # The position is read first, so that no event is lost. Events between the two reads come again: `seen` drops them.
    document: Callable[[Any], Shown] = TaskDocument.of
    if wanted.task is not None and wanted.is_workflow:
        at = await pool.store.run(newest())
        records: Sequence[Any] = [await pool.store.carry_out(fetch_workflow(wanted.task, with_nodes=False))]
        document = WorkflowDocument.of
    elif wanted.task is not None:
        at, record = await pool.store.run_many([newest(), fetch(wanted.task)])
        records = [record]
    else:
        at, records = await pool.store.run(newest()), []
        if wanted.snapshots:
            records = (await pool.store.carry_out(list_tasks(wanted, limit=MOST_TASKS))).items
    subscription.seen = {record.id: record.seq for record in records}
    subscription.after = subscription.sent = at
    if wanted.snapshots:
        subscription.queue.put(Snapshot(subscription, at, [document(record) for record in records]))


class AttributeCache:
    """The type, queue, tags and project of the tasks seen last. Only a task's first event carries them. A task that is
    moved to another queue is forgotten, and read anew with its next event."""

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
        if is_of_workflow(step.event):
            step.attributes = UNKNOWN
            return True
        step.attributes = attributes_told(step.event)
        if step.attributes is not None:
            self._learn(step.event.id, step.attributes)
        else:
            step.attributes = self._known.get(step.event.id)
        return step.attributes is not None

    def forget(self, id: str) -> None:
        """Forget a task: its queue is another one now."""
        self._known.pop(id, None)

    def clear(self) -> None:
        """Forget all tasks: they may have been moved while nothing was heard of them."""
        self._known.clear()

    async def resolve(self, steps: Sequence[Step]) -> None:
        """Set the attributes of events in order, with one round trip for all that aren't known here. Raises:
        RedisUnavailable."""
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

    A subscription is indexed by its most selective criterion, so that an event costs as much as the subscriptions that
    it may concern, not as all of them."""

    def __init__(self) -> None:
        self._by_trait: defaultdict[Trait, set[Subscription]] = defaultdict(set)
        self._filters = 0
        self.touched: set[str] = set()
        """Channels whose subscribers have changed since they were last looked at."""

    def __bool__(self) -> bool:
        return bool(self._by_trait)

    def __iter__(self) -> Iterator[Subscription]:
        return chain.from_iterable(self._by_trait.values())

    @property
    def has_filters(self) -> bool:
        """Whether there are subscriptions to more than one task."""
        return self._filters > 0

    def add(self, subscription: Subscription) -> None:
        """Add a subscription."""
        self._by_trait[_trait(subscription.wanted)].add(subscription)
        self._filters += subscription.wanted.task is None
        self.touched.add(subscription.wanted.channel)

    def discard(self, subscription: Subscription) -> None:
        """Remove a subscription, if it is here."""
        trait = _trait(subscription.wanted)
        others = self._by_trait.get(trait, set())
        if subscription in others:
            others.remove(subscription)
            if not others:
                del self._by_trait[trait]
            self._filters -= subscription.wanted.task is None
            self.touched.add(subscription.wanted.channel)

    def tasks(self) -> list[str]:
        """The tasks that have subscriptions of their own."""
        return [task for kind, task in self._by_trait if kind == "task" and task is not None]

    def are_to_workflow(self, task: str) -> bool:
        """Whether the subscriptions to this one are to a workflow: no task has its id."""
        return any(each.wanted.is_workflow for each in self._by_trait.get(("task", task), ()))

    def live_to(self, task: str) -> list[Subscription]:
        """The live subscriptions to this task or workflow alone."""
        return [each for each in self._by_trait.get(("task", task), ()) if each.live]

    def live_for(self, step: Step) -> list[Subscription]:
        """The live subscriptions that may want this event."""
        return [each for trait in _traits(step) for each in self._by_trait.get(trait, ()) if each.live]

    def wants(self, channel: str) -> bool:
        """Whether any subscription needs this channel."""
        if channel == keys.FIREHOSE:
            return self.has_filters
        return ("task", channel.removeprefix(keys.CHANNEL)) in self._by_trait

    def touch_all(self) -> None:
        """Mark all channels as changed."""
        self.touched.update(each.wanted.channel for each in self)


def _trait(wanted: Wanted) -> Trait:
    """The most selective criterion: few tasks share a tag, many a status."""
    for name in ("task", "tag", "queue", "type", "project", "status"):
        value = getattr(wanted, name)
        if value is not None:
            return name, value
    return ANY


def _traits(step: Step) -> Iterator[Trait]:
    """All criteria that an event meets. Its task's attributes are known if there are filters."""
    yield "task", step.event.id
    if (of := step.attributes) is not None:
        yield from (ANY, ("queue", of.queue), ("type", of.type), ("project", of.project), ("status", step.event.status))
        for tag in of.tags:
            yield "tag", tag
