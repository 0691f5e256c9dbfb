"""Subscriptions that missed more than the stream still has: each is told so, and how things stand now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from api.events.attributes import RETRY_S
from api.events.mishaps import Mishaps
from api.events.outlet import Resync
from api.events.snapshots import take_snapshot
from api.events.subscription import Subscription
from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import TaskNotFound
from taskpool.eventlog import newest


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
