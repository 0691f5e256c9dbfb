"""Defaults of dataclasses: when msgspec makes an instance, it leaves defaults in the class, and when it encodes that
instance, it leaves them out. A payload's dataclasses get all their attributes here, as their `__init__` would set them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import msgspec
from msgspec import inspect


def completed(convert: Callable[[Any], Any], type_: Any) -> Callable[[Any], Any]:
    """`convert`, with the dataclasses completed that `type_` leads to. Types without any pay nothing."""
    names = {cls: _names(cls) for cls in _dataclasses(type_)}
    if not any(names.values()):
        return convert

    def convert_and_complete(payload: Any) -> Any:
        value = convert(payload)
        _complete(value, names)
        return value

    return convert_and_complete


def _names(cls: type) -> list[str]:
    """The fields whose default is an attribute of the class."""
    fields: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
    has_slots = "__dict__" not in dir(cls)
    return [] if has_slots else [name for name, each in fields.items() if hasattr(cls, name) and each.init]


def _complete(value: Any, names: dict[type, list[str]]) -> None:
    left, seen = [value], set[int]()
    while left:
        each = left.pop()
        kind = type(each)
        if kind in (str, int, float, bool, type(None)) or id(each) in seen:
            continue
        seen.add(id(each))
        for name in names.get(kind, ()):
            if name not in each.__dict__:
                each.__dict__[name] = getattr(kind, name)
        if isinstance(each, list | tuple | set | frozenset):
            left += each
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, msgspec.Struct):
            left += [getattr(each, name) for name in each.__struct_fields__]
        elif is_dataclass(each) or hasattr(kind, "__attrs_attrs__"):
            attributes = getattr(kind, "__dataclass_fields__", None) or [a.name for a in kind.__attrs_attrs__]
            left += [getattr(each, name, None) for name in attributes]


def _dataclasses(type_: Any) -> Iterator[type]:
    """The dataclasses that a type leads to."""
    try:
        left: list[Any] = [inspect.type_info(type_)]
    except (TypeError, NameError):  # its schema says what is wrong with it
        return
    seen = set[int]()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, inspect.DataclassType) and hasattr(each.cls, "__dataclass_fields__"):
            yield each.cls
        for name in ("type", "item_type", "key_type", "value_type"):
            if isinstance(below := getattr(each, name, None), inspect.Type):
                left.append(below)
        left += [below for name in ("types", "item_types") for below in getattr(each, name, ())]
        left += [field.type for field in getattr(each, "fields", ())]
