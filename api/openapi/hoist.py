"""Payload schemas as components: each nested type stands in `components/schemas`, where generators of clients look.

A payload's schema comes from Redis and stands for itself, with its nested types in `$defs`. Here every nested type gets
a component. Types of one name share a component if they are alike. If they differ, the name of each component begins
with the name of its task type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from api.openapi.readable import as_generators_read
from api.openapi.schemas import REFS, Schema, with_refs
from taskpool.fleet import TypeInfo

_PLACES: Final = ("$defs", "definitions")
_LOCAL: Final = re.compile(r"#/(?:\$defs|definitions)/([^/]+)(.*)", re.DOTALL)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]")

Key = tuple[str, str]
"""A nested type: the task type that has it, and its name there."""


def payload_name(info: TypeInfo) -> str:
    """The component of a type's payload."""
    return f"{info.name}.payload"


def hoisted(types: Sequence[TypeInfo], taken: Collection[str]) -> dict[str, Schema]:
    """The components of the payloads of these types, and of all types nested in them. `taken`: the names of others."""
    nested = {(info.name, name): schema for info in types for name, schema in _definitions(info.schema).items()}
    names = _names(types, nested, {*taken, *map(payload_name, types)})
    components: dict[str, Schema] = {}
    for info in types:
        definitions = _definitions(info.schema)
        move = _mover(info, names)
        for name in definitions:
            components[names[info.name, name]] = _component(definitions[name], names[info.name, name], move)
        root = {key: value for key, value in info.schema.items() if key not in _PLACES}
        components[payload_name(info)] = _component(root, payload_name(info), move)
    return components


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for place in _PLACES for name, each in dict(schema.get(place) or {}).items()}


def _names(types: Sequence[TypeInfo], nested: Mapping[Key, Any], taken: Collection[str]) -> dict[Key, str]:
    """The component's name for each nested type."""
    prints = {info.name: _fingerprints(_definitions(info.schema)) for info in types}
    alike: dict[str, set[str]] = {}
    for type_name, name in nested:
        alike.setdefault(name, set()).add(prints[type_name][name])
    used = {_folded(name): "" for name in taken}
    found: dict[Key, str] = {}
    for type_name, name in nested:
        whole = name + prints[type_name][name]
        wishes = [f"{type_name}.{name}", *(f"{type_name}.{name}.{number}" for number in range(2, 2 + len(nested)))]
        if len(alike[name]) == 1:
            wishes.insert(0, name)
        cleaned = [_NOT_IN_NAMES.sub("_", wish) for wish in wishes]
        found[type_name, name] = next(
            (each for each in cleaned if used.get(_folded(each), whole) == whole), cleaned[-1]
        )
        used[_folded(found[type_name, name])] = whole
    return found


def _folded(name: str) -> str:
    """Generators make class names of components, such as `ParcelsSend` of `parcels.send`: these must differ, too."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _fingerprints(definitions: Mapping[str, Any]) -> dict[str, str]:
    """What tells apart types of one name: their schemas with all those that they refer to."""
    refs = {name: set(_refs(schema)) & definitions.keys() for name, schema in definitions.items()}

    def reached(name: str) -> set[str]:
        seen, left = set[str](), [name]
        while left:
            each = left.pop()
            if each not in seen:
                seen.add(each)
                left += refs[each]
        return seen

    return {
        name: json.dumps({each: definitions[each] for each in reached(name)}, sort_keys=True, default=str)
        for name in definitions
    }


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _refs(value)
    elif isinstance(node, str) and (match := _LOCAL.fullmatch(node)):
        yield _unescaped(match[1])


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def _mover(info: TypeInfo, names: Mapping[Key, str]) -> Callable[[str], str]:
    """What a reference within the schema of this type is in the document."""

    def move(ref: str) -> str:
        if (match := _LOCAL.fullmatch(ref)) and (info.name, _unescaped(match[1])) in names:
            return REFS + names[info.name, _unescaped(match[1])] + match[2]
        if ref == "#" or ref.startswith("#/"):
            return REFS + payload_name(info) + ref.removeprefix("#")
        return ref

    return move


def _component(schema: Any, name: str, move: Callable[[str], str]) -> Schema:
    return {**as_generators_read(with_refs(schema, move), is_component=True), "title": name}
