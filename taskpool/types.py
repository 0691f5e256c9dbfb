"""The words of the system as values: statuses, what is submitted, what is stored, what runs, what is told.

    (submitted) ──► queued, scheduled, waiting, canceled (a task it depends on had ended badly)

    queued               ──► in_progress, canceled
    scheduled            ──► queued, canceled
    waiting              ──► queued, scheduled, canceled
    waiting_confirmation ──► queued, canceled
    throttled            ──► queued, canceled
    in_progress          ──► done, failed, stopped, stopping, scheduled (retry), queued (died, drained, retry)
    stopping             ──► done, failed, stopped

    failed, stopped, canceled ──► queued (retried by hand)

Done, failed, stopped and canceled are terminal. A retry by hand (`retry_task`) starts a new life of the
same task in `queued`; it is the only way out, and its own transition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar

import msgspec

from taskpool.openenum import OpenEnum
from taskpool.secret import Secrets


class TaskStatus(OpenEnum):
    """Where a task is. Later releases may add statuses: one that you don't know isn't terminal."""

    # A word that isn't a member becomes a `TaskStatus` whose `is_known` is False (see `OpenEnum`).
    # The API shows these words; Redis holds RQ's, see `RQ_STATUS`.

    QUEUED = "queued"
    SCHEDULED = "scheduled"
    WAITING = "waiting"
    WAITING_CONFIRMATION = "waiting_confirmation"
    THROTTLED = "throttled"
    IN_PROGRESS = "in_progress"
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """True when the task has ended: its status changes no more."""
        return self in TERMINAL


S = TaskStatus
T = TypeVar("T")

OnLostLease = Literal["continue", "kill"]
"""What becomes of an attempt whose lease can't be renewed: it goes on, or it is killed before the lease ends."""
LOST_LEASE_CHOICES: Final[tuple[OnLostLease, ...]] = ("continue", "kill")

TERMINAL: Final = frozenset({S.DONE, S.FAILED, S.STOPPED, S.CANCELED})

TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = {
    S.QUEUED: frozenset({S.IN_PROGRESS, S.CANCELED}),
    S.SCHEDULED: frozenset({S.QUEUED, S.CANCELED}),
    S.WAITING: frozenset({S.QUEUED, S.SCHEDULED, S.CANCELED}),
    S.WAITING_CONFIRMATION: frozenset({S.QUEUED, S.CANCELED}),
    S.THROTTLED: frozenset({S.QUEUED, S.CANCELED}),
    S.IN_PROGRESS: frozenset({S.STOPPING, S.DONE, S.FAILED, S.STOPPED, S.QUEUED, S.SCHEDULED}),
    S.STOPPING: frozenset({S.DONE, S.FAILED, S.STOPPED}),
    **dict.fromkeys(TERMINAL, frozenset[TaskStatus]()),
}
"""The whitelist of moves. Nothing else happens, except `retry_task`: failed, stopped, canceled -> queued."""

ENDS: Final = ("done", "failed", "stopped", "canceled")
"""The events of a task's end: what webhooks are sent for unless others are named."""

RETRYABLE: Final = frozenset({S.FAILED, S.STOPPED, S.CANCELED})

RQ_STATUS: Final[Mapping[TaskStatus, str]] = {
    S.QUEUED: "queued",
    S.SCHEDULED: "scheduled",
    S.WAITING: "deferred",
    S.WAITING_CONFIRMATION: "deferred",
    S.THROTTLED: "rate_limited",
    S.IN_PROGRESS: "started",
    S.STOPPING: "started",
    S.DONE: "finished",
    S.FAILED: "failed",
    S.STOPPED: "stopped",
    S.CANCELED: "canceled",
}


class TaskOptions(TypedDict, total=False):
    """What `add_task` takes besides type and payload: the fields of `TaskSpec`, which tells what they mean."""

    queue: str | None
    delay_s: float | None
    run_at: datetime | None
    front: bool
    tags: Sequence[str]
    timeout_s: float | None
    result_ttl_s: int | None
    failure_ttl_s: int | None
    max_attempts: int | None
    backoff_s: float | None
    backoff_max_s: float | None
    on_lost_lease: OnLostLease | None
    expires_in_s: float | None
    depends_on: Sequence[str]
    callback_url: str | None
    callback_events: Sequence[str] | None
    unique_key: str | None
    on_conflict: Literal["reject", "return", "replace"]
    unique_until: Literal["start", "done"] | None
    unique_for_s: float | None
    traceparent: str | None
    tracestate: str | None


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is submitted. None means: as the task type says, else the setting's default. `delay_s` and `run_at` (aware
    datetime) exclude each other. `expires_in_s` counts from submission: a task not started by then is canceled, reason
    `expired`. `front` puts it at its queue's head. A failed attempt is made again after up to `backoff_s`, twice that
    and so on, `backoff_max_s` at most. `callback_url` is told of `callback_events`, or else of the task's end.
    With `on_lost_lease` "kill", an attempt whose lease can't be renewed is killed before the lease ends, so that no two
    attempts overlap.

    A task with a `unique_key` holds that key until it starts or ends (`unique_until`, else until it ends), or for
    `unique_for_s`. Another one with it is refused (`on_conflict` "reject"), answered with the holder ("return"), or
    takes the place of a holder that waits ("replace"). `traceparent`, `tracestate`: W3C's; if invalid, ignored."""

    type: str
    payload: Any = msgspec.field(default_factory=dict)
    queue: str | None = None
    delay_s: float | None = None
    run_at: datetime | None = None
    front: bool = False
    tags: Sequence[str] = ()
    timeout_s: float | None = None
    result_ttl_s: int | None = None
    failure_ttl_s: int | None = None
    max_attempts: int | None = None
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease | None = None
    expires_in_s: float | None = None
    depends_on: Sequence[str] = ()
    callback_url: str | None = None
    callback_events: Sequence[str] | None = None
    unique_key: str | None = None
    on_conflict: Literal["reject", "return", "replace"] = "reject"
    unique_until: Literal["start", "done"] | None = None
    unique_for_s: float | None = None
    traceparent: str | None = None
    tracestate: str | None = None


class Document(msgspec.Struct, frozen=True):
    """A value that web frameworks can answer with: `to_dict()` is its JSON form.

    FastAPI turns it into JSON by itself, also as the annotated return type of an endpoint.
    """

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values: times as RFC 3339 texts, statuses as words."""
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return values

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """The items of `to_dict()`, so that ``dict(record)`` works. FastAPI relies on that."""
        yield from self.to_dict().items()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        answer = core_schema.plain_serializer_function_ser_schema(cls.to_dict)
        return core_schema.is_instance_schema(cls, serialization=answer)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "title": cls.__name__, "properties": {name: {} for name in cls.__struct_fields__}}


class PastAttempt(Document, frozen=True, kw_only=True):
    """How one attempt ended. `outcome`: done, failed, crashed, lease_lost, stopped, snoozed or given_back.

    `lease_lost`: the lease ended without a word from the worker, which may still be running. `given_back`: the worker
    was drained, or died before the code began or while it ran other tasks, too. Attempts that were snoozed or given
    back don't count: the next one has the same number."""

    attempt: int
    worker: str
    started_at: datetime
    ended_at: datetime
    outcome: str
    error: str | None = None


class TaskRecord(Document, frozen=True, kw_only=True, gc=False):
    """A task as stored. `error` is one readable line; `failure` has the details (`reason`, `exception`,
    `traceback`, ...). `reason` says why a task ended as it did; `lease_lost`: its worker couldn't be reached and may
    still be running. `history` tells of the last 20 ended attempts;
    it is empty for a task that is done at the first. Times are aware, in UTC."""

    id: str
    type: str
    status: TaskStatus
    queue: str
    payload: Any
    created_at: datetime | None = None
    enqueued_at: datetime | None = None
    run_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    result: Any = None
    error: str | None = None
    failure: Mapping[str, Any] | None = None
    reason: str | None = None
    progress: Mapping[str, Any] | None = None
    attempt: int = 0
    max_attempts: int = 1
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease = "continue"
    crashes: int = 0
    snoozes: int = 0
    timeout_s: float | None = None
    result_ttl_s: int | None = None
    failure_ttl_s: int | None = None
    tags: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    callback_url: str | None = None
    callback_events: tuple[str, ...] = ()
    worker: str | None = None
    history: tuple[PastAttempt, ...] = ()
    project: str | None = None
    seq: int = 0
    unique_key: str | None = None
    unique_until: str | None = None
    unique_for_s: float | None = None
    traceparent: str | None = None
    tracestate: str | None = None


class RunningTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A claimed task: what one attempt needs to run it. `attempt_id` is the fencing token of each of its writes."""

    id: str
    type: str
    payload: Any
    queue: str
    attempt: int
    attempt_id: str
    worker: str
    max_attempts: int
    timeout_s: float | None
    result_ttl_s: int
    failure_ttl_s: int
    started_ms: int
    enqueued_at: str = ""
    """As its record has it (see `claimed.waited_ms`)."""
    depends_on: tuple[str, ...] = ()
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease = "continue"
    snoozes: int = 0
    """How often it has snoozed so far."""
    is_suspect: bool = False
    """Whether a process died while it ran this task beside others: it has to run alone."""
    secrets: Secrets | None = None
    """The secret values of its payload, which itself only shows masks."""
    traceparent: str | None = None
    tracestate: str | None = None
    of_rq: bool = False
    """Whether it is a job of plain RQ, for a function named in TASKPOOL_RQ_FUNCTIONS: RQ's rules hold for it."""
    retry_in_s: float | None = None
    """How long its next attempt waits if this one fails; None: as the back-off says."""
    refusal: str | None = None
    """Why this job must not run (another function than ours, unreadable data); None for a task."""


class ForeignJobs:
    """What becomes of RQ jobs that aren't tasks: those that call one of `functions` (dotted names) are run. The others
    are left in their queue, or claimed to be refused."""

    def __init__(self, functions: Collection[str] = (), *, are_refused: bool = False) -> None:
        self.functions = frozenset(functions)
        self.argument = ("!" if are_refused else "-") + ",".join(sorted(self.functions))
        """As `claim.lua` takes it."""


LEFT_ALONE: Final = ForeignJobs()


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one task. `seq` numbers the steps of a task from 1 without gaps; `at_ms` is Redis's clock.

    `stream` is the event's id in the stream of all events, if it is known; `aside` what only those are told who listen
    when it happens: a log's lines, a small result.
    """

    id: str
    seq: int
    event: str
    status: TaskStatus
    at_ms: int
    data: Mapping[str, Any] = field(default_factory=dict)
    stream: str = ""
    aside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A queued task in dispatch order: `position` counts from 1, `wait_s` since it was queued."""

    record: TaskRecord
    position: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; `next_cursor` is opaque and None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None = None


def utc(ms: float) -> datetime:
    """The aware UTC datetime of a Unix time in milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC)
