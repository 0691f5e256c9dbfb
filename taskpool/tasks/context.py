"""The context of a running task, and the conversion of a task's objects to text and numbers that can be stored.

`TaskContext` knows no Redis: a `ContextSink` of the process that runs the task decides how a report travels.

The methods of a task's objects may raise, return other types, or describe a gigabyte. So everything that leaves a task,
except its result (`payload/encode.py`), is converted here, and nothing here trusts a method of such an object. The
conversions never raise, with two exceptions: `progress_number` refuses what isn't a number, and an interrupt
(`TaskStopped`, `SoftTimeout`) continues.
"""

from __future__ import annotations

import builtins
import math
import operator
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, TypeVar, Unpack, overload

from msgspec import UNSET

from taskpool.tasks import fingerprints
from taskpool.tasks.fingerprints import Place
from taskpool.tasks.node import Afters, Node
from taskpool.tasks.outcomes import AnyOutcome, results_of
from taskpool.text import Secrets, hidden
from taskpool.types import Receipt, RunningTask, TaskOptions, TaskSpec, utc
from taskpool.types.people import ANSWER_S
from taskpool.validation import Duration, is_seconds, seconds_fault

T = TypeVar("T")


class TaskStopped(BaseException):
    """Raised in a task when a client stops it. The task ends as `stopped`."""


class SoftTimeout(BaseException):
    """Raised in a task when its `timeout_s` has passed. After a short grace period its process is killed."""


class Retry(Exception):
    """Raise this in a task to retry it after `after_s` seconds (None: the back-off of its type). If no attempts are
    left, the task fails with `message`.

    A class of your own may leave out `super().__init__()` and set `after_s` itself. A value that isn't a number of
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


class Asking(NamedTuple):
    """The arguments of `TaskContext.ask`, and the secrets of its task. `default`: UNSET if there is none."""

    name: str
    text: str
    schema: Any
    timeout: Duration
    default: Any
    secrets: Secrets | None


class ContextSink(Protocol):
    """What a context needs from the process that runs the task. The task's thread calls the methods."""

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Report how far the task is. A task may call it at any rate: the sink drops reports."""

    def log(self, message: str) -> None:
        """Keep one line of the task's log."""

    def is_cancelled(self) -> bool:
        """Whether the task was asked to stop. Cheap: a task may ask thousands of times a second."""

    def outcomes(self) -> Mapping[str, AnyOutcome]:
        """How the tasks that it depends on have ended, by id or name. Called once at most."""

    def add_task(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> Receipt:
        """Add the task that these arguments of `TaskContext.add_task` submit."""

    def add_tasks(self, specs: Iterable[TaskSpec]) -> list[Receipt]:
        """Add these tasks."""

    def ask(self, asking: Asking) -> Any:
        """The answer to a question. Raises: `questions.Parked` if there is none yet."""

    def checkpoint(self, state: Any, secrets: Secrets | None) -> None:
        """Keep a state, without these secrets."""

    def state(self) -> Any:
        """The state that was kept last; None if there is none."""

    def add_node(self, name: str, given: tuple[Any, ...], after: Afters, options: Mapping[str, Any]) -> Node:
        """Collect a node of the task's workflow."""

    def add_map(self, name: str, specs: Iterable[TaskSpec], after: Afters) -> Node:
        """Collect a map."""

    def commit(self) -> None:
        """Add what was collected to the workflow."""


@dataclass(slots=True, eq=False, repr=False)
class TaskContext:
    """What a running task knows and can report. A parameter annotated `TaskContext`, or named `ctx`, receives it.

    `attempt` counts from 1. Secrets of the payload are masked in everything that it reports. `traceparent` and
    `tracestate` are the W3C trace context of the submission, if it had one. `occurrence` is the nominal time of this
    run of its schedule, in UTC; None, if no schedule submitted it. Example:

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
    occurrence: datetime | None = None
    _secrets: Secrets | None = None
    _outcomes: Mapping[str, AnyOutcome] | None = field(default=None, init=False)
    _parents: Mapping[str, Any] | None = field(default=None, init=False)
    _adds: bool = field(default=False, init=False)

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
            occurrence=None if running.occurrence_ms is None else utc(running.occurrence_ms),
            _secrets=running.secrets,
        )

    @property
    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks named in `depends_on`, by id, in that order; in a workflow, by name or id. Fetched
        on first use. That of a map is a sequence, which is read in pages.

        Reading the result of a task that isn't done raises ParentNotDone; of one whose record was removed, or whose
        result can't be read, ParentResultGone.
        """
        if self._parents is None:
            self._parents = results_of(self.outcomes)
        return self._parents

    @property
    def outcomes(self) -> Mapping[str, Any]:
        """How the tasks named in `depends_on` have ended: a `TaskOutcome` for each, with `status`, `result`, `error`
        and `ok`; for a map, a sequence of them, which is read in pages. The keys are those of `parents`. Fetched on
        first use.

            bad = [each.error for each in ctx.outcomes["rows"] if not each.ok]
        """
        if self._outcomes is None:
            self._outcomes = self._sink.outcomes()
        return self._outcomes

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

    @overload
    def add_task(self, task: str, payload: Any = None, /, **options: Unpack[TaskOptions]) -> Receipt: ...
    @overload
    def add_task(self, task: TaskSpec, /, **options: Unpack[TaskOptions]) -> Receipt: ...
    def add_task(self, *given: Any, **named: Any) -> Receipt:
        """Submit another task: a `spec` of a task function, or the name of a type and a payload, each with options.

            ctx.add_task(send_receipt.spec(to="a@example.org"), delay="5m")

        It gets the project and the trace context of this task. Another attempt at this task that submits the same gets
        the same id, and nothing is added twice: a submission is identified by its type, payload and options, and by how
        often the same one came before. The call takes one round trip to Redis, also in an `async def` task.

        Raises:
            InvalidTask, UniqueConflict, QueueFull: as `TaskPool.add_task`; nothing was added.
            AttemptLost: this attempt lost its lease, so another one may be running; nothing was added.
        """
        return self._sink.add_task(given, named)

    def add_tasks(self, specs: Iterable[TaskSpec]) -> list[Receipt]:
        """Submit many tasks; as `add_task` otherwise. All are checked first; then each 1,000 are stored as one.
        Raises: as `add_task`; pointers start with the task's index."""
        return self._sink.add_tasks(specs)

    @overload
    def ask(
        self, name: str, text: str, *, schema: builtins.type[T], timeout: Duration = ..., default: T = ...
    ) -> T: ...
    @overload
    def ask(
        self,
        name: str,
        text: str,
        *,
        schema: Any = None,
        timeout: Duration = ANSWER_S,
        default: Any = ...,
    ) -> Any: ...
    def ask(
        self, name: str, text: str, *, schema: Any = None, timeout: Duration = ANSWER_S, default: Any = UNSET
    ) -> Any:
        """Ask a person, and return the answer.

        The first time, this call doesn't return: the attempt ends without being counted, and its worker is free. When
        there is an answer, the task runs again from its start, and this call returns the answer. So what stands before
        it runs twice; `checkpoint` helps.

            if not ctx.ask("delete", f"Delete {len(old):,} rows?", schema=bool, timeout="1d", default=False):
                return

        `name` identifies the question within the task: 1 to 64 letters, digits or `_.:-`. With another text it is
        another question. `schema` is a type or a JSON Schema that answers have to fit. `timeout` is how long the
        question is open, in seconds or as a text like "1d" (7 days); then `default` is the answer. A task may ask 100
        times.

        Raises: NotAnswered if there was no answer in time, and no default; ValueError for a wrong argument.
        """
        return self._sink.ask(Asking(name, text, schema, timeout, default, self._secrets))

    def checkpoint(self, state: Any) -> None:
        """Keep a state for the next attempt of this task, as JSON of at most 64 KiB; it replaces the last one. After a
        crash, a retry or an answer, `state` has it. Secrets of the payload are masked in it.

        Raises: AttemptLost if another attempt runs; ValueError if the state is too large or isn't JSON.
        """
        self._sink.checkpoint(state, self._secrets)

    @property
    def state(self) -> Any:
        """The state that was kept last by `checkpoint`, as JSON values; None if there is none. Fetched on each use."""
        return self._sink.state()

    @overload
    def add(
        self, name: str, task: str, payload: Any = None, /, *, after: Afters = (), **options: Unpack[TaskOptions]
    ) -> Node: ...
    @overload
    def add(self, name: str, task: TaskSpec, /, *, after: Afters = (), **options: Unpack[TaskOptions]) -> Node: ...
    def add(self, name: str, *given: Any, after: Afters = (), **options: Any) -> Node:
        """Add a task to the workflow of this one, under a name of its own; `after` names the nodes, old and new, that
        must have ended before. It is added when this attempt ends as done, or by `commit`: a lost or failed attempt
        adds nothing.

            rows = ctx.map("rows", (import_row.spec(row=row) for row in read(url)))
            ctx.add("summary", import_summary.spec(), after=rows.any())

        If an earlier attempt at this task has committed a node with this name, that one stays.

        Raises: InvalidTask, for an invalid name, a name twice, or if this task belongs to no workflow.
        """
        node = self._sink.add_node(name, given, after, options)
        self._adds = True
        return node

    def map(self, name: str, specs: Iterable[TaskSpec], *, after: Afters = ()) -> Node:
        """Add many tasks to the workflow of this one, under one name; as `add` otherwise. What comes after a map waits
        for all of its tasks.

        The list may differ when the task runs again. Then the first list that was committed stays, and the task's log
        says so.
        """
        node = self._sink.add_map(name, specs, after)
        self._adds = True
        return node

    def commit(self) -> None:
        """Add now what `add` and `map` have collected. Without this call, the end of the attempt does it.

        Raises:
            InvalidTask, UniqueConflict, QueueFull: as `TaskPool.add_workflow`, or another task has added a node with
                one of the names; nothing was added, and what was collected is dropped.
            AttemptLost: this attempt lost its lease; nothing was added.
            TaskStopped: the workflow was stopped; nothing was added.
        """
        if self._adds:
            self._sink.commit()
            self._adds = False

    @property
    def has_uncommitted(self) -> bool:
        """Whether `add` or `map` have collected something since the last `commit`."""
        return self._adds

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
    """The text of any object, as UTF-8 can hold it, up to `most` characters. Raises: TaskStopped, SoftTimeout."""
    if type(value) is not str:
        try:
            value = str.__str__(value if issubclass(type(value), str) else str(value))  # a subclass may override it
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

    Raises: ValueError for anything else, and for a number that is negative or not finite.
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


def place_of(error: BaseException, skipped: str) -> Place | None:
    """The innermost place in the user's code at which an exception was raised, below the last frame of `skipped`."""
    return fingerprints.place_of(_users_part(_TRACEBACK.__get__(error), skipped))


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
