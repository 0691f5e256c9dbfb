"""What kind of function it is that a task was written as."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

_MOST_LAYERS: Final = 100


def original_function(source: Any) -> Any:
    """The function that a user wrote, below wrappers, `functools.partial`, methods and callable objects."""
    for _ in range(_MOST_LAYERS):
        if isinstance(source, functools.partial):
            source = source.func
        elif (wrapped := getattr(source, "__dict__", {}).get("__wrapped__")) is not None:
            source = wrapped
        elif inspect.ismethod(source):
            source = source.__func__
        elif is_callable_object(source):
            source = type(source).__call__
        else:
            break
    return source


def is_callable_object(source: Any) -> bool:
    """Whether an object can be called, and is neither a function nor a class."""
    return callable(source) and not inspect.isroutine(source) and not inspect.isclass(source)


def is_coroutine_function(source: Callable[..., Any]) -> bool:
    """Whether a call always returns a coroutine: an `async def`, also in a partial, a method or a `__call__`."""
    while isinstance(source, functools.partial):
        source = source.func
    return inspect.iscoroutinefunction(type(source).__call__ if is_callable_object(source) else source)
