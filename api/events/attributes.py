"""Whose event it is: the type, queue, tags and project of tasks, which events after the first don't repeat; and the
events that wait until that is known."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from api.events.outlet import Step
from taskpool.errors import RedisUnavailable
from taskpool.eventlog import UNKNOWN, Attributes, attributes_of, attributes_told
from taskpool.store import AsyncStore, ReplyFault

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
