"""The values of the system: statuses, the options of a submission, the record of a task, events, and what is known of
task types, queues and workers. A field is declared here once, with its description and its limits (`validation.Field`).
`STATUSES` has the statuses and their moves.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, Self, TypedDict, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import force_setattr

from taskpool.text import Secrets
from taskpool.types.base import Document as Document
from taskpool.types.base import OpenEnum as OpenEnum
from taskpool.types.base import refuse_unknown as refuse_unknown
from taskpool.types.dependency import Dependency, Edge, Parent, faults_of
from taskpool.types.fleet import Pause as Pause
from taskpool.types.fleet import RunningNow as RunningNow
from taskpool.types.fleet import WorkerInfo as WorkerInfo
from taskpool.types.people import ANSWER_S as ANSWER_S
from taskpool.types.people import MOST_ASKED as MOST_ASKED
from taskpool.types.people import Answer as Answer
from taskpool.types.people import Confirm as Confirm
from taskpool.types.people import Confirmation as Confirmation
from taskpool.types.people import Question as Question
from taskpool.types.people import confirm_of
from taskpool.validation import (
    DURATION,
    LEAST_S,
    QUEUE_NAME,
    QUEUE_TAKES,
    TAG,
    TAG_TAKES,
    TYPE_NAME,
    UNIQUE_KEY,
    UNIQUE_KEY_TAKES,
    Duration,
    Field,
    Moment,
    declared,
    seconds_of,
    time_of,
)

T = TypeVar("T")


class TaskStatus(OpenEnum):
    """The status of a task. Later releases may add statuses. An unknown status isn't terminal."""

    # The API shows these words. Redis holds RQ's words: see `STATUSES`, which has a row for each member.

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
        """True if the task has ended: its status doesn't change any more."""
        return self in TERMINAL


S = TaskStatus

OnLostLease = Literal["continue", "kill"]


class Exit(IntEnum):
    """The exit statuses of the command line. `meaning` is what `taskpool --help` says about one."""

    meaning: str

    def __new__(cls, status: int, meaning: str = "") -> Self:
        member = int.__new__(cls, status)
        member._value_, member.meaning = status, meaning
        return member

    DONE = 0, "done, or the command did what was asked"
    FAILED = 1, "the task or the workflow failed; `up`: a part died; `doctor`, `check`: something is wrong"
    USAGE = 2, "a flag, a setting, a key or a payload is wrong; `up`: it can't start"
    NOT_FOUND = 3, "no task, workflow, schedule or key has this id or name"
    TIMED_OUT = 4, "it didn't end in the time given"
    STOPPED = 5, "the task or the workflow was stopped or canceled"
    CONFLICT = 6, "its status, or the code that declares it, doesn't allow that"
    NO_REDIS = 7, "Redis, or the API of --server, can't be reached"
    BUG = 70
    INTERRUPTED = 130, "Ctrl-C"


class StatusFacts(NamedTuple):
    """What the code needs to know about a status, declared once; everything else is derived from it."""

    rq: str  # RQ's word, which the record holds
    registry: str
    """Names the constant in `redis.keys` of the list or sorted set that holds its tasks; empty for a status that no
    script of this release sets."""
    moves: tuple[TaskStatus, ...]  # the statuses that may follow; a terminal status has none
    event: str = ""  # that of a move to it, if it has another name
    is_retryable: bool = False
    colour: str | None = None  # of its word on the command line
    exit_status: Exit = Exit.DONE  # of the command line, for a task that ended with it


STATUSES: Final[Mapping[TaskStatus, StatusFacts]] = {
    S.QUEUED: StatusFacts(
        "queued", "QUEUE", (S.IN_PROGRESS, S.CANCELED, S.WAITING_CONFIRMATION)
    ),  # the last: see turn.lua
    S.SCHEDULED: StatusFacts("scheduled", "SCHEDULED", (S.QUEUED, S.CANCELED)),
    S.WAITING: StatusFacts("deferred", "DEFERRED", (S.WAITING_CONFIRMATION, S.QUEUED, S.SCHEDULED, S.CANCELED)),
    S.WAITING_CONFIRMATION: StatusFacts("deferred", "DEFERRED", (S.QUEUED, S.SCHEDULED, S.CANCELED), colour="magenta"),
    S.THROTTLED: StatusFacts("rate_limited", "", (S.QUEUED, S.CANCELED)),
    S.IN_PROGRESS: StatusFacts(  # back to scheduled or queued: it is retried, its process died, or it was drained
        "started",
        "WIP",
        (S.STOPPING, S.DONE, S.FAILED, S.STOPPED, S.QUEUED, S.SCHEDULED, S.WAITING_CONFIRMATION),
        "started",
        colour="cyan",
    ),
    S.STOPPING: StatusFacts("started", "WIP", (S.DONE, S.FAILED, S.STOPPED), colour="yellow"),
    S.DONE: StatusFacts("finished", "FINISHED", (), colour="green"),
    S.FAILED: StatusFacts("failed", "FAILED", (), is_retryable=True, colour="red", exit_status=Exit.FAILED),
    S.STOPPED: StatusFacts("stopped", "FAILED", (), is_retryable=True, colour="yellow", exit_status=Exit.STOPPED),
    S.CANCELED: StatusFacts("canceled", "CANCELED", (), is_retryable=True, colour="yellow", exit_status=Exit.STOPPED),
}
"""Every status, in the order of a task's life. A new task is queued, scheduled, waiting for other tasks or for a
person, or canceled if a task that it depends on has ended badly."""

TRANSITIONS: Final = {status: frozenset(facts.moves) for status, facts in STATUSES.items()}
"""The allowed moves. The only other one is a retry by hand (`retry_task`), of this task or of the one that caused its
cancelation, from a retryable status to queued; to waiting if a parent was retried, too; to scheduled if its time
hasn't come; to waiting_confirmation if a person has to confirm it and hasn't. It starts a new life of the same task."""

TERMINAL: Final = frozenset(status for status, moves in TRANSITIONS.items() if not moves)
RETRYABLE: Final = frozenset(status for status, facts in STATUSES.items() if facts.is_retryable)
RQ_STATUS: Final = {status: facts.rq for status, facts in STATUSES.items()}
EVENT_OF: Final = {status: facts.event or status.value for status, facts in STATUSES.items()}
ENDS: Final = tuple(EVENT_OF[status] for status in STATUSES if status in TERMINAL)
"""The events of a task's end. Webhooks are sent for these unless others are named."""
WEBHOOK_EVENTS: Final = (
    *(EVENT_OF[status] for status, facts in STATUSES.items() if facts.registry and facts.moves),
    *("progress", "retry", "snoozed", "crashed", "lease_lost"),
    *ENDS,
)
"""The events of tasks that webhooks can be sent for: all except log lines."""
WORKFLOW_EVENTS: Final = tuple(
    f"workflow_{event}"
    for event in ("started", "added", "progress", "stopping", "retried", S.DONE, S.FAILED, S.STOPPED)
)
"""The events of workflows. An endpoint receives those that it names."""

DEFAULT_RESULT_TTL_S: Final = 86_400
DEFAULT_FAILURE_TTL_S: Final = 7 * 86_400
"""How long the record of an ended task is kept if neither the task nor a setting says."""
DEFAULT_SECRET_TTL_S: Final = 7 * 86_400

MOST_TAGS: Final = 16
MOST_PARENTS: Final = 10_000
MOST_ATTEMPTS: Final = 1000

_OF_TYPE: Final = "the type's"
_OF_REQUEST: Final = "the HTTP request's header"


class TypeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that a task type may set. A submission may override each of them. None means: the default of the task
    type, or else of the setting with that name."""

    queue: Annotated[
        str | None,
        Field(
            "The queue: 1 to 64 letters, digits or `_.-`.",
            default=_OF_TYPE,
            pattern=QUEUE_NAME,
            takes=QUEUE_TAKES,
            examples=["default"],
            metavar="NAME",
        ),
    ] = None
    timeout_s: Annotated[
        float | None, Field("The time limit of one attempt, in seconds.", default=_OF_TYPE, least=LEAST_S)
    ] = None
    max_attempts: Annotated[
        int | None,
        Field(f"The number of attempts, 1 to {MOST_ATTEMPTS:,}.", default=_OF_TYPE, least=1, most=MOST_ATTEMPTS),
    ] = None
    backoff_s: Annotated[
        float | None,
        Field(
            "The longest wait after the first failed attempt, in seconds. It doubles after each further one.",
            default=f"{_OF_TYPE}, else 1",
            least=0,
        ),
    ] = None
    backoff_max_s: Annotated[
        float | None,
        Field("The longest wait after any failed attempt, in seconds.", default=f"{_OF_TYPE}, else 300", least=0),
    ] = None
    on_lost_lease: Annotated[
        OnLostLease | None,
        Field(
            "What happens to an attempt whose lease can't be renewed: it goes on (`continue`), or is killed before the"
            " lease ends (`kill`), so that two attempts never overlap.",
            default=f"{_OF_TYPE}, else `continue`",
        ),
    ] = None
    result_ttl_s: Annotated[
        int | None,
        Field("How long to keep the record of a `done` task, in seconds; at least 30.", default=_OF_TYPE, least=1),
    ] = None


class RecordedOptions(TypeOptions, frozen=True, kw_only=True):
    """The further options that a record shows as they were submitted."""

    failure_ttl_s: Annotated[
        int | None,
        Field(
            "How long to keep the record of a task that ended otherwise, in seconds; at least 30.",
            default="the setting `TASKPOOL_FAILURE_TTL_S`",
            least=1,
        ),
    ] = None
    tags: Annotated[
        Sequence[str],
        Field(
            f"Words to find the task by: up to {MOST_TAGS}, each 1 to 64 letters, digits or `_.:-`.",
            default="none",
            most=MOST_TAGS,
            pattern=TAG,
            takes=TAG_TAKES,
            metavar="TAG",
            stored="tags",
            is_joined=True,
        ),
    ] = ()
    depends_on: Annotated[
        Sequence[Parent],
        Field(
            "What must have ended before: IDs of tasks that must be done, or objects with `id`, or `workflow`, and `on`"
            " (`success`, `failure` or `any`).",
            default="none",
            most=MOST_PARENTS,
            each=faults_of,
            metavar="ID[:ON]",
        ),
    ] = ()
    confirm: Annotated[
        Confirm | str | bool | None,
        Field(
            "A person has to confirm the task before it starts: the question as a text, an object with `text`, `who`,"
            " `timeout` and `default`, or `true`.",
            default="none",
            takes="a text, an object (in Python a Confirm), or true",
            examples=["Import 10,000 rows?"],
            stored="confirm",
        ),
    ] = None
    callback_url: Annotated[
        str | None,
        Field(
            "The URL that receives signed messages about this task. The server decides which URLs are allowed.",
            default="none",
            is_url=True,
            metavar="URL",
            stored="callback_url",
        ),
    ] = None
    callback_events: Annotated[
        Sequence[str] | None,
        Field(
            "The events to send messages for. Only together with `callback_url`.",
            default=", ".join(f"`{event}`" for event in ENDS),
            least=1,
            most=len(WEBHOOK_EVENTS),
            choices=WEBHOOK_EVENTS,
            needs="callback_url",
            metavar="EVENT",
            stored="callback_events",
            is_joined=True,
        ),
    ] = None
    unique_key: Annotated[
        str | None,
        Field(
            f"No other task may hold the same key: {UNIQUE_KEY_TAKES}.",
            default="none",
            pattern=UNIQUE_KEY,
            takes=UNIQUE_KEY_TAKES,
            metavar="KEY",
        ),
    ] = None
    unique_for_s: Annotated[
        float | None,
        Field(
            "Hold the unique key for this many seconds instead, however the task ends. Not allowed together with"
            " `unique_until`.",
            least=LEAST_S,
            excludes=["unique_until"],
            needs="unique_key",
        ),
    ] = None
    traceparent: Annotated[
        str | None, Field("A W3C trace context, passed to the task; ignored if it is invalid.", default=_OF_REQUEST)
    ] = None
    tracestate: Annotated[
        str | None, Field("The W3C trace state that belongs to `traceparent`.", default=_OF_REQUEST)
    ] = None


class TaskSpec(RecordedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A submission: the type of the task, its payload and its options.

    This class and its bases declare each option once. Everything else that knows the options is derived from them,
    except `TaskOptions`, the same fields as keyword arguments."""

    type: Annotated[str, Field("The name of a task type.", default="required", pattern=TYPE_NAME)]
    payload: Annotated[
        Any,
        Field(
            "The task's input. It must match the type's JSON Schema. Fields that are `writeOnly` in the schema are"
            " never shown.",
            default="`{}`",
        ),
    ] = msgspec.field(default_factory=dict)
    delay: Annotated[
        Duration | None,
        Field(
            "How long to wait before the start: a number of seconds, or a text like `5m`, `1h30m`, `2d` or `500ms`.",
            default="no wait",
            least=0,
            pattern=DURATION,
            examples=["5m", 90],
        ),
    ] = None
    delay_s: Annotated[
        float | None,
        Field(
            "Another spelling of `delay`, as a number of seconds. Not allowed together with it.",
            default="no wait",
            least=0,
            excludes=["delay"],
            flag="--delay-s",
        ),
    ] = None
    run_at: Annotated[
        Moment | None,
        Field(
            "The earliest start, as a time: RFC 3339 with a time zone. Not allowed together with `delay`.",
            default="now",
            excludes=["delay", "delay_s"],
            flag="--at",
        ),
    ] = None
    front: Annotated[bool, Field("Put the task at the head of its queue.")] = False
    expires_in_s: Annotated[
        float | None,
        Field("Cancel the task if it hasn't started after this many seconds.", default="never", least=LEAST_S),
    ] = None
    unique_until: Annotated[
        Literal["start", "done"] | None,
        Field(
            "Hold the unique key until the task has started (`start`) or ended (`done`).",
            default="`done`",
            needs="unique_key",
        ),
    ] = None
    on_conflict: Annotated[
        Literal["reject", "return", "replace"],
        Field(
            "What happens if another task holds the unique key: refuse the submission (`reject`), answer with the"
            " holder (`return`), or take the place of a holder that hasn't started (`replace`).",
            needs="unique_key",
        ),
    ] = "reject"

    def __class_getitem__(cls, result: Any) -> builtins.type[Self]:
        """At run time, `Spec[int]` is this class (see `tasks.spec`)."""
        return cls

    def __post_init__(self) -> None:
        """Make `confirm` a `Confirm`, a valid `delay` a `delay_s`, and a text in `run_at` the time. A fault
        stays, and is found later with the others."""
        if self.confirm is not None and not isinstance(self.confirm, Confirm):
            force_setattr(self, "confirm", confirm_of(self.confirm))
        if self.delay is not None and self.delay_s is None and self.run_at is None:
            with suppress(ValueError):
                force_setattr(self, "delay_s", seconds_of(self.delay))
                force_setattr(self, "delay", None)
        if isinstance(self.run_at, str):
            with suppress(ValueError, OverflowError):
                force_setattr(self, "run_at", time_of(self.run_at))


_OF_SPEC: Final = {each.name: each for each in declared(TaskSpec)}
OPTIONS: Final = tuple(_OF_SPEC[name] for name in TaskSpec.__struct_fields__ if name not in ("type", "payload"))
"""Each option of a submission."""


class TypeKeywords(TypedDict, total=False):
    """The fields of `TypeOptions` as keyword arguments."""

    queue: str | None
    timeout_s: float | None
    max_attempts: int | None
    backoff_s: float | None
    backoff_max_s: float | None
    on_lost_lease: OnLostLease | None
    result_ttl_s: int | None


class TaskOptions(TypeKeywords, total=False):
    """The keyword arguments of `add_task`: the options of a `TaskSpec`, which says what they mean."""

    failure_ttl_s: int | None
    tags: Sequence[str]
    depends_on: Sequence[Parent]
    confirm: Confirm | str | bool | None
    callback_url: str | None
    callback_events: Sequence[str] | None
    unique_key: str | None
    unique_until: Literal["start", "done"] | None
    unique_for_s: float | None
    traceparent: str | None
    tracestate: str | None
    delay: Duration | None
    delay_s: float | None
    run_at: Moment | None
    front: bool
    expires_in_s: float | None
    on_conflict: Literal["reject", "return", "replace"]


_ID: Final = Field(examples=["d217r8m2n3aolstf2ch5"])


class PastAttempt(Document, frozen=True, kw_only=True):
    """How one attempt ended.

    `lease_lost`: the worker stopped sending heartbeats, and may still be running the task. `given_back`: the worker was
    drained, or died before the task's code started or while it ran other tasks, too. `asked`: it asked a person.
    Attempts that snoozed, asked or were given back don't count: the next one has the same number."""

    attempt: Annotated[int, Field(least=0)]
    worker: str
    started_at: datetime
    ended_at: datetime
    outcome: Annotated[
        str, Field("done, failed, crashed, lease_lost, stopped, snoozed, asked or given_back.", examples=["failed"])
    ]
    error: str | None = None


class TaskRecord(RecordedOptions, Document, frozen=True, kw_only=True, gc=False):
    """A task as it is stored. Times are aware, in UTC.

    Each field is also a member of the task's JSON document, except for a field that has its default."""

    id: Annotated[str, _ID]
    type: Annotated[str, Field(examples=["long_task"])]
    status: TaskStatus
    queue: Annotated[str, Field(examples=["default"])]
    payload: Any
    result: Any = None
    error: Annotated[str | None, Field("Why it failed, in one readable line.")] = None
    failure: Annotated[
        Mapping[str, Any] | None, Field("The details of the failure: `reason`, `exception`, `traceback`, ...")
    ] = None
    reason: Annotated[
        str | None,
        Field(
            "Why it was canceled, stopped or failed. `lease_lost`: its worker couldn't be reached, and may "
            "still be running it."
        ),
    ] = None
    fingerprint: Annotated[
        str | None,
        Field(
            "What failures with the same cause have in common: see `/failures/{fingerprint}`.",
            examples=["3f9c02d51ab7"],
        ),
    ] = None
    progress: Annotated[
        Mapping[str, Any] | None, Field("The last progress that it reported: `done`, `total`, `note`.")
    ] = None
    attempt: Annotated[int, Field("The number of the current or last attempt; 0 before the first.", least=0)] = 0
    max_attempts: Annotated[int, Field(least=0)] = 1
    on_lost_lease: OnLostLease = "continue"
    crashes: Annotated[int, Field("How often its process died, or its lease ended, while it ran.", least=0)] = 0
    snoozes: Annotated[int, Field(least=0)] = 0
    worker: str | None = None
    created_at: datetime | None = None
    enqueued_at: datetime | None = None
    run_at: Annotated[datetime | None, Field("When it is due.")] = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: Annotated[datetime | None, Field("It is canceled if it hasn't started by this time.")] = None
    tags: tuple[str, ...] = ()
    depends_on: tuple[str | Dependency, ...] = ()
    callback_events: tuple[str, ...] = ()
    unique_until: Annotated[
        str | None, Field("The unique key is held until the task has started (`start`) or ended (`done`).")
    ] = None
    added_by: Annotated[
        str | None, Field("The task that has added it with `ctx.add_task`.", examples=["d217r8m2n3aolstf2ch5"])
    ] = None
    canceled_by: Annotated[
        str | None,
        Field(
            "The task because of which it was canceled, or `{workflow}:{map}`. It is revived if that one is retried."
        ),
    ] = None
    operations: Annotated[
        tuple[str, ...],
        Field("The last operations on many tasks that changed it, the newest last: see `/operations/{operation}`."),
    ] = ()
    project: Annotated[str | None, Field("The project of the API key it was submitted with.")] = None
    submitted_by: Annotated[str | None, Field("The name of that API key.", examples=["a service"])] = None
    workflow: Annotated[
        str | None, Field("The id of the workflow that it belongs to.", examples=["d217r8m2n3aolstf0000"])
    ] = None
    node: Annotated[str | None, Field("The name of its node there: its own, or its map's.", examples=["import"])] = None
    confirm: Confirm | None = None
    confirmation: Annotated[Confirmation | None, Field("Who confirmed or rejected it, when and why.")] = None
    question: Annotated[Question | None, Field("What it asks in the middle of its work.")] = None
    asked_at: Annotated[datetime | None, Field("Since when it waits for a person.")] = None
    answer_by: Annotated[datetime | None, Field("When the default answer counts.")] = None
    answers: Annotated[tuple[Answer, ...], Field("The answers to what it asked.")] = ()
    history: Annotated[
        tuple[PastAttempt, ...], Field("How the last 20 attempts ended; empty if the first one is done.")
    ] = ()
    schedule: Annotated[str | None, Field("The schedule that submitted it.", examples=["nightly"])] = None
    occurrence: Annotated[datetime | None, Field("The nominal time of this run of its schedule.")] = None
    seq: Annotated[int, Field("Grows by one with each step of the task.", least=0)] = 0


class RunningTask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A claimed task: all that one attempt needs. `attempt_id` is the fencing token of each of its writes."""

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
    enqueued_at: str = ""  # as the record has it (see `rq_job.waited_ms`)
    edges: tuple[Edge, ...] = ()  # what it depends on
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease = "continue"
    snoozes: int = 0  # so far
    is_suspect: bool = False  # a process died while it ran this task beside others: it has to run alone
    secrets: Secrets | None = None  # the secret values of its payload; the payload itself holds masks
    traceparent: str | None = None
    tracestate: str | None = None
    of_rq: bool = False  # a job of plain RQ, for a function named in TASKPOOL_RQ_FUNCTIONS: RQ's rules apply to it
    occurrence_ms: int | None = None  # the nominal time of this run of its schedule
    workflow: str | None = None  # the workflow that it belongs to
    retry_in_s: float | None = None  # how long its next attempt waits if this one fails; None: the backoff decides
    refusal: str | None = None  # why this job must not run (another function than ours, unreadable data)


class ForeignJobs:
    """What workers do with RQ jobs that aren't tasks. They run those that call one of `functions` (dotted names), and
    leave the others in their queue, or claim them to refuse them."""

    def __init__(self, functions: Collection[str] = (), *, are_refused: bool = False) -> None:
        self.functions = frozenset(functions)
        self.argument = ("!" if are_refused else "-") + ",".join(sorted(self.functions))
        """As `turn.lua` takes it."""


LEFT_ALONE: Final = ForeignJobs()


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one task. `seq` numbers the steps of a task from 1 without gaps; `at_ms` is Redis's clock. `aside` is
    only for clients that listen when the event happens: the lines of a log, a small result."""

    id: Annotated[str, _ID]
    seq: int
    event: str
    status: TaskStatus
    at_ms: int
    data: Mapping[str, Any] = field(default_factory=dict)
    stream: Annotated[str, Field("Its ID in the stream of all events.")] = ""
    aside: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A queued task in dispatch order: `position` counts from 1, `wait_s` since it was queued."""

    record: TaskRecord
    position: int
    wait_s: Annotated[float, Field("How long it has been queued.", least=0)]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; `next_cursor` is opaque and None on the last page. `looked_at`: how many entries were
    looked at for this page, if others than those that match had to be; `next_cursor` looks further."""

    items: tuple[T, ...]
    next_cursor: str | None = None
    looked_at: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the listing ends with this page."""
        return self.next_cursor is None


FIRST_TIME: Final = datetime(1, 1, 3, tzinfo=UTC)
LAST_TIME: Final = datetime(9999, 12, 29, tzinfo=UTC)
"""The times that can be shown in every time zone."""


def utc(ms: float) -> datetime:
    """The aware UTC datetime of a Unix time in milliseconds. Of one that the calendar doesn't have, which only other
    programs write, the nearest."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return FIRST_TIME if ms < 0 else LAST_TIME


class Receipt(NamedTuple):
    """The task of a submission. `is_existing`: it is an earlier task that holds the unique key."""

    id: str
    status: TaskStatus
    is_existing: bool = False


LONGEST_TRACE: Final = 512
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_TRACESTATE: Final = re.compile(r"[ -~]*")


def trace_text(traceparent: str, tracestate: str | None) -> str | None:
    """A W3C trace context as the task's hash holds it: the traceparent and, after a blank, the tracestate. None if the
    traceparent is invalid: W3C requires to ignore an invalid context."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == "ff" or not match[2].strip("0") or not match[3].strip("0"):
        return None
    if (match[1] == "00" and match[5]) or len(traceparent) > LONGEST_TRACE:
        return None
    state = tracestate or ""
    if not state or len(state) > LONGEST_TRACE or not _TRACESTATE.fullmatch(state):
        return traceparent
    return f"{traceparent} {state}"


def trace_of(field: str | None) -> tuple[str | None, str | None]:
    """The traceparent and the tracestate in that field of the hash."""
    parent, _, state = (field or "").partition(" ")
    return parent or None, state or None


WHOSE: Final = "\x1f"  # separates a project from its unique key; neither can contain it

_SECONDS: Final = re.compile(r"\d{1,12}(\.\d{1,12})?")


class Unique(NamedTuple):
    """The unique key of a task."""

    name: str
    on_conflict: str
    text: str
    """What the task's hash holds: how long the key is held, a blank, and the key (``done key``, ``start key``,
    ``time:3600 key`` in seconds)."""
    held_ms: int | None = None  # None: until the task has started or ended
    replaceable: bytes = b""  # the types and queues whose tasks this one may replace, as JSON (empty: any)


def unique_of(spec: TaskSpec, project: str | None, replaceable: bytes = b"") -> Unique | None:
    """The unique key of a checked submission. Each project has separate keys."""
    if spec.unique_key is None:
        return None
    key, for_s = spec.unique_key, spec.unique_for_s
    how = f"time:{round(for_s * 1000) / 1000}" if for_s is not None else spec.unique_until or "done"
    if project is not None:
        key = project + WHOSE + key
    return Unique(key, spec.on_conflict, f"{how} {key}", None if for_s is None else round(for_s * 1000), replaceable)


def shown_key(name: str) -> str:
    """A unique key as it was submitted."""
    return name.rpartition(WHOSE)[2]


def rare_fields(unique: str | None, trace: str | None) -> dict[str, Any]:
    """The members of a record that two fields of the hash hold: the unique key and the trace context."""
    shown: dict[str, Any] = {}
    if unique:
        how, _, name = unique.partition(" ")
        shown["unique_key"] = shown_key(name)
        until, is_time, seconds = how.partition(":")
        if is_time:
            shown["unique_for_s"] = float(seconds) if _SECONDS.fullmatch(seconds) else None
        else:
            shown["unique_until"] = until
    if trace:
        shown["traceparent"], shown["tracestate"] = trace_of(trace)
    return shown


class TypeInfo(TypeOptions, frozen=True, kw_only=True):
    """A task type as its workers publish it."""

    name: Annotated[str, Field(examples=["long_task"])]
    description: str = ""
    queue: str
    schema: Annotated[Mapping[str, Any], Field("The JSON Schema of the payload.")]
    max_attempts: Annotated[int, Field(least=0)] = 1
    is_async: bool = False
    served_by: Annotated[tuple[str, ...], Field("The live worker pools that run it.")] = ()
    last_seen_ms: int | None = None


_COUNT: Final = Field(least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue: the number of its tasks by status, and the age in seconds of the task at its head."""

    name: Annotated[str, Field(examples=["default"])]
    queued: Annotated[int, _COUNT]
    in_progress: Annotated[int, _COUNT]
    scheduled: Annotated[int, _COUNT]
    waiting: Annotated[int, Field("Those that wait for other tasks or for a person.", least=0)]
    done: Annotated[int, _COUNT]
    failed: Annotated[int, _COUNT]
    canceled: Annotated[int, _COUNT]
    oldest_s: Annotated[float | None, _COUNT] = None
    paused: Annotated[Pause | None, Field("Since when, by whom and why it is paused.")] = None


QUEUE_COUNTS: Final = tuple(each.name for each in fields(QueueInfo) if each.name not in ("name", "oldest_s", "paused"))

Id = Annotated[str, Meta(examples=["d217r8m2n3aolstf2ch5"])]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, examples=["2026-11-23T12:00:00.000Z"])]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What is kept of one attempt: lines, bytes (of the lines as JSON), and characters in one line."""

    lines: int = 10_000
    bytes: int = 4 * 1024 * 1024
    line_chars: int = 8192


DEFAULT_LIMITS: Final = LogLimits()
