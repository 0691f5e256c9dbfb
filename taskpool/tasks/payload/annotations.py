"""Annotations that users write and msgspec doesn't take, in words that it does."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final, Union

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.tasks.payload.custom import (
    by_pydantic,
    collection,
    fields_of,
    has_plain_defaults,
    is_custom,
    keyed_dict,
    plain_collection,
    union,
    why_own,
)
from taskpool.tasks.payload.encode import is_of_pydantic, is_pydantic, is_pydantic_secret

_AS_LIST: Final = (
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Reversible,
    collections.abc.Container,
)
_DICTS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
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


def adapted(annotation: Any, above: tuple[Any, ...] = ()) -> Any:
    """The same type for msgspec: `object` is any JSON value, an `Iterable` is a list, the limits that pydantic and
    annotated_types know (`Annotated[int, pydantic.Field(gt=0)]`) are msgspec's, and what msgspec can't read is a
    `Custom`. `above` are the classes of which this is a field.

    Raises: ConfigurationError for a limit that msgspec has no word for, and for a type that can't be read.
    """
    if annotation is object:
        return Any
    if annotation is typing.LiteralString:
        return str
    if annotation in _AS_LIST or annotation in (typing.Iterable, typing.Iterator, typing.Reversible, typing.Container):
        return list
    if type(annotation).__name__ == "TypeAliasType" and not typing.get_args(annotation):
        return annotation if annotation in above else _aliased(annotation, above)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _annotated(annotation, above)
    if origin is None and isinstance(annotation, type):
        return _class(annotation, above)
    if origin is None or origin is typing.Literal or not arguments:
        return annotation
    if origin in _AS_LIST:
        return list[adapted(arguments[0], above)]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return _union(annotation, arguments, above)
    if (plain := plain_collection(annotation)) is not None:
        return collection(annotation, adapted(plain, above))
    if any(isinstance(each, list) for each in arguments):
        return annotation
    changed = tuple(each if each is Ellipsis else adapted(each, above) for each in arguments)
    if origin in _DICTS and (changed[0] is bool or is_custom(changed[0])):
        return keyed_dict(annotation, *changed)
    return annotation if changed == arguments else origin[changed]


def _aliased(alias: Any, above: tuple[Any, ...]) -> Any:
    """What `type X = ...` stands for, if that changes."""
    value = alias.__value__
    changed = adapted(value, (*above, alias))
    return alias if changed is value or changed == value else changed


def _annotated(annotation: Any, above: tuple[Any, ...]) -> Any:
    inner, *notes = typing.get_args(annotation)
    if any(_is_pydantics_alone(note) for note in notes):
        return by_pydantic(annotation, strict=None if getattr(notes[0], "discriminator", None) else True)
    changed = adapted(inner, above)
    notes = [_adapted_note(note) for note in notes]
    if is_custom(changed):  # msgspec takes limits for its own types alone
        limits = [note for note in notes if isinstance(note, msgspec.Meta) and _has_limits(note)]
        if limits:
            raise ConfigurationError(f"{annotation}: limits have no effect on this type")
    return functools.reduce(lambda of, note: Annotated[of, note], notes, changed)


def _has_limits(meta: msgspec.Meta) -> bool:
    return any(getattr(meta, name) is not None for name in _LIMITS.values())


def _union(annotation: Any, arguments: tuple[Any, ...], above: tuple[Any, ...]) -> Any:
    models = [each for each in arguments if is_pydantic(each)]
    if len(models) > 1 and all(each in models or each is type(None) for each in arguments):
        return by_pydantic(annotation, strict=None)
    changed = tuple(adapted(each, above) for each in arguments)
    customs = [each for each in changed if is_custom(each)]
    rest = [each for each in changed if each not in customs and each is not type(None)]
    if customs and (rest or len(customs) > 1):
        return union(annotation, changed)
    if changed == arguments:
        return annotation
    return functools.reduce(operator.or_, changed) if len(changed) > 1 else changed[0]


def _class(cls: type, above: tuple[Any, ...]) -> Any:
    """A class that isn't generic, or isn't used so."""
    if is_pydantic(cls) or is_pydantic_secret(cls) or cls in above:
        return cls
    if hasattr(cls, "__pydantic_validator__"):  # a dataclass of pydantic's
        _refuse_aliases(cls)
        return by_pydantic(cls, strict=None)
    if is_of_pydantic(cls):
        return by_pydantic(cls, strict=True)
    if plain_collection(cls) is not None:
        return collection(cls, plain_collection(cls))
    if hasattr(cls, "__attrs_attrs__") or hasattr(cls, "__dataclass_fields__"):
        return _with_fields(cls, above)
    if typing.is_typeddict(cls):
        return _typed_dict(cls, (*above, cls))
    return cls


def _with_fields(cls: Any, above: tuple[Any, ...]) -> Any:
    hints = _hints(cls)
    changed = {
        name: _field(hint, (*above, cls)) for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar
    }
    same = all(each is hints[name] or each == hints[name] or hints[name] is object for name, each in changed.items())
    is_whole = "__attrs_attrs__" not in vars(cls) or all(each.init for each in cls.__attrs_attrs__)
    if same and is_whole and not why_own(cls) and has_plain_defaults(cls):
        return cls
    if getattr(cls, "__parameters__", ()):
        raise ConfigurationError(
            f"{cls.__name__} is generic and has fields that msgspec can't read; use a pydantic model"
        )
    return fields_of(cls, changed)


def _field(hint: Any, above: tuple[Any, ...]) -> Any:
    return adapted(hint.type if isinstance(hint, dataclasses.InitVar) else hint, above)


def _typed_dict(cls: Any, above: tuple[Any, ...]) -> Any:
    changed, is_changed = {}, False
    for name, hint in _hints(cls).items():
        mark, inner = typing.get_origin(hint), hint
        if mark in (typing.Required, typing.NotRequired):
            # What is written counts: __required_keys__ doesn't know it when annotations are texts.
            inner = typing.get_args(hint)[0]
        else:
            mark = typing.Required if name in cls.__required_keys__ else typing.NotRequired
        new = adapted(inner, above)
        changed[name], is_changed = mark[new], is_changed or new != inner
    if not is_changed:
        return cls
    made: Any = typing.TypedDict(cls.__name__, changed)  # type: ignore[misc]
    made.__doc__, made.__module__ = cls.__doc__, cls.__module__
    return made


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigurationError(f"the annotations of {cls.__name__} can't be resolved: {error}") from error


def _refuse_aliases(cls: Any) -> None:
    for name, each in cls.__pydantic_fields__.items():
        if each.alias or each.validation_alias or each.serialization_alias:
            raise ConfigurationError(
                f"the field {name!r} of the pydantic dataclass {cls.__name__} has an alias; use a pydantic model"
            )


def _is_pydantics_alone(note: Any) -> bool:
    """Whether this note is more than a description and limits that msgspec knows, and pydantic applies it."""
    kind = type(note)
    if kind.__module__.partition(".")[0] not in ("pydantic", "pydantic_core"):
        return False
    if kind.__name__ == "FieldInfo":
        special = ("discriminator", "strict", "alias", "validation_alias", "coerce_numbers_to_str", "allow_inf_nan")
        return any(getattr(note, name, None) is not None for name in special) or any(
            not dict(_limits(each)) for each in note.metadata
        )
    return not dict(_limits(note)) or any(
        getattr(note, name, None) for name in ("strip_whitespace", "to_lower", "to_upper", "strict")
    )


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
