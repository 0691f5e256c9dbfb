"""Spans of time that programs and people give, in seconds: which ones can be meant, and what is said of all others."""

from __future__ import annotations

import math
from typing import Final

from taskpool.errors import FieldError, InvalidTask

LONGEST_S: Final = 10 * 366 * 86_400
"""The longest span that anything here takes: ten years."""
LONGEST_GRACE_S: Final = 86_400
"""The longest that a task may be given to stop by itself."""


def accepted(least_s: float = 0, most_s: float = LONGEST_S) -> str:
    """What a span may be, in words."""
    return f"a number of seconds from {least_s:g} to {most_s:.12g}"


def is_seconds(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> bool:
    """Whether it is a number in this range: no NaN, no text, no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least_s <= value <= most_s


def seconds_fault(value: object, least_s: float = 0, most_s: float = LONGEST_S) -> str | None:
    """What is wrong with a span; None when it is fine."""
    return None if is_seconds(value, least_s, most_s) else f"must be {accepted(least_s, most_s)}, not {_shown(value)}"


def check_seconds(name: str, value: object, least_s: float = 0, most_s: float = LONGEST_S) -> None:
    """Return if the span given as the parameter `name` is in this range.

    Raises:
        InvalidTask: it isn't; the text says what is allowed.
    """
    if fault := seconds_fault(value, least_s, most_s):
        raise InvalidTask(f"/{name}: {fault}", [FieldError(f"/{name}", fault)])


def patience_s(name: str, value: float | None) -> float:
    """How long to wait: for ever (infinity) with None, not at all below 0, where a deadline has passed.

    Raises:
        InvalidTask: it is no number of seconds, or too many.
    """
    if value is None:
        return math.inf
    if is_seconds(value, -math.inf):
        return max(0.0, value)
    check_seconds(name, value)
    return value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits has no text
        return "so many"
    return text if len(text) <= 80 else text[:79] + "…"
