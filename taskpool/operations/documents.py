"""What the documents of `document.py` are made of: each type renders, and the OpenAPI document describes it.

A member without a default is always there; one that has its default is left out, so that null is never shown.

The JSON form of what is stored: one function a kind, the same for the API, the command line and events.

Names are snake_case, times RFC 3339 in UTC with milliseconds, durations end in `_s`. What isn't there is left
out, with one exception: the result of a task that is done is shown even when it is null.

The JSON form of API keys and of the audit, as `document` has it of everything else.

The JSON form of webhooks and their deliveries, as `document` has it of everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from taskpool.access.api_key import ApiKey, Scope
from taskpool.access.audit import Audited
from taskpool.tasks.log_lines import LogLine
from taskpool.types import (
    Count,
    Event,
    Id,
    OnLostLease,
    PastAttempt,
    QueuedTask,
    QueueInfo,
    Seconds,
    TaskRecord,
    TaskStatus,
    Time,
    TypeInfo,
    WorkerInfo,
    utc,
)
from taskpool.webhooks.delivery import Delivery, SendAttempt
from taskpool.webhooks.endpoint import DeliveryStatus, Webhook

if TYPE_CHECKING:  # the overview imports Redis, and clients import this module
    from taskpool.operations.overview import ServerInfo


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A JSON object. A member without a default is always there; one that has its default is left out."""


class AttemptDocument(Document, frozen=True, kw_only=True):
    """How one attempt ended."""

    attempt: Count
    worker: str
    started_at: Time
    ended_at: Time
    outcome: Annotated[
        str, Meta(description="done, failed, crashed, lease_lost, stopped, snoozed or given_back", examples=["failed"])
    ]
    error: str | None = None


ON_LOST_LEASE: Final = (
    "kill: an attempt whose lease can't be renewed is killed before the lease ends; else it continues"
)
WHY_ENDED: Final = (
    "why it was canceled, stopped or failed; lease_lost: its lease ended, and its worker, which can't be reached, may"
    " still be running it"
)


class TaskDocument(Document, frozen=True, kw_only=True):
    """A task."""

    id: Id
    type: Annotated[str, Meta(examples=["long_task"])]
    status: TaskStatus
    queue: Annotated[str, Meta(examples=["default"])]
    payload: Any
    result: Annotated[Any, Meta(description="what it returned; always there when it is done, if only as null")] = UNSET
    error: Annotated[str | None, Meta(description="why it failed, in one readable line")] = None
    failure: Annotated[Mapping[str, Any] | None, Meta(description="all that is known of the failure")] = None
    reason: Annotated[str | None, Meta(description=WHY_ENDED)] = None
    progress: Annotated[Mapping[str, Any] | None, Meta(description="what it last reported: done, total, note")] = None
    attempt: Annotated[Count, Meta(description="the number of the present or last attempt; 0 before the first")]
    max_attempts: Count
    backoff_s: Seconds | None = None
    backoff_max_s: Seconds | None = None
    on_lost_lease: Annotated[OnLostLease | None, Meta(description=ON_LOST_LEASE)] = None
    crashes: Annotated[Count, Meta(description="how often its process died, or its lease ended, while it ran")] = 0
    snoozes: Count = 0
    worker: str | None = None
    created_at: Time | None = None
    enqueued_at: Time | None = None
    run_at: Annotated[Time | None, Meta(description="when it is due")] = None
    started_at: Time | None = None
    ended_at: Time | None = None
    expires_at: Annotated[Time | None, Meta(description="it is canceled if it hasn't started by then")] = None
    timeout_s: Seconds | None = None
    result_ttl_s: int | None = None
    failure_ttl_s: int | None = None
    tags: Sequence[str] | None = None
    project: Annotated[str | None, Meta(description="that of the key it was submitted with")] = None
    depends_on: Sequence[str] | None = None
    callback_url: str | None = None
    callback_events: Sequence[str] | None = None
    unique_key: str | None = None
    unique_until: Annotated[str | None, Meta(description="the key is held until then: start or done")] = None
    unique_for_s: Annotated[Seconds | None, Meta(description="the key is held for so long")] = None
    traceparent: Annotated[str | None, Meta(description="the W3C trace context of the submission")] = None
    tracestate: str | None = None
    history: Annotated[Sequence[AttemptDocument] | None, Meta(description="how the last 20 attempts ended")] = None
    seq: Annotated[Count, Meta(description="grows by one with each step of the task")]


class QueuedDocument(TaskDocument, frozen=True):
    """A task in its queue, with its place there."""

    position: Annotated[int, Meta(ge=1)]
    wait_s: Annotated[float, Meta(ge=0, description="how long it has waited so far")]


class QueueDocument(Document, frozen=True, kw_only=True):
    """A queue: how many tasks of it have which status, and how long the next one has waited."""

    name: Annotated[str, Meta(examples=["default"])]
    queued: Count
    in_progress: Count
    scheduled: Count
    waiting: Count
    done: Count
    failed: Count
    canceled: Count
    oldest_s: Seconds | None = None


class TypeDocument(Document, frozen=True, kw_only=True):
    """A task type; `served_by` names the live worker pools that run it."""

    name: Annotated[str, Meta(examples=["long_task"])]
    description: str = ""
    queue: str
    schema: Annotated[Mapping[str, Any], Meta(description="the JSON Schema of its payload")]
    timeout_s: Seconds | None = None
    max_attempts: Count
    backoff_s: Seconds | None = None
    backoff_max_s: Seconds | None = None
    on_lost_lease: Annotated[OnLostLease | None, Meta(description=ON_LOST_LEASE)] = None
    result_ttl_s: int | None = None
    is_async: bool
    served_by: Sequence[str]
    last_seen_at: Time | None = None


class WorkerDocument(Document, frozen=True, kw_only=True):
    """A worker process; `current` lists the tasks it runs now."""

    name: str
    host: str
    pid: int
    pool: str | None = None
    state: Annotated[str, Meta(description="started, idle, busy or suspended", examples=["idle"])]
    queues: Sequence[str]
    current: Sequence[str]
    done: int
    failed: int
    working_s: float
    started_at: Time | None = None
    last_heartbeat: Time | None = None


class ServerDocument(Document, frozen=True, kw_only=True):
    """The Redis or Valkey server: what it keeps over a crash, and how full it is."""

    name: Annotated[str, Meta(examples=["Redis", "Valkey"])]
    version: Annotated[str, Meta(examples=["7.2.11"])]
    role: str
    aof: bool
    rdb_saved_at: Time | None = None
    used_memory_bytes: int
    maxmemory_bytes: int
    maxmemory_policy: Annotated[str, Meta(examples=["noeviction"])]


class LogLineDocument(Document, frozen=True, kw_only=True):
    """A line of a task's log."""

    at: Annotated[Time, Meta(description="when it was written, by the worker's clock")]
    attempt: Annotated[Count, Meta(description="the attempt that wrote it")] = 0
    stream: Annotated[
        str, Meta(description="log, stdout, stderr, logging, or taskpool: about the log itself", examples=["stdout"])
    ]
    level: Annotated[str | None, Meta(description="of what was logged", examples=["warning"])] = None
    logger: Annotated[str | None, Meta(description="who logged it", examples=["app.images"])] = None
    text: Annotated[str, Meta(description="as it was written, colours and all")]
    continues: Annotated[bool, Meta(description="the line was too long, the next one goes on with it")] = False


class EventDocument(Document, frozen=True, kw_only=True):
    """An event: step number `seq` of the task `id`."""

    id: Id
    seq: Annotated[int, Meta(ge=1)]
    event: str
    status: TaskStatus
    at: Time
    data: Mapping[str, Any]
    stream: Annotated[str, Meta(description="its id in the stream of all events")] = ""


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


class KeyDocument(Document, frozen=True, kw_only=True):
    """An API key, without anything of its secret."""

    id: Annotated[str, Meta(examples=["k3v0h5m8t2qa"])]
    name: str
    scopes: Sequence[Scope]
    project: Annotated[str | None, Meta(description="it sees the tasks of this project alone")] = None
    types: Annotated[
        Sequence[str] | None, Meta(description="the types whose tasks it may start and stop, if not any")
    ] = None
    queues: Annotated[
        Sequence[str] | None, Meta(description="the queues whose tasks it may start and stop, if not any")
    ] = None
    rate_limit: Annotated[Count | None, Meta(description="requests a minute, if not as the setting says")] = None
    created_at: Time
    rotated_at: Time | None = None
    old_secret_until: Annotated[Time | None, Meta(description="until when the secret before is good")] = None
    expires_at: Time | None = None
    last_used_at: Annotated[Time | None, Meta(description="to about a minute")] = None
    key: Annotated[str | UnsetType, Meta(description="the key itself, this once")] = UNSET


class ActorDocument(Document, frozen=True, kw_only=True):
    """Who did something; without `key` where none was asked for."""

    key: str | None = None
    name: str
    project: str | None = None
    address: str


class AuditEntryDocument(Document, frozen=True, kw_only=True):
    """One change. Of a batch, `about` is the first of `count` tasks and `last` the last one."""

    at: Time
    what: Annotated[str, Meta(examples=["task.submitted", "key.revoked"])]
    about: str
    count: Count = 1
    last: str | None = None
    by: ActorDocument


def key_document(key: ApiKey, used_ms: int | None = None, *, text: str | None = None) -> KeyDocument:
    """An API key; with its text when it was just made."""
    return KeyDocument(
        id=key.id,
        name=key.name,
        scopes=key.scopes,
        project=key.project,
        types=key.types,
        queues=key.queues,
        rate_limit=key.rate_limit,
        created_at=time_text(utc(key.created_ms)),
        rotated_at=_moment(key.rotated_ms),
        old_secret_until=_moment(key.old_until_ms or None),
        expires_at=_moment(key.expires_ms),
        last_used_at=_moment(used_ms),
        key=UNSET if text is None else text,
    )


def audit_document(audited: Audited) -> AuditEntryDocument:
    """An entry of the audit."""
    entry = audited.entry
    return AuditEntryDocument(
        at=time_text(utc(audited.at_ms)),
        what=entry.what,
        about=entry.about,
        count=entry.count,
        last=entry.last,
        by=ActorDocument(key=entry.key, name=entry.name, project=entry.project, address=entry.address),
    )


def _moment(ms: int | None) -> str | None:
    return None if ms is None else time_text(utc(ms))


class WebhookDocument(Document, frozen=True, kw_only=True):
    """A standing endpoint. A filter that isn't there lets everything through."""

    id: Annotated[str, Meta(examples=["wh_d217r8m2n3aolstf2ch5"])]
    url: str
    events: Sequence[str]
    types: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    statuses: Sequence[str] | None = None
    description: str | None = None
    enabled: bool
    disabled_reason: str | None = None
    project: Annotated[str | None, Meta(description="it is told of this project's tasks alone")] = None
    created_at: Time
    updated_at: Time
    secret: Annotated[str | UnsetType, Meta(description="when it was just made")] = UNSET


class SecretDocument(Document, frozen=True, kw_only=True):
    """The secrets that sign now."""

    secret: Annotated[str, Meta(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]
    previous_secret: str | None = None
    previous_until: Annotated[Time | None, Meta(description="until when that one signs too")] = None


class SendAttemptDocument(Document, frozen=True, kw_only=True):
    """How one attempt to send went: delivered, failed (it is tried again) or dead."""

    at: Time
    duration_ms: Count
    outcome: str
    status_code: Annotated[int | None, Meta(description="what was answered, if anything")] = None
    error: Annotated[str | None, Meta(description="what went wrong, for who may see the URL")] = None


class DeliveryDocument(Document, frozen=True, kw_only=True):
    """One message to one endpoint; the id is its `webhook-id`. The last 20 attempts are told."""

    id: str
    webhook: str
    task: Id | None = None
    event: Annotated[str, Meta(examples=["taskpool.task.done"])]
    url: Annotated[str | None, Meta(description="where to, for who may see it")] = None
    status: DeliveryStatus
    attempts: Sequence[SendAttemptDocument]
    created_at: Time
    next_at: Annotated[Time | None, Meta(description="when it is tried next; not while it is being sent")] = None
    body: Annotated[msgspec.Raw | UnsetType, Meta(description="what is sent, where one delivery is read")] = UNSET


def webhook_document(webhook: Webhook, *, with_secret: bool = False) -> WebhookDocument:
    """An endpoint."""
    return WebhookDocument(
        id=webhook.id,
        url=webhook.url,
        events=webhook.events,
        types=webhook.types or None,
        queues=webhook.queues or None,
        tags=webhook.tags or None,
        statuses=webhook.statuses or None,
        description=webhook.description or None,
        enabled=webhook.enabled,
        disabled_reason=webhook.disabled_reason,
        project=webhook.project,
        created_at=time_text(utc(webhook.created_ms)),
        updated_at=time_text(utc(webhook.updated_ms)),
        secret=webhook.secret if with_secret else UNSET,
    )


def secret_document(webhook: Webhook) -> SecretDocument:
    """The secrets of an endpoint."""
    return SecretDocument(
        secret=webhook.secret,
        previous_secret=webhook.previous_secret,
        previous_until=None if webhook.previous_secret is None else time_text(utc(webhook.previous_until_ms)),
    )


def delivery_document(delivery: Delivery, *, with_url: bool = True, with_body: bool = False) -> DeliveryDocument:
    """A delivery. Without its URL nothing says where it was sent, errors included: they may name the host."""
    return DeliveryDocument(
        id=delivery.id,
        webhook=delivery.webhook,
        task=delivery.task,
        event=delivery.event,
        url=delivery.url if with_url else None,
        status=delivery.status,
        attempts=[_attempt(each, with_error=with_url) for each in delivery.attempts],
        created_at=time_text(utc(delivery.created_ms)),
        next_at=None if delivery.next_ms is None else time_text(utc(delivery.next_ms)),
        body=msgspec.Raw(delivery.body) if with_body else UNSET,
    )


def _attempt(attempt: SendAttempt, *, with_error: bool) -> SendAttemptDocument:
    return SendAttemptDocument(
        at=time_text(utc(attempt.at_ms)),
        duration_ms=attempt.duration_ms,
        outcome=attempt.outcome,
        status_code=attempt.status_code,
        error=attempt.error if with_error else None,
    )
