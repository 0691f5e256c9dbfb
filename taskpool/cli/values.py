"""What a person types: a time, or a payload: `key=value` pairs, or JSON from a file, from stdin or as the text itself.

A value that is JSON is taken as JSON, anything else as a string; a field that the type's schema declares
as a string stays one (`name=123`, `name=true`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click


def read_json(source: str) -> Any:
    """The JSON value that `source` is, or that the file of that name holds; `-` is stdin.

    Raises:
        click.BadParameter: it is neither.
    """
    if source == "-":
        return _parse(sys.stdin.read(), "stdin")
    try:
        return json.loads(source, parse_constant=_refuse_constant)
    except ValueError:
        pass  # not JSON itself: a file's name
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name or text isn't readable"
        raise click.BadParameter(f"{source!r} is neither JSON nor a readable file ({reason})") from None
    return _parse(text, source)


def read_time(text: str, flag: str) -> datetime:
    """The time that `text` says, in this machine's zone where it names none.

    Raises:
        click.BadParameter: it says none; `flag` is what it was given to.
    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} isn't a time like 2026-12-24T18:00:00Z", param_hint=flag) from None


def read_pairs(pairs: Sequence[str], schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The payload that `key=value` pairs spell, each value read as the `schema` (JSON Schema) wants it.

    Raises:
        click.BadParameter: a pair has no `=` or no key, or a key comes twice.
    """
    payload: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} isn't key=value")
        if key in payload:
            raise click.BadParameter(f"{key!r} is given twice")
        payload[key] = _value(text, _field_schema(schema or {}, key))
    return payload


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text
    accepted = _accepted(schema)
    if "string" in accepted and _json_type(value) not in accepted:
        return text
    return value


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _accepted(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types a field's schema names; empty where it accepts anything."""
    kinds = schema.get("type", [])
    accepted = {kinds} if isinstance(kinds, str) else set(kinds)
    for branch in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        accepted |= _accepted(branch)
    for value in schema.get("enum", []):
        accepted.add(_json_type(value))
    return {"number" if kind == "integer" else kind for kind in accepted}


def _field_schema(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    whole = schema
    field = _resolve(whole, schema).get("properties", {}).get(key, {})
    return _resolve(whole, field)


def _resolve(whole: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref` inside the document; a reference that leads nowhere says nothing about the field."""
    for _ in range(8):
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            break
        schema = whole
        for step in ref.removeprefix("#/").split("/"):
            schema = schema.get(step.replace("~1", "/").replace("~0", "~"), {})
    return schema


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise click.BadParameter(f"{where} isn't JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} isn't JSON")
