"""The tasks that a module declares: each `@task` and each subclass of `Task` leaves a note there when it runs.

So a task counts wherever its function ends up: in a list, as a class attribute, behind another module's decorator, or
nowhere. A note belongs to the module whose import makes the task. It lies in that module's own namespace, and goes with
it: there is no list of all tasks in this process.

How a task is written: `@task` on a function, or a subclass of `Task`.

Neither registers anything: they leave a mark on the function, and a note in the module that is being imported (see
`marks`). A `Registry` collects both from the modules that it loads. So a task file can be imported anywhere, and the
function stays the function it was.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any, ClassVar, Final, TypeVar, Unpack

from taskpool.errors import ConfigurationError, DuplicateType
from taskpool.tasks.context import TaskContext
from taskpool.types import OnLostLease, TypeKeywords, TypeOptions

_NOTES: Final = "__taskpool_notes__"
_MOST_LAYERS: Final = 100
_MOST_LEVELS: Final = 3
_MOST_ITEMS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Note:
    """A task function with the options that `@task` was given, or a task class (None). `place` is (file, line)."""

    source: Any
    options: Any
    place: tuple[str, int]


@dataclass(slots=True)
class _Notes:
    """The notes of one run of a module: a reload gives it a new spec."""

    spec: object
    found: list[Note] = field(default_factory=list)


def leave_note(source: Any, options: Any = None) -> None:
    """Note a task in the module whose import is under way. Outside of an import nothing is noted."""
    frame = sys._getframe(1)
    module = _importing(frame)
    if module is None:
        return
    names = module.f_globals
    if names["__name__"] == "__main__" and getattr(source, "__module__", None) != "__main__":
        return  # the program is past its imports: it runs, and calls something that makes a task
    notes, spec = names.get(_NOTES), names.get("__spec__")
    if not isinstance(notes, _Notes) or notes.spec is not spec:
        notes = names[_NOTES] = _Notes(spec)
    notes.found.append(Note(source, options, (module.f_code.co_filename, module.f_lineno)))


def notes_of(module: ModuleType) -> list[Note]:
    """The tasks that this module's import has made, in order."""
    notes = vars(module).get(_NOTES)
    return notes.found if isinstance(notes, _Notes) else []


def caller_place() -> tuple[str, int]:
    """The nearest place outside of this package: where a user's code calls it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("taskpool."):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame else ("?", 0)


def written_function(source: Any) -> Any:
    """The function that a user wrote, below wrappers, `functools.partial`, methods and callable objects."""
    for _ in range(_MOST_LAYERS):
        if isinstance(source, functools.partial):
            source = source.func
        elif (wrapped := _own(source, "__wrapped__")) is not None:
            source = wrapped
        elif inspect.ismethod(source):
            source = source.__func__
        elif is_callable_object(source):
            source = type(source).__call__
        else:
            break
    return source


def is_callable_object(source: Any) -> bool:
    """Whether it is neither a function nor a class, and can be called."""
    return callable(source) and not inspect.isroutine(source) and not inspect.isclass(source)


def is_coroutine_function(source: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine for certain: an `async def`, also in a partial, a method or a `__call__`."""
    while isinstance(source, functools.partial):
        source = source.func
    return inspect.iscoroutinefunction(type(source).__call__ if is_callable_object(source) else source)


def _importing(frame: FrameType | None) -> FrameType | None:
    """The nearest frame that runs the body of a module."""
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            module = sys.modules.get(str(frame.f_globals.get("__name__")))
            if module is not None and vars(module) is frame.f_globals:
                return frame
        frame = frame.f_back
    return None


def _own(source: Any, name: str) -> Any:
    return getattr(source, "__dict__", {}).get(name)


def bearers(module: ModuleType, mark: str) -> Iterator[Any]:
    """The objects with this mark that a module's names lead to, also through containers and classes of its own.

    `functools.wraps` copies a mark from a task function to the decorator's function, which is then what is meant.
    """
    return (each for each in _reachable(module) if _has(each, mark))


def hiding(module: ModuleType, source: Any) -> Any:
    """A function that a decorator made of the nested function `source` without leaving its mark; None if there is none.

    It keeps `source` in its closure, and its own code is written in another function, the decorator.
    """
    place = getattr(source, "__qualname__", "").rpartition(".")[0]
    if not place.endswith("<locals>"):
        return None
    for each in _reachable(module):
        if type(each) is not FunctionType:
            continue
        is_elsewhere = each.__code__.co_qualname.rpartition(".")[0] != place
        if is_elsewhere and any(_content(cell) is source for cell in each.__closure__ or ()):
            return each
    return None


def _reachable(module: ModuleType) -> Iterator[Any]:
    """The objects that a module's names lead to, also through containers and classes of its own."""
    seen: set[int] = set()

    def look(value: Any, depth: int) -> Iterator[Any]:
        if id(value) in seen:
            return
        seen.add(id(value))
        inner = _members(value, module)
        if inner is None:
            yield value
        elif depth > 0 and len(inner) <= _MOST_ITEMS:
            for each in inner:
                yield from look(each, depth - 1)

    for each in list(vars(module).values()):
        yield from look(each, _MOST_LEVELS)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _members(value: Any, module: ModuleType) -> list[Any] | None:
    """What a container, or a class of this module, holds; None for any other object."""
    kind = type(value)  # `isinstance` asks the object's own `__class__`, which may raise
    try:
        if issubclass(kind, dict):
            return list(value.values())
        if issubclass(kind, list | tuple | set | frozenset):
            return list(value)
        if issubclass(kind, type):
            return list(vars(value).values()) if value.__module__ == module.__name__ else []
    except Exception:  # a user's own class may do anything
        return []
    return None


def _has(value: Any, mark: str) -> bool:
    try:
        return mark in value.__dict__
    except Exception:  # most objects have none; a proxy that stands for nothing yet, like Flask's `request`, raises
        return False


F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "__taskpool_task__"
_SPEC: Final = "__taskpool_spec__"


class Declaration(TypeOptions, frozen=True, kw_only=True):
    """What `@task` or a task class says about a task type: its name and its options."""

    name: str


def task(name: str, **options: Unpack[TypeKeywords]) -> Callable[[F], F]:
    """Make a function, plain or `async`, a task type called `name`. It stays callable as before.

    The payload's fields are the function's parameters; their annotations are its schema. A parameter annotated
    `TaskContext`, or named `ctx`, receives the context. `timeout_s` bounds one attempt, `result_ttl_s` says how
    long the result is kept. A failed attempt is made again, `max_attempts` times in all, after a random wait of up to
    `backoff_s` (1), twice that, and so on, `backoff_max_s` (300) at the most. With `on_lost_lease="kill"`, an attempt
    whose lease can't be renewed is killed before the lease ends, so that no two attempts overlap; by default it
    continues. A submission may override all of them.

    `@task` registers what it is given. Put it on top of other decorators, so that they are part of the task.

    Raises: ConfigurationError when used on something that can't be a task.

        @task("resize", queue="images", timeout_s=60, max_attempts=3)
        def resize(ctx: TaskContext, url: str, width: int = 80) -> dict: ...
    """
    if callable(name):
        raise ConfigurationError(f'{_place(name)}: write @task("{getattr(name, "__name__", "name")}"), with a name')
    declared = Declaration(name=name, **options)

    def mark(function: F) -> F:
        _refuse_others(function, declared)
        _refuse_methods(function, declared)
        try:
            _refuse_shadowing(function, declared)
            setattr(function, MARK, declared)
        except (AttributeError, TypeError):  # a bound method, a function in C, an object with slots
            raise _refusal(declared, f"{function!r} can't be marked as one; write a function that calls it") from None
        leave_note(function, declared)
        return function

    return mark


class Task:
    """The interface of a task written as a class: `type`, a `Payload`, and `run(ctx)`, plain or `async`.

    `Payload` is a class with annotated fields, or a msgspec.Struct, dataclass, TypedDict or pydantic model; without
    one the task takes no payload. Each attempt gets its own instance, made without arguments, with `id` and
    `payload` set. The other attributes mean what they mean for `@task`.

        class LongTask(Task):
            type = "long_task"

            class Payload:
                duration_s: float = 180

            def run(self, ctx: TaskContext) -> dict: ...
    """

    type: ClassVar[str]
    queue: ClassVar[str | None] = None
    timeout_s: ClassVar[float | None] = None
    max_attempts: ClassVar[int | None] = None
    backoff_s: ClassVar[float | None] = None
    backoff_max_s: ClassVar[float | None] = None
    on_lost_lease: ClassVar[OnLostLease | None] = None
    result_ttl_s: ClassVar[int | None] = None
    Payload: ClassVar[Any] = None

    id: str
    payload: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        leave_note(cls)

    def run(self, ctx: TaskContext) -> Any:
        """Do the work and return a JSON value, or a coroutine of one. An exception fails the attempt."""
        raise NotImplementedError


def options_of(function: object) -> Declaration | None:
    """What `@task` noted on a function; None when it isn't a task."""
    options = getattr(function, MARK, None)
    return options if isinstance(options, Declaration) else None


def _refusal(options: Declaration, fault: str) -> ConfigurationError:
    file, line = caller_place()
    return ConfigurationError(f"{file}:{line}: the task {options.name!r}: {fault}")


def _refuse_others(function: Any, options: Declaration) -> None:
    if inspect.isclass(function):
        raise _refusal(options, f"{function.__qualname__} is a class; for a class, derive from taskpool.Task")
    if not callable(function):
        raise _refusal(options, f"{function!r} can't be called; @task is for functions")


def _refuse_methods(function: Callable[..., Any], options: Declaration) -> None:
    qualname = getattr(function, "__qualname__", "")
    owner = qualname.rpartition(".")[0]
    if owner and not owner.endswith("<locals>") and not inspect.ismethod(function):
        raise ConfigurationError(
            f"{_place(function)}: the method {qualname} can't be the task {options.name!r}; "
            "write a function at the module's top level, or derive the class from taskpool.Task"
        )


def _refuse_shadowing(function: Callable[..., Any], options: Declaration) -> None:
    """Two functions of one name in one module: the first would vanish without a word."""
    module = getattr(function, "__globals__", None)
    if module is None:
        return
    previous = module.get(function.__name__)
    earlier = options_of(previous)
    # A reload runs the module again over its old names; its spec is a new one then.
    spec = module.get("__spec__")
    is_same_run = spec is not None and getattr(previous, _SPEC, None) is spec
    setattr(function, _SPEC, spec)
    if earlier is None or not is_same_run or _place(previous) == _place(function):
        return
    places = f"at {_place(previous)} and at {_place(function)}"
    if earlier.name == options.name:
        raise DuplicateType(f"the task type {options.name!r} is registered twice: {places}")
    raise ConfigurationError(
        f"two tasks, {earlier.name!r} and {options.name!r}, are functions named {function.__name__!r}, {places}; "
        "the second would hide the first: give them different names"
    )


def _place(function: Any) -> str:
    code = getattr(written_function(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
