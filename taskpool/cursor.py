"""Opaque cursors: where a listing goes on, as one URL-safe word."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from taskpool.errors import FieldError, InvalidTask


def encode_cursor(*parts: Any) -> str:
    """A cursor of these JSON values."""
    return base64.urlsafe_b64encode(msgspec.json.encode(parts)).decode().rstrip("=")


def decode_cursor(cursor: str, kinds: Sequence[type]) -> list[Any]:
    """What `encode_cursor` was given.

    Raises:
        InvalidTask: it isn't a cursor of these kinds of values.
    """
    try:
        parts = msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        parts = None
    good = isinstance(parts, list) and len(parts) == len(kinds)
    if not good or any(not isinstance(part, kind) for part, kind in zip(parts, kinds, strict=True)):
        text = "not a cursor of this listing: take next_cursor of the page before, as it is"
        raise InvalidTask(f"/cursor: {text}", [FieldError("/cursor", text)])
    return list(parts)
