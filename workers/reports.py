"""How a running task's progress and log travel: at most four times a second, on a connection and a thread of their own.

Both are started by the first report: a task that reports nothing costs nothing. What is still unsent at the end
is sent before the outcome, so that nothing is lost or comes too late.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from taskpool import scripts
from taskpool.calls import Call
from taskpool.errors import RedisUnavailable
from taskpool.runner import parents_of
from taskpool.status import log_task
from taskpool.store import ReplyFault, Store
from taskpool.types import RunningTask
from workers.slots import Lane, Request

INTERVAL_S: Final = 0.25
LINE_CHARS: Final = 8192
"""A longer line is kept in pieces of this size."""
PIECES: Final = 16
LINES_UNSENT: Final = 10_000
LINES_AT_ONCE: Final = 500


class Reporter:
    """Sends what the tasks of a process report: one thread and one connection, started by the first report."""

    def __init__(self, redis_url: str) -> None:
        self.store = Store(redis_url, name="taskpool-reports")
        self.sending = threading.Lock()
        """Held while reports are on their way, and by whoever else uses the connection."""
        self.thread: threading.Thread | None = None
        self._due: deque[Reports] = deque()  # its append and popleft are atomic between threads
        self._wake = threading.Event()

    def notice(self, reports: Reports) -> None:
        """Sends what these reports hold, soon."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._send_for_ever, name="taskpool-reports", daemon=True)
            self.thread.start()
        self._due.append(reports)
        self._wake.set()

    def _send_for_ever(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            due = {self._due.popleft() for _ in range(len(self._due))}
            with self.sending:
                calls = [call for reports in due for call in reports.calls(LINES_AT_ONCE)]
                try:
                    self.store.run_many(calls) if calls else None
                except (RedisUnavailable, ReplyFault):  # these reports are lost; the tasks go on without
                    pass
            for reports in due:
                if reports.has_lines:
                    self.notice(reports)
            time.sleep(INTERVAL_S)


class Reports:
    """The `ContextSink` of one attempt. Made for every task, so it makes nothing itself before it is used."""

    __slots__ = ("_lane", "_lines", "_progress", "_reporter", "_running", "is_overdue")

    def __init__(self, running: RunningTask, lane: Lane, reporter: Reporter) -> None:
        self._running, self._lane, self._reporter = running, lane, reporter
        self.is_overdue = False
        """True when its timeout has passed and nothing but this can tell it: it runs in a thread."""
        self._progress: deque[Mapping[str, Any]] | None = None
        self._lines: deque[tuple[int, str]] | None = None

    @property
    def has_lines(self) -> bool:
        """Whether there are lines that no call was made for."""
        return bool(self._lines)

    def take(self) -> list[Call[Any]]:
        """The calls for what is still unsent; they belong in front of the one that ends the attempt."""
        if self._progress is None and self._lines is None:
            return []
        with self._reporter.sending:  # a report that is under way arrives before the outcome
            return self.calls(LINES_UNSENT)

    def calls(self, most_lines: int) -> list[Call[Any]]:
        """The calls for what is unsent now. Only while `sending` is held."""
        calls: list[Call[Any]] = []
        if self._lines:
            lines = [self._lines.popleft() for _ in range(min(len(self._lines), most_lines))]
            calls.append(log_task(self._running, lines))
        if self._progress:
            calls.append(scripts.progress(self._running, self._progress.popleft()))
        return calls

    # --- the task's side ----------------------------------------------------------------------------------

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Takes the latest progress; one that is overtaken before it was sent is dropped."""
        if self._progress is None:
            self._progress = deque(maxlen=1)
        self._progress.append(progress_document(done, total, note))
        self._reporter.notice(self)

    def log(self, message: str) -> None:
        """Takes one line, or as many as the text has."""
        if self._lines is None:
            self._lines = deque(maxlen=LINES_UNSENT)
        self._lines.extend(log_lines(message))
        self._reporter.notice(self)

    def is_cancelled(self) -> bool:
        """Whether the attempt was asked to end."""
        return self.is_overdue or self._lane.request() is not Request.NONE

    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks it depends on.

        Raises:
            RedisUnavailable: Redis is away.
        """
        with self._reporter.sending:
            return self._reporter.store.carry_out(parents_of(self._running.depends_on))


def progress_document(done: float, total: float | None, note: str | None) -> dict[str, Any]:
    """Progress as it is stored: `done`, and `total` and `note` when given."""
    document: dict[str, Any] = {"done": done}
    if total is not None:
        document["total"] = total
    if note is not None:
        document["note"] = note
    return document


def log_lines(message: str) -> list[tuple[int, str]]:
    """A message as lines with their time: this host's clock, in ms since 1970."""
    at_ms = time.time_ns() // 1_000_000
    text = message.encode("utf-8", "replace").decode()
    pieces = [
        line[start : start + LINE_CHARS]
        for line in text.splitlines() or [""]
        for start in range(0, max(len(line), 1), LINE_CHARS)
    ]
    return [(at_ms, piece) for piece in pieces[:PIECES]]
