"""The tasks that a module declares: each `@task` and each subclass of `Task` leaves a note there when it runs.

So a task counts wherever its function ends up: in a list, as a class attribute, behind another module's decorator, or
nowhere. A note belongs to the module whose import makes the task. It lies in that module's own namespace, and goes with
it: there is no list of all tasks in this process.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any, Final

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
