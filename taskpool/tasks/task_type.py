"""A task type: its schema, how payloads are decoded and how it is called. Created once, when its module is loaded.

Every fault of a task's declaration is found here. For each task only `decode` and `bind` are left to do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from taskpool.errors import ConfigurationError, InvalidPayload
from taskpool.tasks.context import TaskContext
from taskpool.tasks.functions import is_callable_object, is_coroutine_function, original_function
from taskpool.tasks.payload.secret_fields import SecretFields
from taskpool.tasks.payload.signature import Bind, Decode, class_payload, function_payload
from taskpool.tasks.schedule import At, Cron, Every, Times, timing_faults
from taskpool.tasks.task import (
    Declaration,
    Note,
    Task,
    options_of,
    place_of,
    shown_place,
)
from taskpool.types import TypeInfo, TypeOptions
from taskpool.validation import declared, type_name_fault, value_faults

DEFAULT_QUEUE: Final = "default"


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskType:
    """One task type. An option that is None has the default of the setting. `where` is its place, "file.py:12"."""

    name: str
    schema: dict[str, Any]
    where: str
    decode: Decode = field(repr=False)
    bind: Bind = field(repr=False)
    options: TypeOptions = field(default_factory=TypeOptions)
    description: str = ""
    is_async: bool = False
    """Whether it is written as `async def`, perhaps below a decorator."""
    runs_on_loop: bool = False
    """Whether a call always returns a coroutine. Any other function may block, and is called in a thread."""
    is_published: bool = True
    """Whether workers publish it, so that it can be submitted by its name."""
    schedule: Times | None = None
    """When worker pools submit it."""

    secret_fields: SecretFields = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "secret_fields", SecretFields(self.schema))

    @property
    def queue(self) -> str:
        """The queue of its tasks, if a submission names none."""
        return self.options.queue or DEFAULT_QUEUE

    def info(self, *, max_attempts: int = 1) -> TypeInfo:
        """The published form. `max_attempts` is the default of the setting."""
        options = {each: getattr(self.options, each) for each in TypeOptions.__struct_fields__}
        options |= {"queue": self.queue, "max_attempts": self.options.max_attempts or max_attempts}
        return TypeInfo(
            **options, name=self.name, schema=self.schema, description=self.description, is_async=self.is_async
        )


def task_type(source: Any, note: Note | None = None) -> TaskType:
    """The task type of a function marked by `@task`, or of a subclass of `Task`. `note` is the note in its module.

    Raises: ConfigurationError, which names the place, for every fault that would make the task fail when it runs.
    """
    written = where = place_of(source)
    code = getattr(original_function(source), "__code__", None)
    if note is not None and note.options is not None and code is not None and code.co_filename != note.place[0]:
        where = shown_place(*note.place)  # another module's decorator or factory made the function
    try:
        if isinstance(source, type) and issubclass(source, Task):
            return _from_class(source, where)
        if options := (note.options if note else None) or options_of(source):
            return _from_function(source, options, where)
    except ConfigurationError as error:
        hint = "" if written == where else f" (of the function at {written}; a decorator needs functools.wraps)"
        raise ConfigurationError(f"{where}: {error}{hint}") from error
    raise ConfigurationError(f"{where}: not a task; mark a function with @task, or derive a class from taskpool.Task")


def _from_function(function: Callable[..., Any], options: Declaration, where: str) -> TaskType:
    _check_options(options)
    _refuse_generators(function)
    if hasattr(function, "dispatch") and hasattr(function, "registry"):
        raise ConfigurationError("functools.singledispatch looks at an argument by position, and a task has none")
    schema, decode, bind = function_payload(function, options.name)
    described = original_function(function) if is_callable_object(function) else function
    return _made(options, where, function, described, schema=schema, decode=decode, bind=bind)


def _from_class(cls: type[Task], where: str) -> TaskType:
    name = getattr(cls, "type", None)
    if name is None:
        raise ConfigurationError(f'the task class {cls.__name__} has no name; give it type = "..."')
    declared_options = {each: getattr(cls, each) for each in TypeOptions.__struct_fields__}
    options = Declaration(name=name, schedule=cls.schedule, **declared_options)
    _check_options(options)
    if cls.run is Task.run:
        raise ConfigurationError(f"the task class {cls.__name__} has no run(self, ctx)")
    _refuse_generators(cls.run)
    schema, decode = class_payload(cls.Payload, cls.__name__, name)
    bind = partial(_bind_instance, cls, _takes_context(cls))
    return _made(options, where, cls.run, cls, schema=schema, decode=decode, bind=bind)


def _made(options: Declaration, where: str, function: Callable[..., Any], described: Any, **how: Any) -> TaskType:
    """`function` runs the task, and `described` has its docstring."""
    made = TaskType(
        name=options.name,
        where=where,
        options=options,
        description=_summary(described),
        is_async=is_coroutine_function(function) or is_coroutine_function(original_function(function)),
        runs_on_loop=is_coroutine_function(function),
        schedule=options.schedule,
        **how,
    )
    if made.schedule is not None:
        _check_schedule(made, made.schedule)
    return made


def _check_schedule(made: TaskType, times: Times) -> None:
    if not isinstance(times, Cron | Every | At):
        raise ConfigurationError(f"task {made.name!r}: schedule must be a Cron, an Every or an At, not {times!r}")
    for fault in timing_faults(times.timing()):
        raise ConfigurationError(f"task {made.name!r}: schedule: {fault.pointer.removeprefix('/')}: {fault.detail}")
    try:
        made.decode({})
    except InvalidPayload as error:
        raise ConfigurationError(
            f"task {made.name!r}: its schedule submits it without a payload, so each field needs a default: {error}"
        ) from error


def _bind_instance(cls: type[Task], takes_context: bool, payload: Any, ctx: TaskContext) -> Callable[[], Any]:
    instance = cls()
    instance.id = ctx.id
    instance.payload = payload
    return partial(instance.run, *((ctx,) if takes_context else ()))


def _takes_context(cls: type[Task]) -> bool:
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise ConfigurationError(f"{cls.__name__}() must work without arguments: {error}") from error
    signature = inspect.signature(cls.run)
    for arguments in (("self", "ctx"), ("self",)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) > 1
    raise ConfigurationError(f"{cls.__name__}.run must be run(self, ctx), not run{signature}")


def _refuse_generators(function: Callable[..., Any]) -> None:
    function = type(function).__call__ if is_callable_object(function) else function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError("a task returns its result; it can't be a generator (yield)")


def _check_options(declaration: Declaration) -> None:
    if fault := type_name_fault(declaration.name):
        raise ConfigurationError(fault)
    for option in declared(TypeOptions):
        value = getattr(declaration, option.name)
        for _, fault in () if value is None else value_faults(option, value):
            raise ConfigurationError(f"task {declaration.name!r}: {option.name} {fault}")


def _summary(source: Any) -> str:
    """The first paragraph of the docstring, on one line. Docstrings of base classes don't count."""
    text = inspect.cleandoc(getattr(source, "__doc__", None) or "")
    return " ".join(text.split("\n\n")[0].split())
