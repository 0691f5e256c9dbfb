"""What a worker process writes to its own output: its log, what belongs to no task, and what tasks write, masked.

A secret may come in two halves, and out of a thread that outlives its task. So of tasks with secrets whole lines are
passed on, and in what belongs to nobody the secrets are masked of all that run here or ran lately.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import Final, TextIO

from taskpool.secret import Secrets
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
        """By attempt, stream and where it came from: the line of a task with secrets that hasn't ended yet."""
        self._secrets: dict[str, Secrets] = {}
        """By attempt id, of those that run."""
        self._former: deque[Secrets] = deque(maxlen=MOST_REMEMBERED)

    def move(self, fds: Mapping[str, int]) -> None:
        """Write to these file descriptors from now on."""
        for name, fd in fds.items():
            self._streams[name] = io.TextIOWrapper(io.FileIO(fd, "w"), "utf-8", "backslashreplace", write_through=True)

    def forget(self) -> None:
        """In what a task forked: write to where the process's own streams go."""
        self._lock = threading.RLock()
        self._streams = {"stdout": sys.__stdout__ or sys.stdout, "stderr": sys.__stderr__ or sys.stderr}

    def begin(self, running: RunningTask) -> None:
        """Know of an attempt whose threads may write without being known for its own."""
        if running.secrets is not None:
            self._secrets[running.attempt_id] = running.secrets

    def end(self, running: RunningTask) -> None:
        """Pass on what an attempt has begun, and remember its secrets."""
        secrets = running.secrets
        if secrets is None:
            return
        self._secrets.pop(running.attempt_id, None)
        self._former.append(secrets)
        with self._lock:
            for source in [source for source in self._begun if source[0] == running.attempt_id]:
                self._write(source[1], secrets.hide(self._begun.pop(source)) + "\n")

    def show(self, stream: str, text: str, running: RunningTask | None, *, source: str = "") -> None:
        """Pass on a part of what an attempt writes, or nobody. Parts from one `source` follow each other."""
        if running is None:
            self._write(stream, self.hide(text))
        elif running.secrets is None:
            self._write(stream, text)
        else:
            part = (running.attempt_id, stream, source)
            with self._lock:
                whole, end, rest = (self._begun.pop(part, "") + text).rpartition("\n")
                if len(rest) > LONGEST_LINE:
                    whole, end, rest = whole + end + rest, "\n", ""
                if rest:
                    self._begun[part] = rest
                self._write(stream, running.secrets.hide(whole + end))

    def hide(self, text: str) -> str:
        """The text of nobody knows whom, with all secrets masked that are known here."""
        for secrets in chain([*self._secrets.values()], [*self._former]):
            text = secrets.hide(text)
        return text

    def log(self, line: str) -> None:
        """A line of the worker's log."""
        self._write("stderr", line)

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
