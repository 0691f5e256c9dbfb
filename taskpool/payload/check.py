"""What a task type's published schema says of a payload, for those who have the schema and not the type.

A schema comes from Redis, so it stands for itself: what it refers to elsewhere is never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import jsonschema_rs

from taskpool.masking import MASK

_DURATION: Final = re.compile(
    r"[-+]?P(?=[\dT])(?:[\d.]+Y)?(?:[\d.]+M)?(?:[\d.]+W)?(?:[\d.]+D)?"
    r"(?:T(?=\d)(?:[\d.]+H)?(?:[\d.]+M)?(?:[\d.]+S)?)?",
    re.ASCII | re.IGNORECASE,
)


def validator_of(schema: Mapping[str, Any], *, masks: bool = False) -> jsonschema_rs.Validator | None:
    """None for a schema that can't be used here: a regular expression of it is one that only Python knows, or a part of
    it is elsewhere. The worker, which converts the payload, then checks alone. With `masks`, what it finds wrong is
    said without the value."""
    mask = MASK if masks else None
    try:
        return jsonschema_rs.validator_for(
            dict(schema), validate_formats=True, formats={"duration": _is_duration}, mask=mask, retriever=_never
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return None


def _is_duration(text: str) -> bool:
    """A duration of ISO 8601, which may have a sign: a `timedelta` may be negative."""
    return _DURATION.fullmatch(text) is not None


def _never(uri: str) -> NoReturn:
    raise LookupError(f"{uri} isn't fetched")
