"""How one attempt is ended from outside: asked first, then SIGTERM to its process group, then SIGKILL.

Before the first of them it is asked where it is: the stacks of its threads are told with its end.

What is killed here is settled when the process has ended (see settlement): `stopped` is written only then.

Self-fencing: the supervisor kills attempts that must not outlive their leases, before the leases end.

An attempt with `on_lost_lease` "kill" shows until when its lease surely lasts (see slots). Its process is killed in
time, with all that descends from it. The other attempts of the process are given back. If the supervisor itself is
frozen, the process's guardian does it a little later.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from . import process_group
from .process_group import SUPERVISOR_SHARE, boottime
from .process_handle import Child, Verdict
from .shared_memory import LaneState, Request, Run

log = logging.getLogger("workers")

TERM_GRACE_S = 2.0
POLL_S = 0.02
REPEAT_S = 0.5
CLAIM_S = 2.0
"""How long a stop waits for an attempt that Redis has started, but that no process shows yet."""


@dataclass(slots=True)
class _Grace:
    """Until when somebody waits for the end of an attempt."""

    until_mono: float

    @classmethod
    def of(cls, seconds: float) -> _Grace:
        return cls(time.monotonic() + seconds)


class Stops:
    """The stops under way, one for each attempt."""

    def __init__(self) -> None:
        self._under_way: dict[str, tuple[asyncio.Task[None], _Grace]] = {}
        self._awaited: set[asyncio.Task[None]] = set()

    def stop_attempt(self, child: Child, attempt_id: str, *, grace_s: float, force: bool = False) -> None:
        """Starts to end the attempt with this id; with `force` without asking it first.

        Redis starts an attempt a moment before its process shows it. A stop that comes in between waits for it.
        """
        if not self._stop_if_shown(child, attempt_id, grace_s=grace_s, force=force):
            task = asyncio.create_task(self._stop_when_shown(child, attempt_id, grace_s=grace_s, force=force))
            self._awaited.add(task)
            task.add_done_callback(self._awaited.discard)

    def stop(self, child: Child, run: Run, *, grace_s: float, request: Request = Request.STOP) -> None:
        """Starts to end an attempt; `grace_s` is what it gets to end by itself. Called again, the sooner end of the two
        graces counts."""
        grace = _Grace.of(grace_s)
        if run.attempt_id in self._under_way:
            _, first = self._under_way[run.attempt_id]
            first.until_mono = min(first.until_mono, grace.until_mono)
            return
        task = asyncio.create_task(self._escalate(child, run, grace, request))
        self._under_way[run.attempt_id] = task, grace
        task.add_done_callback(lambda _: self._under_way.pop(run.attempt_id, None))

    def force(self, child: Child, run: Run, verdict: Verdict = Verdict.STOPPED) -> None:
        """Ends an attempt at once, without asking."""
        child.kill(verdict, run)

    def _stop_if_shown(self, child: Child, attempt_id: str, *, grace_s: float, force: bool) -> bool:
        for run in child.runs():
            if run.attempt_id == attempt_id:
                if force:
                    self.force(child, run)
                else:
                    self.stop(child, run, grace_s=grace_s)
                return True
        return False

    async def _stop_when_shown(self, child: Child, attempt_id: str, *, grace_s: float, force: bool) -> None:
        end_mono = time.monotonic() + CLAIM_S
        while time.monotonic() < end_mono and not child.ended.is_set():
            await asyncio.sleep(POLL_S)
            if self._stop_if_shown(child, attempt_id, grace_s=grace_s, force=force):
                return

    async def _escalate(self, child: Child, run: Run, grace: _Grace, request: Request) -> None:
        asked_mono = time.monotonic()
        child.ask(run, request)
        if await self._is_over(child, run, grace):
            return
        had_s = time.monotonic() - asked_mono
        log.warning("task %s didn't stop in %.3g s: SIGTERM to its process group %d", run.id, had_s, child.pid)
        child.ask_for_stacks(run)
        if await self._is_over(child, run, _Grace.of(process_group.WRITE_S)):
            return
        child.signal(signal.SIGTERM)
        if await self._is_over(child, run, _Grace.of(TERM_GRACE_S)):
            return
        log.warning("task %s ignores SIGTERM: SIGKILL to its process group %d", run.id, child.pid)
        child.kill(Verdict.STOPPED, run)

    async def _is_over(self, child: Child, run: Run, grace: _Grace) -> bool:
        """Waits for the end of the attempt. The signal is repeated: one that came between two steps had no effect."""
        signalled_mono = time.monotonic()
        while child.is_running(run):
            now = time.monotonic()
            if now >= grace.until_mono:
                return False
            if now - signalled_mono >= REPEAT_S:
                signalled_mono = now
                child.nudge()
            await asyncio.sleep(POLL_S)
        return True


LOOK_SHARE: Final = 0.05
"""How often it looks, as a share of the lease."""


async def enforce(children: Iterable[Child], *, lease_s: float) -> float:
    """Kills what is about to outlive its lease, and shows all processes that their supervisor is at work. Returns the
    seconds until it must look again."""
    now, look_s = boottime(), lease_s * LOOK_SHARE
    doomed: dict[int, Child] = {}
    for child in children:
        child.block.supervise(now)
        for run in child.runs():
            if not run.safe_until or run.state is not LaneState.RUNNING:
                continue
            due_s = run.safe_until - lease_s * SUPERVISOR_SHARE - now
            if due_s > 0:
                look_s = min(look_s, due_s)
            elif child.is_running(run):
                if run.attempt_id not in child.verdicts:  # a process that is hard to end is killed again and again
                    log.warning(
                        "task %s: its lease can't be renewed and %s: SIGKILL to its process group %d"
                        " (on_lost_lease is kill)", run.id, _when(run.safe_until - now), child.pid,
                    )  # fmt: skip
                child.kill(Verdict.LEASE_LOST, run)
                doomed[child.pid] = child
    # What left the process group usually is the fork server's to kill, which may be frozen.
    await asyncio.gather(*(asyncio.to_thread(process_group.kill_family, pid) for pid in doomed))
    return max(look_s, 0.001)


def _when(left_s: float) -> str:
    if left_s > 0:
        return f"ends in {left_s:.3g} s at the earliest"
    return f"may have ended {-left_s:.3g} s ago"
