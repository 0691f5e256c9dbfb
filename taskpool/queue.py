"""The moves of waiting: add tasks, look at a queue, take a task out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from taskpool import scripts
from taskpool.calls import Plan, one
from taskpool.catalogue import Catalogue
from taskpool.cursor import decode_cursor, encode_cursor
from taskpool.errors import FieldError, InvalidPayload, TaskConflict, TaskNotFound, UnknownDependency
from taskpool.record import STATUS_OF, is_task, restore
from taskpool.registry import Registry
from taskpool.submission import Defaults, prepare
from taskpool.types import Page, QueuedTask, TaskRecord, TaskSpec, TaskStatus, TypeInfo, utc

CHUNK: Final = 1000
"""So many tasks at most go into one call, which stores all of them or none."""

LONGEST_PAGE: Final = 500
RELEASES: Final = 1000


def add_task(spec: TaskSpec, catalogue: Catalogue, registry: Registry | None, defaults: Defaults) -> Plan[TaskRecord]:
    """Add one task; the record as stored.

    Raises:
        InvalidTask: UnknownType, InvalidPayload, UnknownDependency, or a field that can't be. Nothing was stored.
    """
    (record,) = yield from _add((spec,), catalogue, registry, defaults, lambda _: "")
    return record


def add_tasks(
    specs: Sequence[TaskSpec], catalogue: Catalogue, registry: Registry | None, defaults: Defaults
) -> Plan[list[TaskRecord]]:
    """Add tasks, in order: all are checked before the first is stored, and each thousand is stored whole or not.

    Raises:
        InvalidTask: as `add_task`; the pointers start with the index of the task.
    """
    return (yield from _add(specs, catalogue, registry, defaults, lambda index: f"/{index}"))


def _add(
    specs: Sequence[TaskSpec], catalogue: Catalogue, registry: Registry | None, defaults: Defaults, prefix: Any
) -> Plan[list[TaskRecord]]:
    local = _local_types(specs, registry)
    known = yield from catalogue.find(list({spec.type for spec in specs if spec.type not in local}))
    checked = []
    tasks = []
    for index, given in enumerate(specs):
        spec = _as_json(given, prefix(index))
        if spec.type in local and registry is not None:
            registry.get(spec.type).decode(spec.payload)  # type: ignore[union-attr]
        else:
            catalogue.check(spec.type, spec.payload, f"{prefix(index)}/payload")
        checked.append(spec)
        tasks.append(prepare(spec, local.get(spec.type) or known[spec.type], defaults, prefix(index)))

    records: list[TaskRecord] = []
    for start in range(0, len(tasks), CHUNK):
        chunk = tasks[start : start + CHUNK]
        added = yield from one(scripts.add(chunk))
        if added.unknown_dependency is not None:
            raise UnknownDependency(added.unknown_dependency)
        created_at = datetime.fromisoformat(added.stamp)
        for spec, task, status in zip(checked[start : start + CHUNK], chunk, added.statuses, strict=True):
            records.append(_record(spec, task, STATUS_OF.get(status.encode(), TaskStatus.QUEUED), created_at))
    return records


def _local_types(specs: Sequence[TaskSpec], registry: Registry | None) -> Mapping[str, TypeInfo]:
    """The types that this process itself has registered: they need no worker to have announced them."""
    if registry is None:
        return {}
    found = {spec.type: registry.get(spec.type) for spec in specs}
    return {name: task_type.info() for name, task_type in found.items() if task_type is not None}


def _as_json(spec: TaskSpec, start: str) -> TaskSpec:
    """The spec with its payload as JSON values: a program may give dataclasses, dates and the like."""
    try:
        payload = msgspec.to_builtins(spec.payload, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(
            f"the payload of {spec.type!r} is not JSON: {error}", [FieldError(f"{start}/payload", str(error))]
        ) from None
    return spec if payload is spec.payload else replace(spec, payload=payload)


def _record(spec: TaskSpec, task: scripts.NewTask, status: TaskStatus, created_at: datetime) -> TaskRecord:
    """The record of what was just stored, without reading it back."""
    created_ms = created_at.timestamp() * 1000
    run_ms = task.run_ms if task.run_ms is not None else (None if task.delay_ms is None else created_ms + task.delay_ms)
    fields = dict(zip(task.fields[::2], task.fields[1::2], strict=True))
    return TaskRecord(
        id=task.id,
        type=spec.type,
        status=status,
        queue=task.queue,
        payload=spec.payload,
        created_at=created_at,
        enqueued_at=created_at if status is TaskStatus.QUEUED else None,
        run_at=None if run_ms is None else utc(run_ms),
        expires_at=None if task.expires_ms is None else utc(created_ms + task.expires_ms),
        reason="dependency_failed" if status is TaskStatus.CANCELED else None,
        max_attempts=int(fields.get("max_attempts", 1)),
        timeout_s=float(fields["timeout_ms"]) / 1000 if "timeout_ms" in fields else float(fields["timeout"]),
        result_ttl_s=int(fields["result_ttl"]),
        failure_ttl_s=int(fields["failure_ttl"]),
        tags=tuple(task.tags),
        depends_on=tuple(task.parents),
        seq=1,
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
        TaskConflict: it is running; stop it first.
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
        if word == "ok":
            break
        if word == "children":  # tasks that wait for it still have to read how it ended
            yield from one(scripts.release(id))
    return None
