"""The JSON documents of what is stored: the same for the API, the command line and events.

Names are snake_case, times are RFC 3339 in UTC with milliseconds, durations end in `_s`. A member that has its default
is left out, so null is never shown, with one exception: the result of a task that is done is shown even if it is null.

Most documents are derived from the values in `types`: a field that is declared there is a member here, in the OpenAPI
document and in the values that a client returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from operator import attrgetter
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    Self,
    TypeVar,
    cast,
    get_args,
    get_type_hints,
)

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, UnsetType
from msgspec.structs import replace

from taskpool.access.api_key import ApiKey
from taskpool.access.audit import Audited
from taskpool.operations.flow.schedule_values import PastRun, ScheduleRecord
from taskpool.operations.flow.values import NodeRecord, WorkflowRecord
from taskpool.tasks.log_lines import LogLine
from taskpool.types import (
    Answer,
    Confirm,
    Confirmation,
    Count,
    Event,
    Id,
    PastAttempt,
    Question,
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
from taskpool.types.control import Operation, Preview
from taskpool.types.fleet import (
    AwaitedTask,
    Pause,
    PoolRecord,
    QueueLoad,
    Reason,
    RunningNow,
    Stack,
    StackFrame,
    TypeCount,
    TypeStorage,
    Why,
)
from taskpool.types.insight import (
    Build,
    Durations,
    FailureGroup,
    Finding,
    QueueDepths,
    Redrive,
    Stats,
    StatsDurations,
    StatsSeries,
    WaitingGroup,
    Waits,
)
from taskpool.validation import Declared, declared
from taskpool.webhooks.delivery import Delivery, SendAttempt
from taskpool.webhooks.endpoint import Webhook


@lru_cache(512)
def time_text(moment: datetime) -> str:
    """A time as every document has it."""
    if moment.tzinfo is not UTC:
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:  # its zone takes it out of the years 1 to 9999
            moment = moment.replace(tzinfo=UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def ms_text(ms: float) -> str:
    """A time in ms since 1970 as every document has it."""
    return time_text(utc(ms))


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A JSON object. A member without a default is always present; one that has its default is left out."""


class Shown(Document, frozen=True, kw_only=True, gc=False):
    """A document whose members are derived from a value with `shows`."""

    plan: ClassVar[_Plan]
    moments: ClassVar[Mapping[str, str]]
    """The members for fields of the value that hold a time in ms."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def of(cls, value: Any) -> Self:
        """The document of a value."""
        plan = cls.plan
        shown = list(plan.values(value))
        for at in plan.times:
            if (moment := shown[at]) is not None:
                shown[at] = time_text(moment)
        for at, convert in plan.converted:
            if shown[at] not in (None, ()):
                shown[at] = convert(shown[at])
        for at, compute in plan.computed:
            shown[at] = compute(value)
        return cls(*shown)


class _Plan(NamedTuple):
    """How a value becomes a document. The numbers are places in what `values` gets."""

    values: Callable[[Any], tuple[Any, ...]]
    times: Sequence[int]
    converted: Sequence[tuple[int, Callable[[Any], Any]]]
    computed: Sequence[tuple[int, Callable[[Any], Any]]]


_SHOWN: Final[dict[type, type[Shown]]] = {}
"""The document of each value, for lists in other values."""

D = TypeVar("D", bound=type[Shown])


def shows(
    source: type,
    *,
    always: Collection[str] = (),
    hidden: Collection[str] = (),
    moments: Mapping[str, str] = MappingProxyType({}),
    renamed: Mapping[str, str] = MappingProxyType({}),
    computed: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
) -> Callable[[D], D]:
    """Give a document a member for each field of a value, with the same name, description and default; fields of a task
    record in it are members, too.

    `always`: the fields that are present even if they have their default. `hidden`: those without a member. `moments`:
    the members for fields that hold a time in ms. `renamed`: the members for fields whose names Python reserves.
    `computed`: members with another value than their field. What the class declares itself goes first; other members of
    its own have their defaults.
    """

    def derive(cls: D) -> D:
        own_types = get_type_hints(cls, include_extras=True)
        own = {each.name: (own_types[each.name], each.default) for each in msgspec.structs.fields(cls)}
        members = []
        for path, field in _fields(source):
            if field.name not in hidden:
                name = moments.get(field.name, renamed.get(field.name, field.name))
                is_moment = field.name in moments
                members.append((name, *own.get(name, _member(field, field.name in always, is_moment)), path, field))
        members.sort(key=lambda member: member[2] is not NODEFAULT)  # so that a document takes its members by position
        names = [name for name, *_ in members]
        nested = {at: _SHOWN.get(get_args(field.type)[0]) for at, (*_, field) in enumerate(members) if field.is_list}
        plan = _Plan(
            attrgetter(*[path for *_, path, _ in members]),
            [at for at, (*_, field) in enumerate(members) if field.type is datetime],
            [(at, ms_text) for at, (*_, field) in enumerate(members) if field.name in moments]
            + [(at, partial(_each, item)) for at, item in nested.items() if item]
            + [(at, _SHOWN[field.type].of) for at, (*_, field) in enumerate(members) if field.type in _SHOWN],
            [(names.index(name), compute) for name, compute in computed.items()],
        )
        document = msgspec.defstruct(
            cls.__name__,
            [(name, annotation, default) for name, annotation, default, *_ in members]
            + [(name, *rest) for name, rest in own.items() if name not in names],
            bases=(Shown,),
            namespace={"__doc__": cls.__doc__, "plan": plan, "moments": moments},
            module=cls.__module__,
            frozen=True,
            omit_defaults=True,
            gc=False,
        )
        _SHOWN[source] = cast(type[Shown], document)
        return cast(D, document)

    return derive


def _fields(source: type) -> Iterator[tuple[str, Declared]]:
    """The fields of a value and the paths to them."""
    for field in declared(source):
        if field.type is TaskRecord:
            yield from ((f"{field.name}.{path}", each) for path, each in _fields(TaskRecord))
        else:
            yield field.name, field


def _each(document: type[Shown], values: Sequence[Any]) -> list[Shown]:
    return [document.of(value) for value in values]


def _member(field: Declared, is_always_shown: bool, is_moment: bool) -> tuple[Any, Any]:
    """The annotation and the default of the member that shows a field."""
    kind, about = field.type, field.about
    if kind is datetime or is_moment:
        kind = Time
    elif field.is_list:
        item = get_args(kind)[0]
        kind = Sequence[_SHOWN.get(item, item)]  # type: ignore[misc]
    elif kind in _SHOWN:
        kind = _SHOWN[kind]
    elif about.least is not None and (kind is float or about.least == 0):
        kind = Annotated[kind, Meta(ge=0)]
    default = NODEFAULT if is_always_shown else field.default
    if default is None:
        kind = kind | None
    if about.description or about.examples:
        kind = Annotated[kind, Meta(description=about.description or None, examples=list(about.examples) or None)]
    return kind, default


@shows(PastAttempt)
class AttemptDocument(Shown, frozen=True, kw_only=True):
    """How one attempt ended."""


@shows(Confirm, always=("text", "timeout", "default"))
class ConfirmAskedDocument(Shown, frozen=True, kw_only=True):
    """What a person has to confirm before a task starts; `timeout` in seconds."""

    timeout: Seconds


@shows(Confirmation)
class ConfirmationDocument(Shown, frozen=True, kw_only=True):
    """Who confirmed or rejected a task, when and why."""


@shows(Question)
class QuestionDocument(Shown, frozen=True, kw_only=True):
    """What a task asks in the middle of its work."""


@shows(Answer)
class AnswerDocument(Shown, frozen=True, kw_only=True):
    """The answer to a question that a task has asked."""


def _result(record: TaskRecord) -> Any:
    return record.result if record.result is not None or record.status is TaskStatus.DONE else UNSET


Result = Annotated[Any, Meta(description="What the task returned. Always present if it is done, even if it is null.")]
_ALWAYS: Final = ("attempt", "max_attempts", "seq")


@shows(TaskRecord, always=_ALWAYS, computed={"result": _result})
class TaskDocument(Shown, frozen=True, kw_only=True):
    """A task."""

    result: Result = UNSET


@shows(
    QueuedTask,
    always=_ALWAYS,
    computed={"result": lambda queued: _result(queued.record), "wait_s": lambda queued: round(queued.wait_s, 3)},
)
class QueuedDocument(Shown, frozen=True, kw_only=True):
    """A task in its queue, with its position."""

    result: Result = UNSET
    position: Annotated[int, Meta(ge=1)]


@shows(NodeRecord)
class WorkflowNodeDocument(Shown, frozen=True, kw_only=True):
    """A node of a workflow's graph: one task (`id`, `status`), or a map of `size` tasks."""


@shows(WorkflowRecord, always=("ended", "seq"))
class WorkflowDocument(Shown, frozen=True, kw_only=True):
    """A workflow. Listings leave out its nodes."""


@shows(PastRun)
class PastRunDocument(Shown, frozen=True, kw_only=True):
    """What became of one run of a schedule."""


def _next_runs(record: ScheduleRecord) -> Sequence[str]:
    return [time_text(each) for each in record.next_runs] or ()


@shows(ScheduleRecord, always=("catch_up", "overlap"), computed={"next_runs": _next_runs})
class ScheduleDocument(Shown, frozen=True, kw_only=True):
    """A schedule. Listings leave out its next runs, and show the last ten of its history."""

    every: Annotated[
        float | str | None, Meta(description="It runs at this interval: a number of seconds, or a text like `30s`.")
    ] = None
    jitter: Annotated[
        float | str | None,
        Meta(description="Each run starts later by up to this much: a number of seconds, or a text like `30s`."),
    ] = None
    next_runs: Annotated[Sequence[Time], Meta(description="The nominal times of the next ten runs.")] = ()


@shows(Pause)
class PauseDocument(Shown, frozen=True, kw_only=True):
    """That a queue, a worker pool or everything is paused, since when, by whom and why."""


@shows(Redrive, always=("retried", "succeeded", "failed_again"))
class RedriveDocument(Shown, frozen=True, kw_only=True):
    """The retry of a group of failures in growing steps, which stops by itself when they fail again."""


@shows(FailureGroup, always=("place",))
class FailureDocument(Shown, frozen=True, kw_only=True):
    """Failed attempts with the same fingerprint. Of more than 20 types, builds, queues or workers, the others count
    together under an empty name. Listings leave out the traceback and the redrive."""


@shows(Finding, always=("count",))
class FindingDocument(Shown, frozen=True, kw_only=True):
    """Something that is wrong, or may become so."""


@shows(WaitingGroup)
class WaitingGroupDocument(Shown, frozen=True, kw_only=True):
    """Queued tasks that have the queue, the type, the API key or the project in common. The group without a name has
    those without a key or a project."""


@shows(Waits)
class WaitsDocument(Shown, frozen=True, kw_only=True):
    """Who waits longest for a worker."""


@shows(Operation, always=("matched", "changed", "skipped", "looked_at", "progress"))
class OperationDocument(Shown, frozen=True, kw_only=True):
    """An operation on many tasks."""


class PreviewDocument(Document, frozen=True, kw_only=True):
    """What an operation would do."""

    count: Annotated[Count, Meta(description="How many tasks it would change; an estimate unless `is_exact`.")]
    is_exact: Annotated[bool, Meta(description="All tasks that may match were looked at.")]
    sample: Annotated[Sequence[TaskDocument], Meta(description="The first five of them.")]
    left_out: Annotated[
        Mapping[str, int],
        Meta(description="Tasks that match and would be skipped: `nonretryable`, `not_allowed`, or their status."),
    ]

    @classmethod
    def of_preview(cls, preview: Preview) -> Self:
        """The document of a preview."""
        sample = [TaskDocument.of(record) for record in preview.sample]
        return cls(count=preview.count, is_exact=preview.is_exact, sample=sample, left_out=preview.left_out)


@shows(QueueInfo)
class QueueDocument(Shown, frozen=True, kw_only=True):
    """A queue: how many of its tasks have which status, and how long the next one has been queued."""


@shows(TypeInfo, always=("max_attempts", "is_async", "served_by"), moments={"last_seen_ms": "last_seen_at"})
class TypeDocument(Shown, frozen=True, kw_only=True):
    """A task type; `served_by` names the live worker pools that run it."""


@shows(RunningNow)
class RunningNowDocument(Shown, frozen=True, kw_only=True):
    """A task that a worker process runs."""


@shows(WorkerInfo)
class WorkerDocument(Shown, frozen=True, kw_only=True):
    """A worker process; `current` lists the tasks that it runs now, `task` is one of them."""


@shows(PoolRecord, always=("slots", "queues"))
class PoolDocument(Shown, frozen=True, kw_only=True):
    """A worker pool: the processes of one supervisor on one host."""


@shows(TypeStorage)
class TypeStorageDocument(Shown, frozen=True, kw_only=True):
    """How much of Redis the tasks of a type use."""


@shows(QueueLoad, always=("oldest_s",))
class QueueLoadDocument(Shown, frozen=True, kw_only=True):
    """The load of a queue, for autoscalers."""


@shows(TypeCount)
class TypeCountDocument(Shown, frozen=True, kw_only=True):
    """How many tasks of a type run."""


def _reasons(awaited: AwaitedTask) -> Sequence[Any]:
    return [ReasonDocument.of(reason) for reason in awaited.why] or ()


@shows(AwaitedTask, computed={"why": _reasons})
class AwaitedTaskDocument(Shown, frozen=True, kw_only=True):
    """What a task waits for."""

    why: Annotated[
        Sequence[Mapping[str, Any]], Meta(description="Why that one isn't running: its reasons, in the same form.")
    ] = ()


@shows(Reason, renamed={"running": "with"})
class ReasonDocument(Shown, frozen=True, kw_only=True):
    """One reason for which a task isn't running."""


@shows(Why, always=("reasons",))
class WhyDocument(Shown, frozen=True, kw_only=True):
    """Why a task isn't running. Without reasons it can start at once."""


@shows(StackFrame, always=("is_user",))
class StackFrameDocument(Shown, frozen=True, kw_only=True):
    """One frame of a stack."""


@shows(Stack)
class StackDocument(Shown, frozen=True, kw_only=True):
    """Where a running task was when it was asked; the innermost frame is the last one."""


@shows(Build)
class BuildDocument(Shown, frozen=True, kw_only=True):
    """A version of the task modules, and when a worker pool with it was first seen."""


@shows(StatsDurations)
class StatsDurationsDocument(Shown, frozen=True, kw_only=True):
    """How long attempts had been queued, and how long they ran: left out if none ended."""


@shows(StatsSeries)
class StatsSeriesDocument(Shown, frozen=True, kw_only=True):
    """Counts and durations over time, of one type, queue or build, or of all; each list has a value for each point."""


@shows(QueueDepths)
class QueueDepthsDocument(Shown, frozen=True, kw_only=True):
    """How many tasks were queued in a queue: the highest sample of each point."""


@shows(Stats, always=("is_partial",))
class StatsDocument(Shown, frozen=True, kw_only=True):
    """Counts and durations over time."""


@shows(Durations)
class DurationsDocument(Shown, frozen=True, kw_only=True):
    """How long the attempts of a task type ran in the last seven days."""

    p50_ms: Annotated[float | None, Meta(description="Null if there were none, like the other two.")]
    p95_ms: float | None
    p99_ms: float | None


@shows(LogLine, always=("stream",), hidden=("id",), moments={"at_ms": "at"})
class LogLineDocument(Shown, frozen=True, kw_only=True):
    """A line of a task's log."""


@shows(Event, always=("data",), hidden=("aside",), moments={"at_ms": "at"})
class EventDocument(Shown, frozen=True, kw_only=True):
    """An event: step number `seq` of the task `id`."""

    seq: Annotated[int, Meta(ge=1)]


@shows(
    ApiKey,
    hidden=("hash", "old_hash", "old_until_ms"),
    moments={"created_ms": "created_at", "expires_ms": "expires_at", "rotated_ms": "rotated_at"},
)
class KeyDocument(Shown, frozen=True, kw_only=True):
    """An API key, without anything of its secret."""

    old_secret_until: Annotated[Time | None, Meta(description="until when the secret before is good")] = None
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
    comment: str | None = None
    by: ActorDocument


def key_document(key: ApiKey, used_ms: int | None = None, *, text: str | UnsetType = UNSET) -> KeyDocument:
    """An API key; with its text when it was just made."""
    last_used_at = None if used_ms is None else ms_text(used_ms)
    old_secret_until = ms_text(key.old_until_ms) if key.old_until_ms else None
    return replace(KeyDocument.of(key), last_used_at=last_used_at, old_secret_until=old_secret_until, key=text)


def audit_document(audited: Audited) -> AuditEntryDocument:
    """An entry of the audit."""
    entry = audited.entry
    return AuditEntryDocument(
        at=ms_text(audited.at_ms),
        what=entry.what,
        about=entry.about,
        count=entry.count,
        last=entry.last,
        comment=entry.comment,
        by=ActorDocument(key=entry.key, name=entry.name, project=entry.project, address=entry.address),
    )


@shows(SendAttempt, moments={"at_ms": "at"})
class SendAttemptDocument(Shown, frozen=True, kw_only=True):
    """How one attempt to send went: delivered, failed (it is tried again) or dead."""


@shows(
    Webhook,
    always=("events", "enabled", "created_ms", "updated_ms"),
    hidden=("secret", "previous_secret", "previous_until_ms", "revision"),
    moments={"created_ms": "created_at", "updated_ms": "updated_at"},
)
class WebhookDocument(Shown, frozen=True, kw_only=True):
    """A standing endpoint. A filter that isn't there lets everything through."""

    last_failure: Annotated[
        SendAttemptDocument | None,
        Meta(description="How the last attempt to send went, if it failed within the last five minutes."),
    ] = None
    secret: Annotated[str | UnsetType, Meta(description="Only when it was just made.")] = UNSET


class SecretDocument(Document, frozen=True, kw_only=True):
    """The secrets that sign now."""

    secret: Annotated[str, Meta(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]
    previous_secret: str | None = None
    previous_until: Annotated[Time | None, Meta(description="until when that one signs too")] = None


@shows(Delivery, hidden=("body", "lane"), moments={"created_ms": "created_at", "next_ms": "next_at"})
class DeliveryDocument(Shown, frozen=True, kw_only=True):
    """One message to one endpoint, with the last 20 attempts to send it; the id is its `webhook-id`."""

    task: Id | None = None
    url: Annotated[str | None, Meta(description="Where to; only for callers who may see it.")] = None
    body: Annotated[msgspec.Raw | UnsetType, Meta(description="What is sent; only if one delivery is read.")] = UNSET


def secret_document(webhook: Webhook) -> SecretDocument:
    """The secrets of an endpoint."""
    return SecretDocument(
        secret=webhook.secret,
        previous_secret=webhook.previous_secret,
        previous_until=None if webhook.previous_secret is None else ms_text(webhook.previous_until_ms),
    )


def delivery_document(delivery: Delivery, *, with_url: bool = True, with_body: bool = False) -> DeliveryDocument:
    """A delivery. Without its URL nothing says where it was sent, errors included: they may name the host."""
    changes: dict[str, Any] = {}
    if not with_url:
        attempts = [replace(SendAttemptDocument.of(each), error=None) for each in delivery.attempts]
        changes |= {"url": None, "attempts": attempts}
    if with_body:
        changes["body"] = msgspec.Raw(delivery.body)
    return replace(DeliveryDocument.of(delivery), **changes)
