"""Finds the values of a payload that its type's JSON Schema marks as secret (`writeOnly`), and takes them out.

Where a schema has alternatives, a value is secret if any of them says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from taskpool.text import MASK, Path, Secrets

Schema = Mapping[str, Any]
Step = str | int | None
"""The name of a member, or the index of an item. None stands for a member that no schema names."""

APPLICATORS: Final = ("anyOf", "oneOf", "allOf", "if", "then", "else")
"""The words for other schemas of the same value."""


class SecretFields:
    """The secret fields of one payload schema; false when it has none."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._known: dict[tuple[int, ...], _Below] = {}
        self._leading: dict[int, list[Schema]] = {}
        self._top = self.applying([schema])

    def __bool__(self) -> bool:
        return bool(self._top)

    def split(self, payload: Any) -> tuple[Any, Secrets | None]:
        """A copy of the payload with masks, and the secret values; None if there are none.

        The payload need not fit the schema.
        """
        taken: list[tuple[Path, Any]] = []
        shown = self._shown(payload, self._top, (), taken)
        return shown, Secrets(taken) if taken else None

    def without_secret_defaults(self) -> dict[str, Any]:
        """The schema for publication, without the defaults that are secret or contain something secret."""
        published: dict[str, Any] = self._without_defaults(self._root)
        return published

    def applying(self, schemas: Iterable[Any]) -> list[Schema]:
        """All schemas that apply to the same value as these, without those that can't make anything secret."""
        return [each for schema in schemas for each in self._applying(schema)]

    def _applying(self, schema: Any) -> list[Schema]:
        if (found := self._leading.get(id(schema))) is None:  # asked again for each member that a pattern names
            found = [each for each in expanded(self._root, schema) if self._leads(each, set())]
            self._leading[id(schema)] = found
        return found

    def _shown(self, value: Any, schemas: Sequence[Schema], path: tuple[str | int, ...], taken: list[Any]) -> Any:
        if value is None or not schemas:  # null means that no value was given
            return value
        if any(schema.get("writeOnly") is True for schema in schemas):
            taken.append((path, value))
            return MASK
        key = tuple(map(id, schemas))
        if (below := self._known.get(key)) is None:
            below = self._known[key] = _Below(self, schemas)
        if isinstance(value, dict):
            return {name: self._shown(item, below[name], (*path, name), taken) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._shown(item, below[at], (*path, at), taken) for at, item in enumerate(value)]
        return value

    def _leads(self, node: Any, seen: set[int]) -> bool:
        """Whether a part of the schema, or a definition that it refers to, has something secret."""
        if isinstance(node, list):
            return any(self._leads(item, seen) for item in node)
        if not isinstance(node, Mapping) or id(node) in seen:
            return False
        seen.add(id(node))
        return (
            node.get("writeOnly") is True
            or self._leads(_referred(self._root, node), seen)
            or any(self._leads(item, seen) for item in node.values())
        )

    def _without_defaults(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._without_defaults(item) for item in node]
        if not isinstance(node, dict):
            return node
        taken: list[Any] = []
        if "default" in node:
            self._shown(node["default"], self.applying([node]), (), taken)
        return {name: self._without_defaults(item) for name, item in node.items() if not (taken and name == "default")}


def expanded(root: Schema, schema: Any, seen: set[int] | None = None) -> Iterator[Schema]:
    """A schema and all others of the document `root` that apply to the same value because of it."""
    seen = set() if seen is None else seen
    if not isinstance(schema, Mapping) or id(schema) in seen:
        return
    seen.add(id(schema))
    yield schema
    yield from expanded(root, _referred(root, schema), seen)
    for word in APPLICATORS:
        others = schema.get(word)
        for other in others if isinstance(others, list) else [others]:
            yield from expanded(root, other, seen)


def _referred(root: Schema, schema: Schema) -> Any:
    """The part of the document that a schema refers to; None if there is none."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for step in reference.split("/")[1:]:
        if not isinstance(place, Mapping):
            return None
        place = place.get(step.replace("~1", "/").replace("~0", "~"))
    return place


class _Below(dict[Step, list[Schema]]):
    """The schemas of the members and items of a value. Found once for each that the schemas name, and once for all
    others."""

    def __init__(self, fields: SecretFields, schemas: Sequence[Schema]) -> None:
        self._fields, self._schemas = fields, schemas
        self._has_patterns = any("patternProperties" in schema for schema in schemas)
        self._first = max(len(schema.get("prefixItems", ())) for schema in schemas)
        names = {name for schema in schemas for name in schema.get("properties", ())}
        self._kept: set[Step] = {None, *names, *range(self._first + 1)}

    def __missing__(self, step: Step) -> list[Schema]:
        if step in self._kept:
            return self.setdefault(step, self._fields.applying(_of_step(self._schemas, step)))
        if isinstance(step, int):
            return self[self._first]
        return self._fields.applying(_of_step(self._schemas, step)) if self._has_patterns else self[None]


def _of_step(schemas: Sequence[Schema], step: Step) -> Iterator[Any]:
    """The schemas of one member or item."""
    for schema in schemas:
        if isinstance(step, int):
            first = schema.get("prefixItems", ())
            yield first[step] if step < len(first) else schema.get("items")
            yield schema.get("contains")
            continue
        named = [schema["properties"][step]] if step in schema.get("properties", ()) else []
        patterns = schema.get("patternProperties", {}) if step is not None else {}
        named += [each for pattern, each in patterns.items() if _matches(pattern, step or "")]
        yield from named or [schema.get("additionalProperties"), schema.get("unevaluatedProperties")]


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:  # an expression that only JavaScript knows: it may match
        return True
