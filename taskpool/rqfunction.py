"""Functions that plain RQ jobs may call here: each one named in TASKPOOL_RQ_FUNCTIONS, as a task type of that name.

They are imported once, when a worker pool starts. Nothing that a job names is ever imported: a job that calls any other
function is another program's.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Final

from taskpool.context import TaskContext
from taskpool.discovery import make_cwd_importable, user_place
from taskpool.errors import ConfigurationError, FieldError
from taskpool.keys import ENTRY_POINT
from taskpool.marks import is_coroutine_function, written_function
from taskpool.payload.faults import invalid_payload_of
from taskpool.tasktype import TaskType, place_of

SETTING: Final = "TASKPOOL_RQ_FUNCTIONS"
LONGEST_NAME: Final = 150
_DOTTED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
_ARGUMENTS: Final = {
    "type": "object",
    "properties": {"args": {"type": "array"}, "kwargs": {"type": "object"}},
    "required": ["args", "kwargs"],
}


def function_type(name: str) -> TaskType:
    """The task type of a function by its dotted name, ``package.module.function``: RQ's name for it.

    Raises: ConfigurationError for a name that isn't one, can't be imported, or isn't a function.
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
    return TaskType(
        name=name,
        schema=_ARGUMENTS,
        where=place_of(function),
        decode=partial(_decode, name),
        bind=partial(_bind, function),
        is_async=is_coroutine_function(written_function(function)),
        runs_on_loop=is_coroutine_function(function),
        is_published=False,
    )


def _decode(name: str, payload: Any) -> Any:
    """The arguments of a call. They come from an RQ job, or from a task that was given this type.

    Raises: InvalidPayload for anything else.
    """
    if isinstance(payload, dict) and isinstance(payload.get("args"), list) and isinstance(payload.get("kwargs"), dict):
        return payload
    fault = FieldError("/payload", "must be an object with the arguments of a call: a list `args`, an object `kwargs`")
    raise invalid_payload_of(name, [fault])


def _bind(function: Callable[..., Any], payload: Any, ctx: TaskContext) -> Callable[[], Any]:
    return partial(function, *payload["args"], **payload["kwargs"])


def _found(name: str) -> Any:
    """What the name stands for: a function of a module, or a static method of a class in one, as RQ looks it up."""
    make_cwd_importable()
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = _module(name, ".".join(parts[:length]))
        if module is not None:
            found: Any = module
            for part in parts[length:]:
                if not hasattr(found, part):
                    raise ConfigurationError(f"{SETTING}: {name!r}: {found.__name__} has no {part!r}")
                found = getattr(found, part)
            return found
    raise ConfigurationError(f"{SETTING}: {name!r} can't be imported: there is no module {parts[0]!r}")


def _module(name: str, module: str) -> ModuleType | None:
    """The module, imported; None when there is none of that name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            return None
        fault: BaseException = error
    except (Exception, SystemExit) as error:  # a user's module may raise anything when it is imported
        fault = error
    what = f"{type(fault).__name__}: {fault}".splitlines()[0]
    raise ConfigurationError(f"{SETTING}: {name!r} can't be imported: {what} ({user_place(fault)})") from fault
