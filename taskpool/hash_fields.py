"""The fields of a task's hash, one by one. One that can't be read counts as missing: a single damaged record must not
keep a worker or a listing from all others."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, overload

import msgspec

from taskpool.types import utc

_DIGITS: Final = 15
_NUMBER: Final = re.compile(rb"-?[0-9]{1,%d}" % _DIGITS)

_decode = msgspec.json.Decoder().decode


def text_of(raw: bytes | None) -> str | None:
    """Text; None for none."""
    return raw.decode("utf-8", "replace") if raw else None


def ids_of(raw: bytes | None) -> tuple[str, ...]:
    """A JSON list of ids."""
    ids = json_of(raw)
    return tuple([id for id in ids if isinstance(id, str)]) if isinstance(ids, list) else ()


def time_of(raw: bytes | None) -> datetime | None:
    """A time as RQ writes them, aware."""
    try:
        time = datetime.fromisoformat(raw.decode()) if raw else None
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def moment_of(ms: bytes | None) -> datetime | None:
    """A time in ms since 1970."""
    number = number_of(ms)
    return None if number is None else utc(number)


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
    """A JSON field. RQ writes its own serializer's bytes into `result` when a dashboard saves a job: not ours."""
    if not raw:
        return None
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
