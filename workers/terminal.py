"""What a worker process writes to its own output: its log, what belongs to no task, and what tasks write.

Nobody may take a task's words for the worker's: each line of them begins with the task's id in brackets, and one that
belongs to nobody known with `[-]`. Only colours are left of what a terminal takes for orders. Secrets are masked: they
may come in two halves, so whole lines are passed on, and out of a thread that outlives its task, so what belongs to
nobody shows none of all that run here or ran lately.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import Final, TextIO

from taskpool.logs.line import shown_line, shown_part
from taskpool.masking import LONGEST_REACH
from taskpool.printable import coloured, printable
from taskpool.secret import Secrets, hidden
from taskpool.types import RunningTask

MOST_REMEMBERED: Final = 32
"""Of so many tasks that ended the secrets are still looked for."""
LONGEST_LINE: Final = 1 << 16

_Source = tuple[str, str, str]


class Terminal:
    """The streams `stdout` and `stderr` of the process, wherever they go by now."""

    def __init__(self) -> None:
        self._streams: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._lock = threading.RLock()  # a signal handler or a finalizer may write while we do
        self._begun: dict[_Source, str] = {}
        """By whose it is, stream and where it came from: the line that hasn't ended yet."""
        self._secrets: dict[str, Secrets] = {}
        """By attempt id, of those that run."""
        self._former: deque[Secrets] = deque(maxlen=MOST_REMEMBERED)
        self._is_workers = True
        """False in what a task forked: its output goes to the worker's, which says whose it is."""

    def move(self, fds: Mapping[str, int]) -> None:
        """Write to these file descriptors from now on."""
        self._begun.clear()
        for name, fd in fds.items():
            self._streams[name] = io.TextIOWrapper(io.FileIO(fd, "w"), "utf-8", "backslashreplace", write_through=True)

    def forget(self) -> None:
        """In what a task forked: write to where the process's own streams go."""
        self._lock = threading.RLock()
        self._is_workers = False
        self._streams = {"stdout": sys.__stdout__ or sys.stdout, "stderr": sys.__stderr__ or sys.stderr}

    def begin(self, running: RunningTask) -> None:
        """Know of an attempt whose threads may write without being known for its own."""
        if running.secrets is not None:
            self._secrets[running.attempt_id] = running.secrets

    def end(self, running: RunningTask) -> None:
        """Pass on what an attempt has begun, and remember its secrets."""
        if running.secrets is not None:
            self._secrets.pop(running.attempt_id, None)
            self._former.append(running.secrets)
        if self._begun:
            self._end_lines(running.attempt_id, running)

    def close(self) -> None:
        """Pass on what belongs to nobody and has begun."""
        self._end_lines("", None)

    def show(self, stream: str, text: str, running: RunningTask | None, *, source: str = "") -> None:
        """Pass on a part of what an attempt writes, or nobody. Parts from one `source` follow each other."""
        if not self._is_workers:
            self._write(stream, self.hide(text))
            return
        part = ("" if running is None else running.attempt_id, stream, source)
        with self._lock:
            if part in self._begun:
                text = self._begun.pop(part) + text
            *lines, rest = text.split("\n")
            if len(rest) > LONGEST_LINE:
                rest = self.masked(rest, running)
                end = len(rest) - LONGEST_REACH
                lines, rest = [*lines, rest[:end]], rest[end:]
            if rest:
                self._begun[part] = shown_part(rest)
            if lines:
                text = "\n".join(lines)
                text = text if "\r" not in text else "\n".join(map(shown_line, lines))
                self._write(stream, self.marked(text, running) + "\n")

    def marked(self, text: str, running: RunningTask | None) -> str:
        """Lines of an attempt, or of nobody, as they are passed on."""
        text = self.masked(text, running)
        if not self._is_workers:
            return text
        mark = "[-] " if running is None else f"[{printable(running.id)}] "
        if text.isascii() and text.isprintable():
            return mark + text
        return "\n".join([mark + coloured(line) for line in text.split("\n")])

    def masked(self, text: str, running: RunningTask | None) -> str:
        """The text without secrets of the attempt; of nobody's, without all that are known here."""
        return self.hide(text) if running is None else hidden(text, running.secrets)

    def hide(self, text: str) -> str:
        """The text of nobody knows whom, with all secrets masked that are known here."""
        for secrets in chain([*self._secrets.values()], [*self._former]):
            text = secrets.hide(text)
        return text

    def log(self, line: str) -> None:
        """A line of the worker's log."""
        self._write("stderr", line)

    def _end_lines(self, owner: str, running: RunningTask | None) -> None:
        with self._lock:
            for part in [part for part in self._begun if part[0] == owner]:
                self._write(part[1], self.marked(shown_line(self._begun.pop(part)), running) + "\n")

    def _write(self, stream: str, text: str) -> None:
        """That the operator's terminal, or whatever stands in its place, is gone is no fault of a task."""
        target = self._streams[stream]
        try:
            try:
                target.write(text)
            except UnicodeEncodeError:
                encoding = target.encoding or "ascii"
                target.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if "\n" in text:
                target.flush()
        except (OSError, ValueError):
            pass
