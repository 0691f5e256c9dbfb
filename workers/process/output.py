"""The log of a worker pool's processes: one line each, to stderr.

What a worker process writes to its own output: its log, what belongs to no task, and what tasks write.

Nobody may take a task's words for the worker's: each line of them begins with the task's id in brackets, and one that
belongs to nobody known with `[-]`. Only colours are left of what a terminal takes for orders. Secrets are masked: they
may come in two halves, so whole lines are passed on, and out of a thread that outlives its task, so what belongs to
nobody shows none of all that run here or ran lately.

Tells what tasks write from what the worker says: `sys.stdout`, `sys.stderr` and `logging` know whose turn it is.

In a process that runs one task at a time, all that is written meanwhile is the task's, whatever thread writes it. In
one that runs several, a context variable says which: it follows `await`, new asyncio tasks and `asyncio.to_thread`, but
no thread that the task starts itself. What belongs to no task goes where it always went.

File descriptors 1 and 2 of a worker process: what C code prints, and what the programs that tasks start print.

In a process that runs one task at a time, that is the task's output too. Where several run, nobody knows whose it is:
it goes to the worker's own output, as what belongs to nobody. Each is a pipe which a thread of the
process empties; the fork server holds its other end as well and reads what is left in it when the process has died. A
task that ends costs one look, whether something is still in there.
"""

from __future__ import annotations

import codecs
import fcntl
import io
import itertools
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


OURS: Final = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(taskpool.__file__).parent))
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


STREAMS: Final = {"stdout": 1, "stderr": 2}
PIPE_BYTES: Final = 1 << 20
"""Code that prints more than this while it holds the interpreter up waits for ever: nobody can empty the pipe then."""
READ_BYTES: Final = 1 << 18
MOST_AT_END: Final = 4 << 20
"""What a task left running may write without a pause: the end of the task doesn't wait for it."""
RELOOK_MS: Final = 200
_ENDED: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
_F_SETPIPE_SZ: Final = 1031


class Pipes:
    """Both pipes, made before the fork; `output` reads from them, `become_output` writes into them."""

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
        """Puts the pipes in the place of this process's output; returns by name where that went until now."""
        before = {name: os.dup(fd) for name, fd in STREAMS.items()}
        for name, (_, writer) in self._ends.items():
            os.dup2(writer, STREAMS[name])
        self.close_writers()
        return before

    def close(self) -> None:
        """Close both ends of all."""
        for end in itertools.chain(*self._ends.values()):
            os.close(end)

    def close_writers(self) -> None:
        """What is left is to read."""
        for _, writer in self._ends.values():
            os.close(writer)

    def left_over(self) -> dict[str, str]:
        """What nobody has read, by stream; the pipes are closed then."""
        found = {name: read_all(reader).decode("utf-8", "replace") for name, reader in self.readers.items()}
        for reader in self.readers.values():
            os.close(reader)
        return {name: text for name, text in found.items() if text}


def take_output(capture: Capture, pipes: Pipes | None) -> Output | None:
    """Begins the life of a worker process with its output; returns what is still to be started, None without pipes."""
    capture.begin(pipes.become_output() if pipes else {})
    return Output(pipes.readers, capture) if pipes else None


class Output:
    """The process's side: a thread reads what comes; `settle` sees to it that all of a task's output has been read.

    A task may close descriptor 1 or 2, or put something else in its place. The end of file tells: nothing can write
    into the pipe any more. `settle` then puts the pipe back, so that the next task's output is kept again.
    """

    def __init__(self, readers: Mapping[str, int], capture: Capture) -> None:
        self._readers, self._capture = readers, capture
        self._names = {reader: name for name, reader in readers.items()}
        self._lock = threading.Lock()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in readers}
        self._has_part = False
        """Whether a decoder may hold a part of a character."""
        self._wait_ms: int | None = None
        self._now = select.poll()
        self._later = select.poll()
        for poll in (self._now, self._later):
            for reader in readers.values():
                poll.register(reader, select.POLLIN)
        self._look = self._now.poll
        self.thread = threading.Thread(target=self._read_for_ever, name="taskpool-output", daemon=True)

    def start(self) -> None:
        """Start to read."""
        self.thread.start()

    def settle(self) -> None:
        """Returns when all that was written until now has gone to where it belongs."""
        with self._lock:
            found = self._look(0)
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
        """Puts the pipes back that a task has closed."""
        with self._lock:
            for reader, events in self._look(0):
                if events & _ENDED:
                    self._put_back(self._names[reader], reader)

    def _put_back(self, name: str, reader: int) -> None:
        """Puts the pipe in the place of the descriptor again."""
        try:
            writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY)  # the other end of the same pipe
            os.dup2(writer, STREAMS[name])
            if writer != STREAMS[name]:
                os.close(writer)
            os.set_inheritable(STREAMS[name], True)
            self._later.register(reader, select.POLLIN)
        except OSError:  # not Linux, or the task has closed our end, too: this stream's output is lost from now on
            for poll in (self._now, self._later):
                with suppress(KeyError):
                    poll.unregister(reader)

    def _read_for_ever(self) -> None:
        while True:
            # `poll` doesn't see what is registered while it waits.
            ended = [reader for reader, events in self._later.poll(self._wait_ms) if events & _ENDED]
            with self._lock:
                self._take(READ_BYTES)
                for reader in ended:
                    if not self._has_writer(reader):
                        with suppress(KeyError):
                            self._later.unregister(reader)  # until `settle` puts it back; else this loop would spin
                        self._wait_ms = RELOOK_MS

    def _has_writer(self, reader: int) -> bool:
        """Whether something can still write: the pipe may have been put back meanwhile."""
        return not any(at == reader and events & _ENDED for at, events in self._look(0))

    def _take(self, most: int) -> None:
        """Reads what is there, up to about `most` bytes of each stream."""
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
    """A part of it; empty when there is nothing, or nobody who could write any more."""
    try:
        return os.read(fd, READ_BYTES)
    except OSError:  # nothing is there; or a task has closed it
        return b""
