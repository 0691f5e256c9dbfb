"""The scripts of operations on many tasks, as typed functions; see `scripts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.redis import keys
from taskpool.redis.calls import Call, Script, hash_of, texts
from taskpool.redis.scripts import Work

_start, _take = map(Script, ("operation_start", "work_take"))
_note, _cancel = map(Script, ("operation_note", "operation_cancel"))
_cancel_many, _move_many = map(Script, ("cancel_many", "move_many"))
_run_now, _uncancel, _unpurge = map(Script, ("run_now", "uncancel", "unpurge"))
LEASE_MS: Final = 10_000
"""How long a program has an operation or a redrive without a step. Then another one may take it."""
_encode: Final = msgspec.json.Encoder().encode


def start(
    id: str,
    fields: Mapping[str, str],
    *,
    project: str | None,
    audited: bytes = b"",
    driver: str = "",
    most_queues: int = 0,
    lease_ms: int = LEASE_MS,
) -> Call[str]:
    """Enter an operation: ``ok``, ``capped`` (it moves tasks to one queue more than the project may use), or why
    another one can't be undone: ``gone``, ``running``, ``undone`` or ``late``. `driver`: the program that goes on with
    it. `most_queues`: 0 for any number."""
    return _start.word(id, _encode(fields), project or "", audited, driver, lease_ms, most_queues)


class Taken(NamedTuple):
    """What became of taking an operation or a redrive: ``ok``, ``busy``, ``ended`` or ``gone``; and its hash."""

    word: str
    hash: Mapping[bytes, bytes]


def take(id: str, driver: str) -> Call[Taken]:
    """Take an operation to go on with it, or keep it."""
    return _taken(keys.OPERATION + id, keys.OPERATIONS_RUNNING, id, driver)


def take_redrive(fingerprint: str, driver: str) -> Call[Taken]:
    """Take a redrive to go on with it, or keep it."""
    return _taken(keys.REDRIVE + fingerprint, keys.REDRIVES, fingerprint, driver)


def _taken(key: str, running: str, name: str, driver: str) -> Call[Taken]:
    arguments = (key, running, name, driver, LEASE_MS)
    return _take.call(arguments, lambda reply: Taken(reply[0].decode(), hash_of(reply[1:])))


def note(
    id: str,
    driver: str,
    steps: int,
    *,
    lease_ms: int = LEASE_MS,
    set: Mapping[str, str] | None = None,
    add: Mapping[str, int] | None = None,
    found: Sequence[str] = (),
    status: str | None = None,
    undo_s: int | None = None,
    audited: bytes = b"",
) -> Call[str]:
    """Note a step: ``ok``, ``lost`` (another program goes on with it) or ``ended``."""
    step: dict[str, Any] = {"set": set, "add": add, "found": found, "status": status, "undo_s": undo_s}
    document = _encode({name: value for name, value in step.items() if value})
    return _note.word(id, driver, steps, lease_ms, document, audited)


def cancel(id: str, undo_s: int | None, audited: bytes = b"") -> Call[str]:
    """Cancel an operation: ``ok``, ``gone``, or the word of the status that doesn't allow it."""
    return _cancel.word(id, "" if undo_s is None else undo_s, audited)


def tasks_of(id: str, first: int, last: int) -> Call[list[str]]:
    """The ids of the tasks that an operation has found, from one number to another; negative ones count from the
    end."""
    return Call(("LRANGE", keys.OPERATION + id + keys.OPERATION_TASKS, first, last), texts, again=True)


class Many(NamedTuple):
    """What became of the first ones of several tasks, a word for each; and what the next call needs to know."""

    words: list[str]
    hints: str


NO_HINTS: Final = "{}"


def cancel_many(ids: Sequence[str], work: Work, hints: str = NO_HINTS) -> Call[Many]:
    """Cancel tasks as `scripts.cancel` does, with the same words."""
    return _cancel_many.call((work.id, keys.NOT_STARTED, hints, work.driver, *ids), _many)


def move_many(ids: Sequence[str], queue: str, work: Work, hints: str = NO_HINTS) -> Call[Many]:
    """Move tasks to another queue: ``ok``, ``same``, ``taken``, ``foreign``, ``gone``, or RQ's word of its status."""
    return _move_many.call((work.id, queue, hints, work.driver, *ids), _many)


def _many(reply: Sequence[bytes]) -> Many:
    hints, *words = texts(reply)
    return Many(words, NO_HINTS if hints == "[]" else hints)


def run_now(id: str, work: Work) -> Call[str]:
    """Queue a scheduled task: ``ok``, ``foreign``, ``gone``, or RQ's word of its status."""
    return _run_now.word(id, work.id, work.driver)


def uncancel(id: str, canceled_by: str, work: Work) -> Call[str]:
    """Take a cancelation back: ``ok``, ``children`` (release them), ``gone``, ``other``, ``dependency ...``,
    ``secrets``, ``unique ...``, or RQ's word of its status. `canceled_by`: the operation that canceled it."""
    return _uncancel.word(id, canceled_by, work.id, work.driver)


def unpurge(id: str, removed_by: str, work: Work) -> Call[str]:
    """Put a removed record back: ``ok``, ``gone``, ``other`` or ``exists``. `removed_by`: as above."""
    return _unpurge.word(id, removed_by, work.id, work.driver)
