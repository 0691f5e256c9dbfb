"""Annotations that users write and msgspec doesn't take, in words that it does."""

from __future__ import annotations

import collections.abc
import functools
import operator
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Final, Union

import msgspec

from taskpool.errors import ConfigurationError

_AS_LIST: Final = (
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Reversible,
    collections.abc.Container,
)
_LIMITS: Final = {
    "gt": "gt",
    "ge": "ge",
    "lt": "lt",
    "le": "le",
    "multiple_of": "multiple_of",
    "min_length": "min_length",
    "max_length": "max_length",
    "pattern": "pattern",
}
_OF_OTHERS: Final = ("annotated_types", "pydantic", "pydantic_core")
"""Limits of these packages, known by their names: the packages are imported only by their users."""


def adapted(annotation: Any) -> Any:
    """The same type for msgspec: `object` is any JSON value, an `Iterable` is a list, and the limits that pydantic and
    annotated_types know (`Annotated[int, pydantic.Field(gt=0)]`) are msgspec's.

    Raises: ConfigurationError for a limit that msgspec has no word for.
    """
    if annotation is object:
        return Any
    if annotation is typing.LiteralString:
        return str
    if annotation in _AS_LIST:
        return list
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        inner, *notes = arguments
        return functools.reduce(lambda of, note: Annotated[of, note], map(_adapted_note, notes), adapted(inner))
    if origin is None or origin is typing.Literal or not arguments:
        return annotation
    if origin in _AS_LIST:
        return list[adapted(arguments[0])]  # type: ignore[misc]
    changed = tuple(each if each is Ellipsis else adapted(each) for each in arguments)
    if changed == arguments or any(isinstance(each, list) for each in arguments):
        return annotation
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, [type(None) if each is None else each for each in changed])
    return origin[changed]


def _adapted_note(note: Any) -> Any:
    if type(note).__module__.partition(".")[0] not in _OF_OTHERS:
        return note
    limits = dict(_limits(note))
    if getattr(note, "description", None):
        limits["description"] = note.description
    if not limits and type(note).__name__ != "FieldInfo":
        raise ConfigurationError(
            f"{type(note).__name__} in Annotated has no effect here: use msgspec.Meta, or a pydantic model"
        )
    return msgspec.Meta(**limits)


def _limits(note: Any) -> Iterator[tuple[str, Any]]:
    """The limits in one note; pydantic's `Field` holds a list of annotated_types' notes."""
    for name, word in _LIMITS.items():
        if (value := getattr(note, name, None)) is not None:
            yield word, value
    for each in getattr(note, "metadata", ()):
        yield from _limits(each)
