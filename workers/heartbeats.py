"""Keeps the pool alive in Redis: renews the leases of all that runs, in one round trip, and says who is there.

The answers tell which attempts must stop: stops asked for while the message was lost, and attempts that lost
their lease, whose work would be thrown away.
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
from .process_handle import Child, Verdict
from .registration import PoolWorker, Registrar
from .shared_memory import LaneState, Request, Run
from .stops import Stops

log = logging.getLogger("workers")

ATTEMPTS_AT_ONCE: Final = 500
"""In one script: Redis does nothing else meanwhile."""
DEFAULT_GRACE_S: Final = 10.0
"""For an attempt that lost its lease, and for a stop that says no other."""
DAMAGED: Final = "damaged"
"""The word for an attempt whose lease can't be renewed, because the keys of its task are damaged."""


class Heartbeats:
    """One duty: every third of a lease."""

    def __init__(self, store: AsyncStore, registrar: Registrar, stops: Stops, *, lease_s: float) -> None:
        self._store, self._registrar, self._stops = store, registrar, stops
        self._lease_ms = round(lease_s * 1000)
        self._lists = 0

    async def renew_leases(self, children: Iterable[Child]) -> None:
        """Renews what runs, starts to stop what must, and marks the claims that a frozen process doesn't see.

        Raises:
            RedisUnavailable: Redis is away; nothing is lost before the leases end.
        """
        runs = [(child, child.runs()) for child in children]
        held = [(child, run) for child, its in runs for run in its]
        attempts = [(run.id, run.attempt_id, run.queue) for _, run in held]
        chunks = [attempts[start : start + ATTEMPTS_AT_ONCE] for start in range(0, len(attempts), ATTEMPTS_AT_ONCE)]
        renewals = [scripts.heartbeat(chunk, self._lease_ms) for chunk in chunks]
        self._lists += 1
        marks = [
            scripts.mark_unseen(
                child.name,
                [run.attempt_id for run in its],
                listed=self._lists,
                least_age_ms=self._lease_ms // 3,
            )
            for child, its in runs
        ]
        sent = boottime()
        try:
            answers = await self._store.run_many([*renewals, *marks])
            words = list(itertools.chain(*answers[: len(renewals)]))
        except ReplyFault:
            words = await self._renew_one_by_one(attempts)
        safe_until = sent + self._lease_ms / 1000
        asked = []
        for (child, run), word in zip(held, words, strict=True):
            if run.safe_until and word not in ("lost", DAMAGED):
                child.block.renew(run, safe_until)
            # One whose code is over is writing its outcome this moment: a "lost" is then only that.
            if word in ("ok", DAMAGED) or run.state is not LaneState.RUNNING or not child.is_running(run):
                continue
            if word == "force":
                self._stops.force(child, run)
            elif word == "lost" and run.safe_until:
                self._stops.force(child, run, Verdict.LEASE_LOST)
            elif word == "lost":
                self._stops.stop(child, run, grace_s=DEFAULT_GRACE_S, request=Request.LOST)
            else:
                asked.append((child, run))
        if asked:
            await self._stop(asked)

    async def _renew_one_by_one(self, attempts: Sequence[tuple[str, str, str]]) -> list[str]:
        """After a fault: one damaged record must not cost the other attempts their leases."""
        words: list[str] = []
        for attempt in attempts:
            try:
                (word,) = await self._store.run(scripts.heartbeat([attempt], self._lease_ms))
                words.append(word)
            except ReplyFault as fault:
                log.error("the lease of task %s can't be renewed, its keys are damaged: %s", attempt[0], fault)
                words.append(DAMAGED)
        return words

    async def _stop(self, asked: Sequence[tuple[Child, Run]]) -> None:
        """Stops what was asked to: its message may have been lost, or that of a sooner stop, and the grace with it."""
        graces = await self._store.run_many([status.stop_grace_s(run.id, DEFAULT_GRACE_S) for _, run in asked])
        for (child, run), grace_s in zip(asked, graces, strict=True):
            self._stops.stop(child, run, grace_s=grace_s)

    async def announce(self, pool: PoolInfo, types: Sequence[TypeInfo], workers: Sequence[PoolWorker]) -> None:
        """Publishes the pool with its types, and renews its workers' entries in RQ's registry.

        Raises:
            RedisUnavailable: Redis is away.
        """
        await self._store.run(catalog.publish(pool, types, ttl_s=round(self._lease_ms / 1000) + 1))
        try:
            await asyncio.to_thread(self._registrar.renew, workers)
        except ReplyFault as fault:  # only what RQ's tools show suffers
            log.error("the workers can't be entered in RQ's registry: %s", fault)
