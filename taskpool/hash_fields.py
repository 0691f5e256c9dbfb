"""The fields of a task's hash, one by one. One that can't be read counts as missing: a single damaged record must not
keep a worker or a listing from all others."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, overload

import msgspec

from taskpool.depth import is_deeper_than
from taskpool.types import utc

_DIGITS: Final = 15
_NUMBER: Final = re.compile(rb"-?[0-9]{1,%d}" % _DIGITS)

DEEPEST: Final = 128
"""How many arrays and objects may be nested in a JSON field that is shown."""

_decode = msgspec.json.Decoder().decode


def text_of(raw: bytes | None) -> str | None:
    """Text; None for none."""
    return raw.decode("utf-8", "replace") if raw else None


def ids_of(raw: bytes | None) -> tuple[str, ...]:
    """A JSON list of ids."""
    ids = json_of(raw)
    return tuple([id for id in ids if isinstance(id, str)]) if isinstance(ids, list) else ()


def time_of(raw: bytes | None) -> datetime | None:
    """A time as RQ writes them, aware, in UTC."""
    try:
        time = datetime.fromisoformat(raw.decode()) if raw else None
        if time is None or time.tzinfo is UTC:
            return time
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # no time; or one whose zone takes it out of the years 1 to 9999
        return None


def moment_of(ms: bytes | None) -> datetime | None:
    """A time in ms since 1970."""
    number = number_of(ms)
    try:
        return None if number is None else utc(number)
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return None


def limit_s(timeout_ms: bytes | None, timeout: bytes | None) -> float | None:
    """The time limit: ours in ms, else RQ's in whole seconds, where -1 is for none."""
    limit_ms = number_of(timeout_ms) if timeout_ms else None
    seconds = number_of(timeout) if limit_ms is None else limit_ms / 1000
    return seconds if seconds is not None and seconds > 0 else None


def backoff_part_s(raw: bytes | None, part: int) -> float | None:
    """The first (0) or the longest (1) wait of a back-off (see `shared.backoff_text`)."""
    parts = raw.split(b",") if raw else []
    ms = number_of(parts[part]) if part < len(parts) else None
    return None if ms is None else max(ms, 0) / 1000


@overload
def number_of(raw: bytes | None) -> int | None: ...
@overload
def number_of(raw: bytes | None, default: int) -> int: ...
def number_of(raw: bytes | None, default: int | None = None) -> int | None:
    """A whole number; `default` for anything else."""
    if raw and raw.isdigit() and len(raw) <= _DIGITS:
        return int(raw)
    return int(raw) if raw and _NUMBER.fullmatch(raw) else default


def json_of(raw: bytes | None) -> Any:
    """A JSON field; None when it can't be read, see `why_unreadable`."""
    if not raw or is_too_deep(raw):
        return None
    try:
        return _decode(raw)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def object_of(raw: bytes | None) -> dict[str, Any] | None:
    """A JSON field that holds an object; None for anything else."""
    value = json_of(raw) if raw else None
    return value if isinstance(value, dict) else None


def why_unreadable(raw: bytes | None) -> str | None:
    """Why `json_of` can't read a field that is there; None when it can."""
    if not raw:
        return None
    if is_too_deep(raw):
        return f"it is nested more than {DEEPEST} levels deep"
    try:
        _decode(raw)
    except (ValueError, RecursionError):  # RQ writes its own serializer's bytes when a dashboard saves a job
        return "it isn't JSON"
    return None


def is_too_deep(raw: bytes) -> bool:
    """Whether JSON is nested so deep that its readers, each with a stack of its own, can't be trusted with it.

    New results and payloads are refused at far less. This is for records that an older release or RQ has written.
    """
    return is_deeper_than(DEEPEST, raw)
