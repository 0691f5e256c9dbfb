"""The moves of waiting: add tasks, look at a queue, take a task out of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from taskpool import addition, keys, scripts
from taskpool.addition import Added, NewTask
from taskpool.calls import Call, Plan, one
from taskpool.catalogue import Catalogue
from taskpool.cursor import decode_cursor, encode_cursor
from taskpool.errors import (
    FieldError,
    InvalidPayload,
    InvalidTask,
    KeyReused,
    TaskConflict,
    TaskNotFound,
    UniqueConflict,
    UnknownDependency,
)
from taskpool.record import STATUS_OF, fetch_if_there, is_task, restore
from taskpool.registry import Registry
from taskpool.secret import Secrets
from taskpool.submission import Defaults, TypeOptions, prepare
from taskpool.tasktype import TaskType
from taskpool.types import Page, QueuedTask, TaskRecord, TaskSpec, TaskStatus, utc
from taskpool.unique import rare_fields

CHUNK: Final = 1000
"""So many tasks at most go into one call, which stores all of them or none."""

LONGEST_PAGE: Final = 500
RELEASES: Final = 1000


class Checked(NamedTuple):
    """A submission that may be stored, and its payload as JSON values, with masks for what is secret."""

    task: NewTask
    payload: Any


def add_task(spec: TaskSpec, catalogue: Catalogue, registry: Registry | None, defaults: Defaults) -> Plan[TaskRecord]:
    """Add one task; the record as stored.

    Raises:
        InvalidTask: UnknownType, InvalidPayload, UnknownDependency, or a field that can't be. Nothing was stored.
    """
    checked = yield from check_task(spec, catalogue, registry, defaults)
    (record,) = yield from _store([checked])
    return record


def check_task(spec: TaskSpec, catalogue: Catalogue, registry: Registry | None, defaults: Defaults) -> Plan[Checked]:
    """Check a submission as `add_task` does, and store nothing.

    Raises:
        InvalidTask: as `add_task`.
    """
    task_type = None if registry is None else registry.get(spec.type)
    info = task_type or (yield from catalogue.find((spec.type,)))[spec.type]
    return _checked(spec, task_type or catalogue, info, defaults, "")


def check_tasks(
    specs: Sequence[TaskSpec], catalogue: Catalogue, registry: Registry | None, defaults: Defaults
) -> Plan[list[Checked]]:
    """Check submissions as `add_tasks` does, and store nothing.

    Raises:
        InvalidTask: as `add_tasks`.
    """
    _check_keys(specs)
    return (yield from _check(specs, catalogue, registry, defaults))


def _check_keys(specs: Sequence[TaskSpec]) -> None:
    """A unique key can't be held by two that come together."""
    first: dict[str, int] = {}
    for index, spec in enumerate(specs):
        if spec.unique_key is not None and first.setdefault(spec.unique_key, index) != index:
            detail = f"the task {first[spec.unique_key]} of this batch has the same unique key"
            raise InvalidTask(f"/{index}/unique_key: {detail}", [FieldError(f"/{index}/unique_key", detail)])


def add_tasks(
    specs: Sequence[TaskSpec], catalogue: Catalogue, registry: Registry | None, defaults: Defaults
) -> Plan[list[TaskRecord]]:
    """Add tasks, in order: all are checked before the first is stored, and each thousand is stored whole or not.

    Raises:
        InvalidTask: as `add_task`; the pointers start with the index of the task.
    """
    checked = yield from check_tasks(specs, catalogue, registry, defaults)
    if len(checked) > CHUNK:  # one call finds out by itself
        yield from _check_parents([each.task for each in checked])
    return (yield from _store(checked))


def _check(
    specs: Sequence[TaskSpec], catalogue: Catalogue, registry: Registry | None, defaults: Defaults
) -> Plan[list[Checked]]:
    local = {} if registry is None else {spec.type: registry.get(spec.type) for spec in specs}
    foreign = {spec.type for spec in specs if local.get(spec.type) is None}
    infos = (yield from catalogue.find(list(foreign))) if foreign else {}
    checked = []
    for index, spec in enumerate(specs):
        task_type = local.get(spec.type)
        info = task_type or infos[spec.type]
        checked.append(_checked(spec, task_type or catalogue, info, defaults, f"/{index}"))
    return checked


def _checked(spec: TaskSpec, judge: TaskType | Catalogue, info: TypeOptions, defaults: Defaults, start: str) -> Checked:
    """One submission, checked by its type where that is registered here, else by its schema in the catalogue."""
    payload = _as_json(spec, start)
    fields = judge.secret_fields(spec.type) if isinstance(judge, Catalogue) else judge.secret_fields
    shown, secrets = fields.split(payload) if fields else (payload, None)
    if isinstance(judge, Catalogue):
        judge.check(spec.type, payload, start + "/payload")
    else:
        _check_locally(judge, payload, start, secrets)
    return Checked(prepare(spec, shown, info, defaults, start, secrets=secrets), shown)


def _store(checked: Sequence[Checked]) -> Plan[list[TaskRecord]]:
    records: list[TaskRecord] = []
    existing: dict[int, str] = {}
    for at in range(0, len(checked), CHUNK):
        chunk = checked[at : at + CHUNK]
        added = yield from one(addition.add([each.task for each in chunk]))
        records += stored(chunk, added, at)
        existing |= {at + index: id for index, id in added.existing.items()}
    for at, record in enumerate(records):
        if at in existing or record.status is TaskStatus.CANCELED:  # which parent did not end well, its record says
            id = existing.get(at, record.id)
            records[at] = (yield from one(fetch_if_there(id))) or replace(record, id=id)
    return records


def refuse(checked: Sequence[Checked], added: Added, start: int = 0) -> None:
    """Raise for an addition that stored nothing; `start` is the index of its first task.

    Raises:
        UnknownDependency
        UniqueConflict
        KeyReused
    """
    if added.unknown_dependency is not None:
        raise UnknownDependency(added.unknown_dependency)
    if added.conflict is not None:
        index, id, word = added.conflict
        held = checked[index].task.unique
        status = STATUS_OF.get(word.encode(), TaskStatus.QUEUED)
        raise UniqueConflict("" if held is None else held.name, id, status, start + index)
    if added.is_other:
        raise KeyReused


def stored(checked: Sequence[Checked], added: Added, start: int = 0) -> list[TaskRecord]:
    """The records of tasks that one `addition.add` was sent for, without reading them back.

    Raises:
        UnknownDependency: it stored none of them.
        UniqueConflict: as well.
    """
    refuse(checked, added, start)
    created_at = datetime.fromisoformat(added.stamp)
    return [
        _record(each.task, each.payload, STATUS_OF.get(status.encode(), TaskStatus.QUEUED), created_at)
        for each, status in zip(checked, added.statuses, strict=True)
    ]


def _check_locally(task_type: TaskType, payload: Any, start: str, secrets: Secrets | None) -> None:
    try:
        task_type.decode(payload)
    except InvalidPayload as error:
        if not start and secrets is None:
            raise
        hide = secrets.hide if secrets else str
        faults = [FieldError(start + each.pointer, hide(each.detail)) for each in error.errors]
        raise InvalidPayload(hide(str(error)), faults) from None


def _as_json(spec: TaskSpec, start: str) -> Any:
    """The payload as JSON values: a program may give dataclasses, dates and the like."""
    try:
        return {} if spec.payload is None else msgspec.to_builtins(spec.payload, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        fault = FieldError(f"{start}/payload", str(error))
        raise InvalidPayload(f"the payload of {spec.type!r} is not JSON: {error}", [fault]) from None


def _check_parents(tasks: Sequence[NewTask]) -> Plan[None]:
    """Refuse all chunks when a parent of any doesn't exist. (One that vanishes after this refuses its chunk.)"""
    parents = list(dict.fromkeys(parent for task in tasks for parent in task.parents))
    exist = yield [Call(("EXISTS", keys.JOB + parent), int, again=True) for parent in parents]
    for parent, exists in zip(parents, exist, strict=True):
        if not exists:
            raise UnknownDependency(parent)


def _record(task: NewTask, payload: Any, status: TaskStatus, created_at: datetime) -> TaskRecord:
    """The record of what was just stored, without reading it back."""
    created_ms = created_at.timestamp() * 1000
    run_ms = (task.run_ms or 0) if task.delay_ms is None else created_ms + task.delay_ms
    return TaskRecord(
        id=task.id,
        type=task.type,
        status=status,
        queue=task.queue,
        payload=payload,
        created_at=created_at,
        enqueued_at=created_at if status is TaskStatus.QUEUED else None,
        run_at=utc(run_ms) if run_ms > created_ms else None,
        expires_at=None if task.expires_ms is None else utc(created_ms + task.expires_ms),
        max_attempts=task.max_attempts,
        backoff_s=task.backoff_s,
        backoff_max_s=task.backoff_max_s,
        timeout_s=task.timeout_s,
        result_ttl_s=task.result_ttl_s,
        failure_ttl_s=task.failure_ttl_s,
        tags=tuple(task.tags),
        depends_on=tuple(task.parents),
        callback_url=task.callback_url,
        callback_events=tuple(task.callback_events),
        seq=1,
        **rare_fields(None if task.unique is None else task.unique.text, task.trace),
    )


def get_queue(name: str, *, cursor: str | None = None, limit: int = 100) -> Plan[Page[QueuedTask]]:
    """A part of a queue as it is at one moment, in dispatch order. It changes nothing.

    Raises:
        InvalidTask: the cursor isn't one of ours.
    """
    limit = max(1, min(limit, LONGEST_PAGE))
    offset = decode_cursor(cursor, (int,))[0] if cursor else 0
    now_ms, length, *rest = yield from one(scripts.queue_page(name, offset, limit))
    now = utc(int(now_ms))
    items = []
    for position, (id, flat) in enumerate(zip(rest[::2], rest[1::2], strict=True), start=offset + 1):
        if is_task(flat):
            record = restore(id.decode(), flat)
            since = record.enqueued_at or record.created_at or now
            items.append(QueuedTask(record, position, max(0.0, (now - since.astimezone(UTC)).total_seconds())))
    end = offset + len(rest) // 2
    return Page(tuple(items), encode_cursor(end) if end < length else None)


def remove_task(id: str) -> Plan[TaskStatus | None]:
    """Take a task out: one that waits is canceled (CANCELED), an ended one is purged with all that is its (None).

    Raises:
        TaskNotFound
        TaskConflict: it is running (stop it first), or RQ itself holds it back.
    """
    word = yield from one(scripts.cancel(id, reason="canceled", error="canceled before it started"))
    if word == "ok":
        return TaskStatus.CANCELED
    for _ in range(RELEASES):
        if word == "gone":
            raise TaskNotFound(id)
        if word == "started":
            raise TaskConflict(id, TaskStatus.IN_PROGRESS, f"task {id} is running: stop it first")
        word = yield from one(scripts.purge(id))
        if word in ("ok", "gone"):  # gone meanwhile, or by this very call when its first answer was lost
            return None
        if word == "children":  # tasks that wait for it still have to read how it ended
            yield from one(scripts.release(id))
        elif word != "started":
            break
    status = STATUS_OF.get(word.encode(), TaskStatus.DONE)
    raise TaskConflict(id, status, f"task {id} is {status}: it can't be removed now")
