"""Whether JSON can hold a value's numbers: it has no NaN and no infinity, and msgspec writes null for them."""

from __future__ import annotations

import math
from typing import Any


def refuse_nan(value: Any, encoded: bytes) -> None:
    """Look for NaN and infinities in a value; `encoded` is what msgspec made of it.

    Raises:
        ValueError: there is one.
    """
    if b"null" in encoded and _holds_nan(value):
        raise ValueError("NaN and Infinity are not JSON")


def _holds_nan(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_holds_nan, value.values()))
    return isinstance(value, list | tuple | set) and any(map(_holds_nan, value))
