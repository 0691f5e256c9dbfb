"""Unique keys as a record holds them, in one field that is there only if the submission had one.

It is how long the key is held, a blank, the key: ``done key``, ``start key``, ``time:3600 key`` (seconds).
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from taskpool.trace import trace_of
from taskpool.types import TaskSpec

KEY: Final = re.compile(r"[!-~]{1,128}")
KEY_FAULT: Final = "must be 1 to 128 letters, digits or marks of ASCII, without blanks"

WHOSE: Final = "\x1f"
"""What stands between a project and its key, and in neither."""

_SECONDS: Final = re.compile(r"\d{1,12}(\.\d{1,12})?")


class Unique(NamedTuple):
    """A task's unique key, how its record holds it, and for how many ms (None: as its status says). `replaceable`: of
    which types and in which queues another task must be to be replaced, as JSON (empty: any)."""

    name: str
    on_conflict: str
    text: str
    held_ms: int | None = None
    replaceable: bytes = b""


def unique_of(spec: TaskSpec, project: str | None, replaceable: bytes = b"") -> Unique | None:
    """The unique key of a submission that was checked: each project has its own."""
    if spec.unique_key is None:
        return None
    key, for_s = spec.unique_key, spec.unique_for_s
    how = f"time:{round(for_s * 1000) / 1000}" if for_s is not None else spec.unique_until or "done"
    if project is not None:
        key = project + WHOSE + key
    return Unique(key, spec.on_conflict, f"{how} {key}", None if for_s is None else round(for_s * 1000), replaceable)


def shown_key(name: str) -> str:
    """A unique key as its submission gave it."""
    return name.rpartition(WHOSE)[2]


def rare_fields(unique: str | None, trace: str | None) -> dict[str, Any]:
    """What a record shows of the two fields, by its own names; nothing for most."""
    shown: dict[str, Any] = {}
    if unique:
        how, _, name = unique.partition(" ")
        shown["unique_key"] = shown_key(name)
        until, is_time, seconds = how.partition(":")
        if is_time:
            shown["unique_for_s"] = float(seconds) if _SECONDS.fullmatch(seconds) else None
        else:
            shown["unique_until"] = until
    if trace:
        shown["traceparent"], shown["tracestate"] = trace_of(trace)
    return shown
