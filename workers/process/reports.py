"""What a worker process reports: the progress and the log of its running tasks, and counters.

Progress and log are sent up to four times a second. A process has one thread and one connection for this, started by
the first report: a task that reports nothing costs nothing. What is still unsent when the code of a task ends is sent
before its outcome. What Redis didn't take is sent again.
"""

from __future__ import annotations

import codecs
import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from taskpool.errors import RedisUnavailable
from taskpool.operations.flow.additions import Additions
from taskpool.operations.flow.edges import outcomes_of
from taskpool.operations.queue import Rules
from taskpool.operations.specs import read_specs
from taskpool.operations.status import refuse_lost
from taskpool.redis import keys, people_scripts, scripts
from taskpool.redis.address import Address
from taskpool.redis.calls import Call, Plan
from taskpool.redis.connection import SharedWire
from taskpool.redis.keys import BUCKET_LABELS, BUCKETS_S, field_name
from taskpool.redis.replies import ReplyFault
from taskpool.redis.store import Store
from taskpool.tasks.context import Asking
from taskpool.tasks.log_lines import Lines
from taskpool.tasks.node import Afters, Node
from taskpool.tasks.outcomes import AnyOutcome
from taskpool.tasks.questions import Asked, state_document
from taskpool.text import Secrets
from taskpool.types import Answer, LogLimits, Receipt, RunningTask, TaskSpec

from ..process_group import start_thread
from ..shared_memory import Lane, Request, Spool

T = TypeVar("T")
log = logging.getLogger("workers")

INTERVAL_S: Final = 0.25
LINES_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 256 * 1024
FAILURES: Final = ("failed", "retried")
"""The outcomes that count as failures of a worker process: RQ counts those, too."""


class Reporter:
    """Sends the reports of all tasks of a process, in a thread."""

    def __init__(self, redis_url: str, limits: LogLimits, spool: Spool, rules: Rules) -> None:
        # A process that a task forks may use the task's context, too: it gets a connection and a lock of its own.
        wire = SharedWire(Address.parse(redis_url), name="taskpool-reports")
        self.store = Store(transport=wire)
        os.register_at_fork(after_in_child=self._forked)
        self.limits, self.spool, self.rules = limits, spool, rules
        self.sending = threading.Lock()
        """Held while the connection is used."""
        self.thread: threading.Thread | None = None
        self._due: SimpleQueue[Reports] = SimpleQueue()

    def _forked(self) -> None:
        self.sending = threading.Lock()

    def notice(self, reports: Reports) -> None:
        """Sends these reports soon."""
        self._due.put(reports)
        if self.thread is None:
            thread = self.thread = threading.Thread(target=self._send_for_ever, name="taskpool-reports", daemon=True)
            try:
                start_thread(thread)
            except RuntimeError:  # too many threads: they are sent at the end of the attempt, or by the next try
                self.thread = None

    def _send_for_ever(self) -> None:
        while True:
            due = {self._due.get()} | {self._due.get() for _ in range(self._due.qsize())}
            with self.sending:
                for reports in due:
                    try:
                        self._send(reports)
                    except Exception:  # the others are sent nevertheless
                        log.exception("the reports of task %s can't be sent", reports.running.id)
                        reports.forget()
            for reports in due:
                if reports.is_unsent:
                    self.notice(reports)
            time.sleep(INTERVAL_S)

    def _send(self, reports: Reports) -> None:
        unsent = reports.unsent()
        if unsent.calls:
            with suppress(RedisUnavailable, ReplyFault):  # they are sent again, at the latest before the outcome
                self.store.run_many(unsent.calls)
                reports.drop(unsent)


class Unsent(NamedTuple):
    """A part of the reports of an attempt: the calls that send it, the number of its last line, and its progress."""

    calls: list[Call[Any]]
    last_line: int
    progress: Mapping[str, Any] | None


class Reports:
    """Collects the reports of one attempt: its `ContextSink`. It is made for every task, so it is empty until used."""

    __slots__ = (
        "_additions", "_decoders", "_is_due", "_lane", "_lines", "_progress", "_progress_sent", "_reporter", "is_over",
        "is_overdue", "running",
    )  # fmt: skip

    def __init__(self, running: RunningTask, lane: Lane, reporter: Reporter) -> None:
        self.running, self._lane, self._reporter = running, lane, reporter
        self.is_overdue = False
        """True when its timeout has passed: a task in a thread can see it only here."""
        self.is_over = False
        """Whether the attempt has ended and takes no more reports."""
        self._progress: Mapping[str, Any] | None = None
        self._progress_sent: Mapping[str, Any] | None = None
        self._lines: Lines | None = None
        self._decoders: dict[str, codecs.IncrementalDecoder] | None = None
        """By stream, for output that is written as bytes."""
        self._is_due = False
        self._additions: Additions | None = None

    @property
    def is_unsent(self) -> bool:
        """Whether there is something left to send."""
        return not self.is_over and bool(self._lines or self._progress is not self._progress_sent)

    def take(self) -> list[Call[Any]]:
        """Ends the reports; the calls that send the rest, to be sent before the outcome."""
        self.is_over = True
        if self._progress is None and self._lines is None:
            return []
        calls: list[Call[Any]] = []
        with self._reporter.sending:  # a report that is being sent arrives before the outcome
            if self._lines is not None:
                for stream, decoder in (self._decoders or {}).items():
                    if rest := decoder.decode(b"", final=True):
                        self._lines.write(stream, rest, "bytes")
                self._lines.end()
            while (unsent := self.unsent()).calls:
                calls += unsent.calls
                self.drop(unsent)
        return calls

    def unsent(self) -> Unsent:
        """The next part. Called while `sending` is held."""
        self._is_due = False
        calls: list[Call[Any]] = []
        last_line = 0
        if self._lines:
            first, lines = self._lines.peek(LINES_AT_ONCE, BYTES_AT_ONCE)
            last_line = first + len(lines) - 1
            running, limits = self.running, self._reporter.limits
            calls.append(scripts.log(running.id, running.attempt_id, lines, limits, first=first))
        progress = self._progress
        if progress is not None and progress is not self._progress_sent:
            calls.append(scripts.progress(self.running, progress))
        return Unsent(calls, last_line, progress)

    def drop(self, unsent: Unsent) -> None:
        """Forgets what was sent."""
        self._progress_sent = unsent.progress
        if self._lines is not None:
            self._lines.drop(unsent.last_line)

    def forget(self) -> None:
        """Gives up what can't be sent."""
        self._progress = self._progress_sent = None
        self._lines = None

    def discard(self) -> list[Call[Any]]:
        """Ends without what is unsent."""
        self.forget()
        return self.take()

    # --- the task's side ----------------------------------------------------------------------------------

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Takes the latest progress, in place of an earlier one that is unsent."""
        given = {"done": done, "total": total, "note": note}
        self._progress = {name: value for name, value in given.items() if value is not None}
        self._notice()

    def log(self, message: str) -> None:
        """Takes one or several lines."""
        self.log_lines().add("log", message)
        self._notice()

    def record(self, text: str, *, level: str, logger: str) -> None:
        """Takes a message of `logging`."""
        self.log_lines().add("logging", text, level=level, logger=logger)
        self._notice()

    def write(self, stream: str, text: str, source: str) -> None:
        """Takes text of a stream, stdout or stderr. The parts of a line come from one `source`."""
        self.log_lines().write(stream, text, source)
        self._notice()

    def decode(self, stream: str, data: bytes) -> str:
        """The text of bytes that are written to a stream. The start of a character waits for its rest."""
        if self._decoders is None:
            self._decoders = {}
        if stream not in self._decoders:
            self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
            self.log_lines()
        return self._decoders[stream].decode(data)

    def log_lines(self) -> Lines:
        """Its lines, made for the first one."""
        lines = self._lines
        if lines is None:
            spool, attempt_id = self._reporter.spool, self.running.attempt_id.encode()

            def keep(number: int, line: bytes) -> None:
                spool.keep(attempt_id, number, line)

            secrets = self.running.secrets
            mask, reach = (None, 0) if secrets is None else (secrets.hide, secrets.masker.reach)
            limits = self._reporter.limits
            lines = self._lines = Lines(self.running.attempt, limits, mask=mask, reach=reach, spool=keep)
        return lines

    def _notice(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._reporter.notice(self)

    def is_cancelled(self) -> bool:
        """Whether the attempt is to end."""
        return self.is_overdue or self._lane.request() is not Request.NONE

    def outcomes(self) -> Mapping[str, AnyOutcome]:
        """How the tasks that it depends on have ended. Raises: RedisUnavailable."""
        return outcomes_of(self.running.id, self.running.edges, self._carry_out)

    def _carry_out(self, plan: Plan[T]) -> T:
        with self._reporter.sending:
            return self._reporter.store.carry_out(plan)

    def add_task(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> Receipt:
        """Adds a task. Raises: InvalidTask, UniqueConflict, QueueFull, AttemptLost, RedisUnavailable."""
        with self._reporter.sending:
            return self._reporter.store.carry_out(self._adding().add_task(given, named))

    def add_tasks(self, specs: Iterable[TaskSpec]) -> list[Receipt]:
        """Adds tasks. Raises: as `add_task`."""
        listed = read_specs(specs)  # a generator runs code of the task
        with self._reporter.sending:
            return self._reporter.store.carry_out(self._adding().add_tasks(listed))

    def add_node(self, name: str, given: tuple[Any, ...], after: Afters, options: Mapping[str, Any]) -> Node:
        """Collects a node of the workflow. Raises: InvalidTask."""
        return self._adding().add_node(name, given, after, options)

    def add_map(self, name: str, specs: Iterable[TaskSpec], after: Afters) -> Node:
        """Collects a map. Raises: InvalidTask."""
        return self._adding().add_map(name, read_specs(specs), after)

    def commit(self) -> None:
        """Adds what was collected. Raises: as `Additions.commit`, RedisUnavailable."""
        with self._reporter.sending:
            lines = self._reporter.store.carry_out(self._adding().commit())
        for line in lines:
            self.log(line)

    def _adding(self) -> Additions:
        if self._additions is None:
            self._additions = Additions(self.running, self._reporter.rules)
        return self._additions

    def ask(self, asking: Asking) -> Any:
        """The answer to a question. Raises: Parked, NotAnswered, ValueError, RedisUnavailable."""
        asked = Asked(asking)
        answers: tuple[Answer, ...] = self._run(people_scripts.answers_of(self.running.id))
        return asked.answer_in(answers)

    def checkpoint(self, state: Any, secrets: Secrets | None) -> None:
        """Keeps a state at once. Raises: AttemptLost, ValueError, RedisUnavailable."""
        refuse_lost(self.running, self._run(people_scripts.checkpoint(self.running, state_document(state, secrets))))

    def state(self) -> Any:
        """The state that was kept last. Raises: RedisUnavailable."""
        return self._run(people_scripts.checkpoint_of(self.running.id))

    def _run(self, call: Call[T]) -> T:
        with self._reporter.sending:
            return self._reporter.store.run(call)


# --- counters ---------------------------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """What is counted of one task type in one queue: the attempts by outcome and by the buckets of their times."""

    outcomes: Counter[str]
    waits: list[int]
    runs: list[int]
    sums: Counter[str]


class Stats:
    """What a process counts of its attempts. It reports about once a second.

    A report has a number. One whose answer was lost is sent again as it was, and Redis adds it only once."""

    def __init__(self, worker: str, build: str) -> None:
        self._worker, self._build = worker, build
        self._number = 0
        self._unsent: dict[str, int] = {}
        """The increments of the last report, while Redis hasn't confirmed it."""
        self._counts: defaultdict[tuple[str, str], _Counts] = defaultdict(
            lambda: _Counts(Counter(), [0] * len(BUCKET_LABELS), [0] * len(BUCKET_LABELS), Counter())
        )
        self.done = self.failed = self.working_us = 0

    def record(self, type: str, queue: str, outcome: str, *, wait_ms: int, run_s: float) -> None:
        """Counts one attempt, which costs about a microsecond."""
        outcomes, waits, runs, sums = self._counts[type, queue]
        run_us = int(run_s * 1e6)
        outcomes[outcome] += 1
        waits[bisect_left(BUCKETS_S, wait_ms / 1000)] += 1
        runs[bisect_left(BUCKETS_S, run_s)] += 1
        sums[keys.WAIT_US_SUM] += wait_ms * 1000
        sums[keys.RUN_US_SUM] += run_us
        self.working_us += run_us
        if outcome == "done":
            self.done += 1
        elif outcome in FAILURES:
            self.failed += 1

    def report(self) -> list[Call[Any]]:
        """The call that sends the next report, or the last one again; none if there is nothing to report."""
        if not self._unsent:
            self._number += 1
            self._unsent = self.take()
        return [scripts.count(self._unsent, (self._worker, self._number), self._confirm)] if self._unsent else []

    def _confirm(self) -> None:
        self._unsent = {}

    def take(self) -> dict[str, int]:
        """The increments of the counters, by field with the build; each is taken once."""
        increments: dict[str, int] = {}
        build = self._build
        for (type, queue), (outcomes, waits, runs, sums) in self._counts.items():
            increments |= {field_name(keys.TASKS, outcome, type, queue, build): n for outcome, n in outcomes.items()}
            for metric, buckets in ((keys.WAIT_BUCKET, waits), (keys.RUN_BUCKET, runs)):
                labeled = zip(BUCKET_LABELS, buckets, strict=True)
                increments |= {field_name(metric, type, queue, label, build): n for label, n in labeled if n}
            increments |= {field_name(metric, type, queue, build): n for metric, n in sums.items()}
        self._counts.clear()
        return increments

    def start_again(self) -> None:
        """Sets what RQ shows of this process to zero: it was added to the process's totals."""
        self.done = self.failed = self.working_us = 0
