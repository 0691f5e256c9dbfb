"""Pages of a listing: how many items a page holds, and opaque cursors that say where the next page begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from taskpool.errors import FieldError, InvalidTask

MOST: Final = 1 << 53


def encode_cursor(*parts: Any) -> str:
    """A cursor of these JSON values."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode().rstrip("=")


def decode_cursor(cursor: str, kinds: Sequence[type]) -> list[Any]:
    """What `encode_cursor` was given; whole numbers are 0 or more.

    Raises:
        InvalidTask: it isn't a cursor of these kinds of values.
    """
    if not isinstance(cursor, str):
        raise wrong_cursor()
    try:
        parts = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError, msgspec.MsgspecError):
        parts = None
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise wrong_cursor()
    if any(isinstance(part, int) and not 0 <= part <= MOST for part in parts):
        raise wrong_cursor()
    return parts


def page_length(limit: object, longest: int) -> int:
    """How many a page holds at most: `limit`, but no more than `longest`.

    Raises:
        InvalidTask: `limit` is no whole number of 1 or more.
    """
    if isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1:
        return min(limit, longest)
    text = f"must be a whole number of 1 or more, not {limit!r}"
    raise InvalidTask(f"/limit: {text}", [FieldError("/limit", text)])


def wrong_cursor() -> InvalidTask:
    """The error for a cursor that no listing of ours has given out."""
    text = "not a cursor of this listing: take next_cursor of the page before, as it is"
    return InvalidTask(f"/cursor: {text}", [FieldError("/cursor", text)])
