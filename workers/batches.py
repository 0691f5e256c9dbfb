"""Batches: what a worker process has claimed together, seen by its supervisor.

A process claims several tasks at once while they take well under a millisecond (see process/sync_worker.py). If one of
them takes longer, the process can't look after the others. So the supervisor gives back those that haven't begun, and
writes the results of those that are done.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection
from typing import Final

from taskpool.operations.status import release_dependents, update_status
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, Plan, tolerant
from taskpool.redis.scripts import Done
from taskpool.tasks.attempt import stopped
from taskpool.types import DEFAULT_FAILURE_TTL_S, RunningTask

from .fork_client import ProcessHandle
from .process_group import boottime
from .shared_memory import BatchView, Member, fence

LATE_S: Final = 0.005
"""A task of a batch that takes longer keeps the others waiting."""
LOOK_S: Final = 0.005
NOTICED_S: Final = 0.1
"""A process that opens a batch wakes the supervisor if that hasn't looked for so long."""
QUIET_S: Final = 0.5
"""The supervisor stops looking when there was no batch for so long."""


def running_of(member: Member, worker: str) -> RunningTask:
    """The task of an attempt of a batch, for a call that ends it."""
    return RunningTask(
        id=member.id,
        attempt_id=member.attempt_id,
        queue=member.queue,
        type=member.type,
        result_ttl_s=member.result_ttl_s,
        failure_ttl_s=DEFAULT_FAILURE_TTL_S,
        worker=worker,
        payload=None,
        attempt=1,
        max_attempts=1,
        timeout_s=None,
        started_ms=0,
    )


class Relief:
    """One duty: looks at the batches, as long as there are any."""

    def __init__(self, store: AsyncStore, processes: Collection[ProcessHandle]) -> None:
        self._store, self._processes = store, processes
        self._seen_mono = 0.0
        self.wake = asyncio.Event()

    async def step(self) -> float:
        """One round. Returns the seconds until the next one. Raises: RedisUnavailable; what was taken is given back
        when its leases end."""
        now, now_mono = boottime(), time.monotonic()
        for process in tuple(self._processes):
            process.block.head.looked_ms = int(now * 1000)
            if process.block.head.batch not in (0, process.relieved_batch):
                self._seen_mono = now_mono
                if _is_late(process, now, now_mono):
                    await self._relieve(process)
        if now_mono - self._seen_mono < QUIET_S:
            return LOOK_S
        for process in self._processes:
            process.block.head.looked_ms = 0  # from now on a process wakes this duty
        fence()
        is_new = any(process.block.head.batch not in (0, process.relieved_batch) for process in self._processes)
        return LOOK_S if is_new else math.inf

    async def _relieve(self, process: ProcessHandle) -> None:
        batch = process.block.batch
        view = batch.view()
        if view is None or process.relieved_batch == view.number:
            return
        process.relieved_batch = view.number
        place = batch.take(view.number)
        await self._store.carry_out(_relieve(view, place, process.name))
        batch.give(view.number, place)


def _is_late(process: ProcessHandle, now: float, now_mono: float) -> bool:
    """Whether a task of the batch takes long, or the process is frozen."""
    head = process.block.head
    if head.is_sending or now - head.opened_ms / 1000 < LATE_S:
        return False
    run = process.block.run(0)
    return run is None or now_mono - run.started_mono >= LATE_S


def _relieve(view: BatchView, place: int, worker: str) -> Plan[None]:
    """Writes the results that aren't written, and gives back the attempts from this place on."""
    done = [
        Done(running_of(member, worker), result)
        for member, result in list(zip(view.members, view.results, strict=False))[view.written :]
        if result
    ]
    # The last one first: each goes to the front of its queue.
    rest = [running_of(member, worker) for member in reversed(view.members[place:])]
    calls: list[Call[str]] = [tolerant(scripts.give_back(running), "") for running in rest]
    if done:
        ((words, _), *answers) = yield [scripts.turn((), done, worker=worker), *calls]
        for (running, _), word in zip(done, words, strict=True):
            if word == "children":
                yield from release_dependents(running.id)
    else:
        answers = yield calls
    for running, word in zip(rest, answers, strict=True):
        if word == "stopping":
            yield [tolerant(update_status(running, stopped()), "")]
