"""NaN and infinities: JSON has no such numbers, and msgspec writes null, "NaN" or "Infinity" for them."""

from __future__ import annotations

import math
from typing import Any, Final

_PLAIN: Final = frozenset({str, int, bool, type(None)})


def may_hide_nan(encoded: bytes) -> bool:
    """Whether the JSON that msgspec wrote may stand for a value with NaN or an infinity in it.

    A float becomes null, as a key "nan", "inf" or "-inf", and a Decimal becomes "NaN" or "Infinity". Looking for one
    letter first is much faster.
    """
    return (
        b"null" in encoded
        or (b"N" in encoded and b"NaN" in encoded)
        or (b"I" in encoded and b"Infinity" in encoded)
        or b'nan":' in encoded
        or b'inf":' in encoded
    )


def is_plain_and_finite(value: Any) -> bool:
    """Whether a value consists of Python's own JSON types alone and has no NaN or infinity.

    It is False for any other type, which may hold such a number where this function doesn't look.
    """
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind in _PLAIN:
        return True
    if kind is dict:
        return all(map(_is_plain_key, value)) and all(map(is_plain_and_finite, value.values()))
    return (kind is list or kind is tuple) and all(map(is_plain_and_finite, value))


def refuse_nan(value: Any, encoded: bytes) -> None:
    """Look for NaN and infinities in a JSON value; `encoded` is what msgspec made of it.

    Raises:
        ValueError: the value has one.
    """
    if may_hide_nan(encoded) and not is_plain_and_finite(value):
        raise ValueError("NaN and Infinity are not JSON")


def _is_plain_key(key: Any) -> bool:
    return type(key) is str or type(key) is int
