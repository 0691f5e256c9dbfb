"""The arguments that programs give to the methods of a pool or a client, and how `add_task` makes a `TaskSpec` of
them.

    pool.add_task("resize", {"url": url}, queue="images")
    pool.add_task(resize, url=url)
    pool.add_task(resize, {"url": url}, queue="images")
    pool.add_task(resize.spec(url=url), queue="images")

With a function, keyword arguments are fields of the payload, and a type checker compares them with the function's
parameters. It can't do that for a call that also has options, so options need a payload object or
`spec`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, ClassVar, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar, Unpack, overload

import msgspec
from msgspec.structs import replace

from taskpool import types
from taskpool.errors import FieldError, InvalidTask
from taskpool.tasks.context import TaskContext
from taskpool.tasks.spec import class_field_names, field_names, payload_of, refuse
from taskpool.tasks.task import Task, options_of
from taskpool.types import TaskOptions, TaskSpec
from taskpool.validation import LONGEST_S, Guesses, is_seconds, is_text, seconds_fault, seconds_of


def check_spec(spec: object, start: str = "") -> None:
    """Return if it is a `TaskSpec` whose type is a text; `start` is the JSON Pointer to it.

    Raises:
        InvalidTask
    """
    if not isinstance(spec, TaskSpec):
        raise _refusal(start, f"must be a TaskSpec, not {type(spec).__name__}{hint_of(spec)}")
    if not is_text(spec.type):
        raise _refusal(f"{start}/type", f"must be the name of a task type, not {spec.type!r}")


def hint_of(given: object) -> str:
    """How to make a `TaskSpec` of a task that was given without a payload."""
    if options_of(given) is None and not (isinstance(given, type) and issubclass(given, Task)):
        return ""
    return f": write {getattr(given, '__name__', 'task')}.spec(...)"


def read_specs(specs: object, start: str = "") -> list[TaskSpec]:
    """The submissions in a list, which a generator isn't.

    Raises:
        InvalidTask: one of them is no `TaskSpec`, or they are nothing that could hold any.
    """
    if isinstance(specs, str | bytes) or not isinstance(specs, Iterable):
        raise _refusal(start, f"must be a list of TaskSpecs, not {type(specs).__name__}")
    listed = list(specs)
    for index, spec in enumerate(listed):
        check_spec(spec, f"{start}/{index}")
    return listed


def _refusal(pointer: str, text: str) -> InvalidTask:
    return InvalidTask(f"{pointer}: {text}" if pointer else f"what is submitted {text}", [FieldError(pointer, text)])


def check_text(parameter: str, value: object) -> None:
    """Return if what was given as `parameter` may be a name.

    Raises:
        InvalidTask: it is no text.
    """
    if not is_text(value):
        fault = f"must be a name, not {value!r}"
        raise InvalidTask(f"/{parameter}: {fault}", [FieldError(f"/{parameter}", fault)])


def check_word(parameter: str, value: object, words: Sequence[str]) -> None:
    """Return if what was given as `parameter` is one of these words.

    Raises:
        InvalidTask: it isn't; the text names them.
    """
    if value not in words:
        fault = f"must be one of {', '.join(words)}, not {value!r}"
        raise InvalidTask(f"/{parameter}: {fault}", [FieldError(f"/{parameter}", fault)])


def check_seconds(name: str, value: object, least_s: float = 0, most_s: float = LONGEST_S) -> None:
    """Return if the span given as the parameter `name` is in this range.

    Raises:
        InvalidTask: it isn't; the text says what is allowed.
    """
    if fault := seconds_fault(value, least_s, most_s):
        raise InvalidTask(f"/{name}: {fault}", [FieldError(f"/{name}", fault)])


def duration_s(name: str, value: object, least_s: float = 0, most_s: float = LONGEST_S) -> float:
    """The seconds of the duration given as the parameter `name`.

    Raises:
        InvalidTask: it is none, or not in this range.
    """
    try:
        return seconds_of(value, least_s, most_s)
    except ValueError as error:
        raise InvalidTask(f"/{name}: {error}", [FieldError(f"/{name}", str(error))]) from None


def patience_s(name: str, value: float | None) -> float:
    """How long to wait: for ever (infinity) with None, not at all below 0, where a deadline has passed.

    Raises:
        InvalidTask: it is no number of seconds, or too many.
    """
    if value is None:
        return math.inf
    if is_seconds(value, -math.inf):
        return max(0.0, value)
    check_seconds(name, value)
    return value


P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

OPTIONS: Final = frozenset(TaskOptions.__annotations__)


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Model(Protocol):
    """A pydantic model."""

    def model_dump(self) -> dict[str, Any]: ...


PayloadObject = Mapping[str, Any] | msgspec.Struct | _Dataclass | _Model
"""A whole payload as one value."""


class AddTask(Protocol[R_co]):
    """Submit a task; see `TaskSpec` for the options. What is submitted is one of:

    - the name of a task type and its payload;
    - a function marked with `@task` and the payload's fields as keyword arguments;
    - such a function, or a subclass of `Task`, and the payload as one object;
    - a `TaskSpec`, as `resize.spec(url=url)` is one; options given here replace those of the spec.

    Raises:
        InvalidTask: UnknownType, InvalidPayload, UnknownDependency or an option that can't be; nothing was stored.
        UniqueConflict: another task holds its unique key; nothing was stored.
        QueueFull: the queue has no room; nothing was stored.
    """

    @overload
    def __call__(self, type: str, payload: Any = None, **options: Unpack[TaskOptions]) -> R_co: ...
    @overload
    def __call__(self, spec: TaskSpec, /, **options: Unpack[TaskOptions]) -> R_co: ...
    @overload
    def __call__(
        self, task: type[Task], payload: PayloadObject | None = None, /, **options: Unpack[TaskOptions]
    ) -> R_co: ...
    @overload
    def __call__(self, task: Callable[..., Any], payload: PayloadObject, /, **options: Unpack[TaskOptions]) -> R_co: ...
    @overload
    def __call__(
        self, task: Callable[Concatenate[TaskContext, P], Any], /, *fields: P.args, **named: P.kwargs
    ) -> R_co: ...
    @overload
    def __call__(self, task: Callable[P, Any], /, *fields: P.args, **named: P.kwargs) -> R_co: ...


def spec_given(given: tuple[Any, ...], named: dict[str, Any]) -> TaskSpec:
    """What the arguments of `add_task` submit.

    Raises:
        InvalidTask: it isn't a task, or a keyword is both a field of its payload and an option.
        TypeError: an argument is missing, unknown, or one too many.
    """
    if given:
        source, rest = given[0], given[1:]
    elif "type" in named:
        source, rest = named.pop("type"), ()
    else:
        raise TypeError("add_task() needs a task: a type's name, a function marked with @task, or a TaskSpec")
    if isinstance(source, str) and len(rest) == 1:
        return _spec(source, rest[0], named)
    if isinstance(source, TaskSpec):
        _refuse_more(rest, 0)
        return _spec(source.type, source.payload, named, source) if named else source
    if not callable(source):
        _refuse_more(rest, 1)
        return _spec(source, rest[0] if rest else named.pop("payload", None), named)
    known = _known(source)
    if "payload" in named and not rest and "payload" not in known.fields:
        rest = (named.pop("payload"),)
    if len(rest) == 1 and _is_payload(rest[0]) and named.keys() <= OPTIONS:
        return TaskSpec(type=known.type, payload=rest[0], **named)
    options = {name: named.pop(name) for name in OPTIONS & named.keys()}
    _refuse_clash(known, options)
    return TaskSpec(type=known.type, payload=payload_of(known.type, known.fields, rest, named), **options)


def _spec(type: Any, payload: Any, options: dict[str, Any], before: TaskSpec | None = None) -> TaskSpec:
    try:
        if before is not None:
            return replace(before, **dict.fromkeys(_excluded_by(options)) | options)
        return TaskSpec(type=type, payload={} if payload is None else payload, **options)
    except TypeError:
        unknown = next((name for name in options if name not in OPTIONS), None)
        if unknown is None:
            raise
        near = Guesses().near(unknown, OPTIONS)
        advice = (
            f"did you mean {near[0]!r}?" if near else "fields of the payload go into one object, its second argument"
        )
        raise TypeError(f"add_task() has no option {unknown!r}; {advice}") from None


def _excluded_by(options: Mapping[str, Any]) -> Iterator[str]:
    """The options that a spec may have and that can't be given together with these."""
    for each in types.OPTIONS:
        for other in each.about.excludes:
            if options.get(other) is not None:
                yield each.name
            if options.get(each.name) is not None:
                yield other


class _Known(NamedTuple):
    """A task's type, and the names of the fields of its payload."""

    type: str
    fields: tuple[str, ...]


def _known(source: Any) -> _Known:
    if isinstance(source, type) and issubclass(source, Task):
        return _Known(source.type, class_field_names(source.Payload))
    options = options_of(source)
    if options is None:
        name = getattr(source, "__qualname__", repr(source))
        refuse("/type", f"{name} is not a task: mark the function with @task, or derive the class from taskpool.Task")
    return _Known(options.name, field_names(source))


def _refuse_clash(known: _Known, options: Mapping[str, Any]) -> None:
    for name in sorted(options):
        if name in known.fields:
            refuse(
                f"/{name}",
                f"{name!r} is both a parameter of the task {known.type!r} and an option of add_task: give the payload "
                f"as one object, add_task(task, {{{name!r}: ...}}), or use add_task(task.spec({name}=...))",
            )


def _is_payload(value: Any) -> bool:
    if isinstance(value, Mapping | msgspec.Struct):
        return True
    return not isinstance(value, type) and (is_dataclass(value) or hasattr(value, "model_dump"))


def _refuse_more(rest: Sequence[Any], most: int) -> None:
    if len(rest) > most:
        raise TypeError("add_task() takes a task and its payload by position; options are keyword arguments")
