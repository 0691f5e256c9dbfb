"""Whose event it is: the type, queue, tags and project of tasks, which events after the first don't repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from api.outlet import Step
from taskpool.eventlog import UNKNOWN, Attributes, attributes_of, attributes_told
from taskpool.store import AsyncStore

MOST_KNOWN: Final = 50_000


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
