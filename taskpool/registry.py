"""The task types one process knows, by name. Filled at start from modules, then only read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final

from taskpool.discovery import import_tasks
from taskpool.errors import ConfigurationError, DuplicateType
from taskpool.rqfunction import function_type
from taskpool.task import Task, options_of
from taskpool.tasktype import TaskType, place_of, task_type

BUILTINS: Final = ("taskpool.builtin.simple", "taskpool.builtin.words", "taskpool.builtin.http")


class Registry:
    """Task types by name.

    Registry(["app.tasks", "tasks/images.py"], builtins=True) loads those modules and the built-in types.
    """

    def __init__(self, modules: Sequence[str] = (), *, builtins: bool = False) -> None:
        self._types: dict[str, TaskType] = {}
        self._files: dict[str, None] = {}
        self.load((*BUILTINS, *modules) if builtins else modules)

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
        """The queues that the types go to by default, sorted."""
        return sorted({each.queue for each in self._types.values() if each.is_published})

    def files(self) -> list[str]:
        """The source files of the modules loaded, in the order given: what a reload must watch."""
        return list(self._files)

    def add(self, source: TaskType | Any) -> TaskType:
        """Add a task type, a function marked by @task, or a subclass of Task. The same place may come again.

        Raises: DuplicateType when another place has that name; ConfigurationError when the task is faulty.
        """
        new = source if isinstance(source, TaskType) else task_type(source)
        old = self._types.get(new.name)
        if old is not None and old.where != new.where:
            raise DuplicateType(f"the task type {new.name!r} is registered twice: at {old.where} and at {new.where}")
        self._types[new.name] = new
        return new

    def load_functions(self, names: Sequence[str]) -> None:
        """Import the functions of these dotted names, and add them for RQ jobs that call them.

        Raises: ConfigurationError for what can't be imported or isn't a function; DuplicateType.
        """
        for name in names:
            self.add(function_type(name))

    def load(self, modules: Sequence[str]) -> None:
        """Import modules, .py files and directories, and add the tasks written in them.

        A task counts where it is written, so importing one to call it registers nothing twice.

        Raises: ConfigurationError for what can't be imported, has a faulty task, or has none; DuplicateType.
        """
        for entry in modules:
            loaded = import_tasks(entry)
            sources = [source for module in loaded for source in tasks_in(module)]
            if not sources:
                raise ConfigurationError(f"{entry!r} has no tasks{_imported_instead(loaded)}")
            for source in sources:
                self.add(source)
            self._files.update({module.__file__: None for module in loaded if module.__file__})


def tasks_in(module: ModuleType) -> list[Any]:
    """The marked functions and the task classes written in a module, each once, in order."""
    written = {id(each): each for each in vars(module).values() if _module_of(each) == module.__name__}
    return [each for each in written.values() if options_of(each) or _is_task_class(each)]


def _module_of(source: Any) -> str | None:
    try:
        name = getattr(source, "__module__", None)
    except RuntimeError:  # a proxy that stands for nothing yet, like Flask's `request`
        return None
    return name if isinstance(name, str) else None


def _is_task_class(source: Any) -> bool:
    """A class without a `type` that others derive from is their common ground; without any it is a mistake."""
    if not (isinstance(source, type) and issubclass(source, Task)):
        return False
    return hasattr(source, "type") or not source.__subclasses__()


def _imported_instead(modules: Sequence[ModuleType]) -> str:
    """Where the tasks come from that these modules only import: the likely wish."""
    for module in modules:
        for each in vars(module).values():
            if _module_of(each) and (options_of(each) or (_is_task_class(each) and each is not Task)):
                return f" of its own; it imports {place_of(each)}, which is in {each.__module__!r}: name that one"
    return "; mark a function with @task, or derive a class from taskpool.Task"
