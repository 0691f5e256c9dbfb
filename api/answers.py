"""The documents that only HTTP has: pages, receipts and probes. `taskpool.operations.documents` has all others.

The types render the answers, and the OpenAPI document is made from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from taskpool.access.api_key import Scope
from taskpool.operations.documents import (
    AuditEntryDocument,
    DeliveryDocument,
    Document,
    FailureDocument,
    FindingDocument,
    KeyDocument,
    LogLineDocument,
    OperationDocument,
    PauseDocument,
    PoolDocument,
    QueuedDocument,
    QueueDocument,
    ScheduleDocument,
    Shown,
    TaskDocument,
    TypeDocument,
    TypeStorageDocument,
    WebhookDocument,
    WorkerDocument,
    WorkflowDocument,
    shows,
)
from taskpool.operations.flow.schedule_values import ScheduleStatus
from taskpool.operations.flow.values import WorkflowStatus
from taskpool.operations.overview import ServerInfo
from taskpool.types import Count, Id, TaskStatus, Time

NextCursor = Annotated[str | None, Meta(description="the cursor of the next page, if there may be one")]

EverythingPaused = Annotated[PauseDocument | None, Meta(description="everything is paused, whatever the entries say")]


class Accepted(Document, frozen=True, kw_only=True):
    """The receipt of a stored task."""

    id: Id
    status: TaskStatus
    existing: Annotated[bool, Meta(description="in a batch: an existing task, which holds the unique key")] = False


class AcceptedBatch(Document, frozen=True, kw_only=True):
    """The receipts of a batch, in the order of its tasks."""

    tasks: Sequence[Accepted]


class TaskPage(Document, frozen=True, kw_only=True):
    """A page of a listing."""

    tasks: Sequence[TaskDocument]
    next_cursor: NextCursor = None
    looked_at: Annotated[
        Count | UnsetType, Meta(description="how many tasks were looked at, if the criteria have no index")
    ] = UNSET
    complete: Annotated[
        bool | UnsetType,
        Meta(description="with `looked_at`: no more tasks match; otherwise `next_cursor` looks further"),
    ] = UNSET


class AcceptedWorkflow(Document, frozen=True, kw_only=True):
    """The receipt of a stored workflow."""

    id: Id
    status: WorkflowStatus


class WorkflowPage(Document, frozen=True, kw_only=True):
    """A page of a listing of workflows, without their nodes."""

    workflows: Sequence[WorkflowDocument]
    next_cursor: NextCursor = None


class AcceptedSchedule(Document, frozen=True, kw_only=True):
    """A schedule that was changed, for callers that may not read it."""

    name: str
    status: ScheduleStatus


class SchedulePage(Document, frozen=True, kw_only=True):
    """A page of the schedules, by name, without their next runs, and with the last ten of their history."""

    schedules: Sequence[ScheduleDocument]
    next_cursor: NextCursor = None


class Failures(Document, frozen=True, kw_only=True):
    """The groups of failures that failed last, the newest first."""

    groups: Sequence[FailureDocument]


class Findings(Document, frozen=True, kw_only=True):
    """What is wrong, the most urgent first. `checked`: how many rules were checked."""

    findings: Sequence[FindingDocument]
    checked: Count


class OperationPage(Document, frozen=True, kw_only=True):
    """A page of the operations, the newest first."""

    operations: Sequence[OperationDocument]
    next_cursor: NextCursor = None


class LogPage(Document, frozen=True, kw_only=True):
    """A page of a task's log, the oldest line first."""

    lines: Sequence[LogLineDocument]
    next_cursor: Annotated[
        str | None, Meta(description="the cursor of later lines; always there until the task has ended")
    ] = None


class QueuePage(Document, frozen=True, kw_only=True):
    """A page of a queue, in the order in which its tasks will start."""

    name: str
    info: Annotated[
        QueueDocument | None, Meta(description="its counts; not for a key of a project that isn't bound to the queue")
    ] = None
    tasks: Sequence[QueuedDocument]
    next_cursor: NextCursor = None


class Queues(Document, frozen=True, kw_only=True):
    """A page of the queues, by name."""

    queues: Sequence[QueueDocument]
    next_cursor: NextCursor = None
    paused: EverythingPaused = None


class Types(Document, frozen=True, kw_only=True):
    """Every task type."""

    types: Sequence[TypeDocument]


class Storage(Document, frozen=True, kw_only=True):
    """What fills Redis, by task type, the one that keeps most first."""

    types: Sequence[TypeStorageDocument]


class Pools(Document, frozen=True, kw_only=True):
    """Every worker pool, by name."""

    pools: Sequence[PoolDocument]
    paused: EverythingPaused = None


class Workers(Document, frozen=True, kw_only=True):
    """Every worker process."""

    workers: Sequence[WorkerDocument]
    warnings: Annotated[
        Sequence[str],
        Meta(description="problems of RQ programs that share the workers' queues; keys of a project don't see them"),
    ] = ()


class Keys(Document, frozen=True, kw_only=True):
    """Every API key."""

    keys: Sequence[KeyDocument]


class Ticket(Document, frozen=True, kw_only=True):
    """A ticket for one socket or stream, sent as `?ticket=`."""

    ticket: str
    expires_at: Time


class SessionDocument(Document, frozen=True, kw_only=True):
    """Who uses the web page."""

    key: Annotated[str | None, Meta(description="the id of the key; null without one")]
    name: Annotated[str | None, Meta(description="of the key")]
    scopes: Sequence[Scope]
    project: Annotated[str | None, Meta(description="the only project that it sees; null: all")]
    types: Annotated[Sequence[str] | None, Meta(description="the only types that it can start and stop; null: all")]
    queues: Annotated[Sequence[str] | None, Meta(description="the only queues it can do that in; null: all")]
    needs_key: Annotated[bool, Meta(description="whether this API needs a key")]
    read_only: Annotated[bool, Meta(description="whether it can change nothing")]


class Unstored(Document, frozen=True, kw_only=True):
    """The key is valid, but Redis takes no writes, so there is no session: send the key with each request."""

    is_stored: bool


class AuditPage(Document, frozen=True, kw_only=True):
    """A page of the audit log, newest first."""

    entries: Sequence[AuditEntryDocument]
    next_cursor: NextCursor = None


class Webhooks(Document, frozen=True, kw_only=True):
    """Every endpoint, the oldest first."""

    webhooks: Sequence[WebhookDocument]


class DeliveryPage(Document, frozen=True, kw_only=True):
    """A page of deliveries, the newest first."""

    deliveries: Sequence[DeliveryDocument]
    next_cursor: NextCursor = None


class Door(Document, frozen=True, kw_only=True):
    """The name and version of this service, and links to its pages."""

    service: str
    version: str
    links: Mapping[str, str]


class Live(Document, frozen=True, kw_only=True):
    """The process answers."""

    status: str


@shows(ServerInfo, always=("name",), hidden=("aof_writes",))
class ServerDocument(Shown, frozen=True, kw_only=True):
    """The Redis or Valkey server: which data it keeps if it crashes, and how full its memory is."""

    rdb_saved_at: Time | None = None


class Ready(Document, frozen=True, kw_only=True):
    """Redis answers reads and takes writes."""

    status: str
    reads: Annotated[bool | None, Meta(description="Redis can be read")] = None
    writes: Annotated[
        bool | None, Meta(description="Redis takes writes; false, with a 503, while it can only be read")
    ] = None
    redis: Annotated[
        ServerDocument | None,
        Meta(description="this and the following fields are only for callers that may see all tasks"),
    ] = None
    workers: Count | None = None
    warnings: Annotated[
        Sequence[str] | None,
        Meta(
            description="risks for tasks or security: settings of Redis, known vulnerabilities of its version, RQ "
            "programs beside the workers"
        ),
    ] = None


class LiveTotals(Document, frozen=True, kw_only=True):
    """The figures of the whole cluster. Rates are averages of the last seconds, null until they are known."""

    queued: Count
    in_progress: Count
    scheduled: Count
    waiting: Count
    waiting_confirmation: Count
    submitted_per_s: float | None
    done_per_s: float | None
    failed_per_s: float | None
    wait_p95_ms: Annotated[float | None, Meta(description="of the last minute; null if no attempt ended in it")]
    workers: Annotated[Count, Meta(description="how many tasks can run at once")]
    busy: Annotated[Count, Meta(description="how many of them run")]
    redis_memory: Annotated[Count, Meta(description="in bytes")]
    redis_maxmemory: Annotated[Count, Meta(description="in bytes; 0: no limit")]


class LiveQueue(Document, frozen=True, kw_only=True):
    """What waits in a queue."""

    name: str
    queued: Count
    in_progress: Count
    oldest_s: float | None = None


class LiveTask(Document, frozen=True, kw_only=True):
    """The state of a task that is watched."""

    status: TaskStatus
    attempt: Count
    progress: Mapping[str, Any] | None = None
    ended_at: Time | None = None


class LiveFigures(Document, frozen=True, kw_only=True):
    """The figures of one moment. A key of a project gets only the states of its tasks."""

    at_ms: Count
    totals: LiveTotals | None = None
    queues: Annotated[Sequence[LiveQueue], Meta(description="the 20 with the most tasks")] = ()
    tasks: Annotated[Mapping[str, LiveTask], Meta(description="of the `ids`, those that have changed")] = {}
    newest: Annotated[str, Meta(description="it changes when anything has happened to any task")] = ""


class LiveFault(Document, frozen=True, kw_only=True):
    """There are no figures at the moment. The stream goes on."""

    detail: str


class Resynced(Document, frozen=True, kw_only=True):
    """Events were lost. `trimmed`: the stream continues; `slow`: it has ended, reconnect to resume `after` this."""

    after: Annotated[str, Meta(description="a position in the stream of all events", examples=["1795435200000-0"])]
    reason: Literal["trimmed", "slow"]


class TaskGone(Document, frozen=True, kw_only=True):
    """The task doesn't exist any more (deleted or expired), and the stream has ended."""

    kind: Literal["task-not-found"]
    detail: str


class WorkflowGone(Document, frozen=True, kw_only=True):
    """The workflow doesn't exist any more, and the stream has ended."""

    kind: Literal["workflow-not-found"]
    detail: str


class LogEnded(Document, frozen=True, kw_only=True):
    """The end of a log: its task has ended."""

    status: TaskStatus


class Fault(Document, frozen=True, kw_only=True):
    """What is wrong with one field (`pointer`, RFC 6901) or query parameter (`parameter`)."""

    pointer: str | None = None
    parameter: str | None = None
    detail: str


class ProblemDocument(Document, frozen=True, kw_only=True):
    """An error, as RFC 9457 has it; each kind may have members of its own."""

    type: str
    title: str
    status: int
    detail: str
    errors: Annotated[Sequence[Fault] | None, Meta(description="one entry for each fault, 100 at most")] = None
    near: Annotated[Sequence[str] | UnsetType, Meta(description="names of similar task types")] = UNSET
    task_status: Annotated[TaskStatus | UnsetType, Meta(description="the task's status")] = UNSET
    workflow_status: Annotated[WorkflowStatus | UnsetType, Meta(description="the workflow's status")] = UNSET
    task: Annotated[str | UnsetType, Meta(description="the path of the task that holds the unique key")] = UNSET
    task_id: Annotated[Id | UnsetType, Meta(description="its id; or that of the dependency which isn't there")] = UNSET
    queue: Annotated[str | UnsetType, Meta(description="the queue that has no room")] = UNSET
    held: Annotated[Count | UnsetType, Meta(description="how many tasks it holds")] = UNSET
    stop: Annotated[str | UnsetType, Meta(description="where to post to stop the task")] = UNSET
    max_bytes: Annotated[int | UnsetType, Meta(description="the limit")] = UNSET
    cap: Annotated[Count | UnsetType, Meta(description="how many the project may use")] = UNSET
    setting: Annotated[str | UnsetType, Meta(description="the setting that says so")] = UNSET
    reads: Annotated[bool | UnsetType, Meta(description="of /readyz: Redis can be read")] = UNSET
    writes: Annotated[bool | UnsetType, Meta(description="of /readyz: Redis takes writes")] = UNSET
