"""The audit: who submitted, stopped, retried, removed, changed or read what, from where and when.

The script that makes a change writes its entry, so each change has one and a refused one has none. Submissions, changes
of tasks, and what admins do with keys and webhooks have a capped stream each: a caller that may only submit and stop
tasks can't push out what admins did. `read_audit` reads all streams as one, newest first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.access.api_key import OPTIONS, RIGHTS, Scope
from taskpool.errors import FieldError, InvalidTask, NotAllowed
from taskpool.redis import calls, keys
from taskpool.redis.calls import Call, Plan, tolerant
from taskpool.types import Page, TaskSpec
from taskpool.validation import EARLIEST


class What(StrEnum):
    """The kinds of entries."""

    TASK_SUBMITTED = "task.submitted"
    TASK_STOPPED = "task.stopped"
    TASK_CANCELED = "task.canceled"
    TASK_REMOVED = "task.removed"
    TASK_RETRIED = "task.retried"
    TASK_CONFIRMED = "task.confirmed"
    TASK_REJECTED = "task.rejected"
    TASK_ANSWERED = "task.answered"
    WORKFLOW_SUBMITTED = "workflow.submitted"
    WORKFLOW_STOPPED = "workflow.stopped"
    WORKFLOW_RETRIED = "workflow.retried"
    WORKFLOW_REMOVED = "workflow.removed"
    SCHEDULE_CREATED = "schedule.created"
    SCHEDULE_CHANGED = "schedule.changed"
    SCHEDULE_PAUSED = "schedule.paused"
    SCHEDULE_RESUMED = "schedule.resumed"
    SCHEDULE_REMOVED = "schedule.removed"
    QUEUE_PAUSED = "queue.paused"
    QUEUE_RESUMED = "queue.resumed"
    POOL_PAUSED = "pool.paused"
    POOL_RESUMED = "pool.resumed"
    POOL_DRAINED = "pool.drained"
    EVERYTHING_PAUSED = "everything.paused"
    EVERYTHING_RESUMED = "everything.resumed"
    FAILURES_REDRIVEN = "failures.redriven"
    REDRIVE_STOPPED = "failures.redrive_stopped"
    REDRIVE_ENDED = "failures.redrive_ended"
    OPERATION_STARTED = "operation.started"
    OPERATION_ENDED = "operation.ended"
    OPERATION_CANCELED = "operation.canceled"
    OPERATION_UNDONE = "operation.undone"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROTATED = "webhook.rotated"
    WEBHOOK_REMOVED = "webhook.removed"
    WEBHOOK_SECRET_READ = "webhook.secret_read"
    DELIVERY_REPLAYED = "delivery.replayed"


ANONYMOUS: Final = "anonymous"
"""The name of an `Actor` of whom nothing is known, because the API asks for no keys."""


class Actor(msgspec.Struct, frozen=True, gc=False):
    """Who does something: `key` is a key's id (None: none was asked for), `project` what its new tasks belong to.
    `scopes`, and the `types` and `queues` whose tasks it may start and stop, are its key's (None: any)."""

    key: str | None
    name: str
    project: str | None
    address: str
    types: Collection[str] | None = None
    queues: Collection[str] | None = None
    scopes: Collection[Scope] | None = None

    @property
    def is_bound(self) -> bool:
        """Whether there are types or queues whose tasks it may not start and stop."""
        return self.types is not None or self.queues is not None

    def covers(self, other: Actor | None) -> bool:
        """Whether it may start and stop each task that the other may; None: a program, which has no bounds."""
        types, queues = (None, None) if other is None else (other.types, other.queues)
        pairs = ((self.types, types), (self.queues, queues))
        return all(mine is None or (its is not None and {*its} <= {*mine}) for mine, its in pairs)

    @property
    def key_name(self) -> str | None:
        """The name of the API key with which it submits, as tasks keep it. A schedule, a task or a program has none."""
        return None

    def bounds(self) -> bytes:
        """Its types and queues as `add.lua` takes them, ``{"types":{name:1},"queues":{name:1}}``; empty: any."""
        if not self.is_bound:
            return b""
        names = {"types": self.types, "queues": self.queues}
        return _encode({of: dict.fromkeys(each, 1) for of, each in names.items() if each is not None})

    def may(self, scope: Scope) -> bool:
        """Whether it has this scope."""
        return self.scopes is None or scope in self.scopes or Scope.ADMIN in self.scopes

    def check_options(self, spec: TaskSpec, start: str = "") -> None:
        """Return if it may use the type, the queue (if it names one) and the options of a submission; `start` prefixes
        the faults' pointers. To be asked before the type is looked up: a caller learns nothing about a type that it may
        not use. Raises: NotAllowed."""
        if not self.is_bound and self.may(Scope.ADMIN):
            return
        faults = list(self._bound_faults(spec.type, spec.queue, start))
        for option, value, effect in OPTIONS:
            given = getattr(spec, option)
            scope = RIGHTS[effect].scope
            if given and (value is None or value == given) and not self.may(scope):
                what = option if value is None else f"{option} {value}"
                text = f"the key {self.name!r} doesn't have the scope {scope.value}, which {what} needs"
                faults.append(FieldError(f"{start}/{option}", text))
        if faults:
            raise NotAllowed(faults)

    def check_task(self, type: str, queue: str, start: str = "") -> None:
        """Return if it may start and stop tasks of this type in this queue; `start` prefixes the faults' pointers.
        Raises: NotAllowed."""
        if self.is_bound and (faults := list(self._bound_faults(type, queue, start))):
            raise NotAllowed(faults)

    def _bound_faults(self, type: str, queue: str | None, start: str) -> Iterator[FieldError]:
        for field, value, allowed in (("type", type, self.types), ("queue", queue, self.queues)):
            if allowed is not None and value is not None and value not in allowed:
                known = ", ".join(sorted(allowed))
                yield FieldError(f"{start}/{field}", f"the key {self.name!r} may use the {field}s {known}, not {value}")


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change. `what` is a word such as ``task.stopped``; `about` is the id of what was changed, of the first and
    `last` of `count` tasks in a batch; of an operation, `count` is how many tasks it had changed; `comment` is what a
    person said about it, or what the operation does."""

    what: str
    about: str
    key: str | None = None
    name: str = ""
    project: str | None = None
    address: str = ""
    count: int = 1
    last: str | None = None
    comment: str | None = None


class Audited(NamedTuple):
    """An entry and when it was made, in ms by Redis's clock."""

    at_ms: int
    entry: AuditEntry


_encode = msgspec.json.Encoder().encode


def entry(
    by: Actor | None, what: str, about: str, *, count: int = 1, last: str | None = None, comment: str | None = None
) -> bytes:
    """The entry as scripts take it; empty, for none, when the actor isn't known."""
    if by is None:
        return b""
    return _encode(AuditEntry(what, about, by.key, by.name, by.project, by.address, count, last, comment))


def note(entry: bytes) -> Call[None]:
    """Append an entry about something that changes nothing, such as a secret that is shown."""
    command = ("XADD", keys.AUDIT, "MAXLEN", "~", keys.AUDIT_MAXLEN, "*", "e", entry)
    return Call(command, lambda _: None, again=True)


LONGEST_PAGE: Final = 500
MOST_LOOKED_AT: Final = 1000

_NEWEST: Final = "+"
_POSITION: Final = re.compile(r"(?!0+-)\d{1,15}-\d{1,10}|\+")
_OF_ADMINS: Final = ("key.", "webhook.", "delivery.")
_STREAMS: Final = (keys.AUDIT, keys.AUDIT_SUBMITTED, keys.AUDIT_TASKS)

_decode = msgspec.json.Decoder(AuditEntry).decode


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries to read, None: any. `key` and `project` are of who did it; `since` is included, `until` is not.
    `about` is the id of what was changed: of a batch, that of its first or last task. That of a task also finds the
    operations that changed it."""

    what: What | None = None
    key: str | None = None
    project: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    about: str | None = None

    def keeps(self, entry: AuditEntry, operations: Collection[str] = ()) -> bool:
        """Whether an entry of that time is one of them; `operations` are those that changed the task `about`."""
        wanted = ((self.what, entry.what), (self.key, entry.key), (self.project, entry.project))
        is_about = self.about in (None, entry.about, entry.last) or entry.about in operations
        return is_about and all(value in (None, found) for value, found in wanted)

    @property
    def streams(self) -> Sequence[int]:
        """The indexes in `_STREAMS` of those that may have such entries."""
        if self.what is None:
            return (0, 1, 2)
        if self.what in (What.TASK_SUBMITTED, What.WORKFLOW_SUBMITTED):
            return (1,)
        # Entries about tasks that an earlier release wrote are in the first stream.
        return (0,) if self.what.startswith(_OF_ADMINS) else (0, 2)


EVERYTHING: Final = AuditFilter()


def read_audit(wanted: AuditFilter = EVERYTHING, *, cursor: str | None = None, limit: int = 100) -> Plan[Page[Audited]]:
    """One page of the audit, newest first: it looks at `MOST_LOOKED_AT` entries at most, so it may be short. Raises:
    InvalidTask (the cursor isn't one of ours, or no time is between `since` and `until`)."""
    if wanted.since is not None and wanted.until is not None and wanted.until <= wanted.since:
        fault = FieldError("/until", "must be later than `since`")
        raise InvalidTask(f"{fault.pointer}: {fault.detail}", [fault])
    limit = calls.page_length(limit, LONGEST_PAGE)
    after = calls.decode_cursor(cursor, [str] * len(_STREAMS)) if cursor else [_NEWEST] * len(_STREAMS)
    if not all(_POSITION.fullmatch(position) for position in after):
        raise calls.wrong_cursor()
    if wanted.until is not None:
        until_ms = _ms(wanted.until)
        if until_ms <= 0:
            return Page((), None)
        after = [min(f"{until_ms}-0", position, key=_order) for position in after]
    # If all of a time is wanted, nothing is looked at in vain.
    at_once = (
        limit if (wanted.what, wanted.key, wanted.project, wanted.about) == (None, None, None, None) else LONGEST_PAGE
    )
    operations = () if wanted.about is None else (yield from _operations_of(wanted.about))
    kept: list[Audited] = []
    looked_at, is_last = 0, False
    while not is_last and len(kept) < limit and looked_at < MOST_LOOKED_AT:
        rows, is_end = yield from _newest(wanted, after, at_once)
        used = 0
        for stream, position, audited in rows:
            used += 1
            after[stream] = position
            if audited is not None and wanted.keeps(audited.entry, operations):
                kept.append(audited)
                if len(kept) == limit:
                    break
        looked_at += used
        is_last = is_end and used == len(rows)
    return Page(tuple(kept), None if is_last else calls.encode_cursor(*after))


def _operations_of(id: str) -> Plan[Collection[str]]:
    """The operations that have changed a task, if there is one with this id. Of one that an operation has removed, they
    are known as long as that can be undone."""

    def read(reply: Sequence[bytes | None]) -> list[str]:
        return [operation for field in reply if field for operation in field.decode().split(",")]

    places = (("HMGET", keys.JOB + id, "operations"), ("HMGET", keys.TRASH + keys.JOB + id, "operations", "trashed_by"))
    found = yield [tolerant(Call(command, read, again=True), []) for command in places]
    return {operation for place in found for operation in place}


class _Row(NamedTuple):
    stream: int
    position: str
    audited: Audited | None  # None: it can't be read


def _newest(wanted: AuditFilter, after: Sequence[str], count: int) -> Plan[tuple[list[_Row], bool]]:
    """The next `count` entries of all streams, and whether there are no more."""
    since = "-" if wanted.since is None else str(max(0, _ms(wanted.since)))
    parts = yield [_entries(stream, after[stream], since, count) for stream in wanted.streams]
    rows = sorted([row for part in parts for row in part], key=lambda row: _order(row.position), reverse=True)
    return rows[:count], len(rows) <= count and all(len(part) < count for part in parts)


def _entries(stream: int, after: str, since: str, count: int) -> Call[list[_Row]]:
    def read(reply: Sequence[Any]) -> list[_Row]:
        return [_Row(stream, id.decode(), _audited(id.decode(), fields)) for id, fields in reply]

    end = after if after == _NEWEST else f"({after}"
    return tolerant(Call(("XREVRANGE", _STREAMS[stream], end, since, "COUNT", count), read, again=True), [])


def _audited(id: str, fields: Sequence[bytes]) -> Audited | None:
    try:
        return Audited(int(id.partition("-")[0]), _decode(fields[1]))
    except calls.UNREADABLE as error:
        calls.tell_unreadable(f"the audit's entry {id}", error)
        return None


def _order(position: str) -> tuple[float, int]:
    """By which positions in a stream compare."""
    if position == _NEWEST:
        return math.inf, 0
    ms, _, number = position.partition("-")
    return int(ms), int(number)


def _ms(at: datetime) -> int:
    """The first millisecond since 1970 that isn't before a time."""
    return -((EARLIEST - at) // timedelta(milliseconds=1))
