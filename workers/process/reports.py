"""Sends the progress and the log of running tasks to Redis, up to four times a second.

A process has one thread and one connection for this, started by the first report: a task that reports nothing costs
nothing. What is still unsent when the code of a task ends is sent before its outcome. What Redis didn't take is sent
again.
"""

from __future__ import annotations

import codecs
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from taskpool.errors import RedisUnavailable
from taskpool.redis import scripts
from taskpool.redis.calls import Call
from taskpool.redis.replies import ReplyFault
from taskpool.redis.rq_job import parents_of
from taskpool.redis.store import Store
from taskpool.settings import Settings
from taskpool.tasks.log_lines import Lines
from taskpool.types import LogLimits, RunningTask

from ..shared_memory import Lane, Request, Spool

log = logging.getLogger("workers")

INTERVAL_S: Final = 0.25
LINES_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 256 * 1024


class Reporter:
    """Sends the reports of all tasks of a process, in a thread."""

    def __init__(self, redis_url: str, limits: LogLimits, spool: Spool) -> None:
        self.store = Store(redis_url, name="taskpool-reports")
        self.limits, self.spool = limits, spool
        self.sending = threading.Lock()
        """Held while the connection is used."""
        self.thread: threading.Thread | None = None
        self._due: deque[Reports] = deque()  # its append and popleft are atomic between threads
        self._wake = threading.Event()

    def notice(self, reports: Reports) -> None:
        """Sends these reports soon."""
        self._due.append(reports)
        self._wake.set()
        if self.thread is None:
            thread = self.thread = threading.Thread(target=self._send_for_ever, name="taskpool-reports", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # too many threads: they are sent at the end of the attempt, or by the next try
                self.thread = None

    def _send_for_ever(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            due = {self._due.popleft() for _ in range(len(self._due))}
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


@dataclass(slots=True)
class Unsent:
    """A part of the reports of an attempt: the calls that send it, the number of its last line, and its progress."""

    calls: list[Call[Any]]
    last_line: int
    progress: Mapping[str, Any] | None


class Reports:
    """Collects the reports of one attempt: its `ContextSink`. It is made for every task, so it is empty until used."""

    __slots__ = (
        "_decoders", "_is_due", "_is_over", "_lane", "_lines", "_progress", "_progress_sent", "_reporter", "is_overdue",
        "running",
    )  # fmt: skip

    def __init__(self, running: RunningTask, lane: Lane, reporter: Reporter) -> None:
        self.running, self._lane, self._reporter = running, lane, reporter
        self.is_overdue = False
        """True when its timeout has passed: a task in a thread can see it only here."""
        self._progress: Mapping[str, Any] | None = None
        self._progress_sent: Mapping[str, Any] | None = None
        self._lines: Lines | None = None
        self._decoders: dict[str, codecs.IncrementalDecoder] | None = None
        """By stream, for output that is written as bytes."""
        self._is_due = self._is_over = False

    @property
    def is_unsent(self) -> bool:
        """Whether there is something left to send."""
        return not self._is_over and bool(self._lines or self._progress is not self._progress_sent)

    @property
    def is_over(self) -> bool:
        """Whether the attempt has ended and takes no more reports."""
        return self._is_over

    def take(self) -> list[Call[Any]]:
        """Ends the reports; the calls that send the rest, to be sent before the outcome."""
        self._is_over = True
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
        """Forget what was sent."""
        self._progress_sent = unsent.progress
        if self._lines is not None:
            self._lines.drop(unsent.last_line)

    def forget(self) -> None:
        """Give up what can't be sent."""
        self._progress = self._progress_sent = None
        self._lines = None

    def discard(self) -> list[Call[Any]]:
        """End without what is unsent."""
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
            lines = Lines(self.running.attempt, self._reporter.limits, mask=mask, reach=reach, spool=keep)
            self._lines = lines
        return lines

    def _notice(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._reporter.notice(self)

    def is_cancelled(self) -> bool:
        """Whether the attempt is to end."""
        return self.is_overdue or self._lane.request() is not Request.NONE

    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks it depends on.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with self._reporter.sending:
            return self._reporter.store.carry_out(parents_of(self.running.depends_on))


def limits_of(settings: Settings) -> LogLimits:
    """The limits of logs in the settings."""
    return LogLimits(settings.log_lines, settings.log_bytes, settings.log_line_chars)
