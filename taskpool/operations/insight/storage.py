"""What fills Redis: how many records each task type has, and about how much memory they use."""

from __future__ import annotations

from heapq import nlargest
from typing import Final

from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, texts, tolerant
from taskpool.types.fleet import TypeStorage

SAMPLED: Final = 50
"""Of the types with the most records, so many are sampled; of the others only the count is known."""
SAMPLE: Final = 5
"""So many of the oldest and of the newest records of a type are measured."""
MOST_TYPES: Final = 10_000
FIELDS_MOST: Final = 100


def storage() -> Plan[list[TypeStorage]]:
    """How much each type keeps, the one that keeps most first. The memory is an estimate, by a sample of its oldest and
    newest records with their logs."""
    (names,) = yield (tolerant(Call(("SMEMBERS", keys.TYPES_USED), texts, again=True), []),)
    names = sorted(names)[:MOST_TYPES]
    counts = yield [tolerant(Call(("ZCARD", keys.BY_TYPE + name), int, again=True), 0) for name in names]
    stored = [(count, name) for count, name in zip(counts, names, strict=True) if count]
    measured: dict[str, int] = {}
    for count, name in nlargest(SAMPLED, stored):
        measured[name] = yield from _measured(name, count)
    found = [TypeStorage(type=name, tasks=count, bytes=measured.get(name)) for count, name in stored]
    return sorted(found, key=lambda each: (-(each.bytes or 0), -each.tasks, each.type))


def _measured(name: str, count: int) -> Plan[int]:
    """About how many bytes the records of a type use."""
    index = keys.BY_TYPE + name
    ends = yield [_listing("ZRANGE", index, 0, SAMPLE - 1), _listing("ZREVRANGE", index, 0, SAMPLE - 1)]
    ids = sorted({id for part in ends for id in part})
    sizes = (yield [_bytes(start + id) for start in (keys.JOB, keys.LOG) for id in ids]) if ids else []
    return round(sum(sizes) * count / max(len(ids), 1))


def _listing(*command: str | int) -> Call[list[str]]:
    return tolerant(Call(command, texts, again=True), [])


def _bytes(key: str) -> Call[int]:
    # All fields of a record: by default, Redis guesses by five of them, and may miss the large one.
    return tolerant(
        Call(("MEMORY", "USAGE", key, "SAMPLES", FIELDS_MOST), lambda reply: int(reply or 0), again=True), 0
    )
