"""Listeners for tests: a hub in this process and clients that note what they receive, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from api.events.client_queue import MOST_WAITING, ClientQueue, Gone, Item, Live, Resync, Snapshot, Steps
from api.events.hub import Hub
from api.events.subscriptions import Subscription, Wanted
from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.status import Position
from tests.support import PATIENCE_S


class Listener:
    """One client of a hub: `received` has what it received, in the words of tests."""

    def __init__(self, hub: Hub, most: int = MOST_WAITING) -> None:
        self.hub = hub
        self.queue = ClientQueue(on_slow=hub.drop, on_room=hub.go_on, most=most)
        self.received: list[Any] = []
        self.last: Position | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, after: Position | None = None, reads: bool = True, **wanted: Any) -> Subscription:
        """Subscribe: to all tasks, or what `wanted` says."""
        wanted.setdefault("project", None)
        subscription = await self.hub.open(Wanted(**wanted), self.queue, after=after)
        if reads:
            self.read()
        return subscription

    def read(self) -> None:
        """Read from now on."""
        self._reading = self._reading or asyncio.create_task(self._read())

    def stop(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()

    def steps(self, id: str | None = None) -> list[int]:
        """The numbers of the events it received, of one task or of all."""
        events = [each for each in self.received if isinstance(each, tuple) and each[0] == "event"]
        return [seq for _, of, seq, _ in events if id in (None, of)]

    async def until(self, predicate: Callable[[Listener], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until the predicate holds for it."""
        async with asyncio.timeout(timeout_s):
            while not predicate(self):
                await asyncio.sleep(0.005)

    async def _read(self) -> None:
        while items := await self.queue.take():
            for item in items:
                self._note(item)

    def _note(self, item: Item) -> None:
        if isinstance(item, Steps):
            self.received += [("event", each.event.id, each.event.seq, each.event.event) for each in item.steps]
            self.last = item.steps[-1].at
        elif isinstance(item, Snapshot):
            self.received.append(("snapshot", {task.id: task.seq for task in item.documents}))
            self.last = item.at
        elif isinstance(item, Resync):
            self.received.append(("resync", item.reason))
            self.last = item.at
        elif isinstance(item, Live):
            self.received.append("live")
        elif isinstance(item, Gone):
            self.received.append("gone")


@asynccontextmanager
async def hub_on(redis_url: str) -> AsyncIterator[Hub]:
    """A hub with a pool of its own."""
    async with AsyncTaskPool(redis_url) as pool:
        hub = Hub(pool)
        yield hub
        hub.end()
