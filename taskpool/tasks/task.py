"""How a task is written: `@task` on a function, or a subclass of `Task`.

Neither registers anything. They mark the function, and leave a note in the module that is being imported. A `Registry`
collects the tasks of the modules that it loads. So a task file can be imported anywhere, the function stays as it was,
and there is no list of all tasks in a process.

A task belongs to the module whose import creates it, wherever its function ends up: in a list, as a class attribute, or
behind the decorator of another module. The notes are in the namespace of that module, and disappear with it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, Unpack, cast

from taskpool.errors import ConfigurationError, DuplicateType
from taskpool.tasks.context import TaskContext
from taskpool.tasks.functions import original_function
from taskpool.tasks.schedule import Times
from taskpool.tasks.spec import Spec, TaskFunction, class_field_names, payload_of, spec_of
from taskpool.types import OnLostLease, TypeKeywords, TypeOptions

P = ParamSpec("P")
R = TypeVar("R")

MARK: Final = "__taskpool_task__"
_SPEC: Final = "__taskpool_spec__"
_NOTES: Final = "__taskpool_notes__"
_MOST_LEVELS: Final = 3
_MOST_ITEMS: Final = 10_000


class Declaration(TypeOptions, frozen=True, kw_only=True):
    """What `@task` or a task class says about a task type: its name, its options and its schedule."""

    name: str
    schedule: Times | None = None


def task(
    name: str, *, schedule: Times | None = None, **options: Unpack[TypeKeywords]
) -> Callable[[Callable[P, R]], TaskFunction[P, R]]:
    """Make a function, plain or `async`, a task type called `name`. It remains the function that it was, with one more
    attribute: `resize.spec(url=...)` is a submission of the task (see `TaskFunction.spec`).

    The payload's fields are the function's parameters; their annotations are its schema. A parameter annotated
    `TaskContext`, or named `ctx`, receives the context. `timeout_s` limits one attempt, and `result_ttl_s` says how
    long the result is kept. A task has `max_attempts`. After a failed one it waits for a random time of up to
    `backoff_s` (1), twice that, and so on, up to `backoff_max_s` (300). With `on_lost_lease="kill"`, an attempt
    whose lease can't be renewed is killed before the lease ends, so that no two attempts overlap; by default it
    continues. A submission may override all of them. With a `schedule` (`Cron`, `Every` or `At`), worker pools that
    have loaded the function's module submit the task at these times; its fields need defaults then.

    Put `@task` above other decorators, so that they are part of the task.

    Raises: ConfigurationError for an object that can't be a task.

        @task("resize", queue="images", timeout_s=60, max_attempts=3)
        def resize(ctx: TaskContext, url: str, width: int = 80) -> dict: ...
    """
    if callable(name):
        raise ConfigurationError(f'{place_of(name)}: write @task("{getattr(name, "__name__", "name")}"), with a name')
    declared = Declaration(name=name, schedule=schedule, **options)

    def mark(function: Callable[P, R]) -> TaskFunction[P, R]:
        _check(function, declared)
        try:
            _refuse_shadowing(function, declared)
            setattr(function, MARK, declared)
            function.spec = functools.partial(spec_of, name, function)  # type: ignore[attr-defined]
        except (AttributeError, TypeError):  # a bound method, a function in C, an object with slots
            raise _refusal(declared, f"{function!r} can't be marked as one; write a function that calls it") from None
        leave_note(function, declared)
        return cast("TaskFunction[P, R]", function)

    return mark


class Task:
    """The interface of a task written as a class: `type`, a `Payload`, and `run(ctx)`, plain or `async`.

    `Payload` is a class with annotated fields, or a msgspec.Struct, dataclass, TypedDict or pydantic model. A task
    without a `Payload` takes none. Each attempt gets its own instance, created without arguments, with `id` and
    `payload` set. The other attributes are the options of `@task`.

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
    schedule: ClassVar[Times | None] = None
    Payload: ClassVar[Any] = None

    id: str
    payload: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        leave_note(cls)

    @classmethod
    def spec(cls, payload: Any = None, /, **fields: Any) -> Spec[Any]:
        """The submission of this task, with its payload as one object or as fields (see `TaskFunction.spec`).
        Raises: TypeError, if both are given."""
        if payload is None:
            payload = payload_of(cls.type, class_field_names(cls.Payload), (), fields)
        elif fields:
            raise TypeError(f"{cls.__name__}.spec() takes the payload as one object or as fields, not both")
        return Spec(type=cls.type, payload=payload)

    def run(self, ctx: TaskContext) -> Any:
        """Do the work and return a JSON value, or a coroutine of one. An exception fails the attempt."""
        raise NotImplementedError


def options_of(function: object) -> Declaration | None:
    """The declaration that `@task` left on a function; None when it isn't a task."""
    options = getattr(function, MARK, None)
    return options if isinstance(options, Declaration) else None


def _check(function: Any, options: Declaration) -> None:
    """Raise ConfigurationError for an object that can't be a task."""
    if inspect.isclass(function):
        raise _refusal(options, f"{function.__qualname__} is a class; for a class, derive from taskpool.Task")
    if not callable(function):
        raise _refusal(options, f"{function!r} can't be called; @task is for functions")
    qualname = getattr(function, "__qualname__", "")
    owner = qualname.rpartition(".")[0]
    if owner and not owner.endswith("<locals>") and not inspect.ismethod(function):
        raise ConfigurationError(
            f"{place_of(function)}: the method {qualname} can't be the task {options.name!r}; "
            "write a function at the module's top level, or derive the class from taskpool.Task"
        )


def _refuse_shadowing(function: Callable[..., Any], options: Declaration) -> None:
    """Refuse a second task function of one name in a module: it would hide the first."""
    module = getattr(function, "__globals__", None)
    if module is None:
        return
    previous = module.get(function.__name__)
    earlier = options_of(previous)
    # A reload runs the module again over its old names, with a new spec.
    spec = module.get("__spec__")
    is_same_run = spec is not None and getattr(previous, _SPEC, None) is spec
    setattr(function, _SPEC, spec)
    if earlier is None or not is_same_run or place_of(previous) == place_of(function):
        return
    places = f"at {place_of(previous)} and at {place_of(function)}"
    if earlier.name == options.name:
        raise DuplicateType(f"the task type {options.name!r} is registered twice: {places}")
    raise ConfigurationError(
        f"two tasks, {earlier.name!r} and {options.name!r}, are functions named {function.__name__!r}, {places}; "
        "the second would hide the first: give them different names"
    )


def _refusal(options: Declaration, fault: str) -> ConfigurationError:
    """The error with the place in the user's code that calls `@task`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("taskpool."):
        frame = frame.f_back
    place = shown_place(frame.f_code.co_filename, frame.f_lineno) if frame else "?:0"
    return ConfigurationError(f"{place}: the task {options.name!r}: {fault}")


def place_of(source: Any) -> str:
    """Where a function or class is written, "file.py:12", relative to the current directory when below it."""
    code = getattr(source if isinstance(source, type) else original_function(source), "__code__", None)
    if code is not None:
        return shown_place(code.co_filename, code.co_firstlineno)
    try:
        return shown_place(inspect.getsourcefile(source) or "?", inspect.getsourcelines(source)[1])
    except (OSError, TypeError, SystemError):  # created without a file; or Python 3.11 has failed to parse the file
        return f"{getattr(source, '__module__', '?')}.{getattr(source, '__qualname__', repr(source))}"


def shown_place(file: str, line: int) -> str:
    """A place in a file, relative to the current directory when below it."""
    path = Path(file).resolve()
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


# --- the notes of a module -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Note:
    """A task function with its declaration, or a task class (None). `place` is (file, line)."""

    source: Any
    options: Any
    place: tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Notes:
    """The notes of one run of a module: a reload gives it a new spec. `marked_objects` doesn't look inside."""

    spec: object
    found: list[Note] = field(default_factory=list)


def leave_note(source: Any, options: Declaration | None = None) -> None:
    """Note a task in the module that is being imported. Outside of an import nothing is noted."""
    module = _importing(sys._getframe(1))
    if module is None:
        return
    names = module.f_globals
    if names["__name__"] == "__main__" and getattr(source, "__module__", None) != "__main__":
        return  # the program is past its imports: it runs, and calls a function that creates a task
    notes, spec = names.get(_NOTES), names.get("__spec__")
    if notes is None or notes.spec is not spec:
        notes = names[_NOTES] = _Notes(spec)
    notes.found.append(Note(source, options, (module.f_code.co_filename, module.f_lineno)))


def notes_of(module: ModuleType) -> list[Note]:
    """The tasks that the import of a module has created, in order."""
    notes: _Notes | None = vars(module).get(_NOTES)
    return notes.found if notes else []


def _importing(frame: FrameType | None) -> FrameType | None:
    """The nearest frame that runs the body of a module."""
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            module = sys.modules.get(str(frame.f_globals.get("__name__")))
            if module is not None and vars(module) is frame.f_globals:
                return frame
        frame = frame.f_back
    return None


# --- the objects of a module ---------------------------------------------------------------------------------


def marked_objects(module: ModuleType, mark: str) -> Iterator[Any]:
    """The objects with this mark that are reachable from a module.

    `functools.wraps` copies a mark from a task function to the decorator's function, which is then the task.
    """
    return (each for each in _reachable(module) if _has(each, mark))


def wrapper_without_mark(module: ModuleType, source: Any) -> Any:
    """The function that a decorator made of the nested function `source` without its mark; None if there is none.

    It has `source` in its closure, and its code is from another function, the decorator.
    """
    place = getattr(source, "__qualname__", "").rpartition(".")[0]
    if not place.endswith("<locals>"):
        return None
    for each in _reachable(module):
        if type(each) is not FunctionType:
            continue
        is_from_another = each.__code__.co_qualname.rpartition(".")[0] != place
        if is_from_another and any(_content(cell) is source for cell in each.__closure__ or ()):
            return each
    return None


def _reachable(module: ModuleType) -> Iterator[Any]:
    """The objects in a module, also in its containers and classes."""
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
    except ValueError:  # not set yet
        return None


def _members(value: Any, module: ModuleType) -> list[Any] | None:
    """The members of a container, or of a class of this module; None for any other object."""
    kind = type(value)  # `isinstance` reads the object's own `__class__`, which may raise
    try:
        if issubclass(kind, dict):
            return list(value.values())
        if issubclass(kind, list | tuple | set | frozenset):
            return list(value)
        if issubclass(kind, type):
            return list(vars(value).values()) if value.__module__ == module.__name__ else []
    except Exception:  # a user's own class may raise anything
        return []
    return None


def _has(value: Any, mark: str) -> bool:
    try:
        return mark in value.__dict__
    except Exception:  # most objects have none; a proxy without an object yet, like Flask's `request`, raises
        return False
