"""Plain submissions of the same moment are stored by one call: much of what a call costs Redis, it costs once.

Each is stored or refused for itself all the same. Nobody waits for others to come: what has come by the end of this
turn of the event loop goes out, in the order in which it came.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from taskpool.errors import TaskpoolError
from taskpool.store import AsyncStore
from taskpool.submission import addition
from taskpool.submission.addition import Added, NewTask

MOST: Final = 32
"""Tasks in one call: more would save little, and everybody else waits for Redis as long as one call takes."""


class _Submission(NamedTuple):
    task: NewTask
    audited: bytes
    added: asyncio.Future[Added]


class Together:
    """Stores plain tasks for all coroutines of a loop."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._waiting: list[_Submission] = []
        self._sent: set[asyncio.Task[None]] = set()

    async def add(self, task: NewTask, audited: bytes) -> Added:
        """As `addition.add` for this one task, which must be plain.

        Raises:
            RedisUnavailable
        """
        loop = asyncio.get_running_loop()
        added: asyncio.Future[Added] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(_Submission(task, audited, added))
        return await added

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for at in range(0, len(waiting), MOST):
            sent = asyncio.create_task(self._store_all(waiting[at : at + MOST]))
            self._sent.add(sent)
            sent.add_done_callback(self._sent.discard)

    async def _store_all(self, submissions: list[_Submission]) -> None:
        tasks = [each.task for each in submissions]
        audited = b"\n".join([each.audited for each in submissions])
        try:
            added = await self._store.run(addition.add(tasks, audited=audited))
        except asyncio.CancelledError:  # the program cancels every task: those who wait must not wait for ever
            for each in submissions:
                each.added.cancel()
            raise
        except TaskpoolError as error:
            for each in submissions:
                if not each.added.done():  # else whoever asked for it has left
                    each.added.set_exception(error)
            return
        if len(submissions) > 1 and not added.statuses:  # there is no room for all; for some there may be
            await asyncio.gather(*[self._store_all([each]) for each in submissions])
            return
        for each, status in zip(submissions, added.statuses or ("",), strict=True):
            if not each.added.done():
                each.added.set_result(Added(added.stamp, (status,)) if status else added)
