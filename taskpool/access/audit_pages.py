"""Pages of the audit, of all entries or of those that a filter keeps: all streams as one, newest first.

A page reads a bounded number of entries. If few of them fit the filter, it may be short, and its cursor goes on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from taskpool import keys
from taskpool.access.audit import Audited, AuditEntry, What
from taskpool.calls import UNREADABLE, Call, Plan, tell_unreadable, tolerant
from taskpool.cursor import decode_cursor, encode_cursor, page_length, wrong_cursor
from taskpool.errors import FieldError, InvalidTask
from taskpool.types import Page

LONGEST_PAGE: Final = 500
MOST_LOOKED_AT: Final = 1000

_NEWEST: Final = "+"
_POSITION: Final = re.compile(r"(?!0+-)\d{1,15}-\d{1,10}|\+")
_STREAMS: Final = (keys.AUDIT, keys.AUDIT_SUBMITTED, keys.AUDIT_TASKS)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)

_decode = msgspec.json.Decoder(AuditEntry).decode


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries to read, None: any. `key` and `project` are of who did it; `since` is included, `until` is not."""

    what: What | None = None
    key: str | None = None
    project: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def keeps(self, entry: AuditEntry) -> bool:
        """Whether an entry of that time is one of them."""
        return (
            (self.what is None or entry.what == self.what)
            and (self.key is None or entry.key == self.key)
            and (self.project is None or entry.project == self.project)
        )

    @property
    def is_of_times_alone(self) -> bool:
        """Whether it keeps all of a time, so that nothing is looked at in vain."""
        return self.what is None and self.key is None and self.project is None

    @property
    def streams(self) -> Sequence[int]:
        """The indexes in `_STREAMS` of those that may have such entries."""
        if self.what is None:
            return (0, 1, 2)
        if self.what is What.TASK_SUBMITTED:
            return (1,)
        # Entries about tasks that an earlier release wrote are in the first stream.
        return (0, 2) if self.what.startswith("task.") else (0,)


EVERYTHING: Final = AuditFilter()


def read_audit(wanted: AuditFilter = EVERYTHING, *, cursor: str | None = None, limit: int = 100) -> Plan[Page[Audited]]:
    """One page of the audit, newest first: it looks at `MOST_LOOKED_AT` entries at most, so it may be short.

    Raises:
        InvalidTask: the cursor isn't one of ours, or no time is between `since` and `until`.
    """
    if wanted.since is not None and wanted.until is not None and wanted.until <= wanted.since:
        fault = FieldError("/until", "must be later than `since`")
        raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault])
    limit = page_length(limit, LONGEST_PAGE)
    after = decode_cursor(cursor, [str] * len(_STREAMS)) if cursor else [_NEWEST] * len(_STREAMS)
    if not all(_POSITION.fullmatch(position) for position in after):
        raise wrong_cursor()
    if wanted.until is not None:
        until_ms = _ms(wanted.until)
        if until_ms <= 0:
            return Page((), None)
        after = [min(f"{until_ms}-0", position, key=_order) for position in after]
    kept: list[Audited] = []
    looked_at, is_last = 0, False
    while not is_last and len(kept) < limit and looked_at < MOST_LOOKED_AT:
        rows, is_end = yield from _newest(wanted, after, limit if wanted.is_of_times_alone else LONGEST_PAGE)
        used = 0
        for stream, row in rows:
            after[stream] = row.id
            used += 1
            if row.audited is not None and wanted.keeps(row.audited.entry):
                kept.append(row.audited)
                if len(kept) == limit:
                    break
        looked_at += used
        is_last = is_end and used == len(rows)
    return Page(tuple(kept), None if is_last else encode_cursor(*after))


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    audited: Audited | None
    """None: it can't be read."""


def _newest(wanted: AuditFilter, after: Sequence[str], count: int) -> Plan[tuple[list[tuple[int, _Row]], bool]]:
    """The next `count` entries of all streams, each with its stream, and whether there are no more."""
    since = "-" if wanted.since is None else str(max(0, _ms(wanted.since)))
    ends = [position if position == _NEWEST else f"({position}" for position in after]
    parts = yield [
        tolerant(Call(("XREVRANGE", _STREAMS[stream], ends[stream], since, "COUNT", count), _rows, again=True), [])
        for stream in wanted.streams
    ]
    rows = [(stream, row) for stream, part in zip(wanted.streams, parts, strict=True) for row in part]
    rows.sort(key=lambda each: _order(each[1].id), reverse=True)
    return rows[:count], len(rows) <= count and all(len(part) < count for part in parts)


def _order(position: str) -> tuple[float, int]:
    """By which positions in a stream compare."""
    if position == _NEWEST:
        return math.inf, 0
    ms, _, number = position.partition("-")
    return int(ms), int(number)


def _ms(at: datetime) -> int:
    """The first millisecond since 1970 that isn't before a time."""
    return -((_EPOCH - at) // _MS)


def _rows(reply: Sequence[Any]) -> list[_Row]:
    rows = []
    for id, fields in reply:
        text = id.decode()
        try:
            audited = Audited(int(text.partition("-")[0]), _decode(fields[1]))
        except UNREADABLE as error:
            tell_unreadable(f"the audit's entry {text}", error)
            audited = None
        rows.append(_Row(text, audited))
    return rows
