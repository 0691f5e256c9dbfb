"""The running attempts of a pool: renews their leases, and ends those that must stop.

`Heartbeats` sends one heartbeat for all attempts. The replies tell which ones must stop: those with a stop request
whose message was lost, and those that lost their lease, whose outcome Redis would refuse.

A stop escalates: the attempt is asked first, then its process group gets SIGTERM, then SIGKILL. Before the first signal
the process dumps its stacks, which become part of the failure. An attempt that is killed gets its status when the
process has ended (see recovery.py): `stopped` is written only then. `enforce_timeouts` and `enforce_leases` are for
tasks that ignore their timeouts, and for leases that can't be renewed.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from taskpool.operations import status
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call, tolerant
from taskpool.redis.replies import ReplyFault

from . import process_group
from .duties import BackgroundTasks, log
from .fork_client import ProcessHandle, Verdict
from .process_group import LOOK_SHARE, SUPERVISOR_SHARE, boottime
from .shared_memory import LaneState, Request, Run

ATTEMPTS_AT_ONCE: Final = 500
"""In one script: Redis does nothing else meanwhile."""
DEFAULT_GRACE_S: Final = 10.0
"""For an attempt that lost its lease, and for a stop that names no grace."""
DAMAGED: Final = "damaged"
"""Stands for the reply when the keys of a task are damaged, so that its lease can't be renewed."""
TERM_GRACE_S: Final = 2.0
POLL_S: Final = 0.02
REPEAT_S: Final = 0.5
CLAIM_S: Final = 2.0
"""How long a stop waits for an attempt that Redis has started, but that no process shows yet."""
SOFT_TIMEOUT_S: Final = 0.2
"""When a process should have raised the timeout in its task by itself."""
HARD_TIMEOUT_S: Final = 5.0
"""How long a task may go on after its timeout, before its process is killed."""
LOOK_S: Final = 1.0
SHOWN_S: Final = 1.0
"""How long an attempt runs before RQ's tools show it: no dashboard could show a shorter one."""


class Heartbeats:
    """Two duties: every third of a lease, all attempts; and each second, those that have run for SHOWN_S without a
    heartbeat, so that RQ's tools show them."""

    def __init__(self, store: AsyncStore, stops: Stops, *, lease_s: float) -> None:
        self._store, self._stops, self._lease_ms = store, stops, round(lease_s * 1000)
        self._lists = 0
        self._had_one: set[str] = set()
        """The attempts, by id, that have had a heartbeat."""

    async def renew_leases(self, processes: Iterable[ProcessHandle]) -> None:
        """Renews the leases of all running attempts, starts to stop those that must stop, and marks the claims that a
        frozen process doesn't see. Raises: RedisUnavailable; nothing is lost before the leases end."""
        running: list[tuple[ProcessHandle, Run]] = []
        unwritten: list[tuple[str, str, str]] = []
        marks: list[Call[int]] = []
        self._lists += 1
        for process in processes:
            runs, batch = process.runs(), process.batch()
            known = [run.attempt_id for run in runs]
            running += ((process, run) for run in runs)
            if batch is not None:
                known += (member.attempt_id for member in batch.members)
                unwritten += (member[:3] for member in batch.members[batch.written : batch.begun])
            # Half the time between two lists must have passed.
            marks.append(scripts.mark_unseen(process.name, known, listed=self._lists, least_ms=self._lease_ms // 6))
        await self._renew(running, also=unwritten, marks=marks)
        self._had_one = {run.attempt_id for _, run in running}

    async def show_long(self, processes: Iterable[ProcessHandle]) -> float:
        """Sends the first heartbeat of what has run for a while. Returns the seconds until the next round."""
        now = time.monotonic()
        long = [
            (process, run)
            for process in processes
            for run in process.runs()
            if run.state is LaneState.RUNNING
            and now - run.started_mono >= SHOWN_S
            and run.attempt_id not in self._had_one
        ]
        if long:
            await self._renew(long)
            self._had_one.update(run.attempt_id for _, run in long)
        return SHOWN_S

    async def _renew(
        self,
        running: Sequence[tuple[ProcessHandle, Run]],
        *,
        also: Sequence[tuple[str, str, str]] = (),
        marks: Sequence[Call[int]] = (),
    ) -> None:
        attempts = [(run.id, run.attempt_id, run.queue) for _, run in running]
        attempts += also
        chunks = [attempts[at : at + ATTEMPTS_AT_ONCE] for at in range(0, len(attempts), ATTEMPTS_AT_ONCE)]
        renewals = [scripts.heartbeat(chunk, self._lease_ms) for chunk in chunks]
        sent = boottime()
        try:
            replies = (await self._store.run_many([*renewals, *marks]))[: len(renewals)]
        except ReplyFault:  # one damaged record must not cost the other attempts their leases
            renewals = [tolerant(scripts.heartbeat([attempt], self._lease_ms), [DAMAGED]) for attempt in attempts]
            replies = await self._store.run_many(renewals)
        to_stop = []
        for (process, run), word in zip(running, itertools.chain(*replies), strict=False):
            if word == DAMAGED:
                log.error("the lease of task %s can't be renewed: its keys are damaged", run.id)
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


class Stops:
    """The stops under way, one for each attempt."""

    def __init__(self) -> None:
        self._until_mono: dict[str, float] = {}  # by attempt id: when its grace ends
        self._tasks = BackgroundTasks()

    def stop_attempt(self, process: ProcessHandle, attempt_id: str, *, grace_s: float, force: bool = False) -> None:
        """Starts to end the attempt with this id; with `force` without asking it first. Redis starts an attempt a
        moment before its process shows it: a stop that comes in between waits for it."""
        self._tasks.spawn(self._stop_when_shown(process, attempt_id, grace_s, force))

    def stop(self, process: ProcessHandle, run: Run, *, grace_s: float, request: Request = Request.STOP) -> None:
        """Starts to end an attempt, which gets `grace_s` to end by itself. After a second call, the sooner end of the
        two graces counts."""
        until_mono = time.monotonic() + grace_s
        if run.attempt_id in self._until_mono:
            self._until_mono[run.attempt_id] = min(self._until_mono[run.attempt_id], until_mono)
            return
        self._until_mono[run.attempt_id] = until_mono
        task = self._tasks.spawn(self._escalate(process, run, request))
        task.add_done_callback(lambda _: self._until_mono.pop(run.attempt_id, None))

    async def _stop_when_shown(self, process: ProcessHandle, attempt_id: str, grace_s: float, force: bool) -> None:
        end_mono = time.monotonic() + CLAIM_S
        while (run := next((run for run in process.runs() if run.attempt_id == attempt_id), None)) is None:
            await asyncio.sleep(POLL_S)
            if process.ended.is_set() or time.monotonic() > end_mono:
                return
        if force:
            process.kill(Verdict.STOPPED, run)
        else:
            self.stop(process, run, grace_s=grace_s)

    async def _escalate(self, process: ProcessHandle, run: Run, request: Request) -> None:
        asked_mono = time.monotonic()
        process.ask(run, request)
        if await self._is_over(process, run):
            return
        had_s = time.monotonic() - asked_mono
        log.warning("task %s didn't stop in %.3g s: SIGTERM to its process group %d", run.id, had_s, process.pid)
        process.ask_for_stacks(run)
        if await self._is_over(process, run, process_group.WRITE_S):
            return
        process.signal_group(signal.SIGTERM)
        if await self._is_over(process, run, TERM_GRACE_S):
            return
        log.warning("task %s ignores SIGTERM: SIGKILL to its process group %d", run.id, process.pid)
        process.kill(Verdict.STOPPED, run)

    async def _is_over(self, process: ProcessHandle, run: Run, within_s: float | None = None) -> bool:
        """Waits for the end of the attempt, by default for its grace. The wake-up is repeated: one that came between
        two steps of the process had no effect."""
        woken_mono = time.monotonic()
        until_mono = None if within_s is None else woken_mono + within_s
        while process.is_running(run):
            now = time.monotonic()
            if now >= (until_mono or self._until_mono[run.attempt_id]):
                return False
            if now - woken_mono >= REPEAT_S:
                woken_mono = now
                process.wake()
            await asyncio.sleep(POLL_S)
        return True


async def enforce_timeouts(processes: Collection[ProcessHandle]) -> float:
    """Kills the processes of attempts that go on long after their timeouts. Returns the seconds until the next round.

    It also wakes processes soon after a timeout: a task that uses SIGALRM for itself is only interrupted that way.
    """
    now = time.monotonic()
    limited = [(process, run) for process in processes for run in process.runs() if run.timeout_s]
    late = [(process, run) for process, run in limited if now - run.started_mono - run.timeout_s > SOFT_TIMEOUT_S]
    for process in {process for process, _ in late}:
        process.wake()
    overdue = [
        (process, run)
        for process, run in late
        if now - run.started_mono - run.timeout_s > HARD_TIMEOUT_S and process.is_running(run)
    ]
    for process, run in overdue:
        log.warning("task %s ignores its timeout of %g s: SIGKILL", run.id, run.timeout_s)
        process.ask_for_stacks(run)
    if overdue:
        await asyncio.sleep(process_group.WRITE_S)
    for process, run in overdue:
        if process.is_running(run):
            process.kill(Verdict.TIMEOUT, run)
    return LOOK_S


async def enforce_leases(processes: Collection[ProcessHandle], *, lease_s: float) -> float:
    """Kills attempts that must not outlive their leases (`on_lost_lease` is "kill"), before leases end that can't be
    renewed, and shows all processes that their supervisor is at work. Returns the seconds until the next round.

    The other attempts of such a process are given back. If the supervisor is frozen, the process's guardian does this a
    little later.
    """
    now, look_s = boottime(), lease_s * LOOK_SHARE
    doomed: set[int] = set()
    for process in processes:
        process.block.head.supervised_ms = int(now * 1000)
        for run in process.runs():
            if not run.safe_until or run.state is not LaneState.RUNNING:
                continue
            left_s = run.safe_until - now
            if left_s > lease_s * SUPERVISOR_SHARE:
                look_s = min(look_s, left_s - lease_s * SUPERVISOR_SHARE)
            elif process.is_running(run):
                if run.attempt_id not in process.verdicts:  # a process that is hard to end is killed again and again
                    log.warning(
                        "task %s: its lease can't be renewed and may end in %.3g s: SIGKILL to its process group %d"
                        " (on_lost_lease is kill)", run.id, max(left_s, 0.0), process.pid,
                    )  # fmt: skip
                process.kill(Verdict.LEASE_LOST, run)
                doomed.add(process.pid)
    # A process that left the group usually is the fork server's to kill, which may be frozen.
    await asyncio.gather(*(asyncio.to_thread(process_group.kill_family, pid) for pid in doomed))
    return max(look_s, 0.001)
