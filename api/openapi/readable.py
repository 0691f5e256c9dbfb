"""Schemas in the words that generators of clients understand."""

from __future__ import annotations

import json
from typing import Any, Final

Schema = dict[str, Any]


def as_generators_read(schema: Any, *, is_component: bool = False) -> Schema:
    """The same schema in the words that generators of clients understand.

    A field with a default would be one that is always there, so defaults go into descriptions; titles would be names of
    classes, and two of one name break a client; true, false, an array without `items` and an `enum` of several types
    aren't understood at all.
    """
    if not isinstance(schema, dict):
        return {"not": {}} if schema is False else {}
    plain = {key: value for key, value in schema.items() if key not in ("$schema", "title", "default")}
    if schema.get("default") is not None:
        plain["description"] = _with_default(str(schema.get("description", "")), schema["default"])
    for key in ("items", "contains", "not", "if", "then", "else", "propertyNames"):
        if key in plain:
            plain[key] = as_generators_read(plain[key])
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(plain.get(key), list | tuple):
            plain[key] = [as_generators_read(each) for each in plain[key]]
    for key in ("properties", "patternProperties", "dependentSchemas"):
        if isinstance(plain.get(key), dict):
            plain[key] = {name: as_generators_read(each) for name, each in plain[key].items()}
    if isinstance(plain.get("additionalProperties"), dict):
        plain["additionalProperties"] = as_generators_read(plain["additionalProperties"])
    if plain.get("type") == "array":
        plain.setdefault("items", {})
    if not is_component and len(plain.get("enum", ())) == 1:
        return {key: value for key, value in plain.items() if key != "enum"} | {"const": plain["enum"][0]}
    return _with_plain_enum(plain)


def _with_default(description: str, default: Any) -> str:
    shown = json.dumps(default, ensure_ascii=False)
    return f"{description} Default: `{shown}`.".strip()


def _with_plain_enum(schema: Schema) -> Schema:
    """A list of choices of one type; one with several types becomes a choice of lists."""
    choices = schema.get("enum")
    if not isinstance(choices, list):
        return schema
    by_type: dict[str, list[Any]] = {}
    for choice in choices:
        by_type.setdefault(_json_type(choice), []).append(choice)
    forms = [_form(kind, values) for kind, values in by_type.items()]
    rest = {key: value for key, value in schema.items() if key not in ("enum", "type")}
    if len(forms) == 1:
        return rest | forms[0]
    return (
        rest | {"anyOf": forms}
        if "anyOf" not in rest
        else {**rest, "allOf": [*rest.get("allOf", ()), {"anyOf": forms}]}
    )


_JSON_TYPES: Final = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"))


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    return next((name for kind, name in _JSON_TYPES if isinstance(value, kind)), "object")


def _form(kind: str, values: list[Any]) -> Schema:
    if kind == "null" or (kind == "boolean" and len(values) > 1):
        return {"type": kind}
    return {"const": values[0]} if kind == "boolean" else {"type": kind, "enum": values}
