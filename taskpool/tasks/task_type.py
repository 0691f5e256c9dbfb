"""A task type: its schema, how payloads are decoded and how it is called. Created once, when its module is loaded.

Every fault of a task's declaration is found here. For each task only `decode` and `bind` are left to do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from taskpool.errors import ConfigurationError
from taskpool.tasks.context import TaskContext
from taskpool.tasks.payload.schema import converter, json_schema
from taskpool.tasks.payload.secret_fields import SecretFields
from taskpool.tasks.payload.signature import class_payload, function_payload, mask_in_repr
from taskpool.tasks.task import (
    Declaration,
    Note,
    Task,
    is_callable_object,
    is_coroutine_function,
    options_of,
    original_function,
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
    decode: Callable[[Any], Any] = field(repr=False)
    """Converts a JSON value to the payload. Raises: InvalidPayload, with a JSON Pointer for each fault."""
    bind: Callable[[Any, TaskContext], Callable[[], Any]] = field(repr=False)
    """Returns the call that runs the task, and returns its result or, when `is_async`, a coroutine."""
    options: TypeOptions = field(default_factory=TypeOptions)
    description: str = ""
    is_async: bool = False
    """Whether it is written as `async def`, perhaps below a decorator."""
    runs_on_loop: bool = False
    """Whether a call always returns a coroutine. Any other function may block, and is called in a thread."""
    is_published: bool = True
    """Whether workers publish it, so that it can be submitted by its name."""

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
            **options,
            name=self.name,
            schema=self.schema,
            description=self.description,
            is_async=self.is_async,
        )


def task_type(source: Any, note: Note | None = None) -> TaskType:
    """The task type of a function marked by `@task`, or of a subclass of `Task`. `note` is the note in its module.

    Raises: ConfigurationError, which names the place, for every fault that would make the task fail when it runs.
    """
    written = where = place_of(source)
    if note is not None and note.options is not None and not _is_in_file(source, note.place[0]):
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


def place_of(source: Any) -> str:
    """Where a function or class is written, "file.py:12", relative to the current directory when below it."""
    code = getattr(source if isinstance(source, type) else original_function(source), "__code__", None)
    if code is not None:
        return shown_place(code.co_filename, code.co_firstlineno)
    try:
        return shown_place(inspect.getsourcefile(source) or "?", inspect.getsourcelines(source)[1])
    except (OSError, TypeError):  # created without a file: in a shell, or by exec
        return f"{getattr(source, '__module__', '?')}.{getattr(source, '__qualname__', repr(source))}"


def shown_place(file: str, line: int) -> str:
    """A place in a file, relative to the current directory when below it."""
    path = Path(file).resolve()
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"


def _is_in_file(source: Any, file: str) -> bool:
    code = getattr(original_function(source), "__code__", None)
    return code is None or code.co_filename == file


def _from_function(function: Callable[..., Any], options: Declaration, where: str) -> TaskType:
    _check_options(options)
    _refuse_generators(function)
    if hasattr(function, "dispatch") and hasattr(function, "registry"):
        raise ConfigurationError("functools.singledispatch looks at an argument by position, and a task has none")
    payload = function_payload(function, options.name)
    described = original_function(function) if is_callable_object(function) else function
    return _made(options, where, function, described, schema=payload.schema, decode=payload.decode, bind=payload.bind)


def _from_class(cls: type[Task], where: str) -> TaskType:
    name = getattr(cls, "type", None)
    if name is None:
        raise ConfigurationError(f'the task class {cls.__name__} has no name; give it type = "..."')
    options = Declaration(name=name, **{each: getattr(cls, each) for each in TypeOptions.__struct_fields__})
    _check_options(options)
    if cls.run is Task.run:
        raise ConfigurationError(f"the task class {cls.__name__} has no run(self, ctx)")
    _refuse_generators(cls.run)
    payload_type, defaults = class_payload(cls.Payload, cls.__name__)
    schema = json_schema(payload_type, title=name, defaults=defaults)
    if defaults and (secret := SecretFields(schema)):
        mask_in_repr(payload_type, secret)
    decode, bind = converter(payload_type, task=name), partial(_bind_instance, cls, _takes_context(cls))
    return _made(options, where, cls.run, cls, schema=schema, decode=decode, bind=bind)


def _made(options: Declaration, where: str, function: Callable[..., Any], described: Any, **how: Any) -> TaskType:
    """`function` runs the task, and `described` has its docstring."""
    return TaskType(
        name=options.name,
        where=where,
        options=options,
        description=_summary(described),
        is_async=is_coroutine_function(function) or is_coroutine_function(original_function(function)),
        runs_on_loop=is_coroutine_function(function),
        **how,
    )


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
