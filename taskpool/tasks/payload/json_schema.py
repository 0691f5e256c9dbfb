"""Validators of JSON Schemas: those of payloads, and those of answers to questions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import jsonschema_rs

from taskpool.text import MASK

# ISO 8601, with a sign, because a `timedelta` may be negative.
_DURATION: Final = re.compile(
    r"[-+]?P(?=[\dT])(?:[\d.]+Y)?(?:[\d.]+M)?(?:[\d.]+W)?(?:[\d.]+D)?"
    r"(?:T(?=\d)(?:[\d.]+H)?(?:[\d.]+M)?(?:[\d.]+S)?)?",
    re.ASCII | re.IGNORECASE,
)


def validator_for(schema: Mapping[str, Any], *, masks: bool = False) -> jsonschema_rs.Validator:
    """The validator of a schema. With `masks`, error messages don't contain the value.
    Raises: ValueError: it is no JSON Schema, refers to another document, is nested too deeply, or has a regular
    expression that only Python knows."""
    mask = MASK if masks else None
    try:
        return jsonschema_rs.validator_for(
            dict(schema), validate_formats=True, formats={"duration": _is_duration}, mask=mask, retriever=_never
        )
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(str(error).partition("\n")[0]) from None


def validator_of(schema: Mapping[str, Any], *, masks: bool = False) -> jsonschema_rs.Validator | None:
    """The same; None for a schema that only the worker can check, when it converts the payload."""
    try:
        return validator_for(schema, masks=masks)
    except ValueError:
        return None


def _is_duration(text: str) -> bool:
    return _DURATION.fullmatch(text) is not None


def _never(uri: str) -> NoReturn:
    # A schema comes from Redis: nothing that it names is fetched.
    raise LookupError(f"{uri} isn't fetched")
