"""Ends the user's code from outside: SIGALRM for its timeout, SIGUSR1 for a stop.

A signal raises only while a frame of the user's code is on the stack, called by `execute_task`; our own bookkeeping
is never hit. It raises once for each attempt and reason, so that a task has its grace to tidy up, and only for the
attempt the supervisor meant: the request in the shared memory names it.

The alarm isn't set and cleared for each task: it stays armed for the earliest deadline so far, and one that goes
off too early is armed again. A run of short tasks makes no system call for it.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

from taskpool.attempt import execute_task
from taskpool.interrupts import SoftTimeout, TaskStopped
from workers import forks
from workers.slots import Lane, Request

T = TypeVar("T")

RETRY_S: Final = 0.01
"""When the alarm goes off on the way into or out of the user's code, it is tried again this much later."""


class Interruption:
    """The interrupts of a process that runs one task at a time, in its main thread."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._deadline = math.inf
        self._alarm_at = math.inf
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
            signal.SIGALRM: self._on_alarm,
            signal.SIGUSR1: self._on_request,
            signal.SIGTERM: self._on_terminate,
            signal.SIGINT: self._on_terminate,
        }
        self._raised: set[type[BaseException]] = set()
        self._coroutine: asyncio.Task[Any] | None = None
        self._runner: asyncio.Runner | None = None
        self.terminated = False
        """True after a SIGTERM from outside: the process is to end when its task has."""

    def install(self) -> None:
        """Takes over the process's signals. What a task forks has Python's own handling of them again."""
        self.reinstall()
        forks.keep_apart(self._handlers)

    def reinstall(self) -> None:
        """Sets the handlers again: a task may have used a signal for itself. Called between two tasks, now and then."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    def watch(self, started_mono: float, deadline_mono: float) -> None:
        """Begins an attempt that may run until the deadline (inf: without limit)."""
        self._deadline = deadline_mono
        if self._raised:
            self._raised.clear()
        if deadline_mono < self._alarm_at or self._alarm_at < started_mono:
            self._arm(deadline_mono)

    def unwatch(self) -> None:
        """Ends the attempt: nothing is raised any more."""
        self._deadline = math.inf

    def close(self) -> None:
        """Closes the event loop, if there was need of one."""
        if self._runner is not None:
            self._runner.close()

    @property
    def has_raised(self) -> bool:
        """Whether the attempt was interrupted, whatever it made of that."""
        return bool(self._raised)

    def run_coroutine(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs the user's coroutine; an interrupt cancels it. What it leaves running is cancelled too.

        Raises:
            SoftTimeout, TaskStopped: what interrupted it; and whatever it raises.
        """
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(self._watched(coroutine))
        except asyncio.CancelledError:
            raise next(iter(self._raised), asyncio.CancelledError) from None

    async def _watched(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine inside the loop. An exception raised by a signal would leave the loop in a bad state."""
        self._coroutine = asyncio.current_task()
        try:
            return await coroutine
        finally:
            self._coroutine = None
            leftovers = asyncio.all_tasks() - {asyncio.current_task()}
            for task in leftovers:
                task.cancel()
            if leftovers:
                await asyncio.wait(leftovers, timeout=1)

    # --- signal handlers: they run between two bytecodes of the main thread -----------------------------------

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self._alarm_at = math.inf
        if self._deadline == math.inf:
            return
        if time.monotonic() < self._deadline:
            self._arm(self._deadline)
        elif self._is_user_code(frame):
            self._raise(SoftTimeout)
        elif SoftTimeout not in self._raised:
            self._arm(time.monotonic() + RETRY_S)

    def _on_request(self, number: int, frame: FrameType | None) -> None:
        """The supervisor repeats the signal while the task goes on, so one that comes too early isn't lost."""
        if self._lane.request() is not Request.NONE and self._is_user_code(frame):
            self._raise(TaskStopped)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _arm(self, at_mono: float) -> None:
        self._alarm_at = at_mono
        if at_mono < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(at_mono - time.monotonic(), 1e-4))

    def _raise(self, interrupt: type[BaseException]) -> None:
        if interrupt in self._raised:
            return
        self._raised.add(interrupt)
        if self._coroutine is not None:
            # Threadsafe, because the loop may be asleep: a signal alone doesn't wake it.
            self._coroutine.get_loop().call_soon_threadsafe(self._coroutine.cancel)
        else:
            raise interrupt

    def _is_user_code(self, frame: FrameType | None) -> bool:
        """Whether `execute_task` is calling the task, and not, itself or with its own functions, what is around it."""
        if self._coroutine is not None:
            return True
        above: FrameType | None = None
        while frame is not None:
            if frame.f_code is execute_task.__code__:
                ours = above is None or above.f_globals is execute_task.__globals__ or above.f_code is _RUN_COROUTINE
                return not ours
            frame, above = frame.f_back, frame
        return False


_RUN_COROUTINE: Final = Interruption.run_coroutine.__code__
"""Below it runs the event loop, which an exception out of nowhere would break: its tasks are cancelled instead."""
