"""Lists of tasks by status, queue, type, tag, project: newest first, in pages, never at the cost of a queue's length.

Each filter has an index: RQ's queues and registries hold the statuses, ours the types and tags. The narrowest one
is walked, the other filters look at the records. A page looks at 1,000 records at most, and at 4 MB of them: where few
of them match, or they are large, it may be short, and its cursor goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from taskpool.errors import FieldError, InvalidTask
from taskpool.operations.records import fetch_if_there
from taskpool.operations.specs import check_text
from taskpool.redis import keys
from taskpool.redis.calls import (
    Call,
    Part,
    Plan,
    as_it_is,
    decode_cursor,
    encode_cursor,
    names,
    one,
    page_length,
    texts,
    tolerant,
    wrong_cursor,
)
from taskpool.types import Page, TaskRecord, TaskStatus

S = TaskStatus

LONGEST_PAGE: Final = 200
MOST_LOOKED_AT: Final = 1000
FEW_PLACES: Final = 20
"""With more indexes to walk than that, empty ones are passed over many at a time, and count as looked at."""
BATCH: Final = 100
FIRST_READ: Final = 5
"""How many records are read at once before it is known how large they are."""
READ_BYTES: Final = 512 * 1024
"""About how much is read at once: to make records of more would keep an event loop for long."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""A page ends behind the record with which it has looked at so much."""

NEWER: Final = 10_000
"""So many tasks may have come between two pages for the second to find where the first ended."""

RUNNING: Final = (S.IN_PROGRESS, S.STOPPING)


@dataclass(frozen=True, slots=True)
class Filter:
    """What a listing keeps; None keeps everything."""

    status: TaskStatus | None = None
    queue: str | None = None
    type: str | None = None
    tag: str | None = None
    project: str | None = None

    def keeps(self, record: TaskRecord) -> bool:
        """Whether a record belongs to the listing."""
        return (
            (self.status is None or record.status is self.status)
            and (self.queue is None or record.queue == self.queue)
            and (self.type is None or record.type == self.type)
            and (self.tag is None or self.tag in record.tags)
            and (self.project is None or record.project == self.project)
        )


def list_tasks(wanted: Filter, *, cursor: str | None = None, limit: int = 50) -> Plan[Page[TaskRecord]]:
    """One page of the tasks that fit.

    Raises:
        InvalidTask: a filter, the cursor or the limit can't be.
    """
    wanted = _read(wanted)
    limit = page_length(limit, LONGEST_PAGE)
    walk = yield from _walk(wanted)
    source, position = _resume(walk, cursor) if cursor else (0, "")
    kept: list[TaskRecord] = []
    looked_at = size = 0
    at_once = FIRST_READ
    while source < len(walk) and len(kept) < limit and looked_at < MOST_LOOKED_AT and size < MOST_BYTES:
        if not position and len(walk) - source > FEW_PLACES:
            passed = yield from _empty_ones(walk[source : source + BATCH])
            source, looked_at = source + passed, looked_at + passed
            if source == len(walk) or passed == BATCH:
                continue
        found = yield from walk[source].step(position, min(BATCH, max(limit, 20)))
        if not found:
            source, position = source + 1, ""
        while found and len(kept) < limit and size < MOST_BYTES:
            group, found = found[:at_once], found[at_once:]
            for (_, after), (record, length) in zip(group, (yield [_sized(id) for id, _ in group]), strict=True):
                looked_at, size, position = looked_at + 1, size + length, after
                if record is not None and wanted.keeps(record):
                    kept.append(record)
                if len(kept) == limit or size >= MOST_BYTES:
                    break
            at_once = max(1, min(READ_BYTES * looked_at // max(size, 1), BATCH))
    return Page(tuple(kept), encode_cursor(walk[source].name, position) if source < len(walk) else None)


def _empty_ones(places: Sequence[Index]) -> Plan[int]:
    """How many of these there are before the first that holds anything."""
    exist = yield [Call(("EXISTS", each.name), bool, again=True) for each in places]
    return next((at for at, holds_some in enumerate(exist) if holds_some), len(places))


def _sized(id: str) -> Call[tuple[TaskRecord | None, int]]:
    """A record, and how many bytes it has."""
    call = fetch_if_there(id)

    def read(reply: Any) -> tuple[TaskRecord | None, int]:
        return call.read(reply), sum(map(len, reply)) if isinstance(reply, list) else 0

    return Call(call.command, read, again=True, reads_faults=True)


def _read(wanted: Filter) -> Filter:
    """The filter with a status of its type: a program may give what its types forbid."""
    for name, value in (("queue", wanted.queue), ("type", wanted.type), ("tag", wanted.tag)):
        if value is not None:
            check_text(name, value)
    if wanted.status is None:
        return wanted
    for status in TaskStatus:
        if status == wanted.status:
            return replace(wanted, status=status)
    text = f"must be one of {', '.join(TaskStatus)}, not {wanted.status!r}"
    raise InvalidTask(f"/status: {text}", [FieldError("/status", text)])


def _resume(walk: Sequence[Index], cursor: str) -> tuple[int, str]:
    """The index in which a listing goes on, by its name because queues come and go, and the position there."""
    name, position = decode_cursor(cursor, (str, str))
    walked = [index.name for index in walk]
    if name not in walked:  # its queue is gone
        return next((at for at, other in enumerate(walked) if other > name), len(walk)), ""
    source = walked.index(name)
    if position and not walk[source].POSITION.fullmatch(position):
        raise wrong_cursor()
    return source, position


Found = list[tuple[str, str]]
"""Ids, each with the position after it."""


@dataclass(frozen=True, slots=True)
class ById:
    """Indexes of ours, merged. Members have one score and sort by id, which is by time. The position is the last id."""

    keys: Sequence[str]
    name: ClassVar = "ids"
    POSITION: ClassVar = re.compile(r"[A-Za-z0-9_-]{1,200}")

    def step(self, position: str, count: int) -> Plan[Found]:
        newest = f"({position}" if position else "+"
        commands = [("ZREVRANGEBYLEX", key, newest, "-", "LIMIT", 0, count) for key in self.keys]
        parts = yield [_reading(command) for command in commands]
        ids = sorted([id for part in parts for id in part], reverse=True)[:count]
        return [(id, id) for id in ids]


@dataclass(frozen=True, slots=True)
class Running:
    """What runs in a queue, by id as well: the scores, ends of leases, change with every heartbeat."""

    name: str
    POSITION: ClassVar = ById.POSITION

    def step(self, position: str, count: int) -> Plan[Found]:
        members = yield from one(_reading(("ZRANGE", self.name, 0, -1)))
        ids = sorted({member.partition(":")[0] for member in members}, reverse=True)
        return [(id, id) for id in ids if not position or id < position][:count]


@dataclass(frozen=True, slots=True)
class ByScore:
    """One of RQ's registries, highest score first. The position is ``score/n``: n of that score are behind."""

    name: str
    POSITION: ClassVar = re.compile(r"(inf|-?\d{1,20}(\.\d{1,20})?(e\+\d{1,3})?)/\d{1,12}")

    def step(self, position: str, count: int) -> Plan[Found]:
        score, _, passed = position.partition("/")
        behind = int(passed or 0)
        command = ("ZREVRANGEBYSCORE", self.name, score or "+inf", "-inf", "WITHSCORES", "LIMIT", behind, count)
        flat = yield from one(_reading(command))
        found = []
        for member, at in zip(flat[::2], flat[1::2], strict=True):
            behind = behind + 1 if at == score else 1
            score = at
            found.append((member.partition(":")[0], f"{score}/{behind}"))
        return found


@dataclass(frozen=True, slots=True)
class FromTail:
    """A queue from its tail: tasks taken from the head meanwhile shift nothing. The position is ``n/id``: n tasks from
    the tail on are behind, the last of them with this id, by which those that came since are counted too."""

    name: str
    POSITION: ClassVar = re.compile(r"\d{1,12}/[A-Za-z0-9_-]{1,200}")

    def step(self, position: str, count: int) -> Plan[Found]:
        behind, _, last = position.partition("/")
        passed = int(behind or 0)
        if last:
            search = ("LPOS", self.name, last, "RANK", -1)
            length, at, status = yield (
                tolerant(Call(("LLEN", self.name), int, again=True), 0),
                tolerant(Call((*search, "MAXLEN", passed + NEWER), as_it_is, again=True), None),
                tolerant(Call(("HGET", keys.JOB + last, "status"), as_it_is, again=True), None),
            )
            if at is not None:
                passed = max(passed, length - at)
            elif status not in (b"queued", b"canceled", None):
                return []  # it was claimed, and what stood nearer to the head before it
        command = ("LRANGE", self.name, -passed - count, -passed - 1)
        ids = yield from one(_reading(command))
        return [(id, f"{passed + n}/{id}") for n, id in enumerate(reversed(ids), start=1)]


Index = ById | Running | ByScore | FromTail


def _walk(wanted: Filter) -> Plan[Sequence[Index]]:
    """The indexes to walk, in an order that stays the same from page to page."""
    if wanted.project is not None:  # alone, so that neither the pages nor the cursors tell anything of other projects
        return [ById([keys.BY_PROJECT + wanted.project])]
    if wanted.tag is not None:
        return [ById([keys.BY_TAG + wanted.tag])]
    if wanted.status is not None:
        queues = [wanted.queue] if wanted.queue is not None else (yield from queue_names())
        return [index for queue in queues for index in _of_status(wanted.status, queue)]
    if wanted.type is not None:
        return [ById([keys.BY_TYPE + wanted.type])]
    if wanted.queue is not None:
        statuses = dict.fromkeys([S.QUEUED, S.IN_PROGRESS, S.SCHEDULED, S.WAITING, S.FAILED, S.CANCELED, S.DONE])
        return [index for status in statuses for index in _of_status(status, wanted.queue)]
    types = yield from one(_reading(("SMEMBERS", keys.TYPES_USED)))
    return [ById([keys.BY_TYPE + type for type in types])]


def _of_status(status: TaskStatus, queue: str) -> Iterator[Index]:
    if status is S.QUEUED:
        yield FromTail(keys.REGISTRY_OF[status] + queue)
    elif status in RUNNING:
        yield Running(keys.REGISTRY_OF[status] + queue)
    elif status in keys.REGISTRY_OF:
        yield ByScore(keys.REGISTRY_OF[status] + queue)


def queue_names() -> Plan[list[str]]:
    """Every queue there is, sorted."""
    return (yield from one(tolerant(all_queues(), [])))


def all_queues() -> Call[list[str]]:
    """The names of all queues, sorted. Members of RQ's set that are no queue's key are skipped."""

    return Call(("SMEMBERS", keys.QUEUES), _names, again=True)


def some_queues(cursor: str, count: int) -> Call[tuple[str, list[str]]]:
    """The names of about so many queues, on a way round all of them: where to go on, and the names."""
    command = ("SSCAN", keys.QUEUES, cursor, "COUNT", count)
    return Call(command, lambda reply: (reply[0].decode(), _names(reply[1])), again=True)


def _names(reply: list[bytes]) -> list[str]:
    return sorted(key.removeprefix(keys.QUEUE) for key in names(reply) if key.startswith(keys.QUEUE))


def _reading(command: Sequence[Part]) -> Call[list[str]]:
    """Reads part of an index; nothing of a key that is no index."""
    return tolerant(Call(command, texts, again=True), [])
