"""What other programs with RQ leave undone on our queues: any pool looks after it, every few seconds, without a lock.

Tasks that a plain RQ worker took and never started are queued again. When RQ's tools delete a task's record, its
secrets are deleted as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

from taskpool import keys, overview, rqjob, scripts
from taskpool.calls import Call, one, tolerant
from taskpool.errors import RedisUnavailable
from taskpool.listing import some_queues
from taskpool.settings import Settings
from taskpool.store import AsyncStore, ReplyFault

log = logging.getLogger("workers")

LOOK_S: Final = 5.0
WARN_S: Final = 30.0
STUCK_S: Final = 30.0
"""How long a task may have been taken by an RQ worker and not started. RQ's own maintenance fails it after 60 s at the
earliest: by then it is queued again."""
BATCH: Final = 200
QUEUES_A_LOOK: Final = 500
"""About how many queues are looked at each time, on the way round all of them, besides those that RQ workers serve."""
SECRETS_BATCH: Final = 2000
SECRETS_STEPS: Final = 5
MISREAD_BATCH: Final = 50
RECHECK_BATCH: Final = 1000
TOLD: Final = 100


class BesideRq:
    """One duty: a look every LOOK_S."""

    def __init__(
        self,
        store: AsyncStore,
        settings: Settings,
        connection: Redis,
        *,
        stuck_s: float = STUCK_S,
        warn_after_s: float = LOOK_S,
    ) -> None:
        self._store, self._foreign, self._stuck_s = store, settings.foreign, stuck_s
        self._connection = connection
        self._told: deque[str] = deque(maxlen=TOLD)
        self._cursor = "0"
        self._shared: set[str] = set()
        """The queues that RQ workers serve."""
        self._offsets: dict[str, int] = {}
        self._states: dict[str, tuple[str, int]] = {}
        self._walks = False
        """Whether older failures are looked at as well: an RQ worker serves our queues."""
        self._rechecked: dict[str, int] = {}
        self._swept_to = ""
        self._warn_mono = time.monotonic() + warn_after_s

    async def step(self) -> float:
        """One look; the seconds until the next.

        Raises:
            RedisUnavailable: Redis is away.
        """
        part = tolerant(some_queues(self._cursor, QUEUES_A_LOOK), ("0", []))
        self._cursor, names = await self._store.run(part)
        queues = list(dict.fromkeys([*self._shared, *names]))
        looks = (
            partial(self._adopt, queues),
            partial(self._take_back, queues),
            self._release_dependents,
            self._sweep_secrets,
            self._recheck,
            self._warn,
        )
        for look in looks:
            try:
                await look()
            except ReplyFault as fault:  # a damaged record must not keep the other looks back
                log.error("beside RQ: %s", fault)
        return LOOK_S

    async def _adopt(self, queues: Sequence[str]) -> None:
        """Queues the tasks again that an RQ worker took and never started."""
        if not queues:
            return
        offsets = {queue: self._offsets.get(queue, 0) for queue in queues}
        adopted = await self._store.carry_out(
            one(scripts.adopt(offsets, BATCH, after_s=self._stuck_s, foreign=self._foreign))
        )
        self._offsets |= adopted.offsets
        self._offsets = {queue: offset for queue, offset in self._offsets.items() if offset}
        if adopted.count:
            log.warning("%d tasks that an RQ worker took and never started are queued again", adopted.count)

    async def _take_back(self, queues: Sequence[str]) -> None:
        """Schedules the tasks again that an RQ worker failed because it couldn't read them."""
        states = {queue: self._states.get(queue, ("", 0)) for queue in queues}
        if not states:
            return
        failed = await self._store.run(scripts.misread(states, limit=BATCH, most=MISREAD_BATCH, walks=self._walks))
        # Having found some, it looks again: the same ones may be failed again, which changes no state.
        self._states |= {queue: ("" if failed.found else state, at) for queue, (state, at) in failed.states.items()}
        self._states = {queue: each for queue, each in self._states.items() if not each[0].startswith("0 ")}
        for id, entry, traceback in failed.found:
            word = await self._store.run(scripts.judge(id, entry, is_unread=rqjob.is_unread(traceback)))
            if word == "scheduled":
                self._tell("an RQ worker failed tasks that it could not read; they are scheduled again")

    async def _recheck(self) -> None:
        """Looks for tasks among the jobs that claims pass over."""
        queues = await self._store.run(overview.foreign_queues())
        for queue in queues:
            offset = self._rechecked.get(queue, 0)
            self._rechecked[queue] = await self._store.run(
                scripts.recheck(queue, offset, RECHECK_BATCH, foreign=self._foreign)
            )

    async def _warn(self) -> None:
        """Logs what is wrong with the RQ programs beside the pools, each thing once."""
        if self._warn_mono > time.monotonic():
            return
        self._warn_mono = time.monotonic() + WARN_S
        shared = (await self._store.carry_out(overview.plain_workers())).values()
        self._shared = set().union(*shared)
        self._walks = bool(self._shared)
        for text in await self._store.carry_out(overview.worker_warnings()):
            self._tell(text)

    async def _release_dependents(self) -> None:
        """Queues the RQ jobs that waited for a job of an RQ function which ended here. RQ's own code does it."""
        ids = await self._store.run(Call(("SRANDMEMBER", keys.RQ_OUTBOX, BATCH), _names, again=True))
        for id in ids:
            try:
                await asyncio.to_thread(rqjob.release_dependents, self._connection, id)
            except (ConnectionError, TimeoutError) as error:
                raise RedisUnavailable(f"Redis: {error}") from error
            except Exception as error:  # RQ raises what it likes at a record that it can't read
                self._tell(f"the RQ jobs that wait for {id} can't be queued: {type(error).__name__}: {error}")
                continue
            await self._store.run(Call(("SREM", keys.RQ_OUTBOX, id), int, again=True))

    def _tell(self, text: str) -> None:
        """Logs a warning, once."""
        if text not in self._told:
            self._told.append(text)
            log.warning("%s", text)

    async def _sweep_secrets(self) -> None:
        for _ in range(SECRETS_STEPS):
            self._swept_to = await self._store.run(scripts.sweep_secrets(self._swept_to, SECRETS_BATCH))
            if not self._swept_to:
                return


def _names(reply: list[bytes]) -> list[str]:
    return [name.decode(errors="replace") for name in reply]
