"""The JSON form of what is stored: one function a kind, the same for the API, the command line and events.

Names are snake_case, times RFC 3339 in UTC with milliseconds, durations end in `_s`. What isn't there is left
out, with one exception: the result of a task that is done is shown even when it is null.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from taskpool.document_types import (
    AttemptDocument,
    EventDocument,
    LogLineDocument,
    QueuedDocument,
    QueueDocument,
    ServerDocument,
    TaskDocument,
    TypeDocument,
    WorkerDocument,
)
from taskpool.fleet import QueueInfo, TypeInfo, WorkerInfo
from taskpool.logs.line import LogLine
from taskpool.overview import ServerInfo
from taskpool.types import Event, PastAttempt, QueuedTask, TaskRecord, TaskStatus, utc


def task_document(record: TaskRecord) -> TaskDocument:
    """A task."""
    created_at = _time(record.created_at)
    shows_result = record.result is not None or record.status is TaskStatus.DONE
    return TaskDocument(
        id=record.id,
        type=record.type,
        status=record.status,
        queue=record.queue,
        payload=record.payload,
        result=record.result if shows_result else UNSET,
        error=record.error,
        failure=record.failure,
        reason=record.reason,
        progress=record.progress,
        attempt=record.attempt,
        max_attempts=record.max_attempts,
        backoff_s=record.backoff_s,
        backoff_max_s=record.backoff_max_s,
        on_lost_lease=None if record.on_lost_lease == "continue" else record.on_lost_lease,
        crashes=record.crashes,
        snoozes=record.snoozes,
        worker=record.worker,
        created_at=created_at,
        enqueued_at=created_at if record.enqueued_at is record.created_at else _time(record.enqueued_at),
        run_at=_time(record.run_at),
        started_at=_time(record.started_at),
        ended_at=_time(record.ended_at),
        expires_at=_time(record.expires_at),
        timeout_s=record.timeout_s,
        result_ttl_s=record.result_ttl_s,
        failure_ttl_s=record.failure_ttl_s,
        tags=record.tags or None,
        project=record.project,
        depends_on=record.depends_on or None,
        callback_url=record.callback_url,
        callback_events=record.callback_events or None,
        unique_key=record.unique_key,
        unique_until=record.unique_until,
        unique_for_s=record.unique_for_s,
        traceparent=record.traceparent,
        tracestate=record.tracestate,
        history=[_attempt_document(attempt) for attempt in record.history] if record.history else None,
        seq=record.seq,
    )


def _attempt_document(attempt: PastAttempt) -> AttemptDocument:
    return AttemptDocument(
        attempt=attempt.attempt,
        worker=attempt.worker,
        started_at=time_text(attempt.started_at),
        ended_at=time_text(attempt.ended_at),
        outcome=attempt.outcome,
        error=attempt.error,
    )


def queued_document(queued: QueuedTask) -> QueuedDocument:
    """A task in its queue."""
    members = msgspec.structs.asdict(task_document(queued.record))
    return QueuedDocument(queued.position, round(queued.wait_s, 3), **members)


def queue_document(info: QueueInfo) -> QueueDocument:
    """A queue."""
    return QueueDocument(
        name=info.name,
        queued=info.queued,
        in_progress=info.in_progress,
        scheduled=info.scheduled,
        waiting=info.waiting,
        done=info.done,
        failed=info.failed,
        canceled=info.canceled,
        oldest_s=info.oldest_s,
    )


def type_document(info: TypeInfo) -> TypeDocument:
    """A task type."""
    return TypeDocument(
        name=info.name,
        description=info.description,
        queue=info.queue,
        schema=info.schema,
        timeout_s=info.timeout_s,
        max_attempts=info.max_attempts,
        backoff_s=info.backoff_s,
        backoff_max_s=info.backoff_max_s,
        on_lost_lease=info.on_lost_lease,
        result_ttl_s=info.result_ttl_s,
        is_async=info.is_async,
        served_by=info.served_by,
        last_seen_at=None if info.last_seen_ms is None else time_text(utc(info.last_seen_ms)),
    )


def worker_document(info: WorkerInfo) -> WorkerDocument:
    """A worker process."""
    return WorkerDocument(
        name=info.name,
        host=info.host,
        pid=info.pid,
        pool=info.pool,
        state=info.state,
        queues=info.queues,
        current=info.current,
        done=info.done,
        failed=info.failed,
        working_s=info.working_s,
        started_at=_time(info.started_at),
        last_heartbeat=_time(info.last_heartbeat),
    )


def server_document(info: ServerInfo) -> ServerDocument:
    """The Redis server."""
    return ServerDocument(
        name=info.name,
        version=info.version,
        role=info.role,
        aof=info.aof,
        rdb_saved_at=_time(info.rdb_saved_at),
        used_memory_bytes=info.used_memory_bytes,
        maxmemory_bytes=info.maxmemory_bytes,
        maxmemory_policy=info.maxmemory_policy,
    )


def event_document(event: Event) -> EventDocument:
    """An event."""
    return EventDocument(
        id=event.id,
        seq=event.seq,
        event=event.event,
        status=event.status,
        at=time_text(utc(event.at_ms)),
        data=event.data,
        stream=event.stream,
    )


def log_line_document(line: LogLine) -> LogLineDocument:
    """A line of a task's log."""
    return LogLineDocument(
        at=time_text(utc(line.at_ms)),
        attempt=line.attempt,
        stream=line.stream,
        level=line.level,
        logger=line.logger,
        text=line.text,
        continues=line.continues,
    )


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else time_text(moment)


def time_text(moment: datetime) -> str:
    """A time as every document has it."""
    if moment.tzinfo is not UTC:
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:  # its zone takes it out of the years 1 to 9999
            moment = moment.replace(tzinfo=UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"
