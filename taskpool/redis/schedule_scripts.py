"""One typed function per Lua script of schedules, and the guard under which a task is added for one."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.redis import keys
from taskpool.redis.add_script import Guard
from taskpool.redis.calls import Call, Part, Script, texts

_save, _remove = map(Script, ("schedule_save", "schedule_remove"))
_settle, _postpone = map(Script, ("schedule_settle", "schedule_postpone"))
_declare: Final = Script("schedule_declare")

_encode: Final = msgspec.json.Encoder().encode


class Occurrence(NamedTuple):
    """An occurrence of a schedule, in ms. `expected_ms` is the first one that the schedule waits for: those from there
    until `at_ms` were missed. None: a person asks for this one, and the schedule goes on as if it hadn't been.
    `next_ms` is the one after it, and is due at `due_ms`; None: there is none."""

    schedule: str
    incarnation: str
    revision: int
    at_ms: int
    expected_ms: int | None
    next_ms: int | None = None
    due_ms: int | None = None

    def document(self) -> dict[str, Any]:
        """As the scripts take it: texts, because Lua would round the numbers."""
        times = {"expected_ms": self.expected_ms, "next_ms": self.next_ms, "due_ms": self.due_ms}
        return {
            "id": self.schedule,
            "incarnation": self.incarnation,
            "revision": str(self.revision),
            "occurrence_ms": str(self.at_ms),
            **{name: str(ms) for name, ms in times.items() if ms is not None},
        }


def schedule_guard(occurrence: Occurrence, overlaps: str | bool = False) -> Guard:
    """The guard of the task of an occurrence. Unless the schedule expects it, nothing is stored (``stale``), as while
    the run before hasn't ended (``overlap``). `overlaps`: it may do so, or the run with this id may."""
    return {"schedule": {**occurrence.document(), "overlaps": overlaps}}


def settle(occurrence: Occurrence, outcome: str, reason: str = "") -> Call[str]:
    """Note an occurrence for which no task is submitted: ``ok`` or ``stale``."""
    return _settle.word(_encode(occurrence.document()), outcome, reason)


def postpone(occurrence: Occurrence, delay_ms: int, *, is_retry: bool = False) -> Call[str]:
    """Have pools look at the schedule later: ``ok``, ``stale`` or ``gone``."""
    return _postpone.word(_encode(occurrence.document()), delay_ms, "1" if is_retry else "")


def save(
    id: str,
    fields: Mapping[str, Part],
    *,
    revision: int | None,
    next_ms: int | None,
    incarnation: str,
    due_ms: int | None,
    most: int | None = None,
    audited: bytes = b"",
) -> Call[str]:
    """Store a schedule that is new (`revision` is None) or was changed: ``ok``, ``changed`` (meanwhile, by others) or
    ``full`` (its project has `most`). An empty field is removed. `next_ms` is its next occurrence before the change."""
    project, colon, _ = id.rpartition(":")
    flat = [part for item in fields.items() for part in item]
    before, next_before, due, cap = ("" if each is None else each for each in (revision, next_ms, due_ms, most))
    return _save.word(
        id, before, next_before, incarnation, due, cap, project + colon, audited, secrets.token_hex(6), *flat
    )


def remove(id: str, incarnation: str, revision: int, audited: bytes = b"") -> Call[str]:
    """Remove a schedule: ``ok``, ``gone`` or ``changed``."""
    return _remove.word(id, incarnation, revision, audited)


def declare(module: str, digest: str, others: Collection[str], *, has_any: bool) -> Call[tuple[str, list[str]]]:
    """Note what a module declares, by its digest; `others` are the digests of other live pools. Whose declaration
    counts, and the ids of the schedules that the module declares now."""

    def read(reply: list[bytes]) -> tuple[str, list[str]]:
        return reply[0].decode(), texts(reply[1:])

    return _declare.call((module, digest, "1" if has_any else "", *others), read)


def occurrences(id: str, most: int = 0) -> Call[list[bytes]]:
    """What became of the last occurrences (0: of all that are known), the newest first: JSON documents."""
    return Call(("LRANGE", keys.OCCURRENCES + id, 0, most - 1), list, again=True)
