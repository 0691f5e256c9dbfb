"""A worker process that runs one task at a time. It writes the outcome of one and claims the next in one round trip.

There is no other traffic for a task. An idle process waits at the doorbells of its queues and sends the claim right
behind, so that a new task costs one round trip too.

While tasks take well under a millisecond, it claims several in one round trip, a *batch*, and writes their outcomes in
the next one. Its shared memory shows what of the batch has not begun, and the results that aren't written: when one
task of a batch takes longer, the supervisor gives back the one and writes the other (see workers/batches.py).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from taskpool.errors import RedisUnavailable
from taskpool.redis import scripts
from taskpool.redis.calls import Call
from taskpool.redis.replies import ReplyFault
from taskpool.redis.store import Store
from taskpool.tasks.attempt import Outcome, execute_task, stopped, worker_error
from taskpool.tasks.context import TaskContext
from taskpool.types import RunningTask, TaskStatus

from .. import process_group
from ..batches import LATE_S, NOTICED_S
from ..process_group import boottime
from ..shared_memory import Member, Request
from .batch_size import BatchSize
from .interruption import Interruption, end_if_forked
from .reports import Reports
from .worker_loop import (
    FIRST_RETRY_S,
    LONGEST_RETRY_S,
    TICK_S,
    Ended,
    Setup,
    WorkerLoop,
    limit_end,
    run_exit_handlers,
    run_start_hooks,
    run_stop_hooks,
)

log = logging.getLogger("workers")

AFTER_OTHERS: Final[Call[Any]] = Call(("PING",), lambda reply: None, again=True)
"""In front of the other calls, it makes Redis write to this process last. Redis writes to its clients in the reverse
order of their first replies, and each of them that wakes up takes a core from the next."""


SHARE: Final = 2
"""Of so many tasks that wait behind the first one, one more is claimed: the others are left to other processes."""


def serve(setup: Setup) -> int:
    """Runs tasks until the supervisor drains this process; returns its exit status."""
    return SyncWorker(setup).serve()


class SyncWorker(WorkerLoop):
    """The process, made after the fork."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._store = Store(self._redis_url, name=setup.worker, on_retry=self._look_for_reason)
        self._lane = setup.block.lane(0)
        self._interruption = Interruption(self._lane)
        self._ended: list[Ended] = []
        """The last attempts, while their outcomes are unwritten."""
        self._ahead: deque[RunningTask] = deque()
        """What was claimed with the last task and hasn't begun."""
        self._ahead_until = 0.0
        """Until when the leases of those last, by `boottime()`."""
        self._claimed_together = 0
        self._batch = setup.block.batch
        self._batch_size = BatchSize()
        self._must_write = False
        """True when the outcomes must be written before the next task begins."""
        self._was_woken = False
        """True when the process was idle before it claimed the last task."""
        self._safe_until = 0.0
        """Until when the lease lasts of the last attempt that must not outlive it, by `boottime()`."""
        self._ticked_mono = time.monotonic()

    def serve(self) -> int:
        """Runs tasks until the process leaves, and then writes what is still unwritten."""
        self._interruption.install()
        self._output.start()
        if not _run(run_start_hooks(self._wait)):
            return 1
        self._begin_loop()
        self._threads = threading.active_count()
        while not self._is_leaving():
            running = self._next_ahead() if self._ahead else self._turn(claims=self._may_claim())
            if running is not None and (ended := self._perform(running)) is not None:
                self._ended.append(ended)
                if self._files.are_running_out_after(ended.run_s):
                    self._must_leave = True
                self._note(ended)
        self._give_back_ahead()
        while self._ended or self._is_unsure:  # Redis may be away; the supervisor limits the time
            self._turn(claims=False)
        self._unwritten.close()
        limit_end()
        self._store.carry_out(self._last_reports())
        _run(run_stop_hooks(self._wait))
        self._interruption.close()
        run_exit_handlers()
        self._output.settle()
        return 0

    async def _wait(self, awaitable: Any) -> None:
        self._interruption.run_coroutine(awaitable)

    def _is_leaving(self) -> bool:
        return self._must_leave or self._interruption.terminated or self._block.head.drain != 0

    def _attempts_here(self) -> Iterable[str]:
        return [*(each.running.attempt_id for each in self._ended), *(each.attempt_id for each in self._ahead)]

    def _turn(self, *, claims: bool) -> RunningTask | None:
        """One round trip: writes the outcomes of the last tasks and claims the next, which it returns."""
        # A client that waits for the only task of an idle pool gets its answer before this process continues.
        is_awaited = bool(self._ended) and self._was_woken
        claims = claims and not is_awaited and not (self._ended and self._ended[0].is_special)
        calls = self._tick() if time.monotonic() - self._ticked_mono >= TICK_S else []
        most = 0
        if claims:
            most = 1 if self._is_idle else self._batch_size.number
        elif not self._ended and not self._is_unsure:
            time.sleep(LONGEST_RETRY_S if self._unwritten.is_full else FIRST_RETRY_S)
        before = (AFTER_OTHERS,) if is_awaited else ()
        exchange = self._exchange(
            self._ended, before=before, after=calls, most=most, share=SHARE, was_idle=self._is_idle, gives_back=True
        )
        if self._batch.is_open:
            self._batch.begin_sending()
        lease_from = boottime()
        claimed = self._store.carry_out(exchange)
        if self._ended:
            self._ended = [each for each in self._ended if not each.is_settled]
        if self._batch.is_open:
            self._batch.end_sending(is_all_written=not self._ended)
            self._must_write = bool(self._ended)
            if not (self._ended or self._ahead):
                self._batch.close()
        if isinstance(claimed, float):
            time.sleep(claimed)
            return None
        running = claimed[0] if claimed else None
        if running is not None and running.on_lost_lease == "kill" and not self._may_begin_fenced(running):
            running = None
        if len(claimed) > 1:
            running = self._begin_batch(claimed, lease_from)
        if running is None:
            self._lane.clear()
        self._was_woken, self._is_idle = self._is_idle, claims and running is None
        return running

    # --- batches ----------------------------------------------------------------------------------------------

    def _begin_batch(self, claimed: Sequence[RunningTask], lease_from: float) -> RunningTask | None:
        """Shows the supervisor what was claimed together, and returns the first task. The supervisor has to look from
        now on."""
        now = boottime()
        self._ahead.extend(claimed)
        members = [Member(each.id, each.attempt_id, each.queue, each.type, each.result_ttl_s) for each in claimed]
        if not self._batch.open(members, now):
            self._give_back_ahead()
            return None
        self._ahead_until, self._claimed_together = lease_from + self._settings.lease_s, len(claimed)
        head = self._block.head
        if now - head.looked_ms / 1000 > NOTICED_S and head.supervisor_pid:
            with suppress(ProcessLookupError):
                os.kill(head.supervisor_pid, signal.SIGUSR1)
        return self._next_ahead()

    def _next_ahead(self) -> RunningTask | None:
        """The next task of the batch. None: the outcomes before it can't be written now; or it can't begin any more,
        and what is left was given back."""
        if self._must_write:
            self._turn(claims=False)
            if self._must_write:
                return None
        now = boottime()
        if not self._batch.begin() or now > self._ahead_until or not self._is_supervised(now):
            self._give_back_ahead()
            return None
        return self._ahead.popleft()

    def _note(self, ended: Ended) -> None:
        """After a task: chooses the size of the next batch, and keeps the result in shared memory if it is one of a
        batch."""
        self._batch_size.note(ended.run_s)
        if self._batch.is_open:
            is_kept = self._batch.keep(ended.outcome.result if ended.is_plain else b"")
            is_kept = is_kept and ended.is_plain and not ended.reports
            self._must_write = self._must_write or not is_kept or ended.run_s > LATE_S

    def _give_back_ahead(self) -> None:
        """Gives back what was claimed and hasn't begun, except what the supervisor has given back."""
        left, self._ahead = list(self._ahead), deque()
        place = self._batch.place_given
        if place is not None:
            left = left[: max(place - (self._claimed_together - len(left)), 0)]
        if not left:
            return
        left.reverse()  # each goes to the front of its queue
        try:
            words = self._store.run_many([scripts.give_back(running) for running in left])
        except (RedisUnavailable, ReplyFault):
            self._is_unsure = True  # they are given back then
            return
        for running, word in zip(left, words, strict=True):
            if word == "stopping":
                self._ended.append(Ended(running, stopped(), 0.0, []))

    def _tick(self) -> list[Call[Any]]:
        self._ticked_mono = time.monotonic()
        self._interruption.reinstall()
        return super()._tick()

    def _may_begin_fenced(self, running: RunningTask) -> bool:
        """Whether an attempt that must not outlive its lease may begin: with a guardian, and with a whole lease."""
        process_group.kill_late_when_continued(self._block)
        if not process_group.wait_for_guardian(self._block):
            self._is_unsure = True  # it is given back
            return False
        held, self._safe_until = self._store.carry_out(self._renew([running]))
        return bool(held)

    # --- one attempt ------------------------------------------------------------------------------------------

    def _perform(self, running: RunningTask) -> Ended | None:
        """Runs one attempt. A fault of ours around it costs no other task anything.

        None: it leaves behind something that only the end of this process ends.
        """
        started_mono = time.monotonic()
        reports = Reports(running, self._lane, self._reporter)
        try:
            return self._run_attempt(running, reports, started_mono)
        except BaseException as error:
            if os.getpid() != self._pid:  # in a process that the task forked
                raise
            log.exception("worker %s failed around task %s", self._worker, running.id)
            self._interruption.unwatch()
            self._lane.end()
            self._capture.leave(running)
            return Ended(running, worker_error(running, error), time.monotonic() - started_mono, reports.discard())
        finally:
            self._surroundings.restore()

    def _run_attempt(self, running: RunningTask, reports: Reports, started_mono: float) -> Ended | None:
        timeout_s = max(running.timeout_s or 0.0, 0.0)
        safe_until = self._safe_until if running.on_lost_lease == "kill" else 0.0
        self._lane.begin(running.id, running.attempt_id, running.queue, started_mono, timeout_s, safe_until)
        self._interruption.watch(started_mono, started_mono + timeout_s if timeout_s else math.inf)
        self._capture.enter(reports, alone=True)
        # A stop may have been requested between the claim and now.
        outcome = stopped() if self._lane.request() else self._execute(running, reports)
        self._interruption.unwatch()
        self._lane.end()
        self._output.settle()
        self._capture.leave(running)
        run_s = time.monotonic() - started_mono
        if self._interruption.has_raised or self._lane.request():
            if self._lane.request() is Request.STOP and outcome.status is not TaskStatus.DONE:
                outcome = stopped()  # whatever it raised on its way out
            if not self._is_tidy():
                self._must_leave = True
                if outcome.status is TaskStatus.STOPPED:
                    # The supervisor writes that it is stopped, when all of it has ended.
                    with suppress(RedisUnavailable, ReplyFault):
                        self._store.run_many(reports.take())
                    return None
        return Ended(running, outcome, run_s, reports.take())

    def _execute(self, running: RunningTask, reports: Reports) -> Outcome:
        outcome = execute_task(
            running,
            self._registry,
            TaskContext.of(running, reports),
            max_result_bytes=self._settings.max_result_bytes,
            run_coroutine=self._interruption.run_coroutine,
        )
        end_if_forked(self._pid, outcome)
        left = self._left_to_others(running, outcome)
        return outcome if left is None else self._store.carry_out(left)

    def _is_tidy(self) -> bool:
        """After an interrupt: ends the processes that the task left behind. False if some of them or threads stay."""
        ours = self._threads + sum(thread is not None for thread in (self._reporter.thread, self._unwritten.thread))
        return process_group.end_others() and threading.active_count() <= ours


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that never suspends: without an event loop, so that what it calls may use one."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it was to run without a pause")
