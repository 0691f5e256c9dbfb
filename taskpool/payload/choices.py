"""Which words a field takes, for the texts of faults: msgspec names only the one that was wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import inspect


def choices(wanted: Any, steps: Sequence[str | int], *, is_key: bool = False) -> list[Any]:
    """What may stand at the place that `steps` lead to in a value of the type `wanted` (`is_key`: as a key of what is
    there); empty where that isn't one of a few values, or can't be told. The step ``...`` is any value of a mapping."""
    try:
        places = [inspect.type_info(wanted)]
    except (TypeError, NameError):  # a type of which only its converter knows
        return []
    for step in steps:
        places = [below for place in places for below in _below(place, step)]
    if is_key:
        places = [each.key_type for place in places for each in _each(place) if isinstance(each, inspect.DictType)]
    return [choice for place in places for choice in _choices(place)]


def _each(place: inspect.Type) -> Iterator[inspect.Type]:
    """A type without what it is wrapped in; each one of a union."""
    if isinstance(place, inspect.UnionType):
        for member in place.types:
            yield from _each(member)
    elif isinstance(place, inspect.Metadata):
        yield from _each(place.type)
    else:
        yield place


def _below(place: inspect.Type, step: str | int) -> Iterator[inspect.Type]:
    for each in _each(place):
        if isinstance(each, inspect.TupleType):
            if isinstance(step, int) and step < len(each.item_types):
                yield each.item_types[step]
        elif isinstance(each, inspect.DictType):
            yield each.value_type
        elif (item := getattr(each, "item_type", None)) is not None:  # of a list, a set, ...
            yield item
        else:  # of a struct, a dataclass, ...
            yield from (field.type for field in getattr(each, "fields", ()) if field.encode_name == step)


def _choices(place: inspect.Type) -> Iterator[Any]:
    for each in _each(place):
        if isinstance(each, inspect.EnumType):
            yield from (member.value for member in each.cls)
        elif isinstance(each, inspect.LiteralType):
            yield from each.values
