"""Keeps the pool alive in Redis: renews the leases of all running attempts, and announces the pool and its workers.

The replies tell which attempts must stop: those with a stop request whose message was lost, and those that lost their
lease, whose outcome Redis would refuse.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from taskpool.operations import catalog, status
from taskpool.operations.catalog import PoolInfo
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.types import TypeInfo

from .process_group import boottime
from .process_handle import ProcessHandle, Verdict
from .registration import PoolWorker, WorkerRegistry
from .shared_memory import LaneState, Request
from .stops import Stops

log = logging.getLogger("workers")

ATTEMPTS_AT_ONCE: Final = 500
"""In one script: Redis does nothing else meanwhile."""
DEFAULT_GRACE_S: Final = 10.0
"""For an attempt that lost its lease, and for a stop that names no grace."""
DAMAGED: Final = "damaged"
"""Stands for the reply when the keys of a task are damaged, so that its lease can't be renewed."""


class Heartbeats:
    """One duty: every third of a lease."""

    def __init__(self, store: AsyncStore, registry: WorkerRegistry, stops: Stops, *, lease_s: float) -> None:
        self._store, self._registry, self._stops = store, registry, stops
        self._lease_ms = round(lease_s * 1000)
        self._lists = 0

    async def renew_leases(self, processes: Iterable[ProcessHandle]) -> None:
        """Renews the leases of all running attempts, starts to stop those that must stop, and marks the claims that a
        frozen process doesn't see.

        Raises:
            RedisUnavailable: Redis is away; nothing is lost before the leases end.
        """
        runs = [(process, process.runs()) for process in processes]
        running = [(process, run) for process, its in runs for run in its]
        attempts = [(run.id, run.attempt_id, run.queue) for _, run in running]
        chunks = [attempts[start : start + ATTEMPTS_AT_ONCE] for start in range(0, len(attempts), ATTEMPTS_AT_ONCE)]
        renewals = [scripts.heartbeat(chunk, self._lease_ms) for chunk in chunks]
        self._lists += 1
        marks = [
            scripts.mark_unseen(
                process.name, [run.attempt_id for run in its], listed=self._lists, least_age_ms=self._lease_ms // 3
            )
            for process, its in runs
        ]
        sent = boottime()
        try:
            replies = await self._store.run_many([*renewals, *marks])
            words = list(itertools.chain(*replies[: len(renewals)]))
        except ReplyFault:
            words = [await self._renew(attempt) for attempt in attempts]
        to_stop = []
        for (process, run), word in zip(running, words, strict=True):
            if run.safe_until and word not in ("lost", DAMAGED):
                process.block.renew(run, sent + self._lease_ms / 1000)
            # An attempt whose code is over is writing its outcome at this moment: "lost" means only that.
            if word in ("ok", DAMAGED) or run.state is not LaneState.RUNNING or not process.is_running(run):
                continue
            if word == "force":
                process.kill(Verdict.STOPPED, run)
            elif word == "lost" and run.safe_until:
                process.kill(Verdict.LEASE_LOST, run)
            elif word == "lost":
                self._stops.stop(process, run, grace_s=DEFAULT_GRACE_S, request=Request.LOST)
            else:
                to_stop.append((process, run))
        # The message about a stop may be lost, or that about a sooner one, and the grace with it.
        graces = [status.stop_grace_s(run.id, DEFAULT_GRACE_S) for _, run in to_stop]
        for (process, run), grace_s in zip(to_stop, await self._store.run_many(graces) if graces else (), strict=True):
            self._stops.stop(process, run, grace_s=grace_s)

    async def _renew(self, attempt: tuple[str, str, str]) -> str:
        """Renews one lease: after a fault, so that one damaged record costs no other attempt its lease."""
        try:
            (word,) = await self._store.run(scripts.heartbeat([attempt], self._lease_ms))
        except ReplyFault as fault:
            log.error("the lease of task %s can't be renewed, its keys are damaged: %s", attempt[0], fault)
            return DAMAGED
        return word

    async def announce(self, pool: PoolInfo, types: Sequence[TypeInfo], workers: Sequence[PoolWorker]) -> None:
        """Publishes the pool with its task types, and renews its workers in RQ's registry.

        Raises:
            RedisUnavailable: Redis is away.
        """
        await self._store.run(catalog.publish(pool, types, ttl_s=round(self._lease_ms / 1000) + 1))
        try:
            await asyncio.to_thread(self._registry.renew, workers)
        except ReplyFault as fault:  # it affects only what RQ's tools show
            log.error("the workers can't be entered in RQ's registry: %s", fault)
