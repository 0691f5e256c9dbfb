"""A worker process that runs one task at a time: it ends one and claims the next in a single round trip.

Nothing else happens for each task on the network. An idle process waits at the doorbells of its queues, with the
claim right behind, so that being woken costs one round trip too.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import threading
import time
from contextlib import suppress
from typing import Any, Final

import msgspec

from taskpool.errors import RedisFull, RedisRefused, RedisUnavailable
from taskpool.operations.status import release_dependents, update_status
from taskpool.redis import scripts
from taskpool.redis.calls import Call
from taskpool.redis.replies import ReplyFault
from taskpool.redis.rq_job import waited_ms
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.attempt import Outcome, execute_task, stopped, worker_error
from taskpool.tasks.context import TaskContext
from taskpool.tasks.registry import Registry
from taskpool.types import RunningTask, TaskStatus

from .. import process_group
from ..metrics import COUNTED_AS, Stats
from ..recovery import give_back_unseen
from ..shared_memory import Block, Request
from . import async_worker, worker_loop
from .interruption import Interruption
from .output import Capture, Pipes, take_output
from .reports import Reporter, Reports, limits_of
from .surroundings import Surroundings
from .worker_loop import PATIENCE, Elsewhere, Unwritten

log = logging.getLogger("workers")

DOORBELL_S: Final = 1.0
"""How long an idle process waits at the doorbells: a task that a plain RQ producer queued rings none."""
COUNT_S: Final = 1.0
RELEASE_STEPS: Final = 10
FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 1.0
AFTER_OTHERS: Final[Call[Any]] = Call(("PING",), lambda reply: None, again=True)
"""Put in front of a call, it has Redis write to this process last: Redis goes through those whom it has something to
tell in the reverse order of their first reply, and each of them that wakes up takes a core from the next."""


def serve(settings: Settings, registry: Registry, block: Block, capture: Capture, place: Place) -> int:
    """Runs tasks until the supervisor drains this process; returns its exit status."""
    if settings.slots > 1:
        output = take_output(capture, place.pipes)
        return async_worker.serve(
            settings, registry, block, capture, output=output, worker=place.worker, queues=place.queues,
            stacks=place.stacks,
        )  # fmt: skip
    return Process(settings, registry, block, capture, place).serve()


class Place(msgspec.Struct, frozen=True):
    """Who this process is: its worker's name, its queues, the pipes that its output goes through, if it does, and the
    file for its stacks."""

    worker: str
    queues: tuple[str, ...]
    pipes: Pipes | None = None
    stacks: Any = None


class Ended(msgspec.Struct, frozen=True):
    """An attempt whose code is over. `reports` are its last ones, unsent."""

    running: RunningTask
    outcome: Outcome
    run_s: float
    reports: list[Call[Any]]


class Process:
    """The loop and all it needs, made after the fork."""

    def __init__(self, settings: Settings, registry: Registry, block: Block, capture: Capture, place: Place) -> None:
        redis_url = resolve_redis_url(settings)
        self._settings, self._registry = settings, registry
        self._worker, self._queues = place.worker, place.queues
        worker = place.worker
        self._capture, self._stacks = capture, place.stacks
        self._output = take_output(capture, place.pipes)
        self._lease_ms = round(settings.lease_s * 1000)
        self._foreign = settings.foreign
        self._elsewhere = Elsewhere(type_grace_s=settings.type_grace_s)
        self._block, self._lane = block, block.lane(0)
        self._safe_until = 0.0
        """When the lease of the last attempt that must not outlive its lease ends at the earliest, by
        `guardian.boottime()`."""
        self._store = Store(redis_url, name=worker, on_retry=self._look_for_reason)
        self._interruption = Interruption(self._lane)
        self._reporter = Reporter(redis_url, limits_of(settings), block.spool)
        self._stats = Stats()
        self._counted_mono = time.monotonic()
        token = secrets.token_hex(4)
        self._attempt_ids = (f"{token}{number:x}" for number in itertools.count(1))
        self._ended: Ended | None = None
        self._unwritten = Unwritten(redis_url, worker=worker, lease_s=settings.lease_s)
        self._refusals = 0
        """How many times in a row Redis answered the outcome with an error that taskpool doesn't know."""
        self._pid = os.getpid()
        self._is_idle = False
        self._was_woken = False
        self._is_unsure = False
        """True after a failed round trip: Redis may have carried out the claim that was in it."""
        self._retry_s = FIRST_RETRY_S
        self._must_leave = self._has_failed = False
        self._files = process_group.Files(worker)

    def serve(self) -> int:
        """Runs tasks until it is told to end, and then writes what is still to be written."""
        self._interruption.install()
        if self._output is not None:
            self._output.start()
        if not worker_loop.run_start_hooks(self._interruption.run_coroutine):
            return 1
        self._surroundings = Surroundings(self._capture, self._stacks, has_pipes=self._output is not None)
        self._threads = threading.active_count()
        self._block.head.ready = 1
        while not self._is_leaving():
            if self._unwritten.is_full:
                time.sleep(LONGEST_RETRY_S)
            is_supervised = self._is_supervised()
            if not is_supervised and self._ended is None:
                time.sleep(FIRST_RETRY_S)
            running = self._exchange_or_log(claims=is_supervised and not self._unwritten.is_full)
            if running is None:
                continue
            if self._is_leaving():
                # It came while we waited at the doorbells. Seen as unknown, it is given back.
                self._is_unsure = True
            else:
                self._ended = self._perform(running)
                if self._ended is not None and self._files.are_short():
                    self._must_leave = True
        while self._ended is not None or self._is_unsure:  # Redis may be away; the supervisor sets an end to that
            self._exchange_or_log(claims=False)
        self._unwritten.close()
        worker_loop.limit_end()
        worker_loop.run_stop_hooks(self._interruption.run_coroutine)
        self._interruption.close()
        worker_loop.run_exit_handlers()
        if self._output is not None:
            self._output.settle()
        return 0

    def _is_leaving(self) -> bool:
        return self._block.head.drain != 0 or self._interruption.terminated or self._must_leave

    def _exchange_or_log(self, *, claims: bool) -> RunningTask | None:
        """One round trip. A fault of ours in it ends neither the process nor, three times in a row, a task."""
        try:
            running = self._exchange(claims=claims)
        except Exception as error:
            log.exception("worker %s: a round trip failed", self._worker)
            self._is_unsure = True
            if self._ended is not None and self._has_failed:
                self._unwritten.add(self._ended.running, worker_error(self._ended.running, error), error)
                self._ended = None
            elif self._ended is not None:
                outcome = worker_error(self._ended.running, error)
                self._ended = Ended(self._ended.running, outcome, self._ended.run_s, [])
            self._has_failed = True
            time.sleep(LONGEST_RETRY_S)
            return None
        self._has_failed = False
        return running

    def _exchange(self, *, claims: bool) -> RunningTask | None:
        """One round trip: writes the last task's outcome, claims the next and returns it."""
        ended = self._ended
        # Whoever waits for the one task of an idle pool hears of its end before this process goes on.
        is_awaited = ended is not None and self._was_woken
        claims = claims and not is_awaited
        calls: list[Call[Any]] = [AFTER_OTHERS] if is_awaited else []
        if ended is not None:
            calls.append(self._end_of(ended))
        try:
            if self._is_unsure:
                self._recover()
            if ended is not None and ended.reports:
                # Not in one pipeline with the outcome: a script that Redis has to be sent anew would come after it.
                with suppress(RedisFull, ReplyFault):  # then they are lost; the outcome isn't refused
                    self._store.run_many(ended.reports)
                ended.reports.clear()
            calls += self._counters()
            if claims:
                calls += self._claim(waits=self._is_idle and ended is None)
            sent = process_group.boottime()
            values = self._store.run_many(calls) if calls else []
        except RedisUnavailable as error:  # the supervisor logs it, once for all its processes
            self._is_unsure = True
            self._look_for_reason(error)
            if ended is not None and isinstance(error, RedisRefused):
                self._count_refusal(ended, error, at=int(is_awaited))
            time.sleep(self._retry_s)
            self._retry_s = min(self._retry_s * 2, LONGEST_RETRY_S)
            return None
        except ReplyFault as fault:
            self._is_unsure = True
            self._outlive(ended, fault, at=int(is_awaited))
            return None
        self._retry_s, self._refusals = FIRST_RETRY_S, 0
        if ended is not None:
            self._ended = None
            self._conclude(ended, values[1 if is_awaited else 0])
        claimed: RunningTask | None = values[-1] if claims else None
        if claimed is not None and not self._may_begin(claimed, sent):
            claimed, self._is_unsure = None, True  # seen as unknown, it is given back
        if claimed is None:
            self._lane.clear()
        self._was_woken, self._is_idle = self._is_idle, claims and claimed is None
        return claimed

    def _look_for_reason(self, error: RedisUnavailable) -> None:
        """Whether Redis can't be reached for a reason that only the end of this process mends."""
        self._must_leave = self._files.give_way(error) or self._must_leave

    def _is_supervised(self) -> bool:
        return process_group.is_supervised(self._block, self._settings.lease_s)

    def _may_begin(self, claimed: RunningTask, sent: float) -> bool:
        """False when the lease, which wasn't renewed yet, may be over (the machine slept, or the answer took long), or
        when the supervisor, which would renew it, is frozen."""
        if not self._is_supervised():
            return False
        if claimed.on_lost_lease == "kill":
            return self._may_begin_fenced(claimed)
        return process_group.boottime() <= sent + self._settings.lease_s

    def _may_begin_fenced(self, claimed: RunningTask) -> bool:
        """The same of an attempt that must not outlive its lease: it begins with a guardian, and with a whole lease."""
        process_group.end_late_when_continued(self._block)
        if not process_group.wait_for_guardian(self._block):
            return False
        attempt = claimed.id, claimed.attempt_id, claimed.queue
        sent = process_group.boottime()
        try:
            (word,) = self._store.run(scripts.heartbeat([attempt], self._lease_ms))
        except (RedisUnavailable, ReplyFault):
            return False
        self._safe_until = sent + self._settings.lease_s
        return word != "lost" and process_group.is_in_time(self._safe_until, self._settings.lease_s)

    def _claim(self, *, waits: bool) -> list[Call[Any]]:
        claim = scripts.claim(
            self._queues,
            worker=self._worker,
            attempt_id=next(self._attempt_ids),
            lease_ms=self._lease_ms,
            foreign=self._foreign,
            was_idle=self._is_idle,
        )
        return [scripts.ring_wait(self._queues, DOORBELL_S), claim] if waits else [claim]

    def _counters(self) -> list[Call[Any]]:
        """The counters' increments, about once a second when there are any."""
        now = time.monotonic()
        if now - self._counted_mono < COUNT_S:
            return []
        self._counted_mono = now
        self._interruption.reinstall()
        self._surroundings.restore_rest()
        self._must_leave = self._must_leave or process_group.has_many_zombies() or self._files.are_short()
        self._block.add(self._stats.done, self._stats.failed, self._stats.working_us)
        deltas = self._stats.take()
        return [scripts.count(deltas)] if deltas else []

    @staticmethod
    def _end_of(ended: Ended) -> Call[str]:
        """The call that writes an outcome."""
        try:
            return update_status(ended.running, ended.outcome)
        except Exception as error:  # a fault of ours: something in the outcome can't be stored
            log.exception("the outcome of task %s can't be stored", ended.running.id)
            return update_status(ended.running, worker_error(ended.running, error))

    def _perform(self, running: RunningTask) -> Ended | None:
        """Runs one attempt, and outlives whatever happens around it.

        None: it leaves something behind that only the end of this process ends.
        """
        started_mono = time.monotonic()
        reports = Reports(running, self._lane, self._reporter)
        try:
            return self._run_attempt(running, reports, started_mono)
        except BaseException as error:  # a fault of ours, which must cost no other task anything
            if os.getpid() != self._pid:  # in what the task forked
                raise
            log.exception("worker %s failed around task %s", self._worker, running.id)
            self._interruption.unwatch()
            self._lane.end()
            self._capture.leave(running)
            reports.forget()
            reports.take()
            return Ended(running, worker_error(running, error), time.monotonic() - started_mono, [])
        finally:
            self._surroundings.restore()

    def _run_attempt(self, running: RunningTask, reports: Reports, started_mono: float) -> Ended | None:
        timeout_s = max(running.timeout_s or 0.0, 0.0)
        safe_until = self._safe_until if running.on_lost_lease == "kill" else 0.0
        self._lane.begin(running.id, running.attempt_id, running.queue, started_mono, timeout_s, safe_until)
        self._interruption.watch(started_mono, started_mono + timeout_s if timeout_s else math.inf)
        self._capture.enter(reports, alone=True)
        # A stop may have been asked for between the claim and now.
        outcome = stopped() if self._lane.request() else self._execute(running, reports)
        self._interruption.unwatch()
        self._lane.end()
        if self._output is not None:
            self._output.settle()
        self._capture.leave(running)
        run_s = time.monotonic() - started_mono
        if self._interruption.has_raised or self._lane.request():
            was_asked = self._lane.request() is Request.STOP
            if was_asked and outcome.status is not TaskStatus.DONE:  # whatever it raised on its way out
                outcome = stopped()
            self._must_leave = not self._is_tidy()
            if self._must_leave and outcome.status is TaskStatus.STOPPED:
                # Only the supervisor, when all of it is gone, may say that it is stopped.
                self._send(reports.take())
                return None
        return Ended(running, outcome, run_s, reports.take())

    def _execute(self, running: RunningTask, reports: Reports) -> Outcome:
        context = TaskContext.of(running, reports)
        outcome = execute_task(
            running,
            self._registry,
            context,
            max_result_bytes=self._settings.max_result_bytes,
            run_coroutine=self._interruption.run_coroutine,
        )
        worker_loop.end_if_forked(self._pid, outcome)
        if outcome.status is TaskStatus.FAILED and running.refusal is None and self._registry.get(running.type) is None:
            return self._elsewhere.outcome(running, outcome, self._store)
        return outcome

    def _send(self, calls: list[Call[Any]]) -> None:
        try:
            self._store.run_many(calls) if calls else None
        except (RedisUnavailable, ReplyFault):  # the task's end matters more than its last words
            pass

    def _is_tidy(self) -> bool:
        """After an interrupt: ends the processes the task left behind. False when those or threads of it go on."""
        ours = self._threads + sum(thread is not None for thread in (self._reporter.thread, self._unwritten.thread))
        return process_group.end_others() and threading.active_count() <= ours

    def _conclude(self, ended: Ended, word: str) -> None:
        """Does what the answer to an outcome asks for."""
        self._stats.record(
            ended.running.type,
            ended.running.queue,
            "lost" if word == "lost" else COUNTED_AS[ended.outcome.status],
            wait_ms=waited_ms(ended.running),
            run_s=ended.run_s,
        )
        try:
            if word == "children":
                self._store.carry_out(release_dependents(ended.running.id, RELEASE_STEPS))
            elif word == "stopping":
                self._store.run(update_status(ended.running, stopped()))
        except RedisUnavailable as error:  # the outbox releases them
            self._is_unsure = True
            if word == "stopping":
                self._unwritten.add(ended.running, stopped(), error)
        except ReplyFault as fault:
            log.error("worker %s: what follows the end of task %s failed: %s", self._worker, ended.running.id, fault)
            if word == "stopping":
                self._unwritten.add(ended.running, stopped(), fault)

    # --- when something is wrong with Redis -------------------------------------------------------------------

    def _recover(self) -> None:
        """Gives back what was claimed for this process in a round trip whose answer was lost."""
        known = {*self._unwritten.attempt_ids(), *([self._ended.running.attempt_id] if self._ended else ())}
        self._is_unsure = False
        try:
            self._store.carry_out(give_back_unseen(self._worker, known))
        except ReplyFault as fault:  # its lease runs out instead
            log.error("worker %s: %s", self._worker, fault)
        except RedisUnavailable:
            self._is_unsure = True
            raise

    def _outlive(self, ended: Ended | None, fault: ReplyFault, *, at: int) -> None:
        """A call failed, on a damaged record for one. The process goes on, and no other outcome suffers for it.

        `at` is the outcome's place among the calls.
        """
        if ended is not None and fault.at == at:
            self._ended = None
            self._unwritten.add(ended.running, ended.outcome, fault)
        else:
            log.error("worker %s: %s", self._worker, fault)
            if ended is not None and fault.at > at:  # what failed came behind the outcome, which is written
                self._ended = None
                self._conclude(ended, fault.value(at))
        time.sleep(LONGEST_RETRY_S)

    def _count_refusal(self, ended: Ended, error: RedisRefused, *, at: int) -> None:
        """Keeps the outcome aside when Redis answers it with an unknown error again and again: others may pass."""
        if error.is_known or error.at != at:
            return
        self._refusals += 1
        if self._refusals >= PATIENCE:
            self._refusals, self._ended = 0, None
            self._unwritten.add(ended.running, ended.outcome, error)
