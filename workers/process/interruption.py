"""Interrupts the code of a task with signals: SIGALRM for its timeout, SIGUSR1 for a stop.

The handlers raise an exception in the main thread, but only inside the fence (`attempt.run_in_fence`), which catches
it: it never reaches the worker's own code.

- A handler raises only if a frame of the fence is on the stack with another frame directly above it. That frame was
  called from within the `try` of the fence, so the fence catches what is raised there or above.
- Frames of the handlers themselves, and of what they call, don't count. Handlers nest: a signal may interrupt the
  handler of another one before its first line. Without this rule, a handler that interrupts the fence's own frame would
  look like the task's code to the next handler. A handler that finds another one past its first line does nothing but
  come again later.
- The event loop runs below `run_coroutine`, and a sudden exception would break it. There the task's coroutine is
  cancelled instead.
- Python swallows what is raised in a finalizer (`__del__`, a callback of `weakref` or `gc`, a generator that is
  dropped). In a `__del__` nothing is raised. The others don't show in the stack: Python reports what it has swallowed,
  and the interrupt is raised again (`_on_swallowed`).

An interrupt that can't be raised is tried again a moment later. A timeout and a stop are each raised once per attempt,
so that the task has its grace time to clean up. The request in shared memory names the attempt that it is for.

The alarm isn't set and cleared for each task: it stays set for the earliest deadline so far, and is set again when it
goes off too early. So a short task costs only a check. A task may use SIGALRM for itself: its timeout then comes with
the supervisor's signal, up to a second later.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TypeVar

from taskpool.tasks.attempt import Outcome, run_in_fence
from taskpool.tasks.context import SoftTimeout, TaskStopped
from taskpool.types import TaskStatus

from .. import process_group
from ..shared_memory import Lane, Request

try:
    # What `signal.getsignal` wraps. The wrapper formats and raises an exception for a handler that is no constant of
    # `signal`, which takes longer than all other checks before a task.
    from _signal import getsignal as _handler_of  # type: ignore[import-not-found]
except ImportError:
    from signal import getsignal as _handler_of

T = TypeVar("T")

_SIGUSR1, _SIGALRM, _ITIMER_REAL = int(signal.SIGUSR1), int(signal.SIGALRM), int(signal.ITIMER_REAL)

SLACK_S: Final = 0.01
"""The kernel rounds the rest of the timer up. An alarm may be this late before it is set again."""
RETRY_S: Final = 0.01
"""An interrupt that can't be raised now is tried again this much later."""


class Interruption:
    """Interrupts the task of a process that runs one at a time, in its main thread."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._deadline = math.inf
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
            signal.SIGALRM: self._on_alarm,
            signal.SIGUSR1: self._on_request,
            signal.SIGTERM: self._on_terminate,
            signal.SIGINT: self._on_terminate,
        }
        self._on_sigusr1, self._on_sigalrm = self._handlers[signal.SIGUSR1], self._handlers[signal.SIGALRM]
        self._raised: set[type[BaseException]] = set()
        self._coroutine: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_leftovers = self._is_debugged = self._is_handling = False
        self._attributes = 0
        self._report_swallowed = sys.unraisablehook
        self.terminated = False
        """True after a SIGTERM or SIGINT: the process ends when its task has ended."""

    def install(self) -> None:
        """Handles the process's signals. The processes that a task forks have Python's default handling."""
        self.reinstall()
        keep_apart(self._handlers)
        self._report_swallowed, sys.unraisablehook = sys.unraisablehook, self._on_swallowed

    def reinstall(self) -> None:
        """Sets the handlers again and unblocks their signals: a task may have used a signal for itself. Called between
        tasks every second; `watch` checks the handlers that the next task needs."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handlers)

    def watch(self, started_mono: float, deadline_mono: float) -> None:
        """Begins an attempt that may run until the deadline (inf: without limit)."""
        self._deadline = deadline_mono
        if self._raised:
            self._raised.clear()
        if _handler_of(_SIGUSR1) is not self._on_sigusr1:
            self.reinstall()
        if deadline_mono < math.inf:
            # An earlier task may have set the timer for itself, cleared it, or made it repeat.
            left_s, repeats_s = signal.getitimer(_ITIMER_REAL)
            if not 0 < left_s <= deadline_mono - started_mono + SLACK_S or repeats_s:
                self._arm(deadline_mono)
            if _handler_of(_SIGALRM) is not self._on_sigalrm:
                self.reinstall()

    def unwatch(self) -> None:
        """Ends the attempt: nothing is raised from now on."""
        self._deadline = math.inf

    def close(self) -> None:
        """Closes the event loop, if there is one."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            # A task may run it in a thread of its own, or have closed its descriptors.
            with suppress(RuntimeError, OSError):
                loop.close()

    @property
    def has_raised(self) -> bool:
        """Whether the attempt was interrupted, even if it ended as done."""
        return bool(self._raised)

    def run_coroutine(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs the user's coroutine; an interrupt cancels it. The asyncio tasks that it leaves running are cancelled.
        The loop is kept for the next task, unless this one has closed or changed it. Only the code that awaits a
        sub-task gets what it raises, even a `SystemExit`, which would otherwise end the loop.

        Raises: SoftTimeout, TaskStopped, and everything that the coroutine raises.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._is_debugged = self._loop.get_debug()
            self._attributes = _attributes_of(self._loop)
        loop, self._has_leftovers = self._loop, False
        asyncio.set_event_loop(loop)
        watched = self._watched(coroutine)
        main: asyncio.Task[Any] | None = loop.create_task(watched)
        try:
            assert main is not None
            while not main.done():
                try:
                    loop.run_until_complete(main)
                except BaseException as error:  # a sub-task ends the program, or stops the loop
                    is_lost = process_group.has_lost_selector(error)
                    self._has_leftovers |= is_lost
                    if is_lost or loop.is_closed() or main.done():
                        raise
            result: T = main.result()
        except asyncio.CancelledError:
            raise next(iter(self._raised), asyncio.CancelledError) from None
        finally:
            self._coroutine = None
            # In case it was cancelled before its first step. Both objects are dropped while this frame exists: the
            # finalizers that Python runs for them must not be the first frame above the fence.
            watched.close()
            main = None
            if not self._is_as_new(loop):
                self.close()
        return result

    async def _watched(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine inside the loop. An exception raised by a signal would leave the loop in a bad state."""
        self._coroutine, pid = asyncio.current_task(), os.getpid()
        try:
            return await coroutine
        finally:
            self._coroutine = None
            # A process that the task forked can't await anything, and ends (`end_if_forked`).
            leftovers = asyncio.all_tasks() - {asyncio.current_task()} if os.getpid() == pid else set()
            for task in leftovers:
                task.cancel()
            if leftovers:
                _, pending = await asyncio.wait(leftovers, timeout=1)
                self._has_leftovers = bool(pending)

    def _is_as_new(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the next task may use this loop."""
        return not (
            loop.is_closed()
            or loop.is_running()
            or self._has_leftovers
            or loop.get_task_factory() is not None
            or loop.get_exception_handler() is not None
            or loop.get_debug() is not self._is_debugged
            or _attributes_of(loop) != self._attributes  # a method was replaced
            # Python has no public way to see this: a shut executor would fail the tasks that need one.
            or getattr(loop, "_executor_shutdown_called", False)
            or getattr(getattr(loop, "_default_executor", None), "_shutdown", False)
        )

    # --- signal handlers: they run between two bytecodes of the main thread -----------------------------------

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._is_handling:
            self._arm(time.monotonic() + RETRY_S)
            return
        self._is_handling = True
        try:
            if self._deadline == math.inf:
                return
            if time.monotonic() < self._deadline:
                self._arm(self._deadline)
            elif not self._interrupt(SoftTimeout, frame):
                self._arm(time.monotonic() + RETRY_S)
        finally:
            self._is_handling = False

    def _on_request(self, number: int, frame: FrameType | None) -> None:
        """The supervisor repeats the signal while the task goes on, so one that comes too early isn't lost."""
        if self._is_handling:
            return
        self._is_handling = True
        try:
            if self._lane.request() is not Request.NONE:
                self._interrupt(TaskStopped, frame)
            elif time.monotonic() >= self._deadline:  # its alarm was taken by the task
                self._interrupt(SoftTimeout, frame)
        finally:
            self._is_handling = False

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _on_swallowed(self, unraisable: Any) -> None:
        """Python has swallowed an exception where none can be raised. If it is an interrupt, it is raised again: a
        timeout by the alarm, a stop by the supervisor's next signal."""
        if unraisable.exc_type not in self._raised:
            self._report_swallowed(unraisable)
            return
        self._raised.discard(unraisable.exc_type)
        if unraisable.exc_type is SoftTimeout and self._deadline < math.inf:
            self._arm(time.monotonic() + RETRY_S)

    def _arm(self, at_mono: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, max(at_mono - time.monotonic(), 1e-4))

    def _interrupt(self, interrupt: type[BaseException], frame: FrameType | None) -> bool:
        """Interrupts the task, if its code runs now; False: try again."""
        if interrupt in self._raised:
            return True
        coroutine = self._coroutine
        if coroutine is not None:
            self._raised.add(interrupt)
            with suppress(RuntimeError):  # the task has closed its loop
                # Threadsafe, because the loop may be asleep: a signal alone doesn't wake it.
                coroutine.get_loop().call_soon_threadsafe(coroutine.cancel)
            return True
        if not is_inside_fence(frame):
            return False
        self._raised.add(interrupt)
        raise interrupt


def keep_apart(numbers: Iterable[signal.Signals]) -> None:
    """Gives these signals their default handling in every process that this one forks from now on: with the worker's
    handlers it would note a SIGTERM for after the task, as its parent does, and never end. They are blocked during the
    fork, so that one sent to the new process before it has its handlers isn't lost."""
    blocked = frozenset(numbers)
    masks: list[set[int]] = []

    def before() -> None:
        masks.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, blocked)})

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def in_child() -> None:
        for number in blocked:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())
        # A `multiprocessing.Process` that a thread of an executor starts would wait for that thread at its end, which
        # is itself, and fail. Python has no public way to forget the threads of executors.
        getattr(concurrent.futures.thread, "_threads_queues", {}).clear()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def end_if_forked(worker_pid: int, outcome: Outcome) -> None:
    """Ends this process as Python would end a program with that outcome, unless it is the worker itself: a process that
    a task forked without `os._exit` gets here too, and must not continue as a second worker."""
    if os.getpid() == worker_pid:
        return
    is_exit = outcome.failure.get("exception") == SystemExit.__name__
    code = outcome.error.removeprefix(SystemExit.__name__).removeprefix(": ") if is_exit else ""
    with suppress(OSError, ValueError):
        if not is_exit:
            sys.stderr.write(outcome.traceback)
        sys.stdout.flush()
        sys.stderr.flush()
    has_failed = not is_exit and outcome.status is not TaskStatus.DONE
    os._exit(int(code) & 0xFF if code.isdecimal() else int(has_failed or bool(code)))


def _attributes_of(loop: asyncio.AbstractEventLoop) -> int:
    """How many attributes were set on the event loop itself. Replacing a method adds one."""
    return len(getattr(loop, "__dict__", ()))


def is_inside_fence(frame: FrameType | None) -> bool:
    """Whether the fence catches an exception that is raised in `frame`, which a signal has interrupted."""
    above: FrameType | None = None
    while frame is not None:
        code = frame.f_code
        if code is _FENCE:
            return above is not None
        if code in _NOT_INSIDE or code.co_name == "__del__":
            return False
        frame, above = frame.f_back, None if code in _HANDLERS else frame
    return False


_FENCE: Final = run_in_fence.__code__
_NOT_INSIDE: Final = frozenset({Interruption.run_coroutine.__code__, Interruption._on_swallowed.__code__})
_HANDLERS: Final = frozenset(
    handler.__code__ for handler in (Interruption._on_alarm, Interruption._on_request, Interruption._on_terminate)
)
