"""The context of a running task, and the conversion of a task's objects to text and numbers that can be stored.

`TaskContext` knows no Redis: a `ContextSink` of the process that runs the task decides how a report travels.

The methods of a task's objects may raise, return other types, or describe a gigabyte. So everything that leaves a task
(a progress report, a log line, an exception, the wait of a `Retry` or `Snooze`) is converted here, and nothing here
trusts a method of such an object. Results are encoded in `payload/encode.py`. The conversions never raise, with two
exceptions: `progress_number` refuses what isn't a number, and an interrupt (`TaskStopped`, `SoftTimeout`) continues.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol

from taskpool.text import Secrets, hidden
from taskpool.types import RunningTask
from taskpool.validation import is_seconds, seconds_fault


class TaskStopped(BaseException):
    """Raised in a task when a client stops it. The task ends as `stopped`."""


class SoftTimeout(BaseException):
    """Raised in a task when its `timeout_s` has passed. After a short grace period its process is killed."""


class Retry(Exception):
    """Raise this in a task to retry it after `after_s` seconds (None: the back-off of its type). If no attempts are
    left, the task fails with `message`.

    A class of your own may leave out `super().__init__()`, and may set `after_s` itself. A value that isn't a number of
    seconds counts as None.
    """

    after_s: float | None = None

    def __init__(self, message: str = "", *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = None if after_s is None else _checked("Retry", after_s)


class Snooze(Exception):
    """Raise this in a task that can't do its work yet. It runs again after `after_s` seconds, and the attempt isn't
    counted.

    A task can snooze 1,000 times; then it fails. If a class of your own sets no `after_s`, or one that isn't a number
    of seconds, the back-off of the type is used.
    """

    after_s: float | None = None

    def __init__(self, message: str = "", *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = _checked("Snooze", after_s)


def _checked(name: str, after_s: float) -> float:
    if fault := seconds_fault(after_s):
        raise ValueError(f"{name}(after_s=...) {fault}")
    return float(after_s)


NOTE_MAX_CHARS: Final = 500
LONGEST_MESSAGE: Final = 16 * 1024 * 1024
"""In characters, of one message for the log. A setting limits the lines and bytes of a log."""


class ContextSink(Protocol):
    """What a context needs from the process that runs the task. The task's thread calls the methods."""

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Report how far the task is. A task may call it at any rate: the sink drops reports."""

    def log(self, message: str) -> None:
        """Keep one line of the task's log."""

    def is_cancelled(self) -> bool:
        """Whether the task was asked to stop. Cheap: a task may ask thousands of times a second."""

    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks it depends on, by id. Called once at most. Reading one that has expired raises
        ParentResultGone."""


@dataclass(slots=True, eq=False, repr=False)
class TaskContext:
    """What a running task knows and can report. A parameter annotated `TaskContext`, or named `ctx`, receives it.

    `attempt` counts from 1. Secrets of the payload are masked in everything that it reports. `traceparent` and
    `tracestate` are the W3C trace context of the submission, if it had one. Example:

        @task("resize_all")
        def resize_all(ctx: TaskContext, urls: list[str]) -> int:
            for done, url in enumerate(urls):
                ctx.raise_if_cancelled()
                ctx.progress(done, len(urls), note=url)
                ...
            return len(urls)
    """

    _sink: ContextSink
    _: KW_ONLY
    id: str
    type: str
    queue: str = "default"
    attempt: int = 1
    max_attempts: int = 1
    traceparent: str | None = None
    tracestate: str | None = None
    _secrets: Secrets | None = None
    _parents: Mapping[str, Any] | None = field(default=None, init=False)

    @classmethod
    def of(cls, running: RunningTask, sink: ContextSink) -> TaskContext:
        """The context of an attempt."""
        return cls(
            sink,
            id=running.id,
            type=running.type,
            queue=running.queue,
            attempt=running.attempt,
            max_attempts=running.max_attempts,
            traceparent=running.traceparent,
            tracestate=running.tracestate,
            _secrets=running.secrets,
        )

    @property
    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks named in `depends_on`, by id, in that order. Fetched on first use.

        A result is kept until this task is done, but not for ever. Reading one that has expired raises
        ParentResultGone.
        """
        if self._parents is None:
            self._parents = self._sink.parents()
        return self._parents

    @property
    def cancelled(self) -> bool:
        """True once a client has asked this task to stop. A task that checks it can end in an orderly way."""
        return self._sink.is_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raise TaskStopped if a client has asked this task to stop."""
        if self._sink.is_cancelled():
            raise TaskStopped

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Report how far the task is: `done` of `total`, in any unit, and a note (500 characters are kept).

        The numbers may be of any type that converts to a number, such as `Decimal`, `Fraction` and numpy's. A note may
        be any object: its `str` is kept.

        Raises: ValueError for a value that isn't a number, is negative, or isn't finite.
        """
        done = progress_number("done", done)
        if total is not None:
            total = progress_number("total", total)
        if note is not None:
            note = hidden(text_of(note), self._secrets)[:NOTE_MAX_CHARS]
        self._sink.progress(done, total, note)

    def log(self, message: object) -> None:
        """Write the `str` of any object to the task's log."""
        self._sink.log(hidden(text_of(message, LONGEST_MESSAGE), self._secrets))


# --- from a task's objects to plain values ---------------------------------------------------------------------

LONGEST_TEXT: Final = 100_000
"""Longer texts are cut to this before anything else. Much less of them is stored."""
LONGEST_NAME: Final = 200
LONGEST_CHAIN: Final = 50
"""How many exceptions in a chain of causes, or in a group, a traceback shows."""
MOST_FRAMES: Final = 1000
MOST_INTEGER: Final = (1 << 64) - 1

_NAME: Final = type.__dict__["__name__"]
_QUALNAME: Final = type.__dict__["__qualname__"]
_CAUSE: Final = BaseException.__dict__["__cause__"]
_CONTEXT: Final = BaseException.__dict__["__context__"]
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]


def text_of(value: object, most: int = LONGEST_TEXT) -> str:
    """The text of any object, as UTF-8 can hold it, up to `most` characters.

    Raises:
        TaskStopped, SoftTimeout: the task is interrupted meanwhile.
    """
    if type(value) is not str:
        try:
            value = _plain(value)
        except (TaskStopped, SoftTimeout):
            raise
        except BaseException:  # the object's own method may raise anything
            return f"<{name_of(type(value))}: its text can't be read>"
    return clean(value[:most] if len(value) > most else value)


def described(value: object, most: int = LONGEST_TEXT) -> str:
    """As `text_of`, for objects of an ended task: it never raises."""
    try:
        return text_of(value, most)
    except BaseException:  # the object's own method raised an interrupt
        return f"<{name_of(type(value))}: its text can't be read>"


def clean(text: str) -> str:
    """The text as UTF-8 can hold it: half a surrogate pair, which a file name may have, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def progress_number(name: str, value: Any) -> int | float:
    """The JSON number for `value`: an int, a float, or anything else that converts to one, except texts.

    Raises:
        ValueError: it isn't a number, it is negative, or it isn't finite.
    """
    try:
        number = _number(value)
        if number >= 0 and (number <= MOST_INTEGER if type(number) is int else math.isfinite(number)):
            return number
    except (TaskStopped, SoftTimeout):
        raise
    except BaseException:  # the object's own method may raise anything
        pass
    shown = repr(value) if type(value) in (str, float, bool) else f"a value of the type {name_of(type(value))}"
    raise ValueError(f"progress: {name} must be a finite number, 0 or more, not {shown[:80]}")


def seconds_of(value: Any) -> float | None:
    """A number of seconds to wait; None when a task can't wait for it."""
    try:
        seconds = float(_number(value))
    except BaseException:  # as above
        return None
    return seconds if is_seconds(seconds) else None


def attribute_of(value: object, name: str) -> Any:
    """An attribute of a task's object; None when it doesn't exist or can't be read."""
    try:
        return getattr(value, name, None)
    except BaseException:  # as above
        return None


def name_of(kind: type) -> str:
    """The name of a class, without its metaclass."""
    return described(_NAME.__get__(kind), LONGEST_NAME)


def qualified_name_of(kind: type) -> str:
    """The qualified name of a class, without its metaclass."""
    return described(_QUALNAME.__get__(kind), LONGEST_NAME)


def traceback_of(error: BaseException, skipped: str, most: int) -> str:
    """The traceback of an exception as Python shows it, the last `most` characters.

    It begins below the last frame of the module named `skipped`, which called the task.
    """
    trace = _users_part(_TRACEBACK.__get__(error), skipped)
    try:
        if _is_long(error):
            lines = _own_lines(error, trace)
        else:
            lines = traceback.TracebackException(type(error), error, trace, limit=-MOST_FRAMES).format()
        return _end_of(lines, most)
    except BaseException:  # a part of the exception, of its causes or notes can't be read
        try:
            return _end_of(_own_lines(error, trace), most)
        except BaseException:  # the source of its module can't be read either
            return f"{name_of(type(error))}: {described(error, most)}"


def _plain(value: object) -> str:
    text = value if issubclass(type(value), str) else str(value)
    return str.__str__(text)  # a subclass may override it


def _number(value: Any) -> int | float:
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, int):  # bool, too
        return int.__index__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str | bytes | bytearray | complex):  # numpy's complex numbers would lose a part
        raise TypeError("it is no real number")
    try:
        return int.__index__(operator.index(value))
    except TypeError:  # not an integer type, such as Decimal and Fraction
        number = float.__float__(float(value))
        return int(number) if number.is_integer() and abs(number) < 1 << 53 else number


def _users_part(trace: TracebackType | None, skipped: str) -> TracebackType | None:
    """The traceback from the task's own first line on."""
    found, below = trace, trace
    for _ in range(MOST_FRAMES):
        if below is None:
            break
        if below.tb_frame.f_globals.get("__name__") == skipped:
            found = below.tb_next
        below = below.tb_next
    return found if found is not None else trace


def _is_long(error: BaseException) -> bool:
    """Whether its causes and groups have more exceptions than a traceback should show."""
    left, seen = [error], set[int]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if len(seen) > LONGEST_CHAIN:
            return True
        left += [linked for link in (_CAUSE, _CONTEXT) if (linked := link.__get__(each)) is not None]
        if issubclass(type(each), BaseExceptionGroup):
            left += BaseExceptionGroup.exceptions.__get__(each)[: LONGEST_CHAIN + 1]
    return False


def _own_lines(error: BaseException, trace: TracebackType | None) -> Iterator[str]:
    """The traceback of the exception without its causes, groups and notes."""
    yield "Traceback (most recent call last):\n"
    yield from traceback.StackSummary.extract(traceback.walk_tb(trace), limit=-MOST_FRAMES).format()
    yield f"{name_of(type(error))}: {described(error)}\n"


def _end_of(lines: Iterator[str], most: int) -> str:
    kept: deque[str] = deque()
    size = 0
    for line in lines:
        text = described(line[-LONGEST_TEXT:])
        kept.append(text)
        size += len(text)
        while size - len(kept[0]) > most + LONGEST_TEXT:
            size -= len(kept.popleft())
    return "".join(kept)
