"""Every error of this library, each declared once: its class, its HTTP problem, its exit status.

The first sentence of a class's docstring is what the error means; docs/api.md has the same text. The HTTP API renders a
problem from the class (`api.http.problems`), the client makes the exception from the problem (`client.request`), and
the command line exits with the class's status (`cli.output`). To add an error that all three know, add a class here and
its row in docs/api.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from taskpool.types import Exit, TaskStatus
from taskpool.validation import shortened

if TYPE_CHECKING:
    from taskpool.types import TaskRecord

PROBLEM_PREFIX: Final = "urn:taskpool:problem:"
"""The type of a problem begins with this and ends with the name of its kind."""

NOTHING: Final[Mapping[str, Any]] = {}
_RETRY: Final = {"Retry-After": True}
_OF_CLASSES: Final[list[ProblemKind]] = []


class ProblemKind(NamedTuple):
    """How the HTTP API answers one kind of error (RFC 9457)."""

    name: str  # the last part of the problem's type
    status: int
    title: str
    meaning: str = ""  # given only if the error has no class of its own
    error: type[TaskpoolError] | None = None  # what the client raises
    headers: Mapping[str, bool] = NOTHING  # those of the answer, and whether it always has them
    members: Mapping[str, str] = NOTHING  # those besides RFC 9457's, each with the attribute of the error that it shows


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault of one field: `pointer` is a JSON Pointer (RFC 6901) into the submitted document."""

    pointer: str
    detail: str


class TaskpoolError(Exception):
    """Root of every error this library raises. What a class annotates are the attributes of its instances."""

    problem: ClassVar[ProblemKind | None] = None  # None for an error that the HTTP API never answers
    exit_status: ClassVar[Exit] = Exit.FAILED

    def __init_subclass__(
        cls,
        *,
        problem: tuple[str, int, str] | None = None,
        headers: Mapping[str, bool] = NOTHING,
        members: Mapping[str, str] = NOTHING,
        exit_status: Exit | None = None,
    ) -> None:
        if problem is not None:
            meaning = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
            cls.problem = ProblemKind(*problem, meaning, cls, headers, members)
            _OF_CLASSES.append(cls.problem)
        if exit_status is not None:
            cls.exit_status = exit_status


class FieldErrors(TaskpoolError):
    """Base of errors about fields. `errors` has one entry for each fault; the text is the first one's by default."""

    errors: Sequence[FieldError]

    def __init__(self, errors: Sequence[FieldError], message: str = "") -> None:
        super().__init__(message or ": ".join([each for each in (errors[0].pointer, errors[0].detail) if each]))
        self.errors = tuple(errors)


class InvalidTask(FieldErrors, problem=("invalid-task", 422, "Invalid task"), exit_status=Exit.USAGE):
    """A field of the submitted task, or a parameter such as `grace_s` or `limit`, is invalid. Nothing was done."""

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(errors, message)


class UnknownType(InvalidTask, problem=("unknown-type", 422, "Unknown task type"), members={"near": "near"}):
    """No worker pool serves the task type."""

    type: str
    near: Sequence[str]  # similar known types, best first
    last_served_ms: int | None

    def __init__(
        self, type: str, near: Sequence[str] = (), *, last_served_ms: int | None = None, is_builtin: bool = False
    ) -> None:
        self.type, self.near, self.last_served_ms = type, tuple(near), last_served_ms
        if last_served_ms is not None:
            message = f"the task type {type!r} is known, but no live worker serves it"
        elif is_builtin:
            message = f"the task type {type!r} is built in, but no worker pool serves it: name it in TASKPOOL_BUILTINS"
        elif near:
            message = f"unknown task type {type!r}; did you mean {', '.join(map(repr, near))}?"
        else:
            message = f"unknown task type {shortened(type)!r}; no worker pool has registered it"
        super().__init__(message, [FieldError("/type", message)])


class InvalidPayload(InvalidTask, problem=("invalid-payload", 422, "Invalid payload")):
    """The payload doesn't fit the JSON Schema of the task type."""


class UnknownDependency(
    InvalidTask, problem=("unknown-dependency", 422, "Unknown dependency"), members={"task_id": "id"}
):
    """`depends_on` names a task or a workflow that doesn't exist."""

    id: str  # of that task or workflow

    def __init__(self, ref: str) -> None:
        self.id, colon, _ = ref.partition(":")
        message = f"depends_on names {'workflow' if colon else 'task'} {self.id!r}, which doesn't exist"
        super().__init__(message, [FieldError("/depends_on", message)])


class InvalidWebhook(FieldErrors, problem=("invalid-webhook", 422, "Invalid webhook")):
    """A field of the webhook is invalid. Nothing was stored."""


class InvalidSchedule(FieldErrors, problem=("invalid-schedule", 422, "Invalid schedule"), exit_status=Exit.USAGE):
    """A field of the schedule is invalid. Nothing was stored."""


class ScheduleNotFound(
    TaskpoolError, problem=("schedule-not-found", 404, "Schedule not found"), exit_status=Exit.NOT_FOUND
):
    """No schedule has this name: it never existed, or was removed."""

    def __init__(self, name: object, message: str = "") -> None:
        super().__init__(message or f"no schedule has the name {shortened(str(name))!r}")


class UnreadableSchedule(ScheduleNotFound):
    """The schedule was stored by a later release, or another program wrote its key in Redis."""

    def __init__(self, name: object) -> None:
        super().__init__(name, f"the schedule {name!r} can't be read: a later release, or another program, wrote it")


class ScheduleConflict(
    TaskpoolError, problem=("schedule-conflict", 409, "Schedule conflict"), exit_status=Exit.CONFLICT
):
    """The schedule doesn't allow this: it is declared in code, or it was changed by others meanwhile."""


class PoolNotFound(TaskpoolError, problem=("pool-not-found", 404, "Worker pool not found"), exit_status=Exit.NOT_FOUND):
    """No live worker pool has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no live worker pool has the name {shortened(name)!r}")


class PoolConflict(TaskpoolError, problem=("pool-conflict", 409, "Worker pool conflict"), exit_status=Exit.CONFLICT):
    """The worker pool is draining, so it can't be resumed."""


class FailureNotFound(
    TaskpoolError, problem=("failure-not-found", 404, "Failure group not found"), exit_status=Exit.NOT_FOUND
):
    """No group of failures has this fingerprint, or it has no redrive. The 1,000 groups that failed last are kept."""

    def __init__(self, fingerprint: object, message: str = "") -> None:
        super().__init__(message or f"no group of failures has the fingerprint {shortened(str(fingerprint))!r}")


class RedriveConflict(TaskpoolError, problem=("redrive-conflict", 409, "Redrive conflict"), exit_status=Exit.CONFLICT):
    """The failures are being redriven already; or, to be stopped, they are not."""


class InvalidOperation(FieldErrors, problem=("invalid-operation", 422, "Invalid operation"), exit_status=Exit.USAGE):
    """A field of the operation on many tasks is invalid. Nothing was done."""


class OperationNotFound(
    TaskpoolError, problem=("operation-not-found", 404, "Operation not found"), exit_status=Exit.NOT_FOUND
):
    """No operation has this id: it never existed, or it ended more than a week ago."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no operation has the id {id!r}; operations are kept for a week after their end")


class OperationConflict(
    TaskpoolError, problem=("operation-conflict", 409, "Operation conflict"), exit_status=Exit.CONFLICT
):
    """The operation doesn't allow this now: it has ended already, or it can't be undone."""


class WebhookNotFound(TaskpoolError, problem=("webhook-not-found", 404, "Webhook not found")):
    """No webhook has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no webhook has the id {id!r}")


class WebhookConflict(TaskpoolError, problem=("webhook-conflict", 409, "Webhook conflict")):
    """The webhook doesn't allow this now: it was changed meanwhile, is disabled, is built in, or has a full queue."""


class DeliveryNotFound(TaskpoolError, problem=("delivery-not-found", 404, "Delivery not found")):
    """No webhook delivery has this id: it never existed, or it has expired."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no delivery has the id {id!r}; deliveries are kept for a week after their last attempt")


class DeliveryBusy(TaskpoolError, problem=("delivery-busy", 409, "Delivery in progress")):
    """The webhook delivery is being sent at this moment, so it can't be sent again yet."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the delivery {id} is being sent at this moment; try again when that attempt is over")


class NotAllowed(
    FieldErrors,
    problem=("forbidden", 403, "Permission denied"),
    headers={"WWW-Authenticate": False},
    exit_status=Exit.USAGE,
):
    """The caller may not do this: its scopes, types, queues or project don't allow it. Nothing was stored."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(errors, errors[0].detail)


class TaskNotFound(TaskpoolError, problem=("task-not-found", 404, "Task not found"), exit_status=Exit.NOT_FOUND):
    """No task has this id: it never existed, was removed, or has expired."""

    id: Any

    def __init__(self, id: Any, message: str = "") -> None:
        if not isinstance(id, str):
            message = f"a task's id is a text, not {type(id).__name__}; pass the `id` of its record"
        super().__init__(
            message or f"no task has the id {id!r}; it was removed, its retention ended, or it never existed"
        )
        self.id = id


class UnreadableTask(TaskNotFound):
    """The key of the task in Redis holds something else than a task's record: another program wrote it."""

    def __init__(self, id: str) -> None:
        super().__init__(
            id, f"the task {id!r} can't be read: its key in Redis holds something else than a task's record"
        )


class TaskConflict(
    TaskpoolError,
    problem=("task-conflict", 409, "Task status conflict"),
    members={"task_status": "status"},
    exit_status=Exit.CONFLICT,
):
    """The status of the task doesn't allow this. Nothing changed."""

    id: str
    status: str

    def __init__(self, id: str, status: str, message: str) -> None:
        super().__init__(message)
        self.id, self.status = id, status


class WorkflowNotFound(
    TaskpoolError, problem=("workflow-not-found", 404, "Workflow not found"), exit_status=Exit.NOT_FOUND
):
    """No workflow has this id: it never existed, was removed, or has expired."""

    id: str

    def __init__(self, id: str) -> None:
        super().__init__(f"no workflow has the id {id!r}; it was removed, its retention ended, or it never existed")
        self.id = id


class WorkflowConflict(
    TaskpoolError,
    problem=("workflow-conflict", 409, "Workflow status conflict"),
    members={"workflow_status": "status"},
    exit_status=Exit.CONFLICT,
):
    """The status of the workflow doesn't allow this. Nothing changed."""

    id: str
    status: str

    def __init__(self, id: str, status: str, message: str) -> None:
        super().__init__(message)
        self.id, self.status = id, status


class UniqueConflict(
    TaskConflict,
    problem=("unique-conflict", 409, "Unique key conflict"),
    headers={"Link": False},  # not for a caller who may not read that task
    members={"task_id": "id", "task_status": "status"},
):
    """Another task holds the unique key. Nothing was stored.

    `id` and `status` are that task's. `index` is the place of the refused task among those submitted together."""

    key: str
    index: int

    def __init__(self, key: str, id: str, status: str, index: int = 0) -> None:
        super().__init__(id, status, f"task {id} ({status}) has the unique key {key!r}")
        self.key, self.index = key, index


class KeyReused(TaskpoolError, problem=("idempotency-key-reused", 422, "Idempotency key reused")):
    """The idempotency key was used for another submission before. Nothing was stored."""

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another submission; use a new key for each submission")


class InvalidKey(FieldErrors, problem=("invalid-key", 422, "Invalid API key settings"), exit_status=Exit.USAGE):
    """A setting of the API key is invalid."""


class KeyNotFound(TaskpoolError, problem=("key-not-found", 404, "API key not found"), exit_status=Exit.NOT_FOUND):
    """No API key has this id: it was revoked, or it never existed."""

    id: str

    def __init__(self, id: str) -> None:
        super().__init__(f"no API key has the id {id!r}; it was revoked, or it never existed")
        self.id = id


class QueueFull(
    TaskpoolError, problem=("queue-full", 429, "Queue full"), headers=_RETRY, members={"queue": "queue", "held": "held"}
):
    """The queue holds as many tasks as it may (`max_queue_depth`). Nothing was stored."""

    queue: str
    held: int  # how many tasks it holds
    retry_after_s: float  # there may be room then, at the queue's pace

    def __init__(self, queue: str, held: int, most: int, retry_after_s: float) -> None:
        room = f"it holds {held:,} tasks, and may hold {most:,}; nothing was stored"
        super().__init__(f"the queue {queue!r} has no room: {room}")
        self.queue, self.held, self.retry_after_s = queue, held, retry_after_s


class CapReached(
    TaskpoolError, problem=("cap-reached", 403, "Cap reached"), members={"cap": "most", "setting": "setting"}
):
    """The project uses as many queues, tags, unique keys, idempotency keys or webhooks as it may.
    Nothing was stored."""

    setting: str  # the environment variable that sets the cap
    most: int  # the cap

    def __init__(self, kind: str, project: str | None, most: int) -> None:
        self.setting, self.most = f"TASKPOOL_MAX_{kind.upper()}", most
        users = f"the project {project!r} uses" if project else "callers without a project use"
        advice = "wait until some expire" if kind == "idempotency_keys" else "use one of those, remove some"
        super().__init__(
            f"{users} {most:,} {kind.replace('_', ' ')}, as many as {self.setting} allows: {advice}, "
            "or raise the setting; nothing was stored"
        )


class WaitTimeout(TaskpoolError, exit_status=Exit.TIMED_OUT):
    """The task didn't end in time. `record` is its latest state."""

    record: TaskRecord

    def __init__(self, record: TaskRecord, timeout_s: float) -> None:
        asked = ""
        if record.question is not None:
            asked = f": it asks {record.question.name!r}: {record.question.text}"
        elif record.answer_by is not None and record.confirm is not None:
            asked = f": it waits for a confirmation: {record.confirm.text}"
        super().__init__(f"task {record.id} is still {record.status.value} after {timeout_s:g} s{asked}")
        self.record = record


class WorkflowTimeout(TaskpoolError, exit_status=Exit.TIMED_OUT):
    """The workflow didn't end in time. `record` is its latest state."""

    record: Any  # a WorkflowRecord

    def __init__(self, record: Any, timeout_s: float) -> None:
        names = [node.name for node in record.nodes if node.status is TaskStatus.WAITING_CONFIRMATION]
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        asked = f": it waits for a person at {', '.join(names[:3])}{more}" if names else ""
        super().__init__(f"workflow {record.id} is still {record.status.value} after {timeout_s:g} s{asked}")
        self.record = record


class AttemptLost(TaskpoolError):
    """The attempt no longer holds its lease. Nothing was written."""


class ConfigurationError(TaskpoolError, exit_status=Exit.USAGE):
    """A setting or a task module is wrong. It is raised before anything starts; the text says what to change."""


class DuplicateType(ConfigurationError):
    """Two places register the same task type. The text names both."""


class NoEventLoop(TaskpoolError, RuntimeError):
    """A method of `AsyncTaskPool` or `AsyncClient` was called without a running asyncio event loop."""


class RedisUnavailable(
    TaskpoolError, problem=("redis-unavailable", 503, "Redis unavailable"), headers=_RETRY, exit_status=Exit.NO_REDIS
):
    """Redis can't be reached, or can't serve the request at the moment. It is unknown whether a write took place."""

    public_text = "Redis doesn't answer"  # for HTTP clients: the exception's text may name hosts
    retry_after_s: float  # how long to wait before trying again

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RedisFull(RedisUnavailable):
    """Redis refused a write because its memory is full (`maxmemory`). The write changed nothing."""

    public_text = "Redis has no memory left; nothing was changed"


class RedisRefused(RedisUnavailable):
    """Redis answered with an error: it can't serve, or takes no writes, at the moment."""

    public_text = "Redis can't serve this at the moment"

    def __init__(self, message: str, *, is_known: bool = True) -> None:
        super().__init__(message)
        self.is_known = is_known  # False for a reply that taskpool doesn't know
        self.at = 0  # the place of the refused call among those that were sent together


class ApiUnavailable(TaskpoolError, exit_status=Exit.NO_REDIS):
    """The HTTP API can't be reached, or its answer was lost.

    `was_sent`: the request may have reached the API, so it is unknown whether it was carried out."""

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class ApiError(TaskpoolError):
    """The HTTP API answered with an error that has no class of its own.

    `kind` is the last part of the problem's type, such as ``body-too-large``. It is empty when the answer was not a
    problem document, for example if a proxy sent it. `errors` as for `InvalidTask`. `retry_after_s` is from
    `Retry-After`, if given."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{title} ({status}): {detail}")
        self.status, self.kind, self.title, self.detail = status, kind, title, detail
        self.errors, self.retry_after_s = tuple(errors), retry_after_s


class Unauthorized(
    ApiError,
    problem=("unauthorized", 401, "Authentication required"),
    headers={"WWW-Authenticate": True},
    exit_status=Exit.USAGE,
):
    """An API key is needed, or the one given isn't valid."""


class NonRetryable(Exception):
    """Raised by a task that would fail in the same way again: the task fails at once, whatever attempts are left."""


class ParentNotDone(TaskpoolError, NonRetryable):
    """A task that a task depends on has no result, because it isn't done. The attempt fails and isn't repeated, unless
    the task catches this."""

    def __init__(self, parent: str, why: str) -> None:
        super().__init__(f"the result of task {parent} can't be read: {why}")
        self.parent = parent  # the id of that task


class ParentResultGone(ParentNotDone):
    """The result of a task that a task depends on is gone: its record expired, was removed, or can't be read."""


_OF_HTTP: Final = (
    ProblemKind("invalid-http", 400, "Malformed HTTP request", "This isn't a request of HTTP/1.1."),
    ProblemKind("invalid-json", 400, "Invalid JSON", "The body isn't a JSON document of the expected kind."),
    ProblemKind("invalid-query", 400, "Invalid query parameters", "A parameter is unknown or invalid.", InvalidTask),
    ProblemKind("invalid-event-id", 400, "Invalid event id", "`Last-Event-ID` isn't the id of an event."),
    ProblemKind("invalid-header", 400, "Invalid header", "A header has an invalid value, or occurs twice."),
    ProblemKind("not-found", 404, "Path not found", "The API has no such path."),
    ProblemKind("method-not-allowed", 405, "Method not allowed", "The path doesn't support this method."),
    ProblemKind("body-timeout", 408, "Request body timeout", "The body didn't arrive in time."),
    ProblemKind("headers-timeout", 408, "Request headers timeout", "The headers didn't arrive in time."),
    ProblemKind("body-too-large", 413, "Request body too large", "The body is larger than the limit."),
    ProblemKind(
        "unsupported-media-type",
        415,
        "Unsupported media type",
        "The body isn't JSON, or it is compressed.",
        headers={"Accept": False, "Accept-Encoding": False},
    ),
    ProblemKind("misdirected", 421, "Unknown host name", "An API without keys serves only its own machine."),
    ProblemKind("invalid-body", 422, "Invalid request body", "A field of the body is invalid.", InvalidTask),
    ProblemKind("rate-limited", 429, "Rate limit exceeded", "The caller sends too many requests.", headers=_RETRY),
    ProblemKind("headers-too-large", 431, "Request headers too large", "The headers exceed a limit."),
    ProblemKind("internal-error", 500, "Internal server error", "The log of the API has the details."),
    ProblemKind("too-many-streams", 503, "Too many streams", "The process serves no more streams.", headers=_RETRY),
    ProblemKind(
        "too-many-connections", 503, "Too many connections", "The process accepts no more connections.", headers=_RETRY
    ),
)
"""The problems that only the HTTP API has. The client raises `ApiError` for those without an `error`."""


def attributes_of(cls: type[TaskpoolError]) -> Iterator[str]:
    """The attributes that instances of an error have."""
    for base in cls.__mro__:
        if base is not TaskpoolError and issubclass(base, TaskpoolError):
            yield from inspect.get_annotations(base)


PROBLEMS: Final = {kind.name: kind for kind in sorted([*_OF_HTTP, *_OF_CLASSES], key=lambda kind: kind.status)}
"""Every problem by its name, in the order of their statuses."""
