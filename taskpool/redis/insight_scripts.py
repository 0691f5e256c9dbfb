"""The scripts of insight: counts over time, redrives of failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from taskpool.redis.bulk_scripts import LEASE_MS
from taskpool.redis.calls import Call, Part, Script

_roll = Script("stats_roll")
_redrive_start, _redrive_note = map(Script, ("redrive_start", "redrive_note"))
_encode: Final = msgspec.json.Encoder().encode


def roll(minute: int, bucket: bytes, was: bytes, pairs: Sequence[str], increments: Mapping[str, int]) -> Call[str]:
    """Close a minute: ``ok``, or ``stale`` if another pool has done so. `was`: its bucket as it was read, if any."""
    fields = [part for item in increments.items() for part in item]
    return _roll.word(minute, bucket, was, len(pairs), *pairs, *fields)


def redrive_start(fingerprint: str, id: str, fields: Mapping[str, Part], audited: bytes = b"") -> Call[str]:
    """Begin the redrive of a group of failures: ``ok``, ``gone`` (there is no such group), or ``running``."""
    flat = [part for item in fields.items() for part in item]
    return _redrive_start.word(fingerprint, id, audited, *flat)


def redrive_note(
    fingerprint: str,
    id: str,
    *,
    driver: str = "",
    steps: int = 0,
    set: Mapping[str, str | int] = {},
    waiting: Mapping[str, str] = {},
    ended: Mapping[str, str] = {},
    refused: Sequence[str] = (),
    passed: int = 0,
    audited: bytes = b"",
) -> Call[str]:
    """Note the progress of a redrive, or its end (`set` has its status): ``ok``, ``gone``, ``lost`` (another program
    goes on with it), or the word of its status if it has ended. `driver`: the program that made the step, after `steps`
    others; none: a person ends it. `waiting`: tasks that are to be retried, each with its `seq`; `ended`: how others
    have ended; `refused`: those that can't be retried; `passed`: how many more tasks are left out."""
    noted = {"set": set, "waiting": waiting, "ended": ended, "refused": refused, "passed": passed}
    return _redrive_note.word(fingerprint, id, _encode(noted), audited, driver, steps, LEASE_MS)
