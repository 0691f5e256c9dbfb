"""Finds the values of a payload that its type's JSON Schema marks as secret (`writeOnly`), and takes them out.

Where a schema has alternatives, a value is secret if any of them says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from taskpool.text import MASK, Path, Secrets

Schema = Mapping[str, Any]

BRANCHES: Final = ("anyOf", "oneOf", "allOf")
CONDITIONS: Final = ("if", "then", "else")


class SecretFields:
    """The secret fields of one payload schema; false when it has none."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._leading: dict[int, bool] = {}
        """By the id of a part of the schema: whether anything that it describes can be secret."""
        self._known: dict[tuple[int, ...], _Below] = {}
        self._has_any = self._leads(schema)

    def __bool__(self) -> bool:
        return self._has_any

    def split(self, payload: Any) -> tuple[Any, Secrets | None]:
        """A copy of the payload with masks, and the secret values; None if there are none.

        The payload need not fit the schema.
        """
        taken: list[tuple[Path, Any]] = []
        shown = self._shown(payload, self.applying((self._root,)), (), taken) if self._has_any else payload
        return shown, Secrets(taken) if taken else None

    def without_secret_defaults(self) -> Schema:
        """The schema for publication, without the defaults that are secret or contain something secret."""
        published: Schema = self._without_defaults(self._root)
        return published

    def _shown(self, value: Any, schemas: Sequence[Schema], path: tuple[str | int, ...], taken: list[Any]) -> Any:
        if value is None or not schemas:  # null means that no value was given
            return value
        if any(schema.get("writeOnly") is True for schema in schemas):
            taken.append((path, value))
            return MASK
        below = self._below(schemas)
        if isinstance(value, dict):
            return {name: self._shown(item, below.member(name), (*path, name), taken) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._shown(item, below.item(at), (*path, at), taken) for at, item in enumerate(value)]
        return value

    def _below(self, schemas: Sequence[Schema]) -> _Below:
        key = tuple(map(id, schemas))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Below(self, schemas)
        return known

    def applying(self, schemas: Iterable[Any]) -> list[Schema]:
        """All schemas that apply to the same value as these, without those that can't make anything secret. A value
        without any schema left is skipped."""
        return [each for schema in schemas for each in self._expanded(schema) if self._leads(each)]

    def _leads(self, schema: Schema) -> bool:
        known = self._leading.get(id(schema))
        if known is None:
            known = self._leading[id(schema)] = self._finds(schema, set())
        return known

    def _finds(self, node: Any, seen: set[int]) -> bool:
        """Whether a part of the schema, or a definition that it refers to, has something secret."""
        if isinstance(node, list):
            return any(self._finds(item, seen) for item in node)
        if not isinstance(node, Mapping) or id(node) in seen:
            return False
        seen.add(id(node))
        reference = node.get("$ref")
        return (
            node.get("writeOnly") is True
            or (isinstance(reference, str) and self._finds(self._referred(reference), seen))
            or any(self._finds(item, seen) for item in node.values())
        )

    def _expanded(self, schema: Any, seen: frozenset[int] = frozenset()) -> Iterator[Schema]:
        """A schema and all others that apply to the same value because of it."""
        if not isinstance(schema, Mapping) or id(schema) in seen:
            return
        seen |= {id(schema)}
        yield schema
        if isinstance(reference := schema.get("$ref"), str):
            yield from self._expanded(self._referred(reference), seen)
        for word in BRANCHES:
            for branch in schema.get(word, ()):
                yield from self._expanded(branch, seen)
        for word in CONDITIONS:
            yield from self._expanded(schema.get(word), seen)

    def _referred(self, reference: str) -> Any:
        """The part of the document that a reference names; None if there is none."""
        place: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            if not isinstance(place, Mapping):
                return None
            place = place.get(step.replace("~1", "/").replace("~0", "~"))
        return place if reference.startswith("#") else None

    def _without_defaults(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._without_defaults(item) for item in node]
        if not isinstance(node, dict):
            return node
        taken: list[Any] = []
        if "default" in node:
            self._shown(node["default"], self.applying((node,)), (), taken)
        kept = {name: item for name, item in node.items() if not (taken and name == "default")}
        return {name: self._without_defaults(item) for name, item in kept.items()}


class _Below:
    """The schemas of the members or items of a value, found once for each known name and once for all others."""

    def __init__(self, fields: SecretFields, schemas: Sequence[Schema]) -> None:
        self._fields, self._schemas = fields, schemas
        self._has_patterns = any("patternProperties" in schema for schema in schemas)
        names = {name for schema in schemas for name in schema.get("properties", ())}
        self._named = {name: fields.applying(_of_member(schemas, name)) for name in names}
        self._others = fields.applying(_of_member(schemas, None))
        first = max([len(schema.get("prefixItems", ())) for schema in schemas])
        self._first = [fields.applying(_of_item(schemas, at)) for at in range(first)]
        self._rest = fields.applying(_of_item(schemas, first))

    def member(self, name: str) -> Sequence[Schema]:
        """The schemas of this member."""
        if self._has_patterns:
            return self._fields.applying(_of_member(self._schemas, name))
        return self._named.get(name, self._others)

    def item(self, at: int) -> Sequence[Schema]:
        """The schemas of the item at this index."""
        return self._first[at] if at < len(self._first) else self._rest


def _of_member(schemas: Sequence[Schema], name: str | None) -> Iterator[Any]:
    """The schemas of one member of an object; None stands for a member that no schema names."""
    for schema in schemas:
        known = schema.get("properties", {})
        if name in known:
            yield known[name]
        patterns = schema.get("patternProperties", {}) if name is not None else {}
        patterned = [each for pattern, each in patterns.items() if _matches(pattern, name or "")]
        yield from patterned
        if name not in known and not patterned:
            yield schema.get("additionalProperties")
            yield schema.get("unevaluatedProperties")


def _of_item(schemas: Sequence[Schema], at: int) -> Iterator[Any]:
    """The schemas of one item of a list."""
    for schema in schemas:
        first = schema.get("prefixItems", ())
        yield first[at] if at < len(first) else schema.get("items")
        yield schema.get("contains")


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:  # an expression that only JavaScript knows: it may match
        return True
