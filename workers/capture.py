"""Tells what tasks write from what the worker says: `sys.stdout`, `sys.stderr` and `logging` know whose turn it is.

In a process that runs one task at a time, all that is written meanwhile is the task's, whatever thread writes it. In
one that runs several, a context variable says which: it follows `await`, new asyncio tasks and `asyncio.to_thread`, but
no thread that the task starts itself. What belongs to no task goes where it always went.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TextIO

import taskpool
import workers
from taskpool.printable import indented, printable_lines
from taskpool.types import RunningTask
from workers.logs import FORMAT, configure
from workers.reports import Reports
from workers.terminal import Terminal

OURS: Final = tuple(str(Path(each.__file__ or "").parent) + os.sep for each in (workers, taskpool))
"""Where the code of the worker itself is. What other code logs outside a task is nobody's, whatever logger it uses."""


class Capture:
    """Whose output it is now, and where else it goes. `output`: the setting `task_output`."""

    def __init__(self, output: str) -> None:
        self.keeps, self.passes_on = output != "worker", output != "log"
        self._alone: Reports | None = None
        """The one attempt of a process that runs one at a time."""
        self._of_context: ContextVar[Reports | None] = ContextVar("taskpool-attempt", default=None)
        self.terminal = Terminal()
        """Where the worker's own output goes."""
        self.handlers: list[logging.Handler] = []
        """Of the root logger."""

    def install(self, level: str) -> None:
        """Takes over the process's streams and log, before the task modules are loaded: they may keep the streams."""
        handler = logging.StreamHandler(_Operator(self))
        handler.setFormatter(_Formatter(self))
        handler.addFilter(self._is_for_operator)
        configure(level, handler)
        self.handlers = [handler]
        if self.keeps:
            self.handlers.append(_Handler(self))
            logging.getLogger().addHandler(self.handlers[-1])
        sys.stdout = _Stream("stdout", sys.stdout, self)
        sys.stderr = _Stream("stderr", sys.stderr, self)

    def begin(self, before: Mapping[str, int]) -> None:
        """Begins the life of a worker process. `before`: by stream, the descriptor that its own output goes to now.

        What a task forks doesn't take itself for this process: its output is like that of any other program.
        """
        self.terminal.move(before)
        os.register_at_fork(after_in_child=self._forget)

    def enter(self, attempt: Reports, *, alone: bool) -> None:
        """What is written from now on is this attempt's: by anybody, or by this context and what begins in it."""
        self.terminal.begin(attempt.running)
        if alone:
            self._alone = attempt
        else:
            self._of_context.set(attempt)

    def leave(self, running: RunningTask) -> None:
        """What is written from now on isn't this attempt's any more."""
        self._alone = None
        self.terminal.end(running)

    def current(self) -> Reports | None:
        """Whose output it is; None: nobody's."""
        attempt = self._alone or self._of_context.get()
        return None if attempt is None or attempt.is_over else attempt

    def owner(self) -> Reports | None:
        """The attempt whose code runs now, where several run at once; None: it is the worker's own."""
        return self._of_context.get()

    def take(self, stream: str, text: str, source: str) -> bool:
        """Take text for the log of the task that writes; False when no task does."""
        attempt = self.current()
        return attempt is not None and self._take(attempt, stream, text, source)

    def take_bytes(self, stream: str, data: bytes) -> bool:
        """The same for bytes. A character may come in two parts."""
        attempt = self.current()
        if attempt is None:
            return False
        text = attempt.decode(stream, data)
        return not text or self._take(attempt, stream, text, "bytes")

    def _take(self, attempt: Reports, stream: str, text: str, source: str) -> bool:
        if self.keeps:
            attempt.write(stream, text, source)
        if self.passes_on:
            self.terminal.show(stream, text, attempt.running, source=source)
        return True

    def _forget(self) -> None:
        self._alone = None
        self._of_context.set(None)
        self.terminal.forget()

    def _is_for_operator(self, record: logging.LogRecord) -> bool:
        return self.passes_on or self.current() is None


class _Stream(io.TextIOBase):
    """In the place of sys.stdout or sys.stderr. `under` is the one that was there."""

    def __init__(self, name: str, under: TextIO, capture: Capture) -> None:
        self._name, self._under, self._capture = name, under, capture
        self.buffer = _Bytes(self)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        """For what belongs to no task."""

    def write(self, text: str) -> int:
        """Take text: for the task's log, if it is a task that writes."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        plain = str.__str__(text)  # of a subclass, whatever it overrides
        if not self._capture.take(self._name, plain, "stream"):
            self._pass_on(plain)
        return len(plain)

    def write_bytes(self, data: bytes) -> None:
        """Take bytes, in the same way."""
        if not self._capture.take_bytes(self._name, data):
            self._pass_on(self._decoder.decode(data))

    def _pass_on(self, text: str) -> None:
        self._capture.terminal.show(self._name, text, None)

    def flush(self) -> None:
        """A task's lines are kept at once; the rest is the stream's business."""
        if self._capture.current() is None:
            self._under.flush()

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Of the stream below: what a task starts may write there."""
        return self._under.fileno()

    def isatty(self) -> bool:
        """Nobody sees a task at a terminal."""
        return self._capture.current() is None and self._under.isatty()

    def close(self) -> None:
        """Not for a task to do: others write here as well."""

    def reconfigure(self, **options: Any) -> None:
        """Accepted and ignored: lines are kept as UTF-8, and the stream below is the worker's."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As it says below."""
        return self._under.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)


class _Bytes(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes go the same way as text."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        """Take bytes."""
        raw = bytes(data)
        self._stream.write_bytes(raw)
        return len(raw)

    def flush(self) -> None:
        """As the stream's."""
        self._stream.flush()

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """As the stream's."""
        return self._stream.fileno()

    def close(self) -> None:
        """As the stream's."""


class _Operator(io.TextIOBase):
    """The stderr of the worker itself, wherever that goes by now."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def write(self, text: str) -> int:
        """Pass it on."""
        self._capture.terminal.log(text)
        return len(text)


class _Formatter(logging.Formatter):
    """The worker's log. What a task logs is marked as its own and shows no secret of it there either."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(FORMAT)
        self._capture = capture

    def format(self, record: logging.LogRecord) -> str:
        """As always, masked."""
        text = super().format(record)
        attempt, terminal = self._capture.current(), self._capture.terminal
        if attempt is None and record.pathname.startswith(OURS):
            return indented(printable_lines(terminal.hide(text)))
        return terminal.marked(text, None if attempt is None else attempt.running)


class _Handler(logging.Handler):
    """Puts what a task logs into its log."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record. As with Python's own handlers, one that can't be shown is reported on stderr, and the code
        that logs it goes on."""
        attempt = self._capture.current()
        if attempt is not None:
            try:
                attempt.record(self.format(record), level=record.levelname.lower(), logger=record.name)
            except RecursionError:  # as Python's do: the code that logs is about to end with it
                raise
            except Exception:  # the arguments are the task's objects: their methods may raise anything
                with suppress(Exception):
                    self.handleError(record)
