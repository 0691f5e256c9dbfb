"""Lists of tasks by any criteria: newest first, in pages, never at the cost of a queue's length.

RQ's queues and registries are the indexes of statuses, ours those of types, tags, projects and workflows. The smallest
one is walked. Other criteria look at the fields of the records that they need, and only what matches is read whole. A
page looks at 1,000 records at most and at 4 MB of them, or at 2,000 if it reads a few fields of each: where few of them
match, or they are large, it may be short, and its cursor goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import msgspec

from taskpool.operations.control.criteria import checked
from taskpool.operations.control.search import part_of
from taskpool.operations.flow.expansion import member_id
from taskpool.operations.flow.workflows import member_numbers
from taskpool.operations.records import fetch_if_there
from taskpool.redis import calls, keys, rq_job
from taskpool.redis.calls import Call, Part, Plan, as_it_is, one, texts, tolerant
from taskpool.types import Page, TaskRecord, TaskStatus
from taskpool.types.control import Filter
from taskpool.validation import TASK_ID, derived_start

S = TaskStatus

LONGEST_PAGE: Final = 200
MOST_LOOKED_AT: Final = 1000
MOST_SCANNED: Final = 2000  # the same where only a few fields of each are read
FEW_PLACES: Final = 20  # with more indexes to walk, empty ones are skipped many at a time, and count as looked at
BATCH: Final = 100
FIRST_READ: Final = 5  # how many records are read at once before it is known how large they are
READ_BYTES: Final = 512 * 1024  # about how much is read at once: to make records of more would block an event loop
MOST_BYTES: Final = 4 * 1024 * 1024  # a page ends behind the record with which it has read this much
NEWER: Final = 10_000  # most new tasks between two pages for the second to find where the first ended
RUNNING: Final = (S.IN_PROGRESS, S.STOPPING)
OF_PLACES: Final = ("status", "queue")  # what the place of a task tells of it (some places hold two statuses)
ANY_ID: Final = r"[\s\S]{1,1000}"  # RQ jobs of other programs may have any text for an id
NO_WORKFLOW: Final = ""  # no workflow has this id


def list_tasks(wanted: Filter, *, cursor: str | None = None, limit: int = 50) -> Plan[Page[TaskRecord]]:
    """One page of the tasks that match. Raises: InvalidTask (a criterion, the cursor or the limit is invalid)."""
    limit = calls.page_length(limit, LONGEST_PAGE)
    walk = yield from walk_of(wanted, cursor)
    wanted, indexes = walk.wanted, walk.indexes
    source, position = walk.source, walk.position
    kept: list[TaskRecord] = []
    looked_at = size = 0
    at_once, most = FIRST_READ, MOST_SCANNED if walk.scans else MOST_LOOKED_AT
    while source < len(indexes) and len(kept) < limit and looked_at < most and size < MOST_BYTES:
        if not position and len(indexes) - source > FEW_PLACES:
            exist = yield [Call(("EXISTS", each.name), bool, again=True) for each in indexes[source : source + BATCH]]
            empty = exist.index(True) if True in exist else len(exist)
            source, looked_at = source + empty, looked_at + empty
            if empty == len(exist):
                continue
        found = yield from indexes[source].step(position, BATCH if walk.scans else min(BATCH, max(limit, 20)))
        if not found:
            source, position = source + 1, ""
        fits = (yield from walk.fits([id for id, _ in found])) if walk.scans else [True] * len(found)
        at = 0
        while at < len(found) and len(kept) < limit and size < MOST_BYTES:
            end = _end_of_group(fits, at, at_once)
            read = iter((yield [_sized(id) for (id, _), fit in zip(found[at:end], fits[at:end], strict=True) if fit]))
            for (_, after), fit in zip(found[at:end], fits[at:end], strict=True):
                record, length = next(read) if fit else (None, 0)
                at, looked_at, size, position = at + 1, looked_at + 1, size + length, after
                if record is not None and wanted.keeps(record):
                    kept.append(record)
                if len(kept) == limit or size >= MOST_BYTES:
                    break
            at_once = max(1, min(READ_BYTES * looked_at // max(size, 1), BATCH))
    next_cursor = calls.encode_cursor(indexes[source].name, position) if source < len(indexes) else None
    return Page(tuple(kept), next_cursor, looked_at if walk.scans else None)


def _end_of_group(fits: Sequence[bool], start: int, most: int) -> int:
    """The end of a group that begins at `start` and has at most `most` of those that fit."""
    end = start
    while end < len(fits) and most > 0:
        most -= fits[end]
        end += 1
    return end


@dataclass(frozen=True, slots=True)
class Walk:
    """Where the tasks of a filter are looked for: in these indexes, one after the other, from `position` in the one
    with the number `source` on. `scans`: they hold others, too, of which records have to be looked at. `registry`: the
    names of the indexes begin with it, and there is one for each queue. Queues come and go between two pages."""

    wanted: Filter
    indexes: Sequence[Index]
    scans: bool
    registry: str = ""
    source: int = 0
    position: str = ""

    def has(self, name: str) -> bool:
        """Whether a listing that stopped in the index of this name goes on here."""
        is_of_queue = self.registry != "" and name.startswith(self.registry)
        return is_of_queue or any(index.name == name for index in self.indexes)

    def size(self) -> Plan[int]:
        """How many tasks its indexes hold."""
        calls = [call for index in self.indexes for call in index.size()]
        return sum((yield calls)) if calls else len(self.indexes)

    def fits(self, ids: Sequence[str]) -> Plan[list[bool]]:
        """Which of these tasks match."""
        now = datetime.now(UTC)
        parts = (yield [part_of(id, self.wanted) for id in ids]) if ids else []
        return [part is not None and self.wanted.keeps(part, now) for part in parts]


def walk_of(wanted: Filter, cursor: str | None = None) -> Plan[Walk]:
    """How to find the tasks of a filter, from a cursor on. Raises: InvalidTask (a criterion or the cursor)."""
    wanted = checked(wanted)
    named, position = calls.decode_cursor(cursor, (str, str)) if cursor else (None, "")
    ways = yield from _ways(wanted, named)
    if named is not None:  # a listing stays on its way
        return _resumed(next((way for way in ways if way.has(named)), None), named, position)
    if len(ways) == 1:
        return ways[0]
    sizes = []
    for way in ways:
        sizes.append((yield from way.size()))
    return ways[sizes.index(min(sizes))]


def _is_task(text: str, project: str | None) -> Plan[bool]:
    """Whether a text is the id of a task, of this project if it isn't None: others don't exist for its callers."""
    if not TASK_ID.fullmatch(text):
        return False
    read = Call(("HMGET", keys.JOB + text, "created_at", "project"), as_it_is, again=True)
    created_at, owner = yield from one(tolerant(read, (None, None)))
    return created_at is not None and (project is None or rq_job.text_of(owner) == project)


def _sized(id: str) -> Call[tuple[TaskRecord | None, int]]:
    call = fetch_if_there(id)

    def read(reply: Any) -> tuple[TaskRecord | None, int]:
        return call.read(reply), sum(map(len, reply)) if isinstance(reply, list) else 0

    return Call(call.command, read, again=True, reads_faults=True)


def _is_workflow(id: str, project: str | None) -> Plan[bool]:
    """Whether there is a workflow with this id, of this project if it isn't None."""
    if not TASK_ID.fullmatch(id):  # it could name another key
        return False
    if project is None:
        return True
    owner = yield from one(tolerant(Call(("HGET", keys.WORKFLOW + id, "project"), as_it_is, again=True), None))
    return rq_job.text_of(owner) == project


def _resumed(walk: Walk | None, name: str, position: str) -> Walk:
    """The walk from a position in the index of this name on. Raises: InvalidTask."""
    if walk is None:
        raise calls.wrong_cursor()
    walked = [index.name for index in walk.indexes]
    if name not in walked:  # its queue is gone
        return replace(walk, source=next((at for at, other in enumerate(walked) if other > name), len(walked)))
    source = walked.index(name)
    if position and not walk.indexes[source].POSITION.fullmatch(position):
        raise calls.wrong_cursor()
    return replace(walk, source=source, position=position)


Found = list[tuple[str, str]]  # ids, each with the position after it


@dataclass(frozen=True, slots=True)
class ById:
    """Indexes of ours, merged. Members have one score and sort by id, which is by time. With `start`, only ids that
    begin with it. The position is the last id."""

    keys: Sequence[str]
    name: str = "ids"
    start: str = ""
    POSITION: ClassVar = re.compile(ANY_ID)

    def size(self) -> Sequence[Call[int]]:
        if self.start:
            return [_counting("ZLEXCOUNT", key, self._oldest, self._newest) for key in self.keys]
        return [_counting("ZCARD", key) for key in self.keys]

    @property
    def _oldest(self) -> str:
        return f"[{self.start}" if self.start else "-"

    @property
    def _newest(self) -> str:
        return f"({self.start}~" if self.start else "+"  # behind all ids of ours with this start

    def step(self, position: str, count: int) -> Plan[Found]:
        newest = f"({position}" if position else self._newest
        parts = yield [_reading("ZREVRANGEBYLEX", key, newest, self._oldest, "LIMIT", 0, count) for key in self.keys]
        ids = sorted([id for part in parts for id in part], reverse=True)[:count]
        return [(id, id) for id in ids]


@dataclass(frozen=True, slots=True)
class Running:
    """What runs in a queue, by id as well: the scores, ends of leases, change with every heartbeat."""

    name: str
    POSITION: ClassVar = ById.POSITION

    def size(self) -> Sequence[Call[int]]:
        return [_counting("ZCARD", self.name)]

    def step(self, position: str, count: int) -> Plan[Found]:
        members = yield from one(_reading("ZRANGE", self.name, 0, -1))
        ids = sorted({member.partition(":")[0] for member in members}, reverse=True)
        return [(id, id) for id in ids if not position or id < position][:count]


@dataclass(frozen=True, slots=True)
class ByScore:
    """One of RQ's registries, highest score first. The position is ``score/member`` of the last one. If that has left
    the registry, those of its score come again: better than to skip any."""

    name: str
    POSITION: ClassVar = re.compile(rf"-?(inf|[0-9]{{1,30}}(\.[0-9]{{1,30}})?(e[+-]?[0-9]{{1,3}})?)/{ANY_ID}")

    def size(self) -> Sequence[Call[int]]:
        return [_counting("ZCARD", self.name)]

    def step(self, position: str, count: int) -> Plan[Found]:
        score, _, last = position.partition("/")
        rank, held = None, None
        if position:
            commands = (("ZREVRANK", self.name, last), ("ZSCORE", self.name, last))
            rank, held = yield [tolerant(Call(command, as_it_is, again=True), None) for command in commands]
        if rank is not None and held == score.encode():
            reading = _reading("ZREVRANGE", self.name, rank + 1, rank + count, "WITHSCORES")
        else:
            below = (score or "+inf", "-inf", "WITHSCORES", "LIMIT", 0, count)
            reading = _reading("ZREVRANGEBYSCORE", self.name, *below)
        flat = yield from one(reading)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [(member, f"{at}/{member}") for member, at in pairs]


@dataclass(frozen=True, slots=True)
class FromTail:
    """A queue from its tail: tasks taken from the head meanwhile shift nothing. The position is ``n/id``: n tasks from
    the tail on are behind, the last of them with this id, by which those that came since are counted too. If that one
    was taken out of the middle, so may others have been: it begins at the tail again, better than to skip any."""

    name: str
    POSITION: ClassVar = re.compile(rf"[0-9]{{1,12}}/{ANY_ID}")

    def size(self) -> Sequence[Call[int]]:
        return [_counting("LLEN", self.name)]

    def step(self, position: str, count: int) -> Plan[Found]:
        behind, _, last = position.partition("/")
        passed = int(behind or 0)
        if last:
            search = ("LPOS", self.name, last, "RANK", -1, "MAXLEN", passed + NEWER)
            commands = (("LLEN", self.name), search, ("HMGET", keys.JOB + last, "status", "origin"))
            read = [tolerant(Call(command, as_it_is, again=True), None) for command in commands]
            length, at, state = yield read
            status, origin = state or (None, None)
            is_moved = status == b"queued" and keys.QUEUE.encode() + (origin or b"") != self.name.encode()
            if length is not None and at is not None:
                passed = length - at
            elif status == b"canceled" or is_moved:
                passed = 0
            elif status not in (b"queued", None):
                return []  # it was claimed, and what stood nearer to the head before it
        ids = yield from one(_reading("LRANGE", self.name, -passed - count, -passed - 1))
        return [(id, f"{passed + n}/{id}") for n, id in enumerate(reversed(ids), start=1)]


@dataclass(frozen=True, slots=True)
class Members:
    """The tasks of a workflow, or of one of its nodes; no index, since their ids follow from the workflow's. The
    position is the last number."""

    workflow: str
    node: str | None
    name: ClassVar = "members"
    POSITION: ClassVar = re.compile(r"\d{1,6}")

    def size(self) -> Sequence[Call[int]]:
        return [_counting("HGET", keys.WORKFLOW + self.workflow, "reserved")]

    def step(self, position: str, count: int) -> Plan[Found]:
        first, last = yield from member_numbers(self.workflow, self.node)
        newest = min(last, int(position) - 1) if position else last
        return [(member_id(self.workflow, at), str(at)) for at in range(newest, max(newest - count, first - 1), -1)]


@dataclass(frozen=True, slots=True)
class Only:
    """One task. The position is its id, behind which there is none."""

    id: str
    name: ClassVar = "only"
    POSITION: ClassVar = ById.POSITION

    def size(self) -> Sequence[Call[int]]:
        return ()

    def step(self, position: str, count: int) -> Plan[Found]:
        yield ()
        return [] if position else [(self.id, self.id)]


@dataclass(frozen=True, slots=True)
class Children:
    """The tasks that depend on one, in no order. The position is ``set/cursor/n``: of what a scan of one of two sets
    has given at that cursor, n are behind."""

    parent: str
    name: ClassVar = "children"
    POSITION: ClassVar = re.compile(r"[012]/\d{1,20}/\d{1,6}")

    def size(self) -> Sequence[Call[int]]:
        return [_counting("SCARD", key + self.parent) for key in _OF_CHILDREN]

    def step(self, position: str, count: int) -> Plan[Found]:
        at, cursor, behind = map(int, (position or "0/0/0").split("/"))
        while at < len(_OF_CHILDREN):
            members, after = yield from one(_scanned(_OF_CHILDREN[at] + self.parent, cursor, count))
            following = f"{at}/{after}/0" if after else f"{at + 1}/0/0"
            found = [(id, f"{at}/{cursor}/{n}") for n, id in enumerate(members, start=1)][behind:]
            if found:
                return [*found[:-1], (found[-1][0], following)]
            at, cursor, behind = map(int, following.split("/"))
        return []


_OF_CHILDREN: Final = (keys.DEPENDENTS, keys.FOLLOWERS)


def _scanned(key: str, cursor: int, count: int) -> Call[tuple[list[str], int]]:
    def read(reply: Any) -> tuple[list[str], int]:
        return [member.decode().rpartition(":")[2] for member in reply[1]], int(reply[0])

    return tolerant(Call(("SSCAN", key, cursor, "COUNT", count), read, again=True), ([], 0))


Index = ById | Running | ByScore | FromTail | Members | Only | Children


def _ways(wanted: Filter, named: str | None) -> Plan[list[Walk]]:
    """The ways to find the tasks of a filter, with the one that leads through the index `named`. The order of each
    stays the same from page to page."""

    def way(indexes: Sequence[Index], *known: str, registry: str = "") -> Walk:
        return Walk(wanted, indexes, scans=bool(wanted.given.keys() - {*known}), registry=registry)

    if wanted.text is not None and (named == Only.name or (yield from _is_task(wanted.text, wanted.project))):
        return [Walk(msgspec.structs.replace(wanted, text=None), [Only(wanted.text)], scans=False)]
    start = "" if wanted.added_by is None else derived_start(wanted.added_by)
    if wanted.workflow is not None:
        is_seen = yield from _is_workflow(wanted.workflow, wanted.project)
        return [way([Members(wanted.workflow if is_seen else NO_WORKFLOW, wanted.node)], "workflow", "node")]
    if wanted.project is not None:  # alone, so that neither the pages nor the cursors tell anything of other projects
        return [way([ById([keys.BY_PROJECT + wanted.project], start=start)], "project")]
    if wanted.parent is not None:
        return [way([Children(wanted.parent)], "parent")]
    found = []
    if wanted.tag is not None:
        found.append(way([ById([keys.BY_TAG + wanted.tag], "tag", start)], "tag"))
    if wanted.type is not None:
        found.append(way([ById([keys.BY_TYPE + wanted.type], "type", start)], "type"))
    if start:
        pass  # no index holds fewer tasks than this part of those by id
    elif wanted.status is S.WAITING_CONFIRMATION:
        found.append(way([ByScore(keys.CONFIRMATIONS)], "status"))
    elif wanted.status is not None:
        queues = [wanted.queue] if wanted.queue is not None else (yield from one(all_queues()))
        registry = keys.REGISTRY_OF.get(wanted.status, "") if wanted.queue is None else ""
        if len(queues) <= FEW_PLACES or not found or (registry and named is not None and named.startswith(registry)):
            indexes = [index for queue in queues for index in _of_status(wanted.status, queue)]
            found.append(way(indexes, *OF_PLACES, registry=registry))
    elif wanted.queue is not None:
        statuses = dict.fromkeys([S.QUEUED, S.IN_PROGRESS, S.SCHEDULED, S.WAITING, S.FAILED, S.CANCELED, S.DONE])
        found.append(way([index for status in statuses for index in _of_status(status, wanted.queue)], "queue"))
    if found:
        return found
    types = yield from one(_reading("SMEMBERS", keys.TYPES_USED))
    return [way([ById([keys.BY_TYPE + type for type in types], start=start)])]


def _of_status(status: TaskStatus, queue: str) -> list[Index]:
    kind = FromTail if status is S.QUEUED else Running if status in RUNNING else ByScore
    return [kind(keys.REGISTRY_OF[status] + queue)] if status in keys.REGISTRY_OF else []


def all_queues() -> Call[list[str]]:
    """The names of all queues, sorted. Members of RQ's set that are no queue's key are skipped."""
    return tolerant(Call(("SMEMBERS", keys.QUEUES), _names, again=True), [])


def some_queues(cursor: str, count: int) -> Call[tuple[str, list[str]]]:
    """The names of about `count` queues, on a way round all of them: where to go on, and the names."""
    command = ("SSCAN", keys.QUEUES, cursor, "COUNT", count)
    return Call(command, lambda reply: (reply[0].decode(), _names(reply[1])), again=True)


def _names(reply: list[bytes]) -> list[str]:
    return sorted(key.removeprefix(keys.QUEUE) for key in calls.names(reply) if key.startswith(keys.QUEUE))


def _reading(*command: Part) -> Call[list[str]]:
    """Reads part of an index; nothing of a key that is no index."""
    return tolerant(Call(command, texts, again=True), [])


def _counting(*command: Part) -> Call[int]:
    """How many tasks an index holds; 0 if the key is no index."""
    return tolerant(Call(command, lambda reply: int(reply or 0), again=True), 0)
