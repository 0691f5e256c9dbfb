"""How the supervisor ends attempts: stop requests, timeouts that a task ignores, and leases that can't be renewed.

A stop escalates: the attempt is asked first, then its process group gets SIGTERM, then SIGKILL. Before the first signal
the process dumps its stacks, which become part of the failure. An attempt that is killed gets its status when the
process has ended (see recovery.py): `stopped` is written only then.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Collection
from typing import Final

from . import process_group
from .duties import BackgroundTasks
from .process_group import LOOK_SHARE, SUPERVISOR_SHARE, boottime
from .process_handle import ProcessHandle, Verdict
from .shared_memory import LaneState, Request, Run

log = logging.getLogger("workers")

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


class Stops:
    """The stops under way, one for each attempt."""

    def __init__(self) -> None:
        self._until_mono: dict[str, float] = {}
        """By attempt id: when its grace ends."""
        self._tasks = BackgroundTasks()

    def stop_attempt(self, process: ProcessHandle, attempt_id: str, *, grace_s: float, force: bool = False) -> None:
        """Starts to end the attempt with this id; with `force` without asking it first.

        Redis starts an attempt a moment before its process shows it. A stop that comes in between waits for it.
        """
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
    late_s = [
        (process, run, now - run.started_mono - run.timeout_s)
        for process in processes
        for run in process.runs()
        if run.timeout_s
    ]
    for process in {process for process, _, seconds in late_s if seconds > SOFT_TIMEOUT_S}:
        process.wake()
    overdue = [
        (process, run) for process, run, seconds in late_s if seconds > HARD_TIMEOUT_S and process.is_running(run)
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
                        "task %s: its lease can't be renewed and %s: SIGKILL to its process group %d"
                        " (on_lost_lease is kill)", run.id, _lease_end(left_s), process.pid,
                    )  # fmt: skip
                process.kill(Verdict.LEASE_LOST, run)
                doomed.add(process.pid)
    # A process that left the group usually is the fork server's to kill, which may be frozen.
    await asyncio.gather(*(asyncio.to_thread(process_group.kill_family, pid) for pid in doomed))
    return max(look_s, 0.001)


def _lease_end(left_s: float) -> str:
    return f"ends in {left_s:.3g} s at the earliest" if left_s > 0 else f"may have ended {-left_s:.3g} s ago"
