"""Requests that wait for a task's end, until it comes, the time is over, the client leaves or the server stops.

A server that stops answers all of them with the present state, so that it never waits for tasks.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import WaitTimeout
from taskpool.types import TaskRecord


class LongPolls:
    """The waiting requests of this process. `end` ends them, and later ones at once."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool
        self._waits: set[asyncio.Task[TaskRecord]] = set()
        self._ended = False

    async def wait(self, id: str, timeout_s: float, receive: Receive) -> TaskRecord:
        """The task after its end, or as it is when the wait is over.

        Raises:
            TaskNotFound: there is no such task.
            ClientDisconnect: the client left.
        """
        if self._ended:
            return await self._pool.get(id)
        waiting = asyncio.create_task(self._pool.wait(id, timeout_s=timeout_s))
        leaving = asyncio.create_task(_disconnect(receive))
        self._waits.add(waiting)
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
        finally:
            self._waits.discard(waiting)
            waiting.cancel()
            leaving.cancel()
        if waiting.cancelled():  # by `end`
            return await self._pool.get(id)
        try:
            return waiting.result()
        except WaitTimeout as timeout:
            return timeout.record

    def end(self) -> None:
        """Answer all waiting requests with the present state."""
        self._ended = True
        for waiting in self._waits:
            waiting.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
