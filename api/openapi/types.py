"""The task types in the document: each with its payload, and a submission as one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from api.openapi.hoist import hoisted, payload_name
from api.openapi.schemas import REFS, Schema
from taskpool.calls import UNREADABLE, tell_unreadable
from taskpool.fleet import TypeInfo
from taskpool.payload.check import validator_of


def submissions(generic: Schema, types: Sequence[TypeInfo], taken: Collection[str] = ()) -> dict[str, Schema]:
    """The components of these types, and `Submission`: a task of any of them.

    `generic` is the schema of TaskSpec, `taken` are the names of all other components.
    """
    types = [info for info in types if _is_fit(info)]
    if not types:
        return {"Submission": {"title": "Submission", "$ref": REFS + "TaskSpec"}}
    tasks = {info.name: f"{info.name}.task" for info in types}
    components = hoisted(types, {*taken, "Submission", *tasks.values()})
    for info in types:
        components[tasks[info.name]] = _submission(generic, info, REFS + payload_name(info))
    refs = {info.name: f"{REFS}{info.name}.task" for info in types}
    components["Submission"] = {
        "title": "Submission",
        "description": "A task of one of the types that are known now. `TaskSpec` is its form whatever the type.",
        "oneOf": [{"$ref": ref} for ref in refs.values()],
        "discriminator": {"propertyName": "type", "mapping": refs},
    }
    return components


def _is_fit(info: TypeInfo) -> bool:
    """Whether a type's schema can stand in the document; the log says it of one that can't."""
    try:
        hoisted([info], ())
        _takes_nothing(info.schema)
    except UNREADABLE as error:
        tell_unreadable(f"the schema of the task type {info.name!r}", error)
        return False
    return True


def _submission(generic: Schema, info: TypeInfo, payload: str) -> Schema:
    """The schema of a submission of this type. Null is "not given" for the payload too, which then is empty."""
    may_be_empty = _takes_nothing(info.schema)
    properties: Schema = dict(generic["properties"])
    properties["type"] = {"const": info.name}
    properties["payload"] = {"anyOf": [{"$ref": payload}, {"type": "null"}]} if may_be_empty else {"$ref": payload}
    required = ["type"] if may_be_empty else ["type", "payload"]
    schema = {**generic, "title": f"{info.name}.task", "properties": properties, "required": required}
    schema["description"] = info.description or f"A task of the type {info.name}."
    return schema


def _takes_nothing(schema: Any) -> bool:
    validator = validator_of(schema)
    return validator is None or validator.is_valid({})
