"""Replaces annotations that msgspec doesn't read, or would read wrongly, by ones that it reads."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import operator
import types
import typing
from typing import Annotated, Any, ClassVar, Final, Union

import msgspec

from taskpool.errors import ConfigurationError
from taskpool.tasks.payload.encode import is_of_pydantic, is_pydantic, is_pydantic_secret
from taskpool.tasks.payload.handlers import (
    by_pydantic,
    collection,
    fields_of,
    handler_of,
    has_plain_defaults,
    keyed_dict,
    needs_own_init,
    plain_collection,
    stand_in,
    union,
)

_AS_LIST: Final = (
    collections.abc.Iterable,
    collections.abc.Iterator,
    collections.abc.Reversible,
    collections.abc.Container,
)
_DICTS: Final = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LIMITS: Final = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
"""Limits that msgspec, pydantic and annotated_types know by the same names."""
_ONLY_PYDANTICS: Final = (
    *("discriminator", "strict", "alias", "validation_alias", "coerce_numbers_to_str", "allow_inf_nan"),
    *("strip_whitespace", "to_lower", "to_upper"),
)
"""What a note may ask for that only pydantic does."""
_RESOLVING: Final = (NameError, AttributeError, TypeError, SyntaxError)

Classes = tuple[Any, ...]


def hints_of(holder: Any, what: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """The annotations of a class or an object, resolved. `names` are the globals for those that are texts.

    Raises: ConfigurationError, which begins with `what`, when one can't be resolved.
    """
    try:
        return typing.get_type_hints(holder, globalns=names, include_extras=True)
    except _RESOLVING as error:
        raise ConfigurationError(f"{what} can't be resolved: {error}") from error


def adapted(annotation: Any, above: Classes = ()) -> Any:
    """The same type for msgspec: `object` is any JSON value, an `Iterable` is a list, limits of pydantic and
    annotated_types are limits of msgspec, and a type that msgspec can't read is a stand-in. `above` are the classes of
    which this is a field.

    Raises: ConfigurationError for a limit that msgspec doesn't know, and for a type that can't be read.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is object:
        return Any
    if annotation is typing.LiteralString:
        return str
    if annotation in _AS_LIST or origin in _AS_LIST:
        return list[adapted(arguments[0], above)] if arguments else list  # type: ignore[misc]
    if type(annotation).__name__ == "TypeAliasType" and not arguments:
        return annotation if annotation in above else _alias(annotation, above)
    if origin is Annotated:
        return _annotated(annotation, above)
    if origin is None and isinstance(annotation, type):
        return _class(annotation, above)
    if origin is None or origin is typing.Literal or not arguments:
        return annotation
    if origin in (Union, types.UnionType):
        return _union(annotation, arguments, above)
    if (plain := plain_collection(annotation)) is not None:
        return stand_in(annotation, collection(annotation, adapted(plain, above)))
    if any(isinstance(each, list) for each in arguments):
        return annotation
    changed = tuple(each if each is Ellipsis else adapted(each, above) for each in arguments)
    if origin in _DICTS and (changed[0] is bool or handler_of(changed[0])):
        return stand_in(annotation, keyed_dict(*changed))
    return annotation if changed == arguments else origin[changed]


def _alias(alias: Any, above: Classes) -> Any:
    """The value of `type X = ...` if it changes, else the alias."""
    value = alias.__value__
    changed = adapted(value, (*above, alias))
    return alias if changed is value or changed == value else changed


def _union(annotation: Any, arguments: tuple[Any, ...], above: Classes) -> Any:
    models = [each for each in arguments if is_pydantic(each)]
    if len(models) > 1 and all(each in models or each is type(None) for each in arguments):
        return stand_in(annotation, by_pydantic(annotation, strict=None))
    changed = tuple(adapted(each, above) for each in arguments)
    foreign = [each for each in changed if handler_of(each)]
    native = [each for each in changed if each not in foreign and each is not type(None)]
    if foreign and (native or len(foreign) > 1):
        return stand_in(annotation, union(annotation, changed))
    return annotation if changed == arguments else functools.reduce(operator.or_, changed)


# --- classes -------------------------------------------------------------------------------------------------


def _class(cls: type, above: Classes) -> Any:
    if is_pydantic(cls) or is_pydantic_secret(cls) or cls in above:
        return cls
    if hasattr(cls, "__pydantic_validator__"):  # a dataclass of pydantic's
        _refuse_aliases(cls)
        return stand_in(cls, by_pydantic(cls, strict=None))
    if is_of_pydantic(cls):
        return stand_in(cls, by_pydantic(cls, strict=True))
    if hasattr(cls, "__attrs_attrs__") or hasattr(cls, "__dataclass_fields__"):
        return _with_fields(cls, above)
    if typing.is_typeddict(cls):
        return _typed_dict(cls, (*above, cls))
    return cls


def _refuse_aliases(cls: Any) -> None:
    for name, each in cls.__pydantic_fields__.items():
        if each.alias or each.validation_alias or each.serialization_alias:
            raise ConfigurationError(
                f"the field {name!r} of the pydantic dataclass {cls.__name__} has an alias; use a pydantic model"
            )


def _with_fields(cls: Any, above: Classes) -> Any:
    """A dataclass or an attrs class."""
    hints = {name: each for name, each in _hints(cls).items() if typing.get_origin(each) is not ClassVar}
    changed = {name: _field(hint, (*above, cls)) for name, hint in hints.items()}
    is_same = all(each in (hints[name], Any) for name, each in changed.items())
    takes_all = "__attrs_attrs__" not in vars(cls) or all(each.init for each in cls.__attrs_attrs__)
    if is_same and takes_all and not needs_own_init(cls) and has_plain_defaults(cls):
        return cls
    if getattr(cls, "__parameters__", ()):
        raise ConfigurationError(
            f"{cls.__name__} is generic and has fields that msgspec can't read; use a pydantic model"
        )
    return stand_in(cls, fields_of(cls, changed))


def _field(hint: Any, above: Classes) -> Any:
    return adapted(hint.type if isinstance(hint, dataclasses.InitVar) else hint, above)


def _typed_dict(cls: Any, above: Classes) -> Any:
    changed, is_changed = {}, False
    for name, hint in _hints(cls).items():
        mark, inner = typing.get_origin(hint), hint
        if mark in (typing.Required, typing.NotRequired):
            # The mark itself counts: __required_keys__ doesn't know it when annotations are texts.
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
    return hints_of(cls, f"the annotations of {cls.__name__}")


# --- notes: what stands in Annotated beside the type -----------------------------------------------------------


def _annotated(annotation: Any, above: Classes) -> Any:
    inner, *notes = typing.get_args(annotation)
    if any(_is_for_pydantic(note) for note in notes):
        strict = None if getattr(notes[0], "discriminator", None) else True
        return stand_in(annotation, by_pydantic(annotation, strict=strict))
    changed = adapted(inner, above)
    notes = [_adapted_note(note) for note in notes]
    if handler_of(changed) and any(isinstance(note, msgspec.Meta) and _limits(note) for note in notes):
        raise ConfigurationError(f"{annotation}: limits have no effect on this type")
    return functools.reduce(lambda of, note: Annotated[of, note], notes, changed)


def _package(note: Any) -> str:
    """Pydantic and annotated_types are known by name: only their users import them."""
    return type(note).__module__.partition(".")[0]


def _is_for_pydantic(note: Any) -> bool:
    """Whether a note is of pydantic and more than a description and limits that msgspec knows."""
    if _package(note) not in ("pydantic", "pydantic_core"):
        return False
    parts = note.metadata if type(note).__name__ == "FieldInfo" else [note]
    return not all(map(_limits, parts)) or any(getattr(note, name, None) is not None for name in _ONLY_PYDANTICS)


def _adapted_note(note: Any) -> Any:
    if _package(note) not in ("annotated_types", "pydantic", "pydantic_core"):
        return note
    limits = _limits(note)
    if description := getattr(note, "description", None):
        limits["description"] = description
    if not limits and type(note).__name__ != "FieldInfo":
        raise ConfigurationError(
            f"{type(note).__name__} in Annotated has no effect here: use msgspec.Meta, or a pydantic model"
        )
    return msgspec.Meta(**limits)


def _limits(note: Any) -> dict[str, Any]:
    """The limits in one note; the `Field` of pydantic holds a list of notes of annotated_types."""
    found = {name: value for name in _LIMITS if (value := getattr(note, name, None)) is not None}
    for each in getattr(note, "metadata", ()):
        found |= _limits(each)
    return found
