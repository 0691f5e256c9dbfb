"""The audit: who submitted, stopped, retried, removed or changed what, from where and when.

An entry is written by the script that makes the change, so that there is one for each change and none without.
Submissions have a stream of their own, so that many of them don't wash out the rest. Both are capped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from taskpool import keys
from taskpool.calls import Call, Plan
from taskpool.cursor import decode_cursor, encode_cursor, wrong_cursor
from taskpool.errors import FieldError, NotAllowed
from taskpool.types import Page

LONGEST_PAGE: Final = 500

_POSITION: Final = re.compile(r"\d{1,15}-\d{1,10}|\+")


class Actor(msgspec.Struct, frozen=True, gc=False):
    """Who does something: `key` is a key's id (None: none was asked for), `project` what its new tasks belong to, and
    `types` and `queues` are what it may submit tasks to (None: any)."""

    key: str | None
    name: str
    project: str | None
    address: str
    types: Collection[str] | None = None
    queues: Collection[str] | None = None

    def check_use(self, type: str, queue: str, start: str = "") -> None:
        """Return when it may have a task of this type in this queue; `start` prefixes the faults' pointers.

        Raises:
            NotAllowed
        """
        faults = []
        if self.types is not None and type not in self.types:
            known = ", ".join(sorted(self.types))
            faults.append(FieldError(start + "/type", f"the key {self.name!r} may use the types {known}, not {type}"))
        if self.queues is not None and queue not in self.queues:
            known = ", ".join(sorted(self.queues))
            faults.append(
                FieldError(start + "/queue", f"the key {self.name!r} may use the queues {known}, not {queue}")
            )
        if faults:
            raise NotAllowed(faults)


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change. `what` is a word such as ``task.stopped``; `about` is the id of what was changed, of the first and
    `last` of `count` tasks in a batch."""

    what: str
    about: str
    key: str | None = None
    name: str = ""
    project: str | None = None
    address: str = ""
    count: int = 1
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """An entry and when it was made, in ms by Redis's clock."""

    at_ms: int
    entry: AuditEntry


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AuditEntry).decode


def entry(by: Actor | None, what: str, about: str, *, count: int = 1, last: str | None = None) -> bytes:
    """The entry as scripts take it; empty, which stands for none, when nobody's name is known."""
    if by is None:
        return b""
    return _encode(
        AuditEntry(
            what=what,
            about=about,
            key=by.key,
            name=by.name,
            project=by.project,
            address=by.address,
            count=count,
            last=last,
        )
    )


def read(*, cursor: str | None = None, limit: int = 100) -> Plan[Page[Audited]]:
    """One page of the audit, newest first.

    Raises:
        InvalidTask: the cursor isn't one of ours.
    """
    limit = max(1, min(limit, LONGEST_PAGE))
    streams = (keys.AUDIT, keys.AUDIT_SUBMITTED)
    after = decode_cursor(cursor, (str, str)) if cursor else ["+", "+"]
    if not all(_POSITION.fullmatch(position) for position in after):
        raise wrong_cursor()
    parts = yield [
        Call(
            ("XREVRANGE", stream, position if position == "+" else f"({position}", "-", "COUNT", limit),
            _rows,
            again=True,
        )
        for stream, position in zip(streams, after, strict=True)
    ]
    merged = sorted(((row, at) for at, rows in enumerate(parts) for row in rows), key=lambda each: each[0].order)
    shown = merged[::-1][:limit]
    for row, at in shown:
        after[at] = row.id
    is_last = len(shown) == len(merged) and all(len(rows) < limit for rows in parts)
    return Page(tuple(row.audited for row, _ in shown), None if is_last else encode_cursor(*after))


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    audited: Audited

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(map(int, self.id.split("-")))


def _rows(reply: Sequence[Any]) -> list[_Row]:
    rows = []
    for id, (_, document) in reply:
        text = id.decode()
        rows.append(_Row(text, Audited(int(text.partition("-")[0]), _decode(document))))
    return rows
