"""GET /live: the figures that the web page shows, once a second, for any number of pages.

One sampler reads Redis for all clients of this process. It stops when the last client leaves. A client that reads
slowly misses samples, never figures: each sample has all of them, and what has changed of the client's tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import TaskpoolError
from taskpool.operations.documents import time_text
from taskpool.operations.insight.figures import Figures, Sampler, Watched

from ..answers import LiveFault, LiveFigures, LiveQueue, LiveTask, LiveTotals
from ..auth.caller import Caller
from .client_queue import ClientQueue
from .sse import RETRY, message

logger = logging.getLogger("api")

EVERY_S: Final = 1.0
MOST_WATCHED: Final = 2000
"""Tasks that are watched in this process; of more, the clients that came last see no changes."""


class Live:
    """The sampler of this process, and who waits for its samples."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool
        self._clients: dict[object, Sequence[str]] = {}
        self._sampling: asyncio.Task[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._last: Figures | str = ""
        """The last sample, or why there is none."""
        self._last_mono = -EVERY_S

    async def texts(self, ids: Sequence[str], caller: Caller, queue: ClientQueue) -> AsyncGenerator[bytes]:
        """The messages of one client, until its queue ends."""
        me = object()
        ending: asyncio.Future[Any] = asyncio.ensure_future(queue.take())  # nothing is put into it: it ends
        self._clients[me] = ids
        known: dict[str, Watched] = {}
        text = RETRY
        try:
            if time.monotonic() - self._last_mono < EVERY_S:  # a client needn't wait for what is known
                yield text + _message(self._last, ids, known, caller)
                text = b""
            while queue.ended is None:
                coming = self._coming()
                await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
                if coming.done() and queue.ended is None:
                    yield text + _message(self._last, ids, known, caller)
                    text = b""
        finally:
            ending.cancel()
            del self._clients[me]

    def _coming(self) -> asyncio.Future[None]:
        """Done with the next sample."""
        if self._next is None or self._sampling is None or self._sampling.done():
            self._next = asyncio.get_running_loop().create_future()
            self._sampling = asyncio.create_task(self._sample(self._next))
        return self._next

    def close(self) -> None:
        """The process ends."""
        if self._sampling is not None:
            self._sampling.cancel()

    async def _sample(self, coming: asyncio.Future[None]) -> None:
        """Take samples as long as there are clients; `coming` is done with the first one."""
        loop, sampler = asyncio.get_running_loop(), Sampler()
        while self._clients:
            began_mono = loop.time()
            ids = dict.fromkeys(id for ids in self._clients.values() for id in ids)
            try:
                self._last = await self._pool.store.carry_out(sampler.sample(list(ids)[:MOST_WATCHED]))
            except TaskpoolError as error:
                self._last = getattr(error, "public_text", "") or "the figures can't be read"
            except Exception:
                logger.exception("a sample for the web page failed")
                self._last = "the figures can't be read; the server's log says more"
            self._last_mono = time.monotonic()
            coming.set_result(None)
            self._next = coming = loop.create_future()
            await asyncio.sleep(max(0.0, began_mono + EVERY_S - loop.time()))


def _message(last: Figures | str, ids: Sequence[str], known: dict[str, Watched], caller: Caller) -> bytes:
    if isinstance(last, str):
        return message("", LiveFault(detail=last), "fault")
    tasks = {}
    for id in ids:
        state = last.tasks.get(id)
        if state is not None and state != known.get(id) and caller.project in (None, state.project):
            known[id], tasks[id] = state, _task(state)
    if caller.project is not None:
        return message(str(last.at_ms), LiveFigures(at_ms=last.at_ms, tasks=tasks), "figures")
    return message(str(last.at_ms), _whole(last, tasks), "figures")


def _whole(last: Figures, tasks: Mapping[str, LiveTask]) -> LiveFigures:
    queues = [
        LiveQueue(name=each.name, queued=each.queued, in_progress=each.in_progress, oldest_s=each.oldest_s)
        for each in last.queues
    ]
    totals = msgspec.convert(last.totals, LiveTotals, from_attributes=True)
    return LiveFigures(at_ms=last.at_ms, totals=totals, queues=queues, tasks=tasks, newest=last.newest)


def _task(state: Watched) -> LiveTask:
    ended_at = None if state.ended_at is None else time_text(state.ended_at)
    return LiveTask(status=state.status, attempt=state.attempt, progress=state.progress, ended_at=ended_at)
