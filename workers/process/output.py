"""The output of a worker process: its log, and what its tasks write with `print`, `logging` or straight to descriptors.

- `Terminal` is the worker's own output. Each line of a task begins with the task's id in brackets, and one whose task
  isn't known with `[-]`, so that no task can write a line that looks like the worker's. Of the control codes of
  terminals only colours are passed on. Secrets are masked. A secret may come in two parts, so only whole lines are
  passed on.
- `Capture` replaces `sys.stdout`, `sys.stderr` and the log handlers, and knows whose code runs. In a process that runs
  one task at a time, everything written meanwhile belongs to the task, from any thread. In one that runs several, a
  context variable says which task writes: it follows `await`, new asyncio tasks and `asyncio.to_thread`, but no thread
  that a task starts itself.
- `Pipes` and `Output` take the place of the file descriptors 1 and 2, which C code and child processes write to. A
  thread reads the pipes. The fork server holds their other ends too, and reads what is left in them when the process
  has died. Where several tasks run, it isn't known which of them wrote this.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import taskpool
from taskpool.tasks.log_lines import shown_line, shown_part
from taskpool.text import LONGEST_REACH, LogFormatter, Secrets, coloured, hidden, indented, printable, printable_lines
from taskpool.types import RunningTask

from .reports import Reports

FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


def configure(level: str, handler: logging.Handler | None = None) -> None:
    """Sets up the process's log; `level` is one of the setting's words, `handler` writes it (None: to stderr)."""
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LogFormatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level == "info":  # a line for each request of a task would be a line for each task
        logging.getLogger("httpx").setLevel(logging.WARNING)


MOST_REMEMBERED: Final = 32
"""The secrets of this many ended tasks are still masked."""
LONGEST_LINE: Final = 1 << 16


class Terminal:
    """The worker's own `stdout` and `stderr`."""

    def __init__(self) -> None:
        self._streams: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._lock = threading.RLock()  # a signal handler or a finalizer may write while we do
        self._open_lines: dict[tuple[str, str, str], str] = {}
        """The lines that haven't ended yet, by attempt id, stream and source."""
        self._secrets: dict[str, Secrets] = {}
        """Of the running attempts, by attempt id."""
        self._former: deque[Secrets] = deque(maxlen=MOST_REMEMBERED)
        self._is_workers = True
        """False in a process that a task forked: its output goes to the worker's pipes, and gets its mark there."""

    def move(self, fds: Mapping[str, int]) -> None:
        """Write to these file descriptors from now on."""
        self._open_lines.clear()
        for name, fd in fds.items():
            self._streams[name] = io.TextIOWrapper(io.FileIO(fd, "w"), "utf-8", "backslashreplace", write_through=True)

    def forget(self) -> None:
        """In a process that a task forked: write to its own streams, which are the worker's pipes."""
        self._lock = threading.RLock()
        self._is_workers = False
        self._streams = {"stdout": sys.__stdout__ or sys.stdout, "stderr": sys.__stderr__ or sys.stderr}

    def begin(self, running: RunningTask) -> None:
        """Remember the secrets of an attempt: a thread of it may write without being recognized."""
        if running.secrets is not None:
            self._secrets[running.attempt_id] = running.secrets

    def end(self, running: RunningTask) -> None:
        """Pass on the open lines of an attempt that ends."""
        if running.secrets is not None:
            self._secrets.pop(running.attempt_id, None)
            self._former.append(running.secrets)
        if self._open_lines:
            self._end_lines(running.attempt_id, running)

    def close(self) -> None:
        """Pass on the open lines that belong to no known attempt."""
        self._end_lines("", None)

    def show(self, stream: str, text: str, running: RunningTask | None, *, source: str = "") -> None:
        """Pass on text of an attempt (None: not known which). The parts of a line come from one `source`."""
        if not self._is_workers:
            self._write(stream, self.hide(text))
            return
        part = ("" if running is None else running.attempt_id, stream, source)
        with self._lock:
            if part in self._open_lines:
                text = self._open_lines.pop(part) + text
            *lines, rest = text.split("\n")
            if len(rest) > LONGEST_LINE:
                rest = self.masked(rest, running)
                end = len(rest) - LONGEST_REACH
                lines, rest = [*lines, rest[:end]], rest[end:]
            if rest:
                self._open_lines[part] = shown_part(rest)
            if lines:
                text = "\n".join(lines)
                text = text if "\r" not in text else "\n".join(map(shown_line, lines))
                self._write(stream, self.marked(text, running) + "\n")

    def marked(self, text: str, running: RunningTask | None) -> str:
        """Lines of an attempt as they are passed on."""
        text = self.masked(text, running)
        if not self._is_workers:
            return text
        mark = "[-] " if running is None else f"[{printable(running.id)}] "
        if text.isascii() and text.isprintable():
            return mark + text
        return "\n".join([mark + coloured(line) for line in text.split("\n")])

    def masked(self, text: str, running: RunningTask | None) -> str:
        """The text without the secrets of its attempt."""
        return self.hide(text) if running is None else hidden(text, running.secrets)

    def hide(self, text: str) -> str:
        """The text without any secret that is known here: it may be any attempt's."""
        for secrets in chain([*self._secrets.values()], [*self._former]):
            text = secrets.hide(text)
        return text

    def log(self, line: str) -> None:
        """A line of the worker's log."""
        self._write("stderr", line)

    def _end_lines(self, owner: str, running: RunningTask | None) -> None:
        with self._lock:
            for part in [part for part in self._open_lines if part[0] == owner]:
                self._write(part[1], self.marked(shown_line(self._open_lines.pop(part)), running) + "\n")

    def _write(self, stream: str, text: str) -> None:
        target = self._streams[stream]
        with suppress(OSError, ValueError):  # the operator's terminal is gone: no task fails for that
            try:
                target.write(text)
            except UnicodeEncodeError:
                encoding = target.encoding or "ascii"
                target.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if "\n" in text:
                target.flush()


OWN_CODE: Final = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(taskpool.__file__).parent))
"""The folders of the worker's own code. What other code logs outside a task gets the mark `[-]`."""


class Capture:
    """Knows whose output is written now and where it goes. `output`: the setting `task_output`."""

    def __init__(self, output: str) -> None:
        self.keeps, self.passes_on = output != "worker", output != "log"
        self._alone: Reports | None = None
        """The attempt of a process that runs one at a time."""
        self._of_context: ContextVar[Reports | None] = ContextVar("taskpool-attempt", default=None)
        self.terminal = Terminal()
        self.handlers: list[logging.Handler] = []
        """The handlers of the root logger."""

    def install(self, level: str) -> None:
        """Replaces the streams and log handlers, before the task modules are loaded: they may keep the streams."""
        handler = logging.StreamHandler(_TerminalStream(self))
        handler.setFormatter(_Formatter(self))
        handler.addFilter(self._is_for_operator)
        configure(level, handler)
        self.handlers = [handler]
        if self.keeps:
            self.handlers.append(_Handler(self))
            logging.getLogger().addHandler(self.handlers[-1])
        sys.stdout = _Stream("stdout", sys.stdout, self)
        sys.stderr = _Stream("stderr", sys.stderr, self)

    def begin(self, fds: Mapping[str, int]) -> None:
        """Begins the life of a worker process, whose own output goes to these descriptors. A process that a task forks
        writes as any other program does."""
        self.terminal.move(fds)
        os.register_at_fork(after_in_child=self._forget)

    def enter(self, attempt: Reports, *, alone: bool) -> None:
        """What is written from now on belongs to this attempt: all if it runs `alone`, else that of this context."""
        self.terminal.begin(attempt.running)
        if alone:
            self._alone = attempt
        else:
            self._of_context.set(attempt)

    def leave(self, running: RunningTask) -> None:
        """What is written from now on doesn't belong to this attempt."""
        self._alone = None
        self.terminal.end(running)

    def current(self) -> Reports | None:
        """The attempt whose output it is now; None: of no known attempt."""
        attempt = self._alone or self._of_context.get()
        return None if attempt is None or attempt.is_over else attempt

    def owner(self) -> Reports | None:
        """The attempt whose code runs now, in a process that runs several; None: the worker's own code runs."""
        return self._of_context.get()

    def take(self, stream: str, text: str, source: str) -> bool:
        """Take text that the current attempt writes. False: there is none."""
        attempt = self.current()
        return attempt is not None and self._take(attempt, stream, text, source)

    def take_bytes(self, stream: str, data: bytes) -> bool:
        """Take bytes, in the same way. A character may come in two parts."""
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
    """Takes the place of sys.stdout or sys.stderr, `under`. No task can close it: others write here too."""

    def __init__(self, name: str, under: TextIO, capture: Capture) -> None:
        self._name, self._under, self._capture = name, under, capture
        self.buffer = _Bytes(self)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        """Of bytes that belong to no attempt."""

    def write(self, text: str) -> int:
        """Take text."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        plain = str.__str__(text)  # of a subclass, whatever it overrides
        if not self._capture.take(self._name, plain, "stream"):
            self._pass_on(plain)
        return len(plain)

    def write_bytes(self, data: bytes) -> None:
        """Take bytes."""
        if not self._capture.take_bytes(self._name, data):
            self._pass_on(self._decoder.decode(data))

    def _pass_on(self, text: str) -> None:
        self._capture.terminal.show(self._name, text, None)

    def flush(self) -> None:
        """Flush the stream below. A task's lines are kept at once."""
        if self._capture.current() is None:
            self._under.flush()

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor of the stream below, for programs that a task starts."""
        return self._under.fileno()

    def isatty(self) -> bool:
        """False for a task."""
        return self._capture.current() is None and self._under.isatty()

    def close(self) -> None:
        """Do nothing."""

    def reconfigure(self, **options: Any) -> None:
        """Do nothing: lines are kept as UTF-8."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream below."""
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


class _TerminalStream(io.TextIOBase):
    """The worker's own stderr, as a stream."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def write(self, text: str) -> int:
        """Pass it on."""
        self._capture.terminal.log(text)
        return len(text)


class _Formatter(logging.Formatter):
    """Formats the worker's log. Lines that a task logs get its mark, and show no secret of it."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(FORMAT)
        self._capture = capture

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, masked."""
        text = super().format(record)
        attempt, terminal = self._capture.current(), self._capture.terminal
        if attempt is None and record.pathname.startswith(OWN_CODE):
            return indented(printable_lines(terminal.hide(text)))
        return terminal.marked(text, None if attempt is None else attempt.running)


class _Handler(logging.Handler):
    """Puts the records of a task into its log."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record. One that can't be formatted is reported on stderr, as by Python's own handlers."""
        attempt = self._capture.current()
        if attempt is not None:
            try:
                attempt.record(self.format(record), level=record.levelname.lower(), logger=record.name)
            except RecursionError:  # as Python's handlers do: the code that logs is about to end with it
                raise
            except Exception:  # the arguments are the task's objects: their methods may raise anything
                with suppress(Exception):
                    self.handleError(record)


STREAMS: Final = {"stdout": 1, "stderr": 2}
PIPE_BYTES: Final = 1 << 20
"""Code that prints more than this while it holds the interpreter lock waits for ever: no thread can read it then."""
READ_BYTES: Final = 1 << 18
MOST_AT_END: Final = 4 << 20
"""The end of a task waits for this much at most: a process that it left running may write without a pause."""
RELOOK_MS: Final = 200
_ENDED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
_F_SETPIPE_SZ: Final = 1031


class Pipes:
    """The two pipes, made before the fork: the worker process writes into them, and `Output` reads from them."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[int, int]] = {}
        try:
            for name in STREAMS:
                self._ends[name] = os.pipe()
        except OSError:
            self.close()
            raise
        for reader, writer in self._ends.values():
            os.set_blocking(reader, False)
            try:
                fcntl.fcntl(writer, _F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:  # not Linux, or its user has too many large ones
                pass
        self.readers = {name: reader for name, (reader, _) in self._ends.items()}

    def become_output(self) -> dict[str, int]:
        """Replaces this process's output; returns, by stream, descriptors of what it was before."""
        before = {name: os.dup(fd) for name, fd in STREAMS.items()}
        for name, (_, writer) in self._ends.items():
            os.dup2(writer, STREAMS[name])
        self.close_writers()
        return before

    def close(self) -> None:
        """Close all ends."""
        for end in chain(*self._ends.values()):
            os.close(end)

    def close_writers(self) -> None:
        """Close the ends to write."""
        for _, writer in self._ends.values():
            os.close(writer)

    def left_over(self) -> dict[str, str]:
        """What is still unread, by stream. Closes the pipes."""
        found = {name: read_all(reader).decode("utf-8", "replace") for name, reader in self.readers.items()}
        for reader in self.readers.values():
            os.close(reader)
        return {name: text for name, text in found.items() if text}


class Output:
    """Replaces the output of a worker process by pipes. A thread reads them; `settle` reads the end of a task's output.

    A task may close descriptor 1 or 2, or replace it. When nothing can write into a pipe any more, which poll shows,
    `settle` puts the pipe back, so that the output of the next task is kept.
    """

    def __init__(self, pipes: Pipes, capture: Capture) -> None:
        capture.begin(pipes.become_output())
        readers = self._readers = pipes.readers
        self._capture = capture
        self._names = {reader: name for name, reader in readers.items()}
        self._lock = threading.Lock()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in readers}
        self._has_part = False
        """True while a decoder may hold a part of a character."""
        self._wait_ms: int | None = None
        self._now = select.poll()
        self._later = select.poll()
        for poll in (self._now, self._later):
            for reader in readers.values():
                poll.register(reader, select.POLLIN)
        self.thread = threading.Thread(target=self._read_for_ever, name="taskpool-output", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self.thread.start()

    def settle(self) -> None:
        """Delivers everything that was written until now."""
        with self._lock:
            found = self._now.poll(0)
            if found:
                self._take(MOST_AT_END)
            if found or self._has_part:
                self._has_part = False
                for name, decoder in self._decoders.items():
                    self._deliver(name, decoder.decode(b"", final=True))
            for reader, events in found:
                if events & _ENDED:
                    self._put_back(self._names[reader], reader)

    def put_back(self) -> None:
        """Puts back the pipes that a task has closed."""
        with self._lock:
            for reader, events in self._now.poll(0):
                if events & _ENDED:
                    self._put_back(self._names[reader], reader)

    def _put_back(self, name: str, reader: int) -> None:
        try:
            writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY)  # the other end of the same pipe
            os.dup2(writer, STREAMS[name])
            if writer != STREAMS[name]:
                os.close(writer)
            os.set_inheritable(STREAMS[name], True)
            self._later.register(reader, select.POLLIN)
        except OSError:  # not Linux, or the task has closed our end too: the output of this stream is lost from now on
            for poll in (self._now, self._later):
                with suppress(KeyError):
                    poll.unregister(reader)

    def _read_for_ever(self) -> None:
        while True:
            # A reader that is registered while `poll` waits isn't seen.
            ended = [reader for reader, events in self._later.poll(self._wait_ms) if events & _ENDED]
            with self._lock:
                self._take(READ_BYTES)
                for reader in ended:
                    if not self._has_writer(reader):
                        with suppress(KeyError):
                            self._later.unregister(reader)  # until `settle` puts it back; else this loop would spin
                        self._wait_ms = RELOOK_MS

    def _has_writer(self, reader: int) -> bool:
        """Whether something can still write into the pipe: it may have been put back meanwhile."""
        return not any(at == reader and events & _ENDED for at, events in self._now.poll(0))

    def _take(self, most: int) -> None:
        """Reads up to about `most` bytes of each stream, without waiting."""
        for name, reader in self._readers.items():
            decoder = self._decoders[name]
            left = most
            while left > 0 and (data := read_some(reader)):
                left -= len(data)
                self._has_part = True
                self._deliver(name, decoder.decode(data))

    def _deliver(self, name: str, text: str) -> None:
        if text and not self._capture.take(name, text, "descriptor"):
            self._capture.terminal.show(name, text, None)


def read_all(fd: int) -> bytes:
    """What a pipe holds now."""
    data = b""
    while len(data) < PIPE_BYTES and (more := read_some(fd)):
        data += more
    return data


def read_some(fd: int) -> bytes:
    """A part of what a pipe holds; empty when it holds nothing, or a task has closed it."""
    try:
        return os.read(fd, READ_BYTES)
    except OSError:
        return b""
