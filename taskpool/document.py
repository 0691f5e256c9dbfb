"""The JSON form of what is stored: one function a kind, the same for the API, the command line and events.

Names are snake_case, times RFC 3339 in UTC with milliseconds, durations end in `_s`. What isn't there is left
out, with one exception: the result of a task that is done is shown even when it is null.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from taskpool.overview import ServerInfo
from taskpool.types import Event, PastAttempt, QueuedTask, QueueInfo, TaskRecord, TaskStatus, TypeInfo, WorkerInfo, utc


def task_document(record: TaskRecord) -> dict[str, Any]:
    """A task."""
    document = _present(
        {
            "id": record.id,
            "type": record.type,
            "status": record.status.value,
            "queue": record.queue,
            "payload": record.payload,
            "result": record.result,
            "error": record.error,
            "failure": record.failure,
            "reason": record.reason,
            "progress": record.progress,
            "attempt": record.attempt,
            "max_attempts": record.max_attempts,
            "backoff_s": record.backoff_s,
            "backoff_max_s": record.backoff_max_s,
            "crashes": record.crashes or None,
            "snoozes": record.snoozes or None,
            "worker": record.worker,
            "created_at": _time(record.created_at),
            "enqueued_at": _time(record.enqueued_at),
            "run_at": _time(record.run_at),
            "started_at": _time(record.started_at),
            "ended_at": _time(record.ended_at),
            "expires_at": _time(record.expires_at),
            "timeout_s": record.timeout_s,
            "result_ttl_s": record.result_ttl_s,
            "failure_ttl_s": record.failure_ttl_s,
            "tags": record.tags or None,
            "depends_on": record.depends_on or None,
            "history": [_attempt_document(attempt) for attempt in record.history] or None,
            "seq": record.seq,
        }
    )
    if record.status is TaskStatus.DONE:
        document["result"] = record.result
    return document


def _attempt_document(attempt: PastAttempt) -> dict[str, Any]:
    return _present(
        {
            "attempt": attempt.attempt,
            "worker": attempt.worker,
            "started_at": _time(attempt.started_at),
            "ended_at": _time(attempt.ended_at),
            "outcome": attempt.outcome,
            "error": attempt.error,
        }
    )


def queued_document(queued: QueuedTask) -> dict[str, Any]:
    """A task in its queue, with its place there."""
    return {"position": queued.position, "wait_s": round(queued.wait_s, 3), **task_document(queued.record)}


def queue_document(info: QueueInfo) -> dict[str, Any]:
    """A queue: how many tasks of it have which status, and how long the next one has waited."""
    return _present(
        {
            "name": info.name,
            "queued": info.queued,
            "in_progress": info.in_progress,
            "scheduled": info.scheduled,
            "waiting": info.waiting,
            "done": info.done,
            "failed": info.failed,
            "canceled": info.canceled,
            "oldest_s": info.oldest_s,
        }
    )


def type_document(info: TypeInfo) -> dict[str, Any]:
    """A task type; `served_by` names the live worker pools that run it."""
    return _present(
        {
            "name": info.name,
            "description": info.description or None,
            "queue": info.queue,
            "schema": info.schema,
            "timeout_s": info.timeout_s,
            "max_attempts": info.max_attempts,
            "backoff_s": info.backoff_s,
            "backoff_max_s": info.backoff_max_s,
            "result_ttl_s": info.result_ttl_s,
            "is_async": info.is_async,
            "served_by": info.served_by,
            "last_seen_at": None if info.last_seen_ms is None else _time(utc(info.last_seen_ms)),
        }
    )


def worker_document(info: WorkerInfo) -> dict[str, Any]:
    """A worker process; `current` lists the tasks it runs now."""
    return _present(
        {
            "name": info.name,
            "host": info.host,
            "pid": info.pid,
            "pool": info.pool,
            "state": info.state,
            "queues": info.queues,
            "current": info.current,
            "done": info.done,
            "failed": info.failed,
            "working_s": info.working_s,
            "started_at": _time(info.started_at),
            "last_heartbeat": _time(info.last_heartbeat),
        }
    )


def server_document(info: ServerInfo) -> dict[str, Any]:
    """The Redis server: what it keeps over a crash, and how full it is."""
    return _present(
        {
            "version": info.version,
            "role": info.role,
            "aof": info.aof,
            "rdb_saved_at": _time(info.rdb_saved_at),
            "used_memory_bytes": info.used_memory_bytes,
            "maxmemory_bytes": info.maxmemory_bytes,
        }
    )


def event_document(event: Event) -> dict[str, Any]:
    """An event: step number `seq` of the task `id`."""
    document = {
        "id": event.id,
        "seq": event.seq,
        "event": event.event,
        "status": event.status.value,
        "at": _time(utc(event.at_ms)),
        "data": event.data,
    }
    return {**document, "stream": event.stream} if event.stream else document


def _time(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _present(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if value is not None}
