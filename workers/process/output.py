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
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import taskpool
from taskpool.tasks.log_lines import shown_line, shown_part
from taskpool.text import (
    LONGEST_REACH,
    Secrets,
    coloured,
    hidden,
    indented,
    is_json_log,
    json_line,
    log_formatter,
    log_json,
    printable,
    printable_lines,
    with_level_colour,
)
from taskpool.types import RunningTask

from ..process_group import start_thread
from .reports import Reports

FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
MOST_REMEMBERED: Final = 32
"""The secrets of this many ended tasks are still masked."""
LONGEST_LINE: Final = 1 << 16
OWN_CODE: Final = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(taskpool.__file__).parent))
"""The folders of the worker's own code. What other code logs outside a task gets the mark `[-]`."""


def configure(level: str, format: str = "text", handler: logging.Handler | None = None) -> None:
    """Sets up the process's log; `level` and `format` are words of the settings, `handler` writes it (None: to
    stderr)."""
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(log_formatter(format, FORMAT, is_terminal=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level == "info":  # a line for each request of a task would be a line for each task
        logging.getLogger("httpx").setLevel(logging.WARNING)


def about_task(running: RunningTask | None) -> dict[str, Any]:
    """What each line of an attempt's output says about it in JSON."""
    if running is None:
        return {}
    about = {"task_id": running.id, "type": running.type, "queue": running.queue, "attempt": running.attempt}
    if running.traceparent is not None:
        about["trace_id"] = running.traceparent.split("-")[1]
    return about


class Terminal:
    """The worker's own `stdout` and `stderr`. `format`: that of the log."""

    def __init__(self, format: str = "text") -> None:
        self.is_json = is_json_log(format, is_terminal=sys.stderr.isatty())
        self.has_colours = format == "auto" and not self.is_json
        self._streams: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._lock = threading.RLock()  # a signal handler or a finalizer may write while we do
        self._open_lines: dict[tuple[str, str, str], str] = {}
        """The lines that haven't ended yet, by attempt id, stream and source."""
        self._secrets: dict[str, Secrets] = {}  # of the running attempts, by attempt id
        self._former: deque[Secrets] = deque(maxlen=MOST_REMEMBERED)
        self._is_workers = True
        """False in a process that a task forked: its output goes to the worker's pipes, and gets its mark there."""

    def move(self, fds: Mapping[str, int]) -> None:
        """Writes to these file descriptors from now on."""
        self._open_lines.clear()
        for name, fd in fds.items():
            self._streams[name] = io.TextIOWrapper(io.FileIO(fd, "w"), "utf-8", "backslashreplace", write_through=True)

    def forget(self) -> None:
        """In a process that a task forked: writes to its own streams, which are the worker's pipes."""
        self._lock = threading.RLock()
        self._is_workers = False
        self._streams = {"stdout": sys.__stdout__ or sys.stdout, "stderr": sys.__stderr__ or sys.stderr}

    def begin(self, running: RunningTask) -> None:
        """Remembers the secrets of an attempt: a thread of it may write without being recognized."""
        if running.secrets is not None:
            self._secrets[running.attempt_id] = running.secrets

    def end(self, running: RunningTask) -> None:
        """Passes on the open lines of an attempt that ends."""
        if running.secrets is not None:
            self._secrets.pop(running.attempt_id, None)
            self._former.append(running.secrets)
        if self._open_lines:
            self._end_lines(running.attempt_id, running)

    def close(self) -> None:
        """Passes on the open lines that belong to no known attempt."""
        self._end_lines("", None)

    def show(self, stream: str, text: str, running: RunningTask | None, *, source: str = "") -> None:
        """Passes on text of an attempt (None: not known which). The parts of a line come from one `source`."""
        if not self._is_workers:
            self.write(stream, self.hide(text))
            return
        part = ("" if running is None else running.attempt_id, stream, source)
        with self._lock:
            if part in self._open_lines:
                text = self._open_lines.pop(part) + text
            *lines, rest = text.split("\n")
            if len(rest) > LONGEST_LINE:
                rest = self._masked(rest, running)
                end = len(rest) - LONGEST_REACH
                lines, rest = [*lines, rest[:end]], rest[end:]
            if rest:
                self._open_lines[part] = shown_part(rest)
            if lines:
                text = "\n".join(lines)
                text = text if "\r" not in text else "\n".join(map(shown_line, lines))
                self.write(stream, self._written(stream, text, running))

    def _written(self, stream: str, text: str, running: RunningTask | None) -> str:
        """Lines that were written to a stream, as they are passed on."""
        if not self.is_json or not self._is_workers:
            return self.marked(text, running) + "\n"
        about = {"level": "info", "logger": stream, "message": ""} | about_task(running)
        lines = self._masked(text, running).split("\n")
        return "".join([json_line(time.time(), about | {"message": line}) + "\n" for line in lines])

    def marked(self, text: str, running: RunningTask | None) -> str:
        """Lines of an attempt as they are passed on."""
        text = self._masked(text, running)
        if not self._is_workers:
            return text
        mark = "[-] " if running is None else f"[{printable(running.id)}] "
        if text.isascii() and text.isprintable():
            return mark + text
        return "\n".join([mark + coloured(line) for line in text.split("\n")])

    def _masked(self, text: str, running: RunningTask | None) -> str:
        return self.hide(text) if running is None else hidden(text, running.secrets)

    def hide(self, text: str) -> str:
        """The text without any secret that is known here: it may be any attempt's."""
        for secrets in chain([*self._secrets.values()], [*self._former]):
            text = secrets.hide(text)
        return text

    def _end_lines(self, owner: str, running: RunningTask | None) -> None:
        with self._lock:
            for part in [part for part in self._open_lines if part[0] == owner]:
                self.write(part[1], self._written(part[1], shown_line(self._open_lines.pop(part)), running))

    def write(self, stream: str, text: str) -> None:
        """Writes text as it is."""
        target = self._streams[stream]
        with suppress(OSError, ValueError):  # the operator's terminal is gone: no task fails for that
            try:
                target.write(text)
            except UnicodeEncodeError:
                encoding = target.encoding or "ascii"
                target.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if "\n" in text:
                target.flush()


class Capture:
    """Knows whose output is written now and where it goes. `output` and `format`: the settings `task_output` and
    `log_format`."""

    def __init__(self, output: str, format: str = "text") -> None:
        self.keeps, self.passes_on = output != "worker", output != "log"
        self._alone: Reports | None = None  # the attempt of a process that runs one at a time
        self._of_context: ContextVar[Reports | None] = ContextVar("taskpool-attempt", default=None)
        self.terminal = Terminal(format)
        self.handlers: list[logging.Handler] = []
        """The handlers of the root logger."""

    def install(self, level: str) -> None:
        """Replaces the streams and log handlers, before the task modules are loaded: they may keep the streams."""
        handler = _Handler(self._log)
        handler.setFormatter(_Formatter(self))
        handler.addFilter(self._is_for_operator)
        configure(level, handler=handler)
        self.handlers = [handler]
        if self.keeps:
            keeper = _Handler(self._keep)
            keeper.addFilter(self._is_for_task)
            self.handlers.append(keeper)
            logging.getLogger().addHandler(keeper)
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

    def write(self, stream: str, text: str, source: str) -> None:
        """Passes on text that is written now, and keeps it if it is an attempt's."""
        attempt = self.current()
        if attempt is None:
            self.terminal.show(stream, text, None)
            return
        if self.keeps:
            attempt.write(stream, text, source)
        if self.passes_on:
            self.terminal.show(stream, text, attempt.running, source=source)

    def _forget(self) -> None:
        self._alone = None
        self._of_context.set(None)
        self.terminal.forget()

    def _is_for_operator(self, record: logging.LogRecord) -> bool:
        return self.passes_on or self.current() is None

    def _is_for_task(self, record: logging.LogRecord) -> bool:
        return self.current() is not None

    def _log(self, record: logging.LogRecord, text: str) -> None:
        self.terminal.write("stderr", text + "\n")

    def _keep(self, record: logging.LogRecord, text: str) -> None:
        if attempt := self.current():
            attempt.record(text, level=record.levelname.lower(), logger=record.name)


class _Stream(io.TextIOBase):
    """Takes the place of sys.stdout or sys.stderr, `under`. No task can close it: others write here too."""

    def __init__(self, name: str, under: TextIO, capture: Capture) -> None:
        self._name, self._under, self._capture = name, under, capture
        self.buffer = _Bytes(self)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # of bytes that belong to no attempt

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        plain = str.__str__(text)  # of a subclass, whatever it overrides
        self._capture.write(self._name, plain, "stream")
        return len(plain)

    def write_bytes(self, data: bytes) -> None:
        attempt = self._capture.current()  # a character may come in two parts
        text = self._decoder.decode(data) if attempt is None else attempt.decode(self._name, data)
        if text:
            self._capture.write(self._name, text, "bytes")

    def flush(self) -> None:
        if self._capture.current() is None:  # a task's lines are kept at once
            self._under.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._under.fileno()  # for programs that a task starts

    def isatty(self) -> bool:
        return self._capture.current() is None and self._under.isatty()

    def close(self) -> None:
        pass

    def reconfigure(self, **options: Any) -> None:
        """Does nothing: lines are kept as UTF-8."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._under.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)


class _Bytes(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes go the same way as text."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write_bytes(raw)
        return len(raw)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Formatter(logging.Formatter):
    """Formats the worker's log. Lines that a task logs get its mark, and show no secret of it."""

    def __init__(self, capture: Capture) -> None:
        super().__init__(FORMAT)
        self._capture = capture

    def format(self, record: logging.LogRecord) -> str:
        attempt, terminal = self._capture.current(), self._capture.terminal
        running = None if attempt is None else attempt.running
        if terminal.is_json:
            hide = terminal.hide if running is None or running.secrets is None else running.secrets.hide
            return log_json(record, hide, **about_task(running))
        text = super().format(record)
        if attempt is None and record.pathname.startswith(OWN_CODE):
            text = indented(printable_lines(terminal.hide(text)))
        else:
            text = terminal.marked(text, running)
        return with_level_colour(text, record.levelname) if terminal.has_colours else text


class _Handler(logging.Handler):
    """Calls `take` with each record and its text. One that can't be formatted is reported on stderr, as by Python's own
    handlers."""

    def __init__(self, take: Callable[[logging.LogRecord, str], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(record, self.format(record))
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
            with suppress(OSError, AttributeError):  # not Linux, or its user has too many large ones
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.readers = {name: reader for name, (reader, _) in self._ends.items()}

    def become_output(self) -> dict[str, int]:
        """Replaces this process's output; returns, by stream, descriptors of what it was before."""
        before = {name: os.dup(fd) for name, fd in STREAMS.items()}
        for name, (_, writer) in self._ends.items():
            os.dup2(writer, STREAMS[name])
        self.close_writers()
        return before

    def close(self) -> None:
        """Closes all ends."""
        for end in chain(*self._ends.values()):
            os.close(end)

    def close_writers(self) -> None:
        """Closes the ends to write."""
        for _, writer in self._ends.values():
            os.close(writer)

    def left_over(self) -> dict[str, str]:
        """What is still unread, by stream. Closes the pipes."""
        found = {}
        for name, reader in self.readers.items():
            data = b""
            while len(data) < PIPE_BYTES and (more := _read(reader)):
                data += more
            os.close(reader)
            if data:
                found[name] = data.decode("utf-8", "replace")
        return found


class Output:
    """Replaces the output of a worker process by pipes. A thread reads them; `settle` reads the end of a task's output.

    A task may close descriptor 1 or 2, or replace it. When nothing can write into a pipe any more, which poll shows,
    `settle` puts the pipe back, so that the output of the next task is kept.
    """

    def __init__(self, pipes: Pipes, capture: Capture) -> None:
        capture.begin(pipes.become_output())
        self._capture = capture
        self._names = {reader: name for name, reader in pipes.readers.items()}
        self._lock = threading.Lock()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in pipes.readers}
        self._has_part = False  # true while a decoder may hold a part of a character
        self._wait_ms: int | None = None
        self._now, self._later = select.poll(), select.poll()
        for reader in self._names:
            self._now.register(reader, select.POLLIN)
            self._later.register(reader, select.POLLIN)
        self.thread = threading.Thread(target=self._read_for_ever, name="taskpool-output", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        start_thread(self.thread)

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
            self._put_back(found)

    def put_back(self) -> None:
        """Puts back the pipes that a task has closed."""
        with self._lock:
            self._put_back(self._now.poll(0))

    def _put_back(self, found: list[tuple[int, int]]) -> None:
        for reader in [reader for reader, events in found if events & _ENDED]:
            fd = STREAMS[self._names[reader]]
            try:
                writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY)  # the other end of the same pipe
                os.dup2(writer, fd)
                if writer != fd:
                    os.close(writer)
                os.set_inheritable(fd, True)
                self._later.register(reader, select.POLLIN)
            except OSError:  # not Linux, or the task has closed our end too: this stream's output is lost from now on
                for poll in (self._now, self._later):
                    with suppress(KeyError):
                        poll.unregister(reader)

    def _read_for_ever(self) -> None:
        while True:
            # A reader that is registered while `poll` waits isn't seen.
            ended = {reader for reader, events in self._later.poll(self._wait_ms) if events & _ENDED}
            with self._lock:
                self._take(READ_BYTES)
                # One that was put back meanwhile has a writer again.
                for reader in [reader for reader, events in self._now.poll(0) if events & _ENDED and reader in ended]:
                    with suppress(KeyError):
                        self._later.unregister(reader)  # until `settle` puts it back; else this loop would spin
                    self._wait_ms = RELOOK_MS

    def _take(self, most: int) -> None:
        """Reads up to about `most` bytes of each stream, without waiting."""
        for reader, name in self._names.items():
            left = most
            while left > 0 and (data := _read(reader)):
                left -= len(data)
                self._has_part = True
                self._deliver(name, self._decoders[name].decode(data))

    def _deliver(self, name: str, text: str) -> None:
        if text:
            self._capture.write(name, text, "descriptor")


def _read(fd: int) -> bytes:
    """A part of what a pipe holds; empty when it holds nothing, or a task has closed it."""
    try:
        return os.read(fd, READ_BYTES)
    except OSError:
        return b""
