"""The task types that one process knows, by name. It is filled at start from modules, and then only read.

The functions that TASKPOOL_RQ_FUNCTIONS names are task types as well, for plain RQ jobs that call them. They are
imported once, when a worker pool starts; a function that only a job names is never imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from taskpool.errors import ConfigurationError, DuplicateType, FieldError
from taskpool.redis.keys import ENTRY_POINT
from taskpool.tasks import hooks
from taskpool.tasks.context import TaskContext
from taskpool.tasks.functions import is_coroutine_function, original_function
from taskpool.tasks.payload.faults import PAYLOAD, invalid_payload_of
from taskpool.tasks.schedule import DeclaredSchedule
from taskpool.tasks.task import (
    MARK,
    Note,
    Task,
    marked_objects,
    notes_of,
    options_of,
    place_of,
    wrapper_without_mark,
)
from taskpool.tasks.task_type import TaskType, task_type
from taskpool.validation import BUILTIN_TYPES

_SKIPPED = re.compile(r"_.*|test_.*|.*_test|conftest|setup")


def import_tasks(entry: str) -> list[ModuleType]:
    """Import what one entry of TASKPOOL_TASKS names, and return the modules to look for tasks in.

    Of a package these are the package and those of its modules that it imports. A .py file is imported as a module of
    its package if it has one. Of a directory, all .py files are imported, except tests and those that start with "_".
    The current directory is importable.

    Raises: ConfigurationError when nothing has that name, and when the import fails.
    """
    _make_importable(Path.cwd(), first=True)
    path = Path(entry)
    if entry.endswith(".py") or os.sep in entry or (path.is_dir() and not entry.isidentifier()):
        return _import_path(path, entry)
    if not all(part.isidentifier() for part in entry.split(".")):
        raise ConfigurationError(f"{entry!r} is neither a module, a .py file nor a directory")
    return _import_named(entry)


def _import_path(path: Path, entry: str) -> list[ModuleType]:
    if path.is_file() and path.suffix == ".py":
        return [_import_file(path.resolve(), entry)]
    if not path.is_dir():
        known = {each.name: str(each) for each in path.parent.glob("*") if each.suffix == ".py" or each.is_dir()}
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ConfigurationError(f"no task file {entry!r}{where}{_guess(path.name, known)}")
    if (path / "__init__.py").is_file():
        return _import_named(_dotted_name(path.resolve() / "__init__.py"))
    files = sorted(file for file in path.resolve().glob("*.py") if not _SKIPPED.fullmatch(file.stem))
    if not files:
        raise ConfigurationError(f"the directory {entry!r} has no task files (*.py)")
    return [_import_file(file, str(path / file.name)) for file in files]


def _import_named(name: str) -> list[ModuleType]:
    module = _import(name, name)
    if not hasattr(module, "__path__"):
        return [module]
    return [module, *(sys.modules[key] for key in sorted(sys.modules) if key.startswith(f"{name}."))]


def _import_file(file: Path, entry: str) -> ModuleType:
    for module in list(sys.modules.values()):
        if _is_file_of(file, getattr(module, "__file__", None)):
            return module
    name = _dotted_name(file)
    if "." not in name:
        # Last on the path: the files beside it can be imported, but can't hide modules of the standard library.
        _make_importable(file.parent, first=False)
        found = importlib.util.find_spec(name) if name.isidentifier() else None
        if found is None or not _is_file_of(file, found.origin):
            return _import_as(f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}", file, entry)
    return _import(name, entry)


def _dotted_name(file: Path) -> str:
    """The module's full name, with the root of its outermost package made importable."""
    parts = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) > 1 or file.name == "__init__.py":
        _make_importable(folder, first=False)
    return ".".join(parts)


def _import(name: str, entry: str) -> ModuleType:
    if module := _module(name, f"can't load tasks from {entry!r}"):
        return module
    missing = next((each for each in accumulate(name.split("."), "{}.{}".format) if each not in sys.modules), name)
    parent, dot, last = missing.rpartition(".")
    places = getattr(sys.modules.get(parent), "__path__", ()) if parent else [str(Path.cwd())]
    known = {module.name: f"{parent}{dot}{module.name}" for module in pkgutil.iter_modules(list(places))}
    raise ConfigurationError(f"no module {entry!r} in {Path.cwd()} or elsewhere on sys.path{_guess(last, known)}")


def _module(name: str, failure: str) -> ModuleType | None:
    """The imported module; None when no module has that name.

    Raises: ConfigurationError, which begins with `failure`, when its import fails.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return None
        raise _failed(failure, error) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise _failed(failure, error) from error


def _import_as(name: str, file: Path, entry: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{entry!r} isn't a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above; an incomplete module must not stay behind
        del sys.modules[name]
        raise _failed(f"can't load tasks from {entry!r}", error) from error
    return module


def _failed(failure: str, error: BaseException) -> ConfigurationError:
    """The error for what a user's module raised when it was imported, and where, on one line."""
    if isinstance(error, ConfigurationError):  # its text has the place
        return error
    if isinstance(error, SystemExit):
        what = f"it exits when imported (SystemExit: {error.code})"
    else:
        what = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".splitlines()[0]
    return ConfigurationError(f"{failure}: {what} ({_user_place(error)})")


def _user_place(error: BaseException) -> str:
    """The last place in the user's code in the traceback: not in Python's library, installed packages or Taskpool."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    foreign = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parents[1]), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(foreign)] or frames
    return f"{users[-1].filename}:{users[-1].lineno}" if users else "place unknown"


def _guess(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _make_importable(folder: Path, *, first: bool) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


def _is_file_of(file: Path, module_file: object) -> bool:
    return isinstance(module_file, str) and Path(module_file).resolve() == file


SETTING: Final = "TASKPOOL_RQ_FUNCTIONS"
LONGEST_NAME: Final = 150
_DOTTED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
_ARGUMENTS: Final = {
    "type": "object",
    "properties": {"args": {"type": "array"}, "kwargs": {"type": "object"}},
    "required": ["args", "kwargs"],
}


class Registry:
    """Task types by name.

    Registry(["app.tasks", "tasks/images.py"], builtins=True) loads these modules and the built-in types. `builtins` may
    also be the names of some of them.
    """

    def __init__(self, modules: Sequence[str] = (), *, builtins: bool | Collection[str] | None = False) -> None:
        self._types: dict[str, TaskType] = {}
        self._files: dict[str, None] = {}
        self._modules: dict[str, list[str]] = {}  # the names of its types, by the name of each loaded module
        names = BUILTIN_TYPES if builtins is True else builtins or ()
        for module in dict.fromkeys(BUILTIN_TYPES[name] for name in names):
            for each in tasks_in(import_module(module)):
                if each.name in names:
                    self.add(each)
        self.load(modules)

    def __len__(self) -> int:
        return len(self._types)

    def __iter__(self) -> Iterator[TaskType]:
        return iter(self._types.values())

    def get(self, name: str) -> TaskType | None:
        """The task type of this name, if it is known."""
        return self._types.get(name)

    def names(self) -> list[str]:
        """The names of all types, sorted."""
        return sorted(self._types)

    def queues(self) -> list[str]:
        """The default queues of the types, sorted."""
        return sorted({each.queue for each in self._types.values() if each.is_published})

    def files(self) -> list[str]:
        """The source files of the loaded modules, in order, for the reloader."""
        return list(self._files)

    def schedules(self) -> dict[str, list[DeclaredSchedule]]:
        """The schedules that the loaded modules declare, by module; none for one that declares none."""
        return {
            module: [
                DeclaredSchedule(name, each.schedule.timing(), each.queue, each.where)
                for name in names
                if (each := self._types[name]).schedule is not None
            ]
            for module, names in self._modules.items()
        }

    def add(self, source: TaskType | Any) -> TaskType:
        """Add a task type, a function marked by @task, or a subclass of Task. Adding the same one again is allowed.

        Raises: DuplicateType when a task at another place has that name; ConfigurationError when the task is faulty.
        """
        new = source if isinstance(source, TaskType) else task_type(source)
        old = self._types.get(new.name)
        if old is not None and old.where != new.where:
            raise _registered_twice(new.name, old.where, new.where)
        self._types[new.name] = new
        return new

    def load_functions(self, names: Sequence[str]) -> None:
        """Import the functions of these dotted names, and add them for RQ jobs that call them.

        Raises: ConfigurationError when one can't be imported or isn't a function; DuplicateType.
        """
        for name in names:
            self.add(function_type(name))

    def load(self, modules: Sequence[str]) -> None:
        """Import modules, .py files and directories, and add their tasks.

        A task belongs to the module whose import runs its `@task`. Importing it elsewhere to call it doesn't register
        it twice.

        Raises: ConfigurationError when one can't be imported, has a faulty task or has none; DuplicateType.
        """
        for entry in modules:
            loaded = import_tasks(entry)
            by_module = {module.__name__: tasks_in(module) for module in loaded}
            found = [each for types in by_module.values() for each in types]
            if not found and not hooks.are_in(loaded):
                raise ConfigurationError(f"{entry!r} has no tasks{_imported_instead(loaded)}")
            for each in found:
                self.add(each)
            self._modules |= {module: [each.name for each in types] for module, types in by_module.items()}
            self._files.update({module.__file__: None for module in loaded if module.__file__})


def tasks_in(module: ModuleType) -> list[TaskType]:
    """The task types that the import of a module creates, each once, in order.

    Raises: ConfigurationError for a faulty task and for one that another object hides; DuplicateType.
    """
    notes = notes_of(module)
    noted = {id(each) for note in notes for each in (note.source, note.options)}
    written = {id(each): each for each in vars(module).values() if _module_of(each) == module.__name__}
    others = [
        (each, None)
        for each in written.values()
        if (options_of(each) or _is_task_class(each)) and not noted & {id(each), id(options_of(each))}
    ]
    found: dict[str, tuple[TaskType, Any]] = {}
    for source, note in [*_noted(module, notes), *others]:
        new = task_type(source, note)
        first, first_source = found.setdefault(new.name, (new, source))
        if first_source is not source:
            raise _registered_twice(new.name, first.where, new.where)
    return [each for each, _ in found.values()]


def _noted(module: ModuleType, notes: Sequence[Note]) -> Iterator[tuple[Any, Note]]:
    """The tasks for the notes of a module: the noted function, or the one that a decorator replaced it with."""
    marked = list(marked_objects(module, MARK)) if notes else []
    for at, note in enumerate(notes):
        if note.options is None:
            is_replaced = any(_is_made_anew(note.source, later.source) for later in notes[at + 1 :])
            if _is_task_class(note.source) and not is_replaced:
                yield note.source, note
            continue
        name = getattr(note.source, "__name__", "")
        now = vars(module).get(name)
        meant = [each for each in marked if options_of(each) is note.options]
        if not meant and not any(now is other.source for other in notes):  # a loop makes several of one name
            _refuse_hidden(module, note, now)
        yield (now if any(each is now for each in meant) else [*meant, note.source][0]), note


def _is_made_anew(old: type, new: Any) -> bool:
    """Whether a decorator such as @dataclass(slots=True) replaced a class by one with the same functions."""
    if not isinstance(new, type) or (new.__qualname__, new.__module__) != (old.__qualname__, old.__module__):
        return False
    functions = [(name, each) for name, each in vars(old).items() if inspect.isfunction(each) and name[:2] != "__"]
    return getattr(new, "type", None) == getattr(old, "type", None) and all(
        vars(new).get(name) is each for name, each in functions
    )


def _refuse_hidden(module: ModuleType, note: Note, now: Any) -> None:
    """Refuse a task function whose name in the module refers to another object, in general that of a decorator."""
    is_at_top = getattr(note.source, "__qualname__", "<") == getattr(note.source, "__name__", "")
    if (instead := wrapper_without_mark(module, note.source)) is not None:
        raise ConfigurationError(
            f"{place_of(note.source)}: another function wraps the task {note.options.name!r}: "
            f"{instead.__code__.co_qualname!r}. A decorator above @task would be left out when the task runs: put "
            "@task on top, or use functools.wraps in the decorator. If it is no decorator, keep the task function "
            "under a name of its own"
        )
    if now is None or now is note.source or not is_at_top or note.source.__module__ != module.__name__:
        return
    raise ConfigurationError(
        f"{place_of(note.source)}: the task {note.options.name!r} is the function {note.source.__name__!r}, but in its "
        f"module that name stands for another object, {now!r}. A decorator above @task would be left out when the task "
        "runs: put @task on top, or use functools.wraps in the decorator"
    )


def _registered_twice(name: str, first: str, second: str) -> DuplicateType:
    return DuplicateType(f"the task type {name!r} is registered twice: at {first} and at {second}")


def _module_of(source: Any) -> str | None:
    try:
        name = getattr(source, "__module__", None)
    except RuntimeError:  # a proxy without an object yet, like Flask's `request`
        return None
    return name if isinstance(name, str) else None


def _is_task_class(source: Any) -> bool:
    """Whether a class is a task. A class without a `type` is only a base class if others derive from it."""
    if not (isinstance(source, type) and issubclass(source, Task)):
        return False
    return hasattr(source, "type") or not source.__subclasses__()


def _imported_instead(modules: Sequence[ModuleType]) -> str:
    """The end of an error text: the module that has the tasks which these modules only import."""
    for module in modules:
        for each in vars(module).values():
            if _module_of(each) and (options_of(each) or (_is_task_class(each) and each is not Task)):
                return f" of its own; it imports {place_of(each)}, which is in {each.__module__!r}: name that one"
    return "; mark a function with @task, or derive a class from taskpool.Task"


# --- functions for RQ jobs ------------------------------------------------------------------------------------


def function_type(name: str) -> TaskType:
    """The task type of the function with this dotted name, ``package.module.function``, as RQ names it.

    Raises: ConfigurationError for an invalid name, and for one that can't be imported or isn't a function.
    """
    if not _DOTTED.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigurationError(
            f"{SETTING}: {name!r} isn't the name of a function: write it as package.module.function"
            f" (ASCII, at most {LONGEST_NAME} characters)"
        )
    if name == ENTRY_POINT:
        raise ConfigurationError(f"{SETTING}: {name!r} runs tasks; RQ jobs may always call it")
    function = _found(name)
    if not callable(function) or inspect.isclass(function):
        raise ConfigurationError(f"{SETTING}: {name!r} is not a function but {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{SETTING}: {name!r} is a generator; a job returns its result")

    def decode(payload: Any) -> Any:
        if (
            isinstance(payload, dict)
            and isinstance(payload.get("args"), list)
            and isinstance(payload.get("kwargs"), dict)
        ):
            return payload
        fault = "must be an object with the arguments of a call: a list `args`, an object `kwargs`"
        raise invalid_payload_of(name, [FieldError(PAYLOAD, fault)])

    def bind(payload: Any, ctx: TaskContext) -> Callable[[], Any]:
        return partial(function, *payload["args"], **payload["kwargs"])

    return TaskType(
        name=name,
        schema=_ARGUMENTS,
        where=place_of(function),
        decode=decode,
        bind=bind,
        is_async=is_coroutine_function(original_function(function)),
        runs_on_loop=is_coroutine_function(function),
        is_published=False,
    )


def _found(name: str) -> Any:
    """The object of this name: a function in a module, or a static method of a class there, as RQ looks it up."""
    _make_importable(Path.cwd(), first=True)
    failure = f"{SETTING}: {name!r} can't be imported"
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        found: Any = _module(".".join(parts[:length]), failure)
        if found is not None:
            for part in parts[length:]:
                if not hasattr(found, part):
                    raise ConfigurationError(f"{SETTING}: {name!r}: {found.__name__} has no {part!r}")
                found = getattr(found, part)
            return found
    raise ConfigurationError(f"{failure}: there is no module {parts[0]!r}")
