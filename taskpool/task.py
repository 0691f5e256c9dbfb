"""How a task is written: `@task` on a function, or a subclass of `Task`.

Neither registers anything: they leave a mark on the function, and a note in the module that is being imported (see
`marks`). A `Registry` collects both from the modules that it loads. So a task file can be imported anywhere, and the
function stays the function it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from taskpool.context import TaskContext
from taskpool.errors import ConfigurationError, DuplicateType
from taskpool.marks import caller_place, leave_note, written_function
from taskpool.types import OnLostLease

F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "__taskpool_task__"
_SPEC: Final = "__taskpool_spec__"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What `@task` was given. None means: the setting's default; for the queue, "default"."""

    name: str
    queue: str | None = None
    timeout_s: float | None = None
    max_attempts: int | None = None
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease | None = None
    result_ttl_s: int | None = None


def task(
    name: str,
    *,
    queue: str | None = None,
    timeout_s: float | None = None,
    max_attempts: int | None = None,
    backoff_s: float | None = None,
    backoff_max_s: float | None = None,
    on_lost_lease: OnLostLease | None = None,
    result_ttl_s: int | None = None,
) -> Callable[[F], F]:
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
    options = TaskOptions(
        name=name,
        queue=queue,
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        backoff_max_s=backoff_max_s,
        on_lost_lease=on_lost_lease,
        result_ttl_s=result_ttl_s,
    )

    def mark(function: F) -> F:
        _refuse_others(function, options)
        _refuse_methods(function, options)
        try:
            _refuse_shadowing(function, options)
            setattr(function, MARK, options)
        except (AttributeError, TypeError):  # a bound method, a function in C, an object with slots
            raise _refusal(options, f"{function!r} can't be marked as one; write a function that calls it") from None
        leave_note(function, options)
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


def options_of(function: object) -> TaskOptions | None:
    """What `@task` noted on a function; None when it isn't a task."""
    options = getattr(function, MARK, None)
    return options if isinstance(options, TaskOptions) else None


def _refusal(options: TaskOptions, fault: str) -> ConfigurationError:
    file, line = caller_place()
    return ConfigurationError(f"{file}:{line}: the task {options.name!r}: {fault}")


def _refuse_others(function: Any, options: TaskOptions) -> None:
    if inspect.isclass(function):
        raise _refusal(options, f"{function.__qualname__} is a class; for a class, derive from taskpool.Task")
    if not callable(function):
        raise _refusal(options, f"{function!r} can't be called; @task is for functions")


def _refuse_methods(function: Callable[..., Any], options: TaskOptions) -> None:
    qualname = getattr(function, "__qualname__", "")
    owner = qualname.rpartition(".")[0]
    if owner and not owner.endswith("<locals>") and not inspect.ismethod(function):
        raise ConfigurationError(
            f"{_place(function)}: the method {qualname} can't be the task {options.name!r}; "
            "write a function at the module's top level, or derive the class from taskpool.Task"
        )


def _refuse_shadowing(function: Callable[..., Any], options: TaskOptions) -> None:
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
