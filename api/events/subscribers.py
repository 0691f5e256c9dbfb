"""Who is subscribed to what: by task, and to all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from api.events.outlet import Step
from api.events.subscription import Subscription, Wanted
from taskpool import keys
from taskpool.eventlog import UNKNOWN

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
