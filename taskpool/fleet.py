"""What there is to work on and who works, as values: task types, queues, worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from taskpool.types import OnLostLease


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeInfo:
    """A task type as its workers publish it. `schema` is the JSON Schema of the payload."""

    name: str
    queue: str
    schema: Mapping[str, Any]
    description: str = ""
    timeout_s: float | None = None
    max_attempts: int = 1
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease | None = None
    result_ttl_s: int | None = None
    is_async: bool = False
    served_by: tuple[str, ...] = ()
    last_seen_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as RQ's registry shows it. `state`: started, idle, busy or suspended."""

    name: str
    host: str
    pid: int
    state: str
    queues: tuple[str, ...]
    pool: str | None = None
    current: tuple[str, ...]
    done: int
    failed: int
    working_s: float
    started_at: datetime | None = None
    last_heartbeat: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """How a queue stands: counts by status, and the age in seconds of the task at its head."""

    name: str
    queued: int
    in_progress: int
    scheduled: int
    waiting: int
    done: int
    failed: int
    canceled: int
    oldest_s: float | None = None
