"""What the documents of `document.py` are made of: each type renders, and the OpenAPI document describes it.

A member without a default is always there; one that has its default is left out, so that null is never shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta

from taskpool.types import OnLostLease, TaskStatus

Id = Annotated[str, Meta(examples=["d217r8m2n3aolstf2ch5"])]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2026-11-23T12:00:00.000Z"])]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


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
