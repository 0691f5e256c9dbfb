"""The way out of a task: turns what a task hands over into text and numbers that can be stored.

A task's objects belong to the task. Their methods may raise, return other types, or describe a gigabyte. So everything
that leaves a task (a progress report, a log line, an exception, the wait of a `Retry` or `Snooze`) passes through here,
and nothing here trusts a method of such an object. Results are encoded in `payload/encode.py`.

The functions never raise, with two exceptions: `progress_number` refuses what isn't a number, and an interrupt
(`TaskStopped`, `SoftTimeout`) that hits a task while it hands something over goes on.

What a running task sees of the system: who it is, how to report, whether to stop, what its parents gave.

The context knows no Redis. Whoever runs the task gives it a `ContextSink`, which decides how a report travels.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Protocol

from taskpool.tasks.interrupts import SoftTimeout, TaskStopped
from taskpool.text import Secrets, hidden
from taskpool.types import RunningTask
from taskpool.validation import is_seconds

LONGEST_TEXT: Final = 100_000
"""Longer texts are cut to this before anything else is done with them. What is stored of them is much shorter."""
LONGEST_NAME: Final = 200
LONGEST_CHAIN: Final = 50
"""Exceptions in a chain of causes, or in a group, that a traceback shows."""
MOST_FRAMES: Final = 1000
MOST_INTEGER: Final = (1 << 64) - 1

_NAME: Final = type.__dict__["__name__"]
_QUALNAME: Final = type.__dict__["__qualname__"]
_CAUSE: Final = BaseException.__dict__["__cause__"]
_CONTEXT: Final = BaseException.__dict__["__context__"]
_TRACEBACK: Final = BaseException.__dict__["__traceback__"]


def text_of(value: object, most: int = LONGEST_TEXT) -> str:
    """The text of any object, as UTF-8 can hold it, at most `most` characters of it.

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
    """As `text_of`, for what a task has left behind: here nothing is raised at all."""
    try:
        return text_of(value, most)
    except BaseException:  # the object's own method raised an interrupt
        return f"<{name_of(type(value))}: its text can't be read>"


def clean(text: str) -> str:
    """The text as UTF-8 can hold it: half a surrogate pair (file names may contain one) becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def progress_number(name: str, value: Any) -> int | float:
    """The number that JSON holds for `value`: an int, a float, or anything that converts to one without being a text.

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
    """A number of seconds to wait; None when it isn't one that a task can wait for."""
    try:
        seconds = float(_number(value))
    except BaseException:  # as above
        return None
    return seconds if is_seconds(seconds) else None


def attribute_of(value: object, name: str) -> Any:
    """An attribute of a task's object; None when there is none, or reading it fails."""
    try:
        return getattr(value, name, None)
    except BaseException:  # as above
        return None


def name_of(kind: type) -> str:
    """The name of a class, whatever its metaclass says."""
    return described(_NAME.__get__(kind), LONGEST_NAME)


def qualified_name_of(kind: type) -> str:
    """Its qualified name, read in the same way."""
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
    except BaseException:  # something of the exception, of its causes or notes can't be read
        try:
            return _end_of(_own_lines(error, trace), most)
        except BaseException:  # nor can the source of its module
            return f"{name_of(type(error))}: {described(error, most)}"


def _plain(value: object) -> str:
    text = value if issubclass(type(value), str) else str(value)
    return str.__str__(text)  # of a subclass, whatever it overrides


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
    except TypeError:  # no whole number by its type, as Decimal and Fraction
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
    """Whether its chain of causes, or the groups in it, have more exceptions than a traceback should show."""
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
    """The exception alone, without its causes, groups and notes."""
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


NOTE_MAX_CHARS = 500
LONGEST_MESSAGE = 16 * 1024 * 1024
"""Characters of one message for the log; how many lines and bytes a log holds is a setting."""


class ContextSink(Protocol):
    """What a context needs of the process that runs the task. The methods are called from the task's thread."""

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Report how far the task is. Called as often as the task likes: the sink thins it out."""

    def log(self, message: str) -> None:
        """Keep one line of the task's log."""

    def is_cancelled(self) -> bool:
        """Whether the task was asked to stop. Cheap: a task may ask thousands of times a second."""

    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks it depends on, by id. Called once at most. To read one that is gone raises
        ParentResultGone."""


class TaskContext:
    """Handed to a task that asks for it, with a parameter annotated `TaskContext` or named `ctx`.

    `attempt` counts from 1. What it says is kept with the `secrets` of its payload masked. `traceparent` and
    `tracestate` are the W3C trace context of the submission, if it had one. Example:

        @task("resize_all")
        def resize_all(ctx: TaskContext, urls: list[str]) -> int:
            for done, url in enumerate(urls):
                ctx.raise_if_cancelled()
                ctx.progress(done, len(urls), note=url)
                ...
            return len(urls)
    """

    __slots__ = (
        *("_parents", "_secrets", "_sink", "attempt", "id", "max_attempts", "queue"),
        *("traceparent", "tracestate", "type"),
    )

    def __init__(
        self,
        sink: ContextSink,
        *,
        id: str,
        type: str,
        queue: str = "default",
        attempt: int = 1,
        max_attempts: int = 1,
        secrets: Secrets | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> None:
        self.id = id
        self.type = type
        self.queue = queue
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.traceparent = traceparent
        self.tracestate = tracestate
        self._sink = sink
        self._secrets = secrets
        self._parents: Mapping[str, Any] | None = None

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
            secrets=running.secrets,
            traceparent=running.traceparent,
            tracestate=running.tracestate,
        )

    @property
    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks named in `depends_on`, by id, in that order. Fetched when first asked for.

        A result is kept until this task is done, but not for ever. To read one that is gone raises ParentResultGone.
        """
        if self._parents is None:
            self._parents = self._sink.parents()
        return self._parents

    @property
    def cancelled(self) -> bool:
        """True once somebody has asked this task to stop. A task that looks can end tidily, in its own time."""
        return self._sink.is_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raises: TaskStopped when somebody has asked this task to stop."""
        if self._sink.is_cancelled():
            raise TaskStopped

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Tell how far the task is: `done` of `total`, in any unit, and a note for people (500 characters are kept).

        Anything that converts to a number counts as one, `Decimal`, `Fraction` and numpy's numbers, too. A note may be
        any object: its `str` is kept.

        Raises: ValueError for what is no number, negative, or not finite.
        """
        done = progress_number("done", done)
        if total is not None:
            total = progress_number("total", total)
        if note is not None:
            note = hidden(text_of(note), self._secrets)[:NOTE_MAX_CHARS]
        self._sink.progress(done, total, note)

    def log(self, message: object) -> None:
        """Keep a line in the task's log: the `str` of any object."""
        self._sink.log(hidden(text_of(message, LONGEST_MESSAGE), self._secrets))
