"""The life of a worker process, apart from how it waits and how it runs a task.

`WorkerLoop` has what the process that runs one task at a time (sync_worker) and the one that runs many (async_worker)
have in common: claiming, writing outcomes, giving back claims whose answers were lost, the counters. Its plans are
carried out by a store that blocks or by one that awaits.

An outcome is dropped only when Redis says that its attempt is lost. One that Redis refuses although it serves (because
a record is damaged, or with an error that taskpool doesn't know) goes to `Unwritten`, and the process continues.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import random
import secrets
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import IO, Any, Final

import msgspec

from taskpool.errors import RedisFull, RedisRefused, RedisUnavailable
from taskpool.operations.catalog import is_served, is_served_by_another
from taskpool.operations.queue import Rules
from taskpool.operations.status import INSTEAD, follow_up, update_status
from taskpool.redis import scripts
from taskpool.redis.calls import Call, Plan
from taskpool.redis.replies import ReplyFault
from taskpool.redis.rq_job import waited_ms
from taskpool.redis.scripts import Done, Turn
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.attempt import Outcome, backoff_s, worker_error
from taskpool.tasks.hooks import starts, stops
from taskpool.tasks.registry import Registry
from taskpool.types import RunningTask, TaskStatus

from .. import process_group
from ..process_group import boottime
from ..recovery import counted_as, give_back_unseen
from ..shared_memory import Block
from .output import Capture, Output, Pipes
from .reports import Reporter, Stats
from .surroundings import Surroundings

log = logging.getLogger("workers")

DOORBELL_S: Final = 1.0
"""How long an idle process waits at the doorbells: a task that a plain RQ producer queued rings none."""
TICK_S: Final = 1.0
RELEASE_STEPS: Final = 10
FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 1.0
MOST_REFUSALS: Final = 10
"""How often Redis may answer an outcome with an unknown error until the outcome goes to `Unwritten`."""


class Setup(msgspec.Struct, frozen=True):
    """What a worker process starts with. Its output goes through the pipes; the stacks of its threads are written into
    the file `stacks`."""

    settings: Settings
    registry: Registry
    block: Block
    capture: Capture
    worker: str
    queues: tuple[str, ...]
    pipes: Pipes
    stacks: IO[Any]


class Ended(msgspec.Struct):
    """An attempt whose code has ended, until its outcome is written or kept in `Unwritten`: then it `is_settled`."""

    running: RunningTask
    outcome: Outcome
    run_s: float
    reports: list[Call[Any]]
    """Its last reports, unsent."""
    refusals: int = 0
    has_failed: bool = False
    is_settled: bool = False
    is_special: bool = False
    """It is written apart: it isn't a plain end, or an exchange has failed, so that its own answer must be known."""

    @property
    def is_plain(self) -> bool:
        """Whether it may be ended together with others, see `turn.lua`."""
        running = self.running
        return not (
            self.outcome.status is not TaskStatus.DONE
            or running.workflow is not None
            or running.secrets is not None
            or running.of_rq
            or self.is_special
        )


class WorkerLoop(ABC):
    """What a worker process knows and does, whether it runs one task at a time or many."""

    def __init__(self, setup: Setup) -> None:
        settings = self._settings = setup.settings
        self._registry, self._block, self._capture = setup.registry, setup.block, setup.capture
        self._setup, self._worker, self._queues = setup, setup.worker, setup.queues
        self._output = Output(setup.pipes, setup.capture)
        self._redis_url = resolve_redis_url(settings)
        self._lease_ms = round(settings.lease_s * 1000)
        self._foreign = settings.foreign
        self._pid = os.getpid()
        self._files = process_group.FileDescriptors(setup.worker)
        rules = Rules.of(settings, setup.registry)
        self._reporter = Reporter(self._redis_url, settings.log_limits, setup.block.spool, rules)
        self._unwritten = Unwritten(self._redis_url, worker=setup.worker, lease_s=settings.lease_s)
        self._stats = Stats(setup.worker, settings.build or "")
        self._unknown_types: set[str] = set()
        token = secrets.token_hex(4)
        self._attempt_ids = (f"{token}{number:x}" for number in itertools.count(1))
        self._must_leave = False
        self._is_idle = False
        """True when the last claim found no task."""
        self._is_unsure = False
        """True while Redis may show claims of this process that it doesn't know of."""
        self._retry_s = FIRST_RETRY_S

    @abstractmethod
    def _attempts_here(self) -> Iterable[str]:
        """The ids of the attempts that run here or whose outcomes are unwritten, without those in `Unwritten`."""

    def _is_leaving(self) -> bool:
        return self._block.head.drain != 0 or self._must_leave

    def _is_supervised(self, now: float) -> bool:
        """A frozen supervisor renews no leases."""
        at_ms = self._block.head.supervised_ms
        return not at_ms or now - at_ms / 1000 < self._settings.lease_s * process_group.SUPERVISED_SHARE

    def _may_claim(self) -> bool:
        return not self._unwritten.is_full and self._is_supervised(boottime())

    def _look_for_reason(self, error: RedisUnavailable) -> None:
        """Leaves if Redis can't be reached for a reason that only the end of this process removes."""
        self._must_leave = self._files.free_reserve(error) or self._must_leave

    def _begin_loop(self) -> None:
        self._surroundings = Surroundings(self._capture, self._setup.stacks)
        self._block.head.ready = 1

    # --- exchanges with Redis ---------------------------------------------------------------------------------

    def _doorbells(self) -> list[Call[Any]]:
        """The call in front of the claims: an idle process waits until a task is queued."""
        return [scripts.ring_wait(self._queues, DOORBELL_S)] if self._is_idle else []

    def _turn_call(self, done: Sequence[Ended], *, most: int = 0, share: int = 1, was_idle: bool = False) -> Call[Turn]:
        """Writes outcomes together, and claims."""
        return scripts.turn(
            self._queues,
            [Done(each.running, each.outcome.result) for each in done],
            worker=self._worker,
            attempt_id=next(self._attempt_ids),
            lease_ms=self._lease_ms,
            most=most,
            share=share,
            was_idle=was_idle,
            foreign=self._foreign,
        )

    def _exchange(
        self,
        ended: Sequence[Ended],
        *,
        before: Sequence[Call[Any]] = (),
        after: Sequence[Call[Any]] = (),
        most: int = 0,
        share: int = 1,
        was_idle: bool = False,
        gives_back: bool,
    ) -> Plan[list[RunningTask] | float]:
        """One round trip: the calls `before`, the outcomes of `ended`, the calls `after`, and a claim of up to `most`
        tasks. Returns the tasks that it claimed; or, when it failed, for how many seconds to wait now. What of `ended`
        isn't settled then is to be given to the next call.

        `gives_back`: first gives back the claims whose answers were lost, if there may be any.
        """
        is_careful = bool(ended) and ended[0].is_special
        if is_careful:
            ended = ended[:1]
        together = [each for each in ended if each.is_plain]
        apart = [each for each in ended if not each.is_plain] if len(together) < len(ended) else ()
        try:
            if gives_back and self._is_unsure:
                yield from self._give_back_unseen()
            yield from _send_reports(ended)
            calls = [*before, *map(self._end_call, apart)]
            if doorbells := self._doorbells() if most else ():
                ends = [self._turn_call(together)] if together else []
                claims = self._turn_call((), most=most, share=share, was_idle=was_idle)
                calls += [*ends, *after, *doorbells, claims]
            else:
                calls += after
                if together or most:
                    calls.append(self._turn_call(together, most=most, share=share, was_idle=was_idle))
            sent = boottime()
            values = (yield calls) if calls else []
        except Exception as error:
            self._is_unsure = self._is_unsure or gives_back
            if is_careful or not ended:
                return (yield from self._failed(error, ended[0] if ended else None, len(before)))
            for each in ended:
                each.is_special = True
            return 0.0 if isinstance(error, ReplyFault) else (yield from self._failed(error, None, 0))
        self._retry_s = FIRST_RETRY_S
        turns = [value for value in values if isinstance(value, Turn)]
        words = [word for turn in turns for word in turn.words]
        for each, word in (*zip(apart, values[len(before) :], strict=False), *zip(together, words, strict=True)):
            yield from self._take_answer(each, word)
        claimed = [running for turn in turns for running in turn.claimed]
        if claimed and not self._may_begin(sent):
            claimed, self._is_unsure = [], True  # they are given back
        return claimed

    def _end_call(self, ended: Ended) -> Call[str]:
        """Writes an outcome apart."""
        if ended.outcome.failure:
            failure = {**ended.outcome.failure, "build": self._settings.build or ""}
            ended.outcome = msgspec.structs.replace(ended.outcome, failure=failure)
        return update_status(ended.running, ended.outcome)

    def _take_answer(self, ended: Ended, word: str) -> Plan[None]:
        """Does what Redis's answer to an outcome asks for."""
        if word == "ok":
            self._settle(ended, word)
        elif word == "other":
            ended.is_special = True
        else:
            yield from self._conclude(ended, word)

    def _failed(self, error: Exception, ended: Ended | None, at: int) -> Plan[float]:
        """Handles the failure of a round trip; `at` is the place of the outcome among its calls. Returns for how many
        seconds to wait."""
        if isinstance(error, RedisUnavailable):  # the supervisor logs it, once for all its processes
            self._look_for_reason(error)
            if ended is not None and isinstance(error, RedisRefused) and not error.is_known and error.at == at:
                ended.refusals += 1
                if ended.refusals >= MOST_REFUSALS:
                    self._keep(ended, error)
            wait_s, self._retry_s = self._retry_s, min(self._retry_s * 2, LONGEST_RETRY_S)
            return wait_s
        if isinstance(error, ReplyFault):  # a damaged record, for example
            if ended is not None and error.at == at:
                self._keep(ended, error)
            else:
                log.error("worker %s: %s", self._worker, error)
                if ended is not None and error.at > at:  # the outcome is written, a later call failed
                    yield from self._conclude(ended, error.value(at))
        else:  # a fault of ours: neither the process nor another task may end with it
            log.exception("worker %s: a round trip failed", self._worker)
            if ended is not None:
                ended.outcome, ended.reports = worker_error(ended.running, error), []
                if ended.has_failed:
                    self._keep(ended, error)
                ended.has_failed = True
        return LONGEST_RETRY_S

    def _may_begin(self, sent: float) -> bool:
        """False if the process leaves; or if the lease of a claim sent then may be over (the machine slept, or the
        answer took long), or isn't renewed because the supervisor is frozen."""
        now = boottime()
        return not self._is_leaving() and self._is_supervised(now) and now <= sent + self._settings.lease_s

    def _give_back_unseen(self) -> Plan[None]:
        """Gives back what was claimed for this process in a round trip whose answer was lost."""
        try:
            yield from give_back_unseen(self._worker, {*self._attempts_here(), *self._unwritten.attempt_ids()})
        except ReplyFault as fault:  # their leases run out instead
            log.error("worker %s: %s", self._worker, fault)
        self._is_unsure = False

    def _conclude(self, ended: Ended, word: str) -> Plan[None]:
        """Does what Redis's answer to an outcome asks for."""
        try:
            yield from follow_up(ended.running, word, RELEASE_STEPS)
        except (RedisUnavailable, ReplyFault) as error:
            if instead := INSTEAD.get(word):
                self._unwritten.add(ended.running, instead(ended.running), error)
            elif isinstance(error, ReplyFault):  # otherwise housekeeping releases the tasks that wait for this one
                what = "worker %s: the tasks that depend on task %s can't be released now: %s"
                log.error(what, self._worker, ended.running.id, error)
        self._settle(ended, word)

    def _keep(self, ended: Ended, error: Exception) -> None:
        """Leaves an outcome that Redis refuses with `error` to `Unwritten`."""
        self._unwritten.add(ended.running, ended.outcome, error)
        self._settle(ended, "unwritten")

    def _settle(self, ended: Ended, word: str) -> None:
        ended.is_settled = True
        running = ended.running
        outcome = "lost" if word == "lost" else counted_as(ended.outcome)
        self._stats.record(running.type, running.queue, outcome, wait_ms=waited_ms(running), run_s=ended.run_s)

    def _renew(self, claimed: Sequence[RunningTask]) -> Plan[tuple[list[RunningTask], float]]:
        """Renews the leases of attempts that must not outlive them: each begins with a whole lease. Returns those that
        may begin, and until when their leases last (`boottime()`); the others are given back."""
        attempts = [(running.id, running.attempt_id, running.queue) for running in claimed]
        safe_until = boottime() + self._settings.lease_s
        held: list[RunningTask] = []
        try:
            (words,) = yield (scripts.heartbeat(attempts, self._lease_ms),)
            if safe_until - boottime() >= self._settings.lease_s * process_group.START_SHARE:
                held = [running for running, word in zip(claimed, words, strict=True) if word != "lost"]
        except (RedisUnavailable, ReplyFault):
            pass
        self._is_unsure = self._is_unsure or len(held) < len(claimed)
        return held, safe_until

    def _left_to_others(self, running: RunningTask, outcome: Outcome) -> Plan[Outcome] | None:
        """What finds the outcome of a task that this build can't run, but another one perhaps can; None: `outcome`
        counts."""
        if outcome.status is not TaskStatus.FAILED or running.refusal is not None:
            return None
        if self._registry.get(running.type) is None:
            return self._unknown(running, outcome)
        if self._settings.payload_check == "leave" and outcome.failure.get("reason") == "invalid_payload":
            return self._unreadable(running, outcome)
        return None

    def _unreadable(self, running: RunningTask, refused: Outcome) -> Plan[Outcome]:
        """The outcome of a task whose payload this build can't read: it is put back as long as a pool with another
        build serves the type."""
        build = self._settings.build or ""
        try:
            is_served = yield from is_served_by_another(running.type, build)
        except (RedisUnavailable, ReplyFault):
            is_served = True  # perhaps
        if not is_served:
            return refused
        delay_s = backoff_s(running.snoozes + 1, first_s=1.0, longest_s=30.0)
        return put_back(f"{refused.error}: left to a pool with another build", delay_s, refused.failure)

    def _unknown(self, running: RunningTask, refused: Outcome) -> Plan[Outcome]:
        """The outcome of a task whose type this process doesn't know: it runs again, on a pool that knows the type, and
        the attempt isn't counted; or it fails, as `refused` says, when no pool has served the type for `type_grace_s`.

        This happens while a new version is rolled out, and where a pool was started without some of the task files.
        """
        try:
            is_known = yield from is_served(running.type, within_s=self._settings.type_grace_s)
        except (RedisUnavailable, ReplyFault):
            is_known = True  # perhaps
        if not is_known:
            return refused
        if running.type not in self._unknown_types:  # logged once: there may be thousands of them
            self._unknown_types.add(running.type)
            what = "worker %s: the task type %r isn't known here; its tasks are left to the pools that serve it"
            log.warning(what, running.worker, running.type)
        # It may be this pool that claims it again.
        delay_s = backoff_s(running.snoozes + 1, first_s=1.0, longest_s=30.0)
        return put_back(f"{refused.error}: left to another one", delay_s, refused.failure)

    def _tick(self) -> list[Call[Any]]:
        """What is done every second; the calls that pass the counters on."""
        self._surroundings.restore_rest()
        self._must_leave = self._must_leave or process_group.has_many_zombies() or self._files.are_running_out()
        self._block.add(self._stats.done, self._stats.failed, self._stats.working_us)
        report = self._stats.report()
        self._stats.start_again()
        return report

    def _last_reports(self) -> Plan[None]:
        """Sends what was counted since the last second. Without Redis it is lost."""
        with suppress(RedisUnavailable, ReplyFault):
            for _ in range(2):  # one that may have been sent already, and the rest
                yield self._stats.report()


def _send_reports(ended: Sequence[Ended]) -> Plan[None]:
    """Sends the last reports of attempts; not in one pipeline with their outcomes: a script that Redis doesn't know is
    sent again, after those."""
    if reports := [report for each in ended for report in each.reports]:
        with suppress(RedisFull, ReplyFault):  # the reports are lost, the outcomes aren't refused
            yield reports
        for each in ended:
            each.reports = []


def put_back(message: str, delay_s: float, failure: Any = None) -> Outcome:
    """The outcome of an attempt that isn't counted: the task runs again after `delay_s`."""
    failure = failure or {"reason": "snoozed", "message": message}
    return Outcome(TaskStatus.SCHEDULED, error=message, failure=failure, delay_s=delay_s, counts=False)


# --- outcomes that Redis refuses -------------------------------------------------------------------------------

MOST_UNWRITTEN: Final = 100
"""With this many outcomes in `Unwritten` the process claims no more tasks."""
AGAIN_S: Final = 2.0


class Unwritten:
    """The outcomes that Redis has refused: a thread with a connection of its own renews their leases and tries to write
    them every few seconds. It is started by the first of them. Safe for threads."""

    def __init__(self, redis_url: str, *, worker: str, lease_s: float) -> None:
        self._redis_url, self._worker = redis_url, worker
        self._lease_ms = round(lease_s * 1000)
        self._again_s = min(AGAIN_S, lease_s / 3)
        self._kept: dict[str, tuple[RunningTask, Outcome]] = {}
        """By attempt id."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.thread: threading.Thread | None = None

    def add(self, running: RunningTask, outcome: Outcome, error: Exception) -> None:
        """Keeps an outcome that Redis answered with `error`, and writes it again until Redis takes it."""
        log.error(
            "worker %s: the outcome of task %s (%s) can't be written, it is kept and tried again: %s; look at the keys "
            "rq:job:%s and rq:wip:%s",
            self._worker, running.id, outcome.status.value, error, running.id, running.queue,
        )  # fmt: skip
        with self._lock:
            self._kept[running.attempt_id] = running, outcome
            if self.thread is None:
                self.thread = threading.Thread(target=self._write_all, name="taskpool-unwritten", daemon=True)
                process_group.start_thread(self.thread)

    @property
    def is_full(self) -> bool:
        """Whether the process must not claim more tasks."""
        return len(self._kept) >= MOST_UNWRITTEN

    def attempt_ids(self) -> Sequence[str]:
        """The attempts whose outcomes are kept."""
        return tuple(self._kept)

    def close(self) -> None:
        """Tries once more. The outcomes that are left then are logged: their tasks run again when the leases end."""
        if self.thread is None:
            return
        self._closing.set()
        self.thread.join()
        for running, outcome in self._kept.values():
            log.error(
                "worker %s ends with an unwritten outcome: task %s was %s; it runs again when its lease ends",
                self._worker, running.id, outcome.status.value,
            )  # fmt: skip

    def _write_all(self) -> None:
        store = Store(self._redis_url, name=f"{self._worker}-unwritten")
        try:
            is_last = False
            while not is_last:
                is_last = self._closing.wait(self._again_s)
                for attempt_id, (running, outcome) in tuple(self._kept.items()):
                    if store.carry_out(self._write(running, outcome)):
                        with self._lock:
                            del self._kept[attempt_id]
        finally:
            store.close()

    def _write(self, running: RunningTask, outcome: Outcome) -> Plan[bool]:
        """Tries to write one. True: it is written, or its attempt is lost."""
        with suppress(RedisUnavailable, ReplyFault):  # the outcome may be taken where the heartbeat isn't
            yield (scripts.heartbeat([(running.id, running.attempt_id, running.queue)], self._lease_ms),)
        try:
            (word,) = yield (update_status(running, outcome),)
            if word in INSTEAD:
                word = yield from follow_up(running, word, RELEASE_STEPS)
        except (RedisUnavailable, ReplyFault):
            return False
        if word == "lost":
            log.error("worker %s: the attempt of task %s is lost, and its outcome with it", self._worker, running.id)
        else:
            log.warning("worker %s: the outcome of task %s is written at last", self._worker, running.id)
        return True


# --- the start and the end of a process ------------------------------------------------------------------------

END_S: Final = 5.0
"""How long the hooks of a process's end and the handlers of `atexit` may take together."""


def become_separate() -> None:
    """Undoes what a fork shares: random generators, and what is to be removed when the fork server ends."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with suppress(Exception):
            numpy_random.seed()
    # Temporary directories and child processes that the task modules made at import belong to the fork server, which
    # removes them at its own end. Python has no public way to forget them; `multiprocessing` does the same.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    for module, name in (("multiprocessing.process", "_children"), ("multiprocessing.util", "_finalizer_registry")):
        with suppress(AttributeError, KeyError):
            getattr(sys.modules[module], name).clear()


Wait = Callable[[Awaitable[None]], Awaitable[None]]


async def run_start_hooks(wait: Wait | None = None) -> bool:
    """Calls the hooks in order. `wait` awaits what an `async def` hook returns, if it can't be awaited right here.
    Returns False when one failed; it is logged."""
    return await _run_hooks(starts, wait, "the hook %s of the process's start failed: the process ends")


async def run_stop_hooks(wait: Wait | None = None) -> None:
    """Calls the hooks, the last one first. What they raise is logged."""
    for hook in reversed(stops):
        await _run_hooks([hook], wait, "the hook %s of the process's end failed")


async def _run_hooks(hooks: Iterable[Callable[[], Awaitable[None] | None]], wait: Wait | None, fault: str) -> bool:
    for hook in hooks:
        try:
            if (awaitable := hook()) is not None:
                await (awaitable if wait is None else wait(awaitable))
        except BaseException:
            log.exception(fault, getattr(hook, "__qualname__", type(hook).__name__))
            return False
    return True


def run_exit_handlers() -> None:
    """Runs the handlers of `atexit`, which Python doesn't run in a process that ends with `os._exit`."""
    try:
        atexit._run_exitfuncs()
    except BaseException:
        log.exception("a handler of atexit failed")


def limit_end() -> None:
    """Ends the process after END_S, even if a hook or handler hangs."""

    def end() -> None:
        time.sleep(END_S)
        log.error("the hooks and handlers of the process's end took longer than %g s: it ends without them", END_S)
        os._exit(0)

    with suppress(RuntimeError):  # no more threads are allowed
        process_group.start_thread(threading.Thread(target=end, name="taskpool-end", daemon=True))
