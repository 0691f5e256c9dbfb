"""The values of the system: statuses, the options of a submission, the record of a task, events, and what is known of
task types, queues and workers. A field is declared here once, with its description and its limits
(`validation.Field`).

    (submitted) ──► queued, scheduled, waiting, canceled (a task it depends on had already failed)

    queued               ──► in_progress, canceled
    scheduled            ──► queued, canceled
    waiting              ──► queued, scheduled, canceled
    waiting_confirmation ──► queued, canceled
    throttled            ──► queued, canceled
    in_progress          ──► done, failed, stopped, stopping, scheduled (retry), queued (died, drained, retry)
    stopping             ──► done, failed, stopped

    failed, stopped, canceled ──► queued (manual retry)

Done, failed, stopped and canceled are terminal. A manual retry (`retry_task`) starts a new life of the same task in
`queued`. It is the only way out of a terminal status.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, Self, TypedDict, TypeVar

import msgspec
from msgspec import Meta

from taskpool.text import Secrets
from taskpool.validation import (
    LEAST_S,
    QUEUE_NAME,
    QUEUE_TAKES,
    TAG,
    TASK_ID,
    TYPE_NAME,
    UNIQUE_KEY,
    UNIQUE_KEY_TAKES,
    Field,
    declared,
)

_is_word: Final = re.compile(r"[a-z][a-z0-9_.:-]{0,63}").fullmatch


class OpenEnum(StrEnum):
    """A `StrEnum` that accepts any word: one that isn't a member becomes a value whose `is_known` is False.

    A later release may add members, and two releases run side by side during a deployment, so readers keep an unknown
    word. What clients ask for is checked with `refuse_unknown`. A text that is no word raises ValueError.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str) or not _is_word(value):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_, unknown._value_ = "UNKNOWN", value
        return unknown

    @property
    def is_known(self) -> bool:
        """True for a member, False for a word from another release."""
        return self._name_ in type(self).__members__


def refuse_unknown(value: object, path: str = "") -> None:
    """Check that this isn't an unknown word of an `OpenEnum`. `path`: its place, in msgspec's form.

    Raises:
        msgspec.ValidationError: with msgspec's text for other enums.
    """
    if isinstance(value, OpenEnum) and not value.is_known:
        raise msgspec.ValidationError(f"Invalid enum value {value.value!r}" + (f" - at `${path}`" if path else ""))


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
"""What happens to an attempt whose lease can't be renewed: it goes on, or it is killed before the lease ends."""


class Exit(IntEnum):
    """The exit statuses of the command line. `meaning` is what `taskpool --help` says about one."""

    meaning: str

    def __new__(cls, status: int, meaning: str = "") -> Self:
        member = int.__new__(cls, status)
        member._value_, member.meaning = status, meaning
        return member

    DONE = 0, "done, or the command did what was asked"
    FAILED = 1, "the task failed; `up`: a part died"
    USAGE = 2, "a flag, a setting, a key or a payload is wrong; `up`: it can't start"
    NOT_FOUND = 3, "no task, or no key, has this id"
    TIMED_OUT = 4, "the task didn't end in the time given"
    STOPPED = 5, "the task was stopped or canceled"
    CONFLICT = 6, "the task's status doesn't allow that"
    NO_REDIS = 7, "Redis, or the API of --server, can't be reached"
    BUG = 70
    INTERRUPTED = 130, "Ctrl-C"


class StatusFacts(NamedTuple):
    """What the code needs to know about a status, declared once; everything else is derived from it.

    `rq` is RQ's word, which the record holds. `registry` names the constant in `redis.keys` of the list or sorted set
    that holds its tasks; it is empty for a status that no script of this release sets. `moves` are the statuses that
    may follow; a terminal status has none. `event` is the event of a move to it, if that has another name.
    `exit_status` is that of the command line for a task that ended with it, `colour` is that of its word there.
    """

    rq: str
    registry: str
    moves: tuple[TaskStatus, ...]
    event: str = ""
    is_retryable: bool = False
    colour: str | None = None
    exit_status: Exit = Exit.DONE


STATUSES: Final[Mapping[TaskStatus, StatusFacts]] = {
    S.QUEUED: StatusFacts("queued", "QUEUE", (S.IN_PROGRESS, S.CANCELED)),
    S.SCHEDULED: StatusFacts("scheduled", "SCHEDULED", (S.QUEUED, S.CANCELED)),
    S.WAITING: StatusFacts("deferred", "DEFERRED", (S.QUEUED, S.SCHEDULED, S.CANCELED)),
    S.WAITING_CONFIRMATION: StatusFacts("deferred", "", (S.QUEUED, S.CANCELED)),
    S.THROTTLED: StatusFacts("rate_limited", "", (S.QUEUED, S.CANCELED)),
    S.IN_PROGRESS: StatusFacts(
        "started",
        "WIP",
        (S.STOPPING, S.DONE, S.FAILED, S.STOPPED, S.QUEUED, S.SCHEDULED),
        event="started",
        colour="cyan",
    ),
    S.STOPPING: StatusFacts("started", "WIP", (S.DONE, S.FAILED, S.STOPPED), colour="yellow"),
    S.DONE: StatusFacts("finished", "FINISHED", (), colour="green"),
    S.FAILED: StatusFacts("failed", "FAILED", (), is_retryable=True, colour="red", exit_status=Exit.FAILED),
    S.STOPPED: StatusFacts("stopped", "FAILED", (), is_retryable=True, colour="yellow", exit_status=Exit.STOPPED),
    S.CANCELED: StatusFacts("canceled", "CANCELED", (), is_retryable=True, colour="yellow", exit_status=Exit.STOPPED),
}
"""Every status, in the order of a task's life. A new task is queued, scheduled, waiting, or canceled if a task that it
depends on has ended badly."""

TRANSITIONS: Final = {status: frozenset(facts.moves) for status, facts in STATUSES.items()}
"""The allowed moves. The only other one is a retry by hand (`retry_task`), from a retryable status to queued. It starts
a new life of the same task."""

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
"""The events that webhooks can be sent for: all except log lines."""

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
    """The options that a task type may set. A submission may override each of them.

    None means: the default of the task type, or else of the setting with that name.
    """

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
            takes="1 to 64 letters, digits, '_', '-', '.' or ':'",
            flag="--tag",
            metavar="TAG",
            stored="tags",
            is_joined=True,
        ),
    ] = ()
    depends_on: Annotated[
        Sequence[str],
        Field(
            "IDs of tasks that must be done first.",
            default="none",
            most=MOST_PARENTS,
            pattern=TASK_ID,
            takes="a task's id",
            metavar="ID",
            stored="dependency_ids",
        ),
    ] = ()
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
            flag="--callback-event",
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
            excludes="unique_until",
            needs="unique_key",
        ),
    ] = None
    traceparent: Annotated[
        str | None,
        Field("A W3C trace context, passed to the task; ignored if it is invalid.", default=_OF_REQUEST),
    ] = None
    tracestate: Annotated[
        str | None, Field("The W3C trace state that belongs to `traceparent`.", default=_OF_REQUEST)
    ] = None


class TaskSpec(RecordedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A submission: the type of the task, its payload and its options.

    This class and its bases declare each option once. Everything else that knows the options is derived from them,
    except `TaskOptions`, the same fields as keyword arguments.
    """

    type: Annotated[str, Field("The name of a task type.", default="required", pattern=TYPE_NAME)]
    payload: Annotated[
        Any,
        Field(
            "The task's input. It must match the type's JSON Schema. Fields that are `writeOnly` in the schema are"
            " never shown.",
            default="`{}`",
        ),
    ] = msgspec.field(default_factory=dict)
    delay_s: Annotated[
        float | None,
        Field(
            "The earliest start, in seconds from now. Not allowed together with `run_at`.",
            default="now",
            least=0,
        ),
    ] = None
    run_at: Annotated[
        datetime | None,
        Field(
            "The earliest start, as a time: RFC 3339 with a time zone. Not allowed together with `delay_s`.",
            default="now",
            excludes="delay_s",
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
    depends_on: Sequence[str]
    callback_url: str | None
    callback_events: Sequence[str] | None
    unique_key: str | None
    unique_until: Literal["start", "done"] | None
    unique_for_s: float | None
    traceparent: str | None
    tracestate: str | None
    delay_s: float | None
    run_at: datetime | None
    front: bool
    expires_in_s: float | None
    on_conflict: Literal["reject", "return", "replace"]


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


_ID: Final = Field(examples=["d217r8m2n3aolstf2ch5"])


class PastAttempt(Document, frozen=True, kw_only=True):
    """How one attempt ended.

    `lease_lost`: the worker stopped sending heartbeats, and may still be running the task. `given_back`: the worker was
    drained, or died before the task's code started or while it ran other tasks, too. Attempts that snoozed or were
    given back don't count: the next one has the same number.
    """

    attempt: Annotated[int, Field(least=0)]
    worker: str
    started_at: datetime
    ended_at: datetime
    outcome: Annotated[
        str,
        Field(
            "done, failed, crashed, lease_lost, stopped, snoozed or given_back.",
            examples=["failed"],
        ),
    ]
    error: str | None = None


class TaskRecord(RecordedOptions, Document, frozen=True, kw_only=True, gc=False):
    """A task as it is stored. Times are aware, in UTC.

    Each field is also a member of the task's JSON document, except for a field that has its default.
    """

    id: Annotated[str, _ID]
    type: Annotated[str, Field(examples=["long_task"])]
    status: TaskStatus
    queue: Annotated[str, Field(examples=["default"])]
    payload: Any
    result: Any = None
    error: Annotated[str | None, Field("Why it failed, in one readable line.")] = None
    failure: Annotated[
        Mapping[str, Any] | None,
        Field("The details of the failure: `reason`, `exception`, `traceback`, ..."),
    ] = None
    reason: Annotated[
        str | None,
        Field(
            "Why it was canceled, stopped or failed. `lease_lost`: its worker couldn't be reached, and may "
            "still be running it."
        ),
    ] = None
    progress: Annotated[
        Mapping[str, Any] | None, Field("The last progress that it reported: `done`, `total`, `note`.")
    ] = None
    attempt: Annotated[
        int,
        Field("The number of the current or last attempt; 0 before the first.", least=0),
    ] = 0
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
    depends_on: tuple[str, ...] = ()
    callback_events: tuple[str, ...] = ()
    unique_until: Annotated[
        str | None, Field("The unique key is held until the task has started (`start`) or ended (`done`).")
    ] = None
    project: Annotated[str | None, Field("The project of the API key it was submitted with.")] = None
    history: Annotated[
        tuple[PastAttempt, ...],
        Field("How the last 20 attempts ended; empty if the first one is done."),
    ] = ()
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
    enqueued_at: str = ""
    """As the record has it (see `rq_job.waited_ms`)."""
    depends_on: tuple[str, ...] = ()
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    on_lost_lease: OnLostLease = "continue"
    snoozes: int = 0
    """How often it has snoozed so far."""
    is_suspect: bool = False
    """Whether a process died while it ran this task beside others: it has to run alone."""
    secrets: Secrets | None = None
    """The secret values of its payload; the payload itself holds masks."""
    traceparent: str | None = None
    tracestate: str | None = None
    of_rq: bool = False
    """Whether it is a job of plain RQ, for a function named in TASKPOOL_RQ_FUNCTIONS: RQ's rules apply to it."""
    retry_in_s: float | None = None
    """How long its next attempt waits if this one fails; None: the backoff decides."""
    refusal: str | None = None
    """Why this job must not run (another function than ours, unreadable data); None for a task."""


class ForeignJobs:
    """What workers do with RQ jobs that aren't tasks. They run those that call one of `functions` (dotted names), and
    leave the others in their queue, or claim them to refuse them."""

    def __init__(self, functions: Collection[str] = (), *, are_refused: bool = False) -> None:
        self.functions = frozenset(functions)
        self.argument = ("!" if are_refused else "-") + ",".join(sorted(self.functions))
        """As `claim.lua` takes it."""


LEFT_ALONE: Final = ForeignJobs()


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one task. `seq` numbers the steps of a task from 1 without gaps; `at_ms` is Redis's clock.

    `aside` is only for clients that listen when the event happens: the lines of a log, a small result.
    """

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
    """One page of a listing; `next_cursor` is opaque and None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None = None


def utc(ms: float) -> datetime:
    """The aware UTC datetime of a Unix time in milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC)


class Receipt(NamedTuple):
    """The task of a submission. `is_existing`: it is an earlier task that holds the unique key."""

    id: str
    status: TaskStatus
    is_existing: bool = False


LONGEST_TRACE: Final = 512
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_TRACESTATE: Final = re.compile(r"[ -~]*")


def trace_text(traceparent: str, tracestate: str | None) -> str | None:
    """A W3C trace context as the task's hash holds it: the traceparent and, after a blank, the tracestate.

    None if the traceparent is invalid. An invalid context is ignored, as W3C requires.
    """
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


WHOSE: Final = "\x1f"
"""Separates a project from its unique key; neither can contain it."""

_SECONDS: Final = re.compile(r"\d{1,12}(\.\d{1,12})?")


class Unique(NamedTuple):
    """The unique key of a task.

    `text` is what the task's hash holds: how long the key is held, a blank, and the key (``done key``, ``start key``,
    ``time:3600 key`` in seconds). `held_ms`: hold it for so long; None: until the task has started or ended.
    `replaceable`: the types and queues whose tasks this one may replace, as JSON (empty: any).
    """

    name: str
    on_conflict: str
    text: str
    held_ms: int | None = None
    replaceable: bytes = b""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as RQ's registry shows it."""

    name: str
    host: str
    pid: int
    pool: str | None = None
    state: Annotated[str, Field("started, idle, busy or suspended", examples=["idle"])]
    queues: tuple[str, ...]
    current: tuple[str, ...]
    done: int
    failed: int
    working_s: float
    started_at: datetime | None = None
    last_heartbeat: datetime | None = None


_COUNT: Final = Field(least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue: the number of its tasks by status, and the age in seconds of the task at its head."""

    name: Annotated[str, Field(examples=["default"])]
    queued: Annotated[int, _COUNT]
    in_progress: Annotated[int, _COUNT]
    scheduled: Annotated[int, _COUNT]
    waiting: Annotated[int, _COUNT]
    done: Annotated[int, _COUNT]
    failed: Annotated[int, _COUNT]
    canceled: Annotated[int, _COUNT]
    oldest_s: Annotated[float | None, _COUNT] = None


QUEUE_COUNTS: Final = tuple(each.name for each in fields(QueueInfo) if each.name not in ("name", "oldest_s"))

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
