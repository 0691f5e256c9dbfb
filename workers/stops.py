"""How one attempt is ended from outside: asked first, then SIGTERM to its process group, then SIGKILL.

Before the first of them it is asked where it is: the stacks of its threads are told with its end.

What is killed here is settled when the process has ended (see settlement): `stopped` is written only then.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass

from workers import stacks
from workers.child import Child, Verdict
from workers.slots import Request, Run

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
        if await self._is_over(child, run, _Grace.of(stacks.WRITE_S)):
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
