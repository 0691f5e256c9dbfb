"""Submits tasks, reads a queue, and takes a task out of it.

`add_task` and `add_tasks` return records, for programs. `submit` and `submit_many` return ids and statuses, for the
API; they may carry an idempotency key (`Once`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from taskpool import errors, types
from taskpool.access.audit import Actor, entry
from taskpool.errors import (
    AttemptLost,
    FieldError,
    InvalidTask,
    NotAllowed,
    TaskConflict,
    TaskNotFound,
    UnknownDependency,
)
from taskpool.operations.catalog import Catalogue
from taskpool.operations.records import check_id, fetch_if_there, restore_hash
from taskpool.operations.specs import check_text
from taskpool.operations.status import release_dependents
from taskpool.operations.submit import Defaults, check_task, check_tasks
from taskpool.redis import add_script, keys, scripts
from taskpool.redis.add_script import Added, NewTask, Once, accepted_status
from taskpool.redis.calls import Call, Plan, decode_cursor, encode_cursor, hash_of, one, page_length, wrong_cursor
from taskpool.redis.rq_job import status_of
from taskpool.settings import Settings
from taskpool.tasks.hooks import sending
from taskpool.tasks.registry import Registry
from taskpool.types import RQ_STATUS, Page, QueuedTask, Receipt, TaskRecord, TaskSpec, TaskStatus, utc

CHUNK: Final = 1000  # most tasks in one call, which stores all of them or none
MOST_EDGES: Final = types.MOST_PARENTS
"""What the tasks of one call may depend on, in all: the script looks at each."""

LONGEST_PAGE: Final = 500
LAST_OF_PAGE: Final = 3
LAST_BEFORE: Final = 2
"""How many tasks of a page, and of the pages before, its cursor remembers. If the last task is taken out of the queue,
the next page goes on behind one of the others."""

RELEASES: Final = 100
UNREPLACEABLE: Final = (
    "the task that holds this unique key can't be replaced: your API key may not use its type, or not its queue"
)

_is_shown: Final = re.compile(r"[A-Za-z0-9_-]{1,64} [0-9TZ:.+-]{1,40}").fullmatch


class Rules(NamedTuple):
    """What submissions are checked with: the published types, those that are registered here, and the defaults."""

    catalogue: Catalogue
    registry: Registry | None
    defaults: Defaults

    @classmethod
    def of(cls, settings: Settings, registry: Registry | None = None) -> Rules:
        """Those of a program with these settings."""
        return cls(Catalogue(type_grace_s=settings.type_grace_s), registry, Defaults.of(settings))


def add_task(spec: TaskSpec, rules: Rules) -> Plan[TaskRecord]:
    """Add one task; the record as stored. Raises: InvalidTask, also for a type, payload or dependency; then nothing was
    stored."""
    with sending((spec,)) as sent:
        checked = yield from check_task(sent.specs[0], *rules)
        sent.note((checked,))
        (record,) = yield from _store([(0, (checked,))])
    return record


def add_tasks(specs: Sequence[TaskSpec], rules: Rules) -> Plan[list[TaskRecord]]:
    """Add tasks, in order: all are checked before the first is stored, and each thousand is stored whole or not.
    Raises: InvalidTask (as `add_task`; the pointers start with the index of the task)."""
    with sending(specs) as sent:
        checked = yield from check_tasks(sent.specs, *rules)
        sent.note(checked)
        chunks = list(_chunks(checked))
        if len(chunks) > 1:  # one call finds out by itself
            yield from _check_parents(checked)
        return (yield from _store(chunks))


def _store(chunks: Sequence[tuple[int, Sequence[NewTask]]]) -> Plan[list[TaskRecord]]:
    """Store tasks in parts, each of which begins at an index among all."""
    records: list[TaskRecord] = []
    existing: dict[int, str] = {}
    for at, chunk in chunks:
        added = yield from one(add_script.add(chunk))
        records += stored(chunk, added, at)
        existing |= {at + index: id for index, id in added.existing.items()}
    for at, record in enumerate(records):
        if at in existing or record.status is TaskStatus.CANCELED:  # which parent did not end well, its record says
            id = existing.get(at, record.id)
            records[at] = (yield from one(fetch_if_there(id))) or replace(record, id=id)
    return records


def _chunks(tasks: Sequence[NewTask]) -> Iterator[tuple[int, Sequence[NewTask]]]:
    """The tasks in parts for one call each, and where each part begins: a call looks at every parent of its tasks."""
    start = edges = 0
    for at, task in enumerate(tasks):
        more = len(task.parents) + len(task.edges)
        if at > start and (at - start == CHUNK or edges + more > MOST_EDGES):
            yield start, tasks[start:at]
            start, edges = at, 0
        edges += more
    if tasks:
        yield start, tasks[start:]


def refuse(tasks: Sequence[NewTask], added: Added, start: int = 0) -> None:
    """Raise the error of an addition that stored nothing; `start` is the index of its first task."""
    if added.broken_guard:
        raise AttemptLost("the attempt no longer holds its lease: it can't add tasks")
    if added.unknown_dependency is not None:
        raise UnknownDependency(added.unknown_dependency)
    if added.conflict is not None:
        index, id, word = added.conflict
        held = tasks[index].unique
        status = status_of(word)
        raise errors.UniqueConflict("" if held is None else types.shown_key(held.name), id, status, start + index)
    if added.is_other:
        raise errors.KeyReused
    if cap := added.capped:
        raise errors.CapReached(cap.kind, cap.project or None, cap.most)
    if queue := added.full:
        raise errors.QueueFull(queue.name, queue.held, queue.most, queue.room_in_s())


def stored(tasks: Sequence[NewTask], added: Added, start: int = 0) -> list[TaskRecord]:
    """The records of tasks that one `add` was sent for, without reading them back. Raises: UnknownDependency,
    UniqueConflict, KeyReused, QueueFull, CapReached (none of them was stored)."""
    refuse(tasks, added, start)
    created_at = datetime.fromisoformat(added.stamp)
    return [
        _record(task, accepted_status(status), created_at) for task, status in zip(tasks, added.statuses, strict=True)
    ]


def _check_parents(tasks: Sequence[NewTask]) -> Plan[None]:
    """Refuse all chunks when a parent of any doesn't exist. (One that vanishes after this refuses its chunk.)"""
    parents = list(
        dict.fromkeys(edge for task in tasks for edge in (*task.parents, *(each.ref for each in task.edges)))
    )
    exist = yield [Call(("EXISTS", add_script.key_of(parent)), bool, again=True) for parent in parents]
    if not all(exist):
        raise UnknownDependency(parents[exist.index(False)])


def _record(task: NewTask, status: TaskStatus, created_at: datetime) -> TaskRecord:
    """The record of what was just stored, without reading it back."""
    return TaskRecord(
        id=task.id,
        status=status,
        payload=task.payload,
        created_at=created_at,
        enqueued_at=created_at if status is TaskStatus.QUEUED else None,
        seq=1,
        **task.shared.recorded,
        **({} if task.is_plain else _more(task, status, created_at)),
    )


def _more(task: NewTask, status: TaskStatus, created_at: datetime) -> dict[str, Any]:
    """What the record of a task with options has besides."""
    created_ms = created_at.timestamp() * 1000
    run_ms = (task.run_ms or 0) if task.delay_ms is None else created_ms + task.delay_ms
    confirm = task.recorded.get("confirm") if status is TaskStatus.WAITING_CONFIRMATION else None
    return {
        "run_at": utc(run_ms) if run_ms > created_ms else None,
        "expires_at": None if task.expires_ms is None else utc(created_ms + task.expires_ms),
        "asked_at": None if confirm is None else created_at,
        "answer_by": None if confirm is None else utc(created_ms + confirm.timeout * 1000),
        "project": task.project,
        **task.recorded,
    }


def get_queue(
    name: str, *, cursor: str | None = None, limit: int = 100, project: str | None = None
) -> Plan[Page[QueuedTask]]:
    """A part of a queue as it is at one moment, in dispatch order. It changes nothing. With `project` it shows the
    tasks of that alone, with their positions among all.

    The next page goes on behind the tasks that this one shows, wherever they stand then: while tasks leave at the head,
    come in front or are taken out, none that waits is skipped. None is shown again, unless this page's last three are
    taken out.

    Raises: InvalidTask (the name, the cursor or the limit is invalid).
    """
    check_text("name", name)
    limit = page_length(limit, LONGEST_PAGE)
    offset, shown = decode_cursor(cursor, (int, list)) if cursor else (0, [])
    shown = shown[: LAST_OF_PAGE + LAST_BEFORE]
    if not all(isinstance(each, str) and _is_shown(each) for each in shown):
        raise wrong_cursor()
    behind = [part for each in shown for part in each.split()]
    now_ms, length, offset, *rest = yield from one(scripts.queue_page(name, offset, limit, behind))
    now = utc(int(now_ms))
    items, last = [], []
    for position, (id, flat) in enumerate(zip(rest[::2], rest[1::2], strict=True), start=offset + 1):
        h = hash_of(flat)
        if b"data" in h:
            record = restore_hash(id.decode(errors="replace"), h)
            if project is not None and record.project != project:
                continue
            since = record.enqueued_at or record.created_at or now
            items.append(QueuedTask(record, position, max(0.0, (now - since.astimezone(UTC)).total_seconds())))
            last.append(f"{record.id} {h.get(b'enqueued_at', b'-').decode('latin-1')}")
    end = offset + len(rest) // 2
    if end >= length:
        return Page(tuple(items), None)
    last = [each for each in last[: -LAST_OF_PAGE - 1 : -1] if _is_shown(each)]
    return Page(tuple(items), encode_cursor(end, last + shown[:LAST_BEFORE] if last else []))


def remove_task(id: str, by: Actor | None = None) -> Plan[TaskStatus | None]:
    """Take a task out: one that waits is canceled (CANCELED), an ended one is purged with all that is its (None).
    Raises: TaskNotFound, TaskConflict (it is running, or RQ itself holds it back)."""
    check_id(id)
    audited = entry(by, "task.canceled", id)
    word = yield from one(scripts.cancel(id, reason="canceled", error=keys.NOT_STARTED, audited=audited))
    if word == "children":
        yield from release_dependents(id)
    if word in ("ok", "children"):
        return TaskStatus.CANCELED
    for _ in range(RELEASES):
        if word == "gone":
            raise TaskNotFound(id)
        if word == RQ_STATUS[TaskStatus.IN_PROGRESS]:
            raise TaskConflict(id, TaskStatus.IN_PROGRESS, f"task {id} is running: stop it first")
        word = yield from one(scripts.purge(id, audited=entry(by, "task.removed", id)))
        if word in ("ok", "gone"):  # gone meanwhile, or by this very call when its first answer was lost
            return None
        if word == "children":  # tasks that wait for it still have to read how it ended
            yield from release_dependents(id)
        elif word != RQ_STATUS[TaskStatus.IN_PROGRESS]:
            break
    if word == "children":
        text = f"task {id} still has tasks that wait for it: remove it again in a moment"
        raise TaskConflict(id, TaskStatus.DONE, text)
    status = status_of(word)
    raise TaskConflict(id, status, f"task {id} is {status}: it can't be removed now")


class Submitted(NamedTuple):
    """What became of tasks that were submitted together, in order. `is_replayed`: by an earlier call."""

    receipts: tuple[Receipt, ...]
    is_replayed: bool = False


def submit(spec: TaskSpec, rules: Rules, once: Once | None = None, *, by: Actor | None = None) -> Plan[Submitted]:
    """Add one task. `by`: who submits it, whose project it gets, and whom the audit names. Raises: as `add_task`;
    NotAllowed (`by` may not use its type, its queue or an option), KeyReused (`once` was for another submission)."""
    with sending((spec,)) as sent:
        try:
            task = yield from check_task(sent.specs[0], *rules, by=by)
        except InvalidTask as error:
            return (yield from _before(once, error))
        sent.note((task,))
        audited = entry(by, "task.submitted", task.id)
        return submitted((task,), (yield from one(add_script.add((task,), once, audited))))


def submit_many(
    specs: Sequence[TaskSpec], rules: Rules, once: Once | None = None, *, by: Actor | None = None, start: str = ""
) -> Plan[Submitted]:
    """Add tasks, a thousand at most, all or none; as `submit` otherwise. The faults' pointers begin with `start` and
    the index."""
    with sending(specs) as sent:
        try:
            tasks = yield from check_tasks(sent.specs, *rules, by=by, start=start)
        except InvalidTask as error:
            return (yield from _before(once, error))
        if not tasks:
            return Submitted(())
        sent.note(tasks)
        if sum(len(task.parents) + len(task.edges) for task in tasks) > MOST_EDGES:
            fault = f"the tasks of one call may have at most {MOST_EDGES:,} dependencies in all: submit them in parts"
            raise InvalidTask(f"{start}: {fault}", [FieldError(start, fault)])
        audited = entry(by, "task.submitted", tasks[0].id, count=len(tasks), last=tasks[-1].id)
        return submitted(tasks, (yield from one(add_script.add(tasks, once, audited))), start)


def _before(once: Once | None, refusal: InvalidTask) -> Plan[Submitted]:
    """A call that was accepted under its key gets the same answer again, even if no worker serves its type any more."""
    added = None if once is None else (yield from one(add_script.added_before(once)))
    if added is None:
        raise refusal
    return submitted((), added)


def submitted(tasks: Sequence[NewTask], added: Added, start: str | None = None) -> Submitted:
    """What became of submissions that one `add` was sent for; with `start` they were a batch. Raises: InvalidTask,
    NotAllowed, UniqueConflict, KeyReused, QueueFull (as `submit`; none of them was stored)."""
    if len(tasks) == 1 and len(added.statuses) == 1 and not (added.existing or added.replayed):  # as most are
        return Submitted((Receipt(tasks[0].id, accepted_status(added.statuses[0])),))
    if added.unreplaceable is not None:
        at = "" if start is None else f"{start}/{added.unreplaceable}"
        raise NotAllowed([FieldError(f"{at}/on_conflict", UNREPLACEABLE)])
    refuse(tasks, added)
    own = tuple([task.id for task in tasks])
    ids = added.replayed or own
    receipts = [
        Receipt(added.existing.get(index, id), accepted_status(status), index in added.existing)
        for index, (id, status) in enumerate(zip(ids, added.statuses, strict=True))
    ]
    # Sent again because the answer was lost, the call meets what it stored itself.
    return Submitted(tuple(receipts), is_replayed=bool(added.replayed) and added.replayed != own)
