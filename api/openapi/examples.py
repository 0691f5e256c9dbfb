"""Examples of submissions, one of each task type, for people who try the API from its page and for testers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from taskpool.fleet import TypeInfo
from taskpool.payload.check import validator_of

Object = dict[str, Any]

DEEPEST: Final = 8
PLAIN: Final[Mapping[str, Any]] = {
    "string": "text",
    "integer": 1,
    "number": 1,
    "boolean": False,
    "array": [],
    "object": {},
    "null": None,
}


def submission_examples(types: Sequence[TypeInfo]) -> Object:
    """By the names of task types, a task of each; types whose payload can't be guessed have none."""
    tasks = {info.name: _task(info) for info in types}
    return {name: {"value": task} for name, task in tasks.items() if task is not None}


def batch_examples(types: Sequence[TypeInfo]) -> Object:
    """One batch, with one task of each type."""
    tasks = [example["value"] for example in submission_examples(types).values()]
    return {"one of each": {"value": {"tasks": tasks}}} if tasks else {}


def _task(info: TypeInfo) -> Object | None:
    """The smallest payload there is, if it fits."""
    schema = dict(info.schema)
    payload = _value(schema, schema, DEEPEST)
    validator = validator_of(schema)
    return {"type": info.name, "payload": payload} if validator is not None and validator.is_valid(payload) else None


def _value(schema: Any, whole: Object, depth: int) -> Any:
    """Something that fits a schema, most of the time: what it shows itself, else what is required and no more."""
    if not isinstance(schema, dict) or depth == 0:
        return None
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    for name in ("examples", "enum"):
        if schema.get(name):
            return schema[name][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _value(schema[name][0], whole, depth - 1)
    if "$ref" in schema:
        return _value(_referred(schema["$ref"], whole), whole, depth - 1)
    return _of_type(schema, whole, depth)


def _of_type(schema: Object, whole: Object, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: _value(fields.get(name), whole, depth - 1) for name in schema.get("required", ())}
    if kind == "array" and schema.get("minItems"):
        return [_value(schema.get("items"), whole, depth - 1)] * schema["minItems"]
    if kind in ("integer", "number") and "minimum" in schema:
        return max(schema["minimum"], 1)
    return PLAIN.get(kind) if isinstance(kind, str) else "anything"


def _referred(ref: Any, whole: Object) -> Any:
    """What a reference within the schema leads to; nothing for any other."""
    found: Any = whole if isinstance(ref, str) and ref.startswith("#") else None
    for step in str(ref).split("/")[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return found
