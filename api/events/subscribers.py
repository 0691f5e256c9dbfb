"""Who is subscribed to what: by task, and to all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from api.events.outlet import Step
from api.events.subscription import Subscription, Wanted
from taskpool import keys


class Subscribers:
    """The subscriptions of all clients; `to_all` are those to more than one task."""

    def __init__(self) -> None:
        self._to_task: defaultdict[str, set[Subscription]] = defaultdict(set)
        self.to_all: set[Subscription] = set()

    def __bool__(self) -> bool:
        return bool(self._to_task or self.to_all)

    def __iter__(self) -> Iterator[Subscription]:
        yield from self.to_all
        for subscriptions in self._to_task.values():
            yield from subscriptions

    def add(self, subscription: Subscription) -> None:
        """One more."""
        task = subscription.wanted.task
        (self.to_all if task is None else self._to_task[task]).add(subscription)

    def discard(self, subscription: Subscription) -> None:
        """One less, if it is one."""
        self.to_all.discard(subscription)
        task = subscription.wanted.task
        if task is not None and task in self._to_task:
            self._to_task[task].discard(subscription)
            if not self._to_task[task]:
                del self._to_task[task]

    def tasks(self) -> list[str]:
        """The single tasks that are followed."""
        return list(self._to_task)

    def live_to(self, task: str) -> list[Subscription]:
        """Those who are live and follow this task alone."""
        return [each for each in self._to_task.get(task, ()) if each.live]

    def live_for(self, step: Step) -> list[Subscription]:
        """Those who are live and may want this event."""
        of_task = self._to_task.get(step.event.id, ())
        return [each for subscriptions in (of_task, self.to_all) for each in subscriptions if each.live]

    def channels(self) -> set[str]:
        """Where Redis tells of all that is wanted."""
        return {keys.CHANNEL + id for id in self._to_task} | ({keys.FIREHOSE} if self.to_all else set())


def channel(wanted: Wanted) -> str:
    """Where Redis tells of what is wanted."""
    return keys.FIREHOSE if wanted.task is None else keys.CHANNEL + wanted.task
