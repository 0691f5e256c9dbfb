"""How one attempt is ended from outside: asked first, then SIGTERM to its process group, then SIGKILL.

Before the first of them it is asked where it is: the stacks of its threads are told with its end.

What is killed here is settled when the process has ended (see settlement): `stopped` is written only then.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from workers import stacks
from workers.child import Child, Verdict
from workers.slots import Request, Run

log = logging.getLogger("workers")

TERM_GRACE_S = 2.0
POLL_S = 0.02
REPEAT_S = 0.5


class Stops:
    """The stops under way, one for each attempt."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def is_under_way(self, run: Run) -> bool:
        """Whether this attempt is being ended."""
        return run.attempt_id in self._under_way

    def stop(self, child: Child, run: Run, *, grace_s: float, request: Request = Request.STOP) -> None:
        """Starts to end an attempt; `grace_s` is what it gets to end by itself. A second call changes nothing."""
        if run.attempt_id not in self._under_way:
            task = asyncio.create_task(self._escalate(child, run, grace_s, request))
            self._under_way[run.attempt_id] = task
            task.add_done_callback(lambda _: self._under_way.pop(run.attempt_id, None))

    def force(self, child: Child, run: Run, verdict: Verdict = Verdict.STOPPED) -> None:
        """Ends an attempt at once, without asking."""
        child.kill(verdict, run)

    async def _escalate(self, child: Child, run: Run, grace_s: float, request: Request) -> None:
        child.ask(run, request)
        if await self._is_over(child, run, grace_s):
            return
        log.warning("task %s doesn't stop within %g s: SIGTERM to its process group %d", run.id, grace_s, child.pid)
        child.ask_for_stacks(run)
        if await self._is_over(child, run, stacks.WRITE_S):
            return
        child.signal(signal.SIGTERM)
        if await self._is_over(child, run, TERM_GRACE_S):
            return
        log.warning("task %s ignores SIGTERM: SIGKILL to its process group %d", run.id, child.pid)
        child.kill(Verdict.STOPPED, run)

    async def _is_over(self, child: Child, run: Run, within_s: float) -> bool:
        """Waits for the end of the attempt. The signal is repeated: one that came between two steps had no effect."""
        started_mono = signalled_mono = time.monotonic()
        while child.is_running(run):
            now = time.monotonic()
            if now - started_mono >= within_s:
                return False
            if now - signalled_mono >= REPEAT_S:
                signalled_mono = now
                child.nudge()
            await asyncio.sleep(POLL_S)
        return True
