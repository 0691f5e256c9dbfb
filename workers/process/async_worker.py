"""What a thread does can't be cancelled: it can be asked to end, and waited for.

A worker process that runs many tasks at once: `async def` ones on one event loop, the others in threads.

Each lane of its block holds one task. One connection claims, because it blocks at the doorbells; another one writes
outcomes, and what ends within one turn of the loop shares a round trip. A stop or a timeout cancels the coroutine;
a thread can't be interrupted, so a task that ignores both in a thread costs the whole process (see supervisor).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import IO, Any, Final, TypeVar

from taskpool.errors import RedisFull, RedisRefused, RedisUnavailable
from taskpool.operations.status import release_dependents, update_status
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Call
from taskpool.redis.replies import ReplyFault
from taskpool.redis.rq_job import waited_ms
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.attempt import Outcome, execute_task, execute_task_async, raised, stopped, timed_out, worker_error
from taskpool.tasks.context import TaskContext
from taskpool.tasks.registry import Registry
from taskpool.types import RunningTask, TaskStatus

from .. import process_group
from ..metrics import COUNTED_AS, Stats
from ..recovery import give_back_unseen
from ..shared_memory import Block, Lane, Request
from . import worker_loop
from .output import Capture, Output
from .reports import Reporter, Reports, limits_of
from .surroundings import Surroundings
from .worker_loop import PATIENCE, Elsewhere, Unwritten

T = TypeVar("T")


async def to_its_end(thread: asyncio.Future[T], interrupt: Callable[[], None] = lambda: None) -> T:
    """Await what runs in a thread. A cancellation calls `interrupt` and goes on waiting: the thread sees
    `ctx.cancelled`, and a task that ignores that is killed with its process."""
    while True:
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if thread.done():
                return thread.result()
            interrupt()


class LoopRunner:
    """Runs on an event loop what a function in a thread returned: a coroutine. There it can be cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it, and wait for it in this thread. Raises: asyncio.CancelledError after `cancel`."""
        try:
            return asyncio.run_coroutine_threadsafe(self._run(coroutine), self._loop).result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None

    def cancel(self) -> None:
        """Cancel it, or what is still to come. Called on the loop."""
        self._is_cancelled = True
        if self._running is not None:
            self._running.cancel()

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._running = asyncio.current_task()
        if self._is_cancelled:
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine


log = logging.getLogger("workers")

SIGNALS: Final = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
"""SIGALRM is taken so that the alarm that one task has left behind doesn't end the process of the others."""
DOORBELL_S: Final = 1.0
COUNT_S: Final = 1.0
CLEAR_S: Final = 5.0
"""How long nothing is claimed at most, so that a suspect can run alone."""
ALONE_S: Final = 60.0
"""How long a suspect has the process for itself: most of what ends a process does so earlier."""
HAS_TO_WAIT: Final = "it has to run alone in its worker process, and waits until one is free (see reliability.md)"
CLAIMS_AT_ONCE: Final = 16
RELEASE_STEPS: Final = 10
RETRY_S: Final = 0.5


def serve(
    settings: Settings,
    registry: Registry,
    block: Block,
    capture: Capture,
    *,
    output: Output | None,
    worker: str,
    queues: tuple[str, ...],
    stacks: IO[Any] | None = None,
) -> int:
    """Runs tasks until the supervisor drains this process; returns its exit status."""
    process = AsyncProcess(
        settings, registry, block, capture, output=output, worker=worker, queues=queues, stacks=stacks
    )
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
                    log.critical("worker %s ends and is replaced: %s", worker, process_group.TAKEN_ADVICE)
                    os._exit(1)  # as below
                log.warning("worker %s: something that a task started would have ended the event loop", worker)
        if error := main.exception():  # a fault of ours, or a task has broken the loop: no step on it can be trusted
            log.critical("worker %s ends: its event loop fails", worker, exc_info=error)
            os._exit(1)  # what it ran is settled by the supervisor
    worker_loop.run_exit_handlers()
    return main.result()


class AsyncProcess:
    """The loop: claims while lanes are free, one coroutine for each task."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        block: Block,
        capture: Capture,
        *,
        output: Output | None,
        worker: str,
        queues: tuple[str, ...],
        stacks: IO[Any] | None,
    ) -> None:
        redis_url = resolve_redis_url(settings)
        self._settings, self._registry, self._worker, self._queues = settings, registry, worker, queues
        self._capture, self._output, self._stacks = capture, output, stacks
        self._lease_ms = round(settings.lease_s * 1000)
        self._foreign = settings.foreign
        self._elsewhere = Elsewhere(type_grace_s=settings.type_grace_s)
        self._pid = os.getpid()
        self._block = block
        self._free = [block.lane(number) for number in range(settings.slots)]
        self._freed = asyncio.Event()
        self._intake = AsyncStore(redis_url, name=worker)
        self._store = AsyncStore(redis_url, name=worker)
        self._reporter = Reporter(redis_url, limits_of(settings), block.spool)
        self._unwritten = Unwritten(redis_url, worker=worker, lease_s=settings.lease_s)
        self._threads = ThreadPoolExecutor(settings.slots, thread_name_prefix="taskpool-task")
        self._attempts: dict[str, _Attempt] = {}
        self._stats = Stats()
        token = secrets.token_hex(4)
        self._attempt_ids = (f"{token}{number:x}" for number in itertools.count(1))
        self._is_idle = False
        self._is_unsure = False
        """True while Redis may show claims with us that we don't know of."""
        self._terminated = False
        self._is_over = False
        self._is_careful = False
        """True when the last claim found a suspect: there may be more of them, and only one runs at a time."""
        self._clear_until = self._rest_until = 0.0
        self._files = process_group.Files(worker)

    async def serve(self) -> int:
        """Runs tasks until it is told to end and the last one has ended."""
        self._take_signals()
        worker_loop.keep_apart(SIGNALS)
        if self._output is not None:
            self._output.start()
        if not await worker_loop.await_start_hooks():
            return 1
        self._surroundings = Surroundings(self._capture, self._stacks, has_pipes=self._output is not None)
        loop = asyncio.get_running_loop()
        self._loop_is = loop.get_task_factory(), loop.get_exception_handler()
        self._loop, self._loop_attributes = loop, frozenset(getattr(loop, "__dict__", ()))
        counting = asyncio.create_task(self._count_for_ever())
        self._block.head.ready = 1
        while not self._is_leaving() or self._is_unsure:
            try:
                await self._take_turn()
            except asyncio.CancelledError:  # a task has cancelled all that runs on this loop
                _uncancel()
                self._is_unsure = True
            except Exception:  # a fault of ours: what was claimed with it is given back
                log.exception("worker %s: claiming failed", self._worker)
                self._is_unsure = True
                await _insist(lambda: asyncio.sleep(RETRY_S))
        while self._attempts:
            await _insist(self._await_ends)
        self._is_over = True
        counting.cancel()
        await _insist(lambda: loop.run_in_executor(self._threads, self._unwritten.close))
        await _insist(self._count)
        worker_loop.limit_end()
        await worker_loop.await_stop_hooks()
        if self._output is not None:
            self._output.settle()
        return 0

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        does = {signal.SIGUSR1: self._on_request, signal.SIGALRM: lambda: None}
        for number in SIGNALS:
            loop.add_signal_handler(number, does.get(number, self._on_terminate))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _restore_rest(self) -> None:
        """Takes back what a task has changed and what can wait a second."""
        self._take_signals()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._surroundings.restore_output()
        self._surroundings.restore_rest()

    def _restore(self) -> None:
        """Takes back what a task has changed and what the next one would trip over."""
        if self._attempts:
            self._surroundings.restore_output()
        else:
            self._surroundings.restore()
        if self._output is not None:
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
        # Python has no public way to tell, nor to undo it; without these attributes it stays as it is.
        if getattr(loop, "_executor_shutdown_called", False):
            loop._executor_shutdown_called = False  # type: ignore[attr-defined]
        if getattr(getattr(loop, "_default_executor", None), "_shutdown", False):
            loop._default_executor = None  # type: ignore[attr-defined]

    async def _take_turn(self) -> None:
        """Claims tasks; or, when Redis may show claims that this process hasn't seen, gives those back."""
        try:
            if self._is_unsure:
                known = {*self._attempts, *self._unwritten.attempt_ids()}
                await self._intake.carry_out(give_back_unseen(self._worker, known))
                self._is_unsure = False
            else:
                await self._take_in()
        except RedisUnavailable as error:  # the supervisor logs it, once for all its processes
            self._is_unsure = True
            self._terminated = self._files.give_way(error) or self._terminated
            await asyncio.sleep(RETRY_S)
        except ReplyFault as fault:  # a damaged record: what was claimed with it is given back, itself it can't be
            log.error("worker %s: %s", self._worker, fault)
            self._is_unsure = not self._is_unsure
            await asyncio.sleep(RETRY_S)

    async def _await_ends(self) -> None:
        await asyncio.wait([attempt.task for attempt in self._attempts.values()])

    async def _take_in(self) -> None:
        """Claims for the free lanes, in one round trip; waits when none is free, or nothing is ready."""
        if self._unwritten.is_full:
            await asyncio.sleep(DOORBELL_S)
            return
        if not self._free or self._must_wait() or not self._is_supervised():
            self._freed.clear()
            try:
                async with asyncio.timeout(DOORBELL_S):
                    await self._freed.wait()
            except TimeoutError:
                pass
            return
        calls: list[Call[Any]] = []
        if self._is_idle:
            calls.append(scripts.ring_wait(self._queues, DOORBELL_S))
        is_one = self._is_idle or self._is_careful
        calls += [self._claim() for _ in range(1 if is_one else min(len(self._free), CLAIMS_AT_ONCE))]
        sent = process_group.boottime()
        claimed = [value for value in await self._intake.run_many(calls) if isinstance(value, RunningTask)]
        self._is_idle = not claimed
        # They came while we waited; or the machine slept, or the supervisor is frozen: their leases weren't renewed.
        is_late = process_group.boottime() > sent + self._settings.lease_s or not self._is_supervised()
        if claimed and (self._is_leaving() or is_late):
            self._is_unsure = True  # seen as unknown, they are given back
            return
        await self._begin_all([running for running in claimed if not running.is_suspect])
        suspects = [running for running in claimed if running.is_suspect]
        self._is_careful = bool(suspects) or (self._is_careful and not claimed)
        if suspects:
            await self._begin_alone(suspects)

    def _is_supervised(self) -> bool:
        return process_group.is_supervised(self._block, self._settings.lease_s)

    async def _begin_all(self, claimed: Sequence[RunningTask]) -> None:
        fenced = [running for running in claimed if running.on_lost_lease == "kill"]
        for running in claimed:
            if running.on_lost_lease != "kill":
                self._begin(running)
        if fenced:
            await self._begin_fenced(fenced)

    async def _begin_alone(self, suspects: Sequence[RunningTask]) -> None:
        """Begins a task that may be the one that ended a process: alone, so that the next end is its own.

        While others run it goes back to the front of its queue, and nothing is claimed until they have ended, for
        CLEAR_S at most. If they take longer, it is put back for as long, and meanwhile the process goes on as usual.
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
        """Whether nothing may be claimed before what runs has ended: a suspect runs, or is to run alone."""
        if not self._attempts:
            self._clear_until = 0.0
            return False
        now = time.monotonic()
        if now < self._clear_until:
            return True
        suspects = [attempt for attempt in self._attempts.values() if attempt.running.is_suspect]
        return any(now < attempt.begun_mono + ALONE_S for attempt in suspects)

    async def _begin_fenced(self, claimed: Sequence[RunningTask]) -> None:
        """Begins attempts that must not outlive their leases: with a guardian, and with whole leases."""
        self._is_unsure = True  # what isn't begun here is seen as unknown and given back
        process_group.end_late_when_continued(self._block)
        if not await asyncio.to_thread(process_group.wait_for_guardian, self._block):
            return
        attempts = [(running.id, running.attempt_id, running.queue) for running in claimed]
        sent, lease_s = process_group.boottime(), self._settings.lease_s
        words = await self._store.run(scripts.heartbeat(attempts, self._lease_ms))
        held = [running for running, word in zip(claimed, words, strict=True) if word != "lost"]
        if process_group.is_in_time(sent + lease_s, lease_s):
            for running in held:
                self._begin(running, sent + lease_s)
            self._is_unsure = held != claimed

    def _is_leaving(self) -> bool:
        return self._block.head.drain != 0 or self._terminated

    def _claim(self) -> Call[RunningTask | None]:
        return scripts.claim(
            self._queues,
            worker=self._worker,
            attempt_id=next(self._attempt_ids),
            lease_ms=self._lease_ms,
            foreign=self._foreign,
            was_idle=not self._attempts,
        )

    def _begin(self, running: RunningTask, safe_until: float = 0.0) -> None:
        lane = self._free.pop()
        timeout_s = max(running.timeout_s or 0.0, 0.0)
        lane.begin(running.id, running.attempt_id, running.queue, time.monotonic(), timeout_s, safe_until)
        attempt = _Attempt(running, lane, self._reporter)
        self._attempts[running.attempt_id] = attempt
        attempt.task = _task(self._carry_through(attempt))

    async def _carry_through(self, attempt: _Attempt) -> None:
        """One attempt from its code to its written outcome. Whatever happens in between, its lane is free then."""
        started_mono = time.monotonic()
        running = attempt.running
        try:
            outcome = await _insist(lambda: self._outcome_of(attempt))
        except Exception as error:  # a fault of ours
            log.exception("worker %s failed around task %s", self._worker, running.id)
            outcome = worker_error(running, error)
        self._capture.leave(running)
        self._restore_loop()  # what follows needs a loop that works
        run_s = time.monotonic() - started_mono
        self._terminated = self._files.are_short() or self._terminated
        attempt.lane.end()
        if attempt.lane.request() is Request.STOP and outcome.status is not TaskStatus.DONE:
            outcome = stopped()
        try:
            word = await _insist(lambda: self._write(attempt, outcome))
        except Exception as error:  # a fault of ours: something in the outcome, or in the reports, can't be stored
            log.exception("worker %s: the outcome of task %s can't be stored", self._worker, running.id)
            attempt.unsent = []
            self._restore_loop()  # another task may have changed it meanwhile
            word = await self._write_plainly(attempt, worker_error(running, error))
        self._stats.record(
            running.type,
            running.queue,
            "lost" if word == "lost" else COUNTED_AS[outcome.status],
            wait_ms=waited_ms(running),
            run_s=run_s,
        )
        attempt.lane.clear()
        del self._attempts[running.attempt_id]
        self._restore()
        self._free.append(attempt.lane)
        self._freed.set()

    async def _write_plainly(self, attempt: _Attempt, outcome: Outcome) -> str:
        try:
            return await _insist(lambda: self._write(attempt, outcome))
        except Exception:  # its lease runs out
            log.exception("worker %s: nor can this be stored of task %s", self._worker, attempt.running.id)
            return "lost"

    async def _outcome_of(self, attempt: _Attempt) -> Outcome:
        """Runs the code. It is cancelled by a stop (see `_on_request`) or by its timeout."""
        running = attempt.running
        if attempt.code is None:
            attempt.code = _Code(self._execute(attempt), attempt.reports, self._capture)
            if attempt.lane.request():  # asked for before there was something to cancel
                self._cancel(attempt)
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
            return _disturbed()
        if outcome is not None:
            return outcome
        error = "CancelledError: the task cancelled itself"
        return Outcome(TaskStatus.FAILED, error=error, failure={"reason": "exception", "message": error})

    async def _execute(self, attempt: _Attempt) -> Outcome:
        running, limit = attempt.running, self._settings.max_result_bytes
        self._capture.enter(attempt.reports, alone=False)
        task_type = self._registry.get(running.type)
        if task_type is None or task_type.runs_on_loop:
            outcome = await execute_task_async(running, self._registry, attempt.context, max_result_bytes=limit)
            worker_loop.end_if_forked(self._pid, outcome)
            if task_type is None and running.refusal is None:
                return await self._elsewhere.outcome_async(running, outcome, self._store)
            return outcome

        loop = asyncio.get_running_loop()
        runner = LoopRunner(loop)

        is_refused = False

        def execute() -> Outcome:
            if is_refused:
                return stopped()  # it isn't read
            outcome = execute_task(
                running, self._registry, attempt.context, max_result_bytes=limit, run_coroutine=runner.run
            )
            worker_loop.end_if_forked(self._pid, outcome)
            return outcome

        try:
            future = loop.run_in_executor(self._threads, copy_context().run, execute)
        except RuntimeError as error:
            is_refused = True  # the executor has put it into its queue nevertheless
            return self._without_thread(running, error)
        return await to_its_end(future, runner.cancel)

    def _without_thread(self, running: RunningTask, error: RuntimeError) -> Outcome:
        """What becomes of an attempt for which no thread can be started: the task runs later, at no cost of an attempt.
        This process leaves: tasks may have left threads behind in it."""
        lack = process_group.lack(error)
        if lack is None:
            raise error
        log.error("worker %s leaves and is replaced: %s", self._worker, lack)
        self._terminated = True
        message = f"put back: no thread can be started for it on this worker ({lack})"
        failure = {"reason": "snoozed", "message": message}
        return Outcome(TaskStatus.SCHEDULED, error=message, failure=failure, delay_s=RETRY_S, counts=False)

    async def _write(self, attempt: _Attempt, outcome: Outcome) -> str:
        """Writes the outcome, as soon as Redis takes it; the word it answers. ``unwritten``: it is kept and written
        later, see `Unwritten`."""
        running = attempt.running
        if attempt.unsent is None:
            attempt.unsent = attempt.reports.take()
        reports = attempt.unsent
        refusals = 0
        while True:
            try:
                if reports:
                    with suppress(RedisFull, ReplyFault):  # then they are lost; the outcome isn't refused
                        await self._store.run_many(reports)
                    reports.clear()
                word = await self._store.run(update_status(running, outcome))
                if word == "stopping":
                    outcome = stopped()
                    word = await self._store.run(update_status(running, outcome))
                break
            except RedisUnavailable as error:
                self._terminated = self._files.give_way(error) or self._terminated
                refusals += isinstance(error, RedisRefused) and not error.is_known
                if refusals >= PATIENCE and isinstance(error, RedisRefused):
                    self._unwritten.add(running, outcome, error)
                    return "unwritten"
                await asyncio.sleep(RETRY_S)
            except ReplyFault as fault:
                self._unwritten.add(running, outcome, fault)
                return "unwritten"
        if word == "children":
            await self._release_children(running)
        return word

    async def _release_children(self, running: RunningTask) -> None:
        try:
            await self._store.carry_out(release_dependents(running.id, RELEASE_STEPS))
        except RedisUnavailable:  # housekeeping does the rest
            pass
        except ReplyFault as fault:
            log.error("worker %s: what waits for task %s can't be released now: %s", self._worker, running.id, fault)

    # --- signals and counters ---------------------------------------------------------------------------------

    def _on_request(self) -> None:
        """SIGUSR1: the supervisor wants an attempt to end. It repeats the signal; each attempt is cancelled once."""
        for attempt in self._attempts.values():
            if attempt.lane.request():
                self._cancel(attempt)

    @staticmethod
    def _cancel(attempt: _Attempt) -> None:
        if attempt.code is not None and not attempt.was_cancelled:
            attempt.was_cancelled = True
            attempt.code.cancel()

    def _on_terminate(self) -> None:
        self._terminated = True

    async def _count_for_ever(self) -> None:
        while not self._is_over:
            await _insist(lambda: asyncio.sleep(COUNT_S))
            await _insist(self._count)
            self._restore_rest()
            self._terminated = self._terminated or process_group.has_many_zombies() or self._files.are_short()

    async def _count(self) -> None:
        self._block.add(self._stats.done, self._stats.failed, self._stats.working_us)
        deltas = self._stats.take()
        try:
            if deltas:
                await self._store.run(scripts.count(deltas))
        except (RedisUnavailable, ReplyFault):  # a second's counts are lost
            pass


class _Attempt:
    """A task under way in one lane."""

    def __init__(self, running: RunningTask, lane: Lane, reporter: Reporter) -> None:
        self.running, self.lane = running, lane
        self.reports = Reports(running, lane, reporter)
        self.context = TaskContext.of(running, self.reports)
        self.task: asyncio.Task[None]
        self.code: _Code | None = None
        self.was_cancelled = False
        self.begun_mono = time.monotonic()
        self.unsent: list[Call[Any]] | None = None
        """Its last reports, once its code is over."""
        timeout_s = running.timeout_s if running.timeout_s and running.timeout_s > 0 else None
        self._deadline_mono = None if timeout_s is None else self.begun_mono + timeout_s

    def left_s(self) -> float | None:
        """What is left of its time; None: it has no limit."""
        return None if self._deadline_mono is None else max(self._deadline_mono - time.monotonic(), 0.0)


class _Code(asyncio.Task[Outcome]):
    """Runs the code of an attempt. The code of other attempts can't cancel it: some cancel all that runs on the loop,
    as programs do at their end."""

    def __init__(self, coroutine: Coroutine[Any, Any, Outcome], reports: Reports, capture: Capture) -> None:
        super().__init__(coroutine, loop=asyncio.get_running_loop())
        self._reports, self._capture = reports, capture
        self.was_disturbed = False
        """Another attempt has tried to cancel it, and may have cancelled something that it waits for."""

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel it, unless the code of another attempt asks."""
        if self._capture.owner() in (None, self._reports):
            return super().cancel(msg)
        self.was_disturbed = True
        return False


def _outcome_in(code: asyncio.Task[Outcome], running: RunningTask) -> Outcome:
    """The outcome that the code of an attempt came to. A GeneratorExit that a task awaits (of a sub-task, or of a
    thread) closes all coroutines on its way, those of the fence too, and ends the asyncio task itself."""
    error = code.exception()
    return raised(running, error) if isinstance(error, GeneratorExit) else code.result()


def _is_cancellation(outcome: Outcome) -> bool:
    return outcome.failure.get("exception") == asyncio.CancelledError.__name__


def _disturbed() -> Outcome:
    """What becomes of an attempt for which another task has cancelled something: it runs again, at no cost."""
    message = "put back: another task has cancelled everything on the event loop of its worker process"
    return Outcome(
        TaskStatus.SCHEDULED,
        error=message,
        failure={"reason": "snoozed", "message": message},
        delay_s=RETRY_S,
        counts=False,
    )


async def _insist(step: Callable[[], Awaitable[T]]) -> T:
    """Awaits a step of our own work, again when it is cancelled: a task may cancel all that runs on the loop."""
    while True:
        try:
            return await step()
        except asyncio.CancelledError:
            _uncancel()


def _task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of our own: a factory that a task has set on the loop isn't asked."""
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop())


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()
