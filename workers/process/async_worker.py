"""A worker process that runs many tasks at once: `async def` ones on one event loop, the others in threads.

Each lane of its block of shared memory holds one task. One connection claims, and writes outcomes with each claim;
while it blocks at the doorbells, another one writes them. A stop or a timeout cancels the coroutine. A thread can only
be asked to end: a task in a thread that ignores both costs the whole process (see supervisor).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any, Final, TypeVar

from taskpool.errors import RedisUnavailable
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.tasks.attempt import Outcome, execute_task, execute_task_async, raised, stopped, timed_out, worker_error
from taskpool.tasks.context import TaskContext
from taskpool.types import RunningTask, TaskStatus

from .. import process_group, stacks
from ..shared_memory import Lane, Request
from .interruption import end_if_forked, keep_apart
from .output import Capture
from .reports import Reporter, Reports
from .worker_loop import (
    DOORBELL_S,
    TICK_S,
    Ended,
    Setup,
    WorkerLoop,
    limit_end,
    put_back,
    run_exit_handlers,
    run_start_hooks,
    run_stop_hooks,
)

T = TypeVar("T")

log = logging.getLogger("workers")

SIGNALS: Final = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
"""SIGALRM is handled so that an alarm that one task has left behind doesn't end the process of the others."""
CLEAR_S: Final = 5.0
"""For how long nothing is claimed so that a suspect can run alone."""
ALONE_S: Final = 60.0
"""For how long a suspect has the process for itself: most tasks that end a process do so earlier."""
HAS_TO_WAIT: Final = "it has to run alone in its worker process, and waits until one is free (see reliability.md)"
DISTURBED: Final = "put back: another task has cancelled everything on the event loop of its worker process"
CLAIMS_AT_ONCE: Final = 16
RETRY_S: Final = 0.5


def serve(setup: Setup) -> int:
    """Runs tasks until the supervisor drains this process; returns its exit status."""
    process = AsyncWorker(setup)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        main = loop.create_task(process.serve())
        while not main.done():
            try:
                loop.run_until_complete(main)
            except BaseException as end:  # a sub-task ends the program, or stops the loop: the other tasks go on
                if loop.is_closed() or main.done():
                    raise
                if process_group.has_lost_selector(end):
                    log.critical("worker %s ends and is replaced: %s", setup.worker, process_group.TAKEN_ADVICE)
                    os._exit(1)  # as below
                log.warning("worker %s: something that a task started would have ended the event loop", setup.worker)
        if error := main.exception():  # a fault of ours, or a task has broken the loop: no step on it can be trusted
            log.critical("worker %s ends: its event loop fails", setup.worker, exc_info=error)
            os._exit(1)  # the supervisor settles what it ran
    run_exit_handlers()
    return main.result()


class AsyncWorker(WorkerLoop):
    """The process: it claims while lanes are free, and runs one coroutine for each task."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        slots = setup.settings.slots
        self._free = [setup.block.lane(number) for number in range(slots)]
        self._freed = asyncio.Event()
        self._intake = AsyncStore(self._redis_url, name=setup.worker)
        self._store = AsyncStore(self._redis_url, name=setup.worker)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="taskpool-task")
        self._attempts: dict[str, _Attempt] = {}
        self._fenced_threads = 0
        """How many attempts that must not outlive their leases run in threads."""
        self._is_over = False
        self._is_careful = False
        """True when the last claim found a suspect: there may be more of them, and only one runs at a time."""
        self._clear_until = self._rest_until = 0.0
        self._takes_ends = False
        """True while the next claim comes soon. Then it writes the outcomes in `_handed`."""
        self._handed: list[tuple[_Attempt, Ended, asyncio.Event]] = []

    async def serve(self) -> int:
        """Runs tasks until the process leaves and the last task has ended."""
        self._take_signals()
        keep_apart(SIGNALS)
        self._output.start()
        if not await run_start_hooks():
            return 1
        loop = self._loop = asyncio.get_running_loop()
        self._loop_is = loop.get_task_factory(), loop.get_exception_handler()
        self._loop_attributes = frozenset(getattr(loop, "__dict__", ()))
        self._begin_loop()
        ticking = asyncio.create_task(self._tick_for_ever())
        while not self._is_leaving() or self._is_unsure:
            try:
                await self._take_turn()
            except asyncio.CancelledError:  # a task has cancelled everything on this loop
                _uncancel()
                self._is_unsure = True
            except Exception:  # a fault of ours: the tasks that were claimed with it are given back
                log.exception("worker %s: claiming failed", self._worker)
                self._is_unsure = True
                await _insist(lambda: asyncio.sleep(RETRY_S))
        self._takes_ends = False
        for _, _, answered in self._handed:
            answered.set()  # they are written apart
        while self._attempts:
            await _insist(lambda: asyncio.wait([attempt.task for attempt in self._attempts.values()]))
        self._is_over = True
        ticking.cancel()
        await _insist(lambda: loop.run_in_executor(self._threads, self._unwritten.close))
        limit_end()
        await _insist(lambda: self._store.carry_out(self._last_reports()))
        await run_stop_hooks()
        self._output.settle()
        return 0

    def _attempts_here(self) -> Iterable[str]:
        return self._attempts

    # --- claiming ---------------------------------------------------------------------------------------------

    async def _take_turn(self) -> None:
        """Claims tasks for the free lanes and begins them. Waits when there is no free lane, or no task."""
        has_room = bool(self._free or self._handed)
        can_claim = has_room and not self._is_leaving() and self._may_claim() and not self._must_wait()
        if not (can_claim or self._handed or self._is_unsure):
            self._freed.clear()
            self._takes_ends = True
            with suppress(TimeoutError):
                async with asyncio.timeout(DOORBELL_S):
                    await self._freed.wait()
            return
        handed, self._handed = self._handed, []
        self._is_idle = self._is_idle and not handed  # it would wait at the doorbells
        most = 0
        if can_claim:
            room = len(self._free) + len(handed)
            most = 1 if self._is_idle or self._is_careful else min(room, CLAIMS_AT_ONCE)
        self._takes_ends = not self._is_idle
        ends = [ended for _, ended, _ in handed]
        exchange = self._exchange(ends, most=most, was_idle=not self._attempts, gives_back=True)
        try:
            claimed = await self._intake.carry_out(exchange)
        finally:
            self._takes_ends = False
            for attempt, ended, answered in handed:
                if ended.is_settled:
                    self._release(attempt)
                answered.set()
        if isinstance(claimed, float):
            await asyncio.sleep(claimed)
            return
        self._is_idle = can_claim and not claimed
        if len(claimed) > len(self._free):  # an outcome that was to make room isn't written
            claimed, self._is_unsure = claimed[: len(self._free)], True  # the others are given back
        await self._begin_all([running for running in claimed if not running.is_suspect])
        suspects = [running for running in claimed if running.is_suspect]
        self._is_careful = bool(suspects) or (self._is_careful and not claimed)
        if suspects:
            try:
                await self._begin_alone(suspects)
            except (RedisUnavailable, ReplyFault):
                self._is_unsure = True  # they are given back

    async def _begin_all(self, claimed: Sequence[RunningTask]) -> None:
        fenced = [running for running in claimed if running.on_lost_lease == "kill"]
        for running in claimed:
            if running.on_lost_lease != "kill":
                self._begin(running)
        if not fenced:
            return
        process_group.kill_late_when_continued(self._block)
        if not await asyncio.to_thread(process_group.wait_for_guardian, self._block):
            self._is_unsure = True  # they are given back
            return
        held, safe_until = await self._store.carry_out(self._renew(fenced))
        for running in held:
            self._begin(running, safe_until)

    async def _begin_alone(self, suspects: Sequence[RunningTask]) -> None:
        """Begins a task that may be the one that ended a process: alone, so that the next end is its own.

        While others run it goes back to the front of its queue, and nothing is claimed until they have ended, for up to
        CLEAR_S. If they take longer, it is put back for as long, and meanwhile the process continues as usual.
        """
        if not self._attempts:
            await self._begin_all(suspects[:1])
            suspects = suspects[1:]
        now = time.monotonic()
        if self._attempts and self._clear_until and now >= self._clear_until:
            self._clear_until, self._rest_until = 0.0, now + CLEAR_S
        for running in suspects:
            if now < self._rest_until:
                await self._store.run(scripts.snooze(running, delay_ms=round(CLEAR_S * 1000), message=HAS_TO_WAIT))
            else:
                await self._store.run(scripts.give_back(running))
                self._clear_until = self._clear_until or now + CLEAR_S

    def _must_wait(self) -> bool:
        """Whether the running tasks must end before the next claim: a suspect runs, or is to run alone."""
        if not self._attempts:
            self._clear_until = 0.0
            return False
        now = time.monotonic()
        if now < self._clear_until:
            return True
        suspects = [attempt for attempt in self._attempts.values() if attempt.running.is_suspect]
        return any(now < attempt.begun_mono + ALONE_S for attempt in suspects)

    def _begin(self, running: RunningTask, safe_until: float = 0.0) -> None:
        lane = self._free.pop()
        timeout_s = max(running.timeout_s or 0.0, 0.0)
        lane.begin(running.id, running.attempt_id, running.queue, time.monotonic(), timeout_s, safe_until)
        attempt = self._attempts[running.attempt_id] = _Attempt(running, lane, self._reporter)
        attempt.task = _task(self._carry_through(attempt))

    # --- one attempt ------------------------------------------------------------------------------------------

    async def _carry_through(self, attempt: _Attempt) -> None:
        """Runs one attempt and writes its outcome. Whatever happens, its lane is free then."""
        running = attempt.running
        try:
            outcome = await _insist(lambda: self._outcome_of(attempt))
            reports = attempt.reports.take()
        except Exception as error:  # a fault of ours
            log.exception("worker %s failed around task %s", self._worker, running.id)
            outcome, reports = worker_error(running, error), attempt.reports.discard()
        self._capture.leave(running)
        run_s = time.monotonic() - attempt.begun_mono
        self._must_leave = self._files.are_running_out() or self._must_leave
        attempt.lane.end()
        if attempt.lane.request() is Request.STOP and outcome.status is not TaskStatus.DONE:
            outcome = stopped()
        await self._write(attempt, Ended(running, outcome, run_s, reports))
        self._release(attempt)

    def _release(self, attempt: _Attempt) -> None:
        """Frees the lane of an attempt whose outcome is written."""
        if self._attempts.pop(attempt.running.attempt_id, None) is None:
            return
        attempt.lane.clear()
        self._restore()
        self._free.append(attempt.lane)
        self._freed.set()

    async def _outcome_of(self, attempt: _Attempt) -> Outcome:
        """Runs the code. A stop (see `_on_request`) or its timeout cancels it."""
        running = attempt.running
        if attempt.code is None:
            attempt.code = _Code(self._execute(attempt), attempt.reports, self._capture)
            if attempt.lane.request():  # the stop came before there was something to cancel
                attempt.cancel()
        while not attempt.code.done():
            left_s = None if attempt.reports.is_overdue else attempt.left_s()
            done, _ = await asyncio.wait([attempt.code], timeout=left_s)
            if not done:
                attempt.reports.is_overdue = True
                attempt.code.cancel()
        outcome = None if attempt.code.cancelled() else _outcome_in(attempt.code, running)
        if attempt.reports.is_overdue and (outcome is None or outcome.status is not TaskStatus.DONE):
            return timed_out(running)
        if attempt.was_cancelled and outcome is None:
            return stopped()
        if attempt.code.was_disturbed and not attempt.was_cancelled and (outcome is None or _is_cancellation(outcome)):
            return put_back(DISTURBED, RETRY_S)
        if outcome is not None:
            return outcome
        error = "CancelledError: the task cancelled itself"
        return Outcome(TaskStatus.FAILED, error=error, failure={"reason": "exception", "message": error})

    async def _execute(self, attempt: _Attempt) -> Outcome:
        running, limit = attempt.running, self._settings.max_result_bytes
        self._capture.enter(attempt.reports, alone=False)
        context = TaskContext.of(running, attempt.reports)
        task_type = self._registry.get(running.type)
        if task_type is None or task_type.runs_on_loop:
            outcome = await execute_task_async(running, self._registry, context, max_result_bytes=limit)
            end_if_forked(self._pid, outcome)
        else:
            with self._fenced_in_thread(running):
                outcome = await self._execute_in_thread(running, context)
        left = self._left_to_others(running, outcome)
        return outcome if left is None else await self._store.carry_out(left)

    @contextmanager
    def _fenced_in_thread(self, running: RunningTask) -> Iterator[None]:
        """SIGCONT ends this process while an attempt that must not outlive its lease runs in a thread."""
        is_fenced = running.on_lost_lease == "kill"
        self._fenced_threads += is_fenced
        if is_fenced:
            process_group.end_when_continued(True)
        try:
            yield
        finally:
            self._fenced_threads -= is_fenced
            if is_fenced and not self._fenced_threads:
                process_group.end_when_continued(False)

    async def _execute_in_thread(self, running: RunningTask, context: TaskContext) -> Outcome:
        limit = self._settings.max_result_bytes
        runner = _LoopRunner(self._loop)
        is_refused = False

        attempt = self._attempts[running.attempt_id]

        def execute() -> Outcome:
            if is_refused:
                return stopped()  # nothing reads it
            attempt.thread_id = threading.get_ident()
            outcome = execute_task(running, self._registry, context, max_result_bytes=limit, run_coroutine=runner.run)
            end_if_forked(self._pid, outcome)
            return outcome

        try:
            thread = self._loop.run_in_executor(self._threads, copy_context().run, execute)
        except RuntimeError as error:  # no thread can be started: tasks may have left threads behind in this process
            is_refused = True  # the executor has queued it nevertheless
            if (shortage := process_group.shortage(error)) is None:
                raise
            log.error("worker %s leaves and is replaced: %s", self._worker, shortage)
            self._must_leave = True
            return put_back(f"put back: no thread can be started for it on this worker ({shortage})", RETRY_S)
        while True:  # what a thread does can't be cancelled, only asked to end
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                if thread.done():
                    return thread.result()
                runner.cancel()

    async def _write(self, attempt: _Attempt, ended: Ended) -> None:
        """Writes an outcome as soon as Redis takes it: with the next claim, unless that waits at the doorbells."""
        if self._takes_ends and ended.is_plain and not ended.reports:
            answered = asyncio.Event()
            self._handed.append((attempt, ended, answered))
            self._freed.set()
            await _insist(answered.wait)
        while not ended.is_settled:
            self._restore_loop()  # what follows needs a loop that works
            try:
                wait_s = await self._store.carry_out(self._exchange([ended], gives_back=False))
                if isinstance(wait_s, float) and not ended.is_settled:
                    await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                _uncancel()
            except Exception as error:  # a task has broken the event loop
                self._keep(ended, error)

    # --- what a task may have changed -------------------------------------------------------------------------

    def _restore(self) -> None:
        """Takes back what a task has changed and what would disturb the next one."""
        if self._attempts:
            self._surroundings.restore_output()
        else:
            self._surroundings.restore()
        self._output.put_back()
        self._restore_loop()

    def _restore_loop(self) -> None:
        loop = self._loop
        factory, handler = self._loop_is
        if loop.get_task_factory() is not factory:
            loop.set_task_factory(factory)
        if loop.get_exception_handler() is not handler:
            loop.set_exception_handler(handler)
        attributes = getattr(loop, "__dict__", ())
        if len(attributes) > len(self._loop_attributes):  # a task has replaced methods
            for name in set(attributes) - self._loop_attributes:
                delattr(loop, name)
        # Python has no public way to see this, nor to undo it; without these attributes it stays as it is.
        if getattr(loop, "_executor_shutdown_called", False):
            loop._executor_shutdown_called = False  # type: ignore[attr-defined]
        if getattr(getattr(loop, "_default_executor", None), "_shutdown", False):
            loop._default_executor = None  # type: ignore[attr-defined]

    # --- signals and counters ---------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        does = {signal.SIGUSR1: self._on_request, signal.SIGALRM: lambda: None}
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, does.get(number, self._on_terminate))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _on_request(self) -> None:
        """SIGUSR1: the supervisor wants an attempt to end, or to know where one is. It repeats the signal; each attempt
        is cancelled once."""
        if lane := self._block.head.stack_of:
            self._block.head.stack_of = 0
            run = self._block.run(lane - 1)
            if run is not None and (attempt := self._attempts.get(run.attempt_id)):
                stacks.write_stack(self._setup.stacks, attempt.code, attempt.thread_id)
        for attempt in self._attempts.values():
            if attempt.lane.request():
                attempt.cancel()

    def _on_terminate(self) -> None:
        self._must_leave = True

    async def _tick_for_ever(self) -> None:
        while not self._is_over:
            await _insist(lambda: asyncio.sleep(TICK_S))
            self._take_signals()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._surroundings.restore_output()
            await _insist(self._send_counters)

    async def _send_counters(self) -> None:
        if calls := self._tick():
            with suppress(RedisUnavailable, ReplyFault):  # the report is sent again
                await self._store.run_many(calls)


class _Attempt:
    """A task that runs in one lane."""

    def __init__(self, running: RunningTask, lane: Lane, reporter: Reporter) -> None:
        self.running, self.lane = running, lane
        self.reports = Reports(running, lane, reporter)
        self.task: asyncio.Task[None]
        self.code: _Code | None = None
        self.was_cancelled = False
        self.thread_id: int | None = None
        """Of the thread in which its code runs; None: it runs on the event loop."""
        self.begun_mono = time.monotonic()

    def left_s(self) -> float | None:
        """How much of its timeout is left; None: it has none."""
        timeout_s = self.running.timeout_s or 0.0
        return max(self.begun_mono + timeout_s - time.monotonic(), 0.0) if timeout_s > 0 else None

    def cancel(self) -> None:
        """Cancels its code, once."""
        if self.code is not None and not self.was_cancelled:
            self.was_cancelled = True
            self.code.cancel()


class _Code(asyncio.Task[Outcome]):
    """Runs the code of an attempt. The code of other attempts can't cancel it: some cancel all that runs on the loop,
    as programs do at their end."""

    def __init__(self, coroutine: Coroutine[Any, Any, Outcome], reports: Reports, capture: Capture) -> None:
        super().__init__(coroutine, loop=asyncio.get_running_loop())
        self._reports, self._capture = reports, capture
        self.was_disturbed = False
        """Another attempt has tried to cancel it, and may have cancelled something that it waits for."""

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancels it, unless the code of another attempt calls this."""
        if self._capture.owner() in (None, self._reports):
            return super().cancel(msg)
        self.was_disturbed = True
        return False


class _LoopRunner:
    """Runs the coroutine that a function in a thread returned on the event loop, where it can be cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it, and waits for it in this thread. Raises: asyncio.CancelledError after `cancel`."""
        try:
            return asyncio.run_coroutine_threadsafe(self._run(coroutine), self._loop).result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None

    def cancel(self) -> None:
        """Cancels it, or the one that comes next. Called on the loop."""
        self._is_cancelled = True
        if self._running is not None:
            self._running.cancel()

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._running = asyncio.current_task()
        if self._is_cancelled:
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine


def _outcome_in(code: asyncio.Task[Outcome], running: RunningTask) -> Outcome:
    """The outcome of an attempt's code. A GeneratorExit that a task awaits (of a sub-task, or of a thread) closes all
    coroutines on its way, those of the fence too, and ends the asyncio task itself."""
    error = code.exception()
    return raised(running, error) if isinstance(error, GeneratorExit) else code.result()


def _is_cancellation(outcome: Outcome) -> bool:
    return outcome.failure.get("exception") == asyncio.CancelledError.__name__


async def _insist(step: Callable[[], Awaitable[T]]) -> T:
    """Awaits a step of our own, and again when it is cancelled: a task may cancel everything on the loop."""
    while True:
        try:
            return await step()
        except asyncio.CancelledError:
            _uncancel()


def _task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of our own, made without the factory that a user's task may have set on the loop."""
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop())


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
