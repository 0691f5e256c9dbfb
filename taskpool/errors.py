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

from taskpool.types import Exit

if TYPE_CHECKING:
    from taskpool.types import TaskRecord

PROBLEM_PREFIX: Final = "urn:taskpool:problem:"
"""The type of a problem begins with this and ends with the name of its kind."""

NOTHING: Final[Mapping[str, Any]] = {}
_RETRY: Final = {"Retry-After": True}


class ProblemKind(NamedTuple):
    """How the HTTP API answers one kind of error (RFC 9457).

    `name` is the last part of the problem's type. `meaning` is given only if the error has no class of its own.
    `error` is the class that the client raises. `headers` are the headers of the answer, and whether it always has
    them. `members` are the members of the document besides those of RFC 9457, each with the attribute of the error that
    it shows.
    """

    name: str
    status: int
    title: str
    meaning: str = ""
    error: type[TaskpoolError] | None = None
    headers: Mapping[str, bool] = NOTHING
    members: Mapping[str, str] = NOTHING


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault of one field: `pointer` is a JSON Pointer (RFC 6901) into the submitted document."""

    pointer: str
    detail: str


class TaskpoolError(Exception):
    """Root of every error this library raises.

    `problem` is None for an error that the HTTP API never answers. What a class annotates are the attributes of its
    instances.
    """

    problem: ClassVar[ProblemKind | None] = None
    exit_status: ClassVar[Exit] = Exit.FAILED


class FieldErrors(TaskpoolError):
    """Base of errors about fields. `errors` has one entry for each fault; the text is the first one's by default."""

    errors: Sequence[FieldError]

    def __init__(self, errors: Sequence[FieldError], message: str = "") -> None:
        super().__init__(message or f"{errors[0].pointer}: {errors[0].detail}")
        self.errors = tuple(errors)


class InvalidTask(FieldErrors):
    """A field of the submitted task, or a parameter such as `grace_s` or `limit`, is invalid. Nothing was done.

    `errors` has one entry for each fault: the JSON Pointer of the field or the parameter, and what is wrong with it.
    """

    problem = ProblemKind("invalid-task", 422, "Invalid task")
    exit_status = Exit.USAGE

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(errors, message)


class UnknownType(InvalidTask):
    """No worker pool serves the task type.

    `near` lists similar known types, best first.
    """

    problem = ProblemKind("unknown-type", 422, "Unknown task type", members={"near": "near"})
    type: str
    near: Sequence[str]
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
            shown = type if len(type) <= 80 else type[:79] + "…"
            message = f"unknown task type {shown!r}; no worker pool has registered it"
        super().__init__(message, [FieldError("/type", message)])


class InvalidPayload(InvalidTask):
    """The payload doesn't fit the JSON Schema of the task type."""

    problem = ProblemKind("invalid-payload", 422, "Invalid payload")


class UnknownDependency(InvalidTask):
    """`depends_on` names a task that doesn't exist.

    `id` is that task's.
    """

    problem = ProblemKind("unknown-dependency", 422, "Unknown dependency", members={"task_id": "id"})
    id: str

    def __init__(self, id: str) -> None:
        self.id = id
        message = f"depends_on names task {id!r}, which doesn't exist"
        super().__init__(message, [FieldError("/depends_on", message)])


class InvalidWebhook(FieldErrors):
    """A field of the webhook is invalid. Nothing was stored."""

    problem = ProblemKind("invalid-webhook", 422, "Invalid webhook")


class WebhookNotFound(TaskpoolError):
    """No webhook has this id."""

    problem = ProblemKind("webhook-not-found", 404, "Webhook not found")

    def __init__(self, id: str) -> None:
        super().__init__(f"no webhook has the id {id!r}")


class WebhookConflict(TaskpoolError):
    """The webhook doesn't allow this now: it was changed meanwhile, is disabled, is built in, or has a full queue."""

    problem = ProblemKind("webhook-conflict", 409, "Webhook conflict")


class DeliveryNotFound(TaskpoolError):
    """No webhook delivery has this id: it never existed, or it has expired."""

    problem = ProblemKind("delivery-not-found", 404, "Delivery not found")

    def __init__(self, id: str) -> None:
        super().__init__(f"no delivery has the id {id!r}; deliveries are kept for a week after their last attempt")


class DeliveryBusy(TaskpoolError):
    """The webhook delivery is being sent at this moment, so it can't be sent again yet."""

    problem = ProblemKind("delivery-busy", 409, "Delivery in progress")

    def __init__(self, id: str) -> None:
        super().__init__(f"the delivery {id} is being sent at this moment; try again when that attempt is over")


class NotAllowed(FieldErrors):
    """The caller may not do this: its scopes, types, queues or project don't allow it. Nothing was stored."""

    problem = ProblemKind("forbidden", 403, "Permission denied", headers={"WWW-Authenticate": False})
    exit_status = Exit.USAGE

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(errors, errors[0].detail)


class TaskNotFound(TaskpoolError):
    """No task has this id: it never existed, was removed, or has expired."""

    problem = ProblemKind("task-not-found", 404, "Task not found")
    exit_status = Exit.NOT_FOUND
    id: Any

    def __init__(self, id: Any) -> None:
        if isinstance(id, str):
            super().__init__(f"no task has the id {id!r}; it was removed, its retention ended, or it never existed")
        else:
            super().__init__(f"a task's id is a text, not {type(id).__name__}; pass the `id` of its record")
        self.id = id


class UnreadableTask(TaskNotFound):
    """The key of the task in Redis holds something else than a task's record: another program wrote it."""

    def __init__(self, id: Any) -> None:
        TaskpoolError.__init__(
            self, f"the task {id!r} can't be read: its key in Redis holds something else than a task's record"
        )
        self.id = id


class TaskConflict(TaskpoolError):
    """The status of the task doesn't allow this. Nothing changed.

    `status` is the task's current status.
    """

    problem = ProblemKind("task-conflict", 409, "Task status conflict", members={"task_status": "status"})
    exit_status = Exit.CONFLICT
    id: str
    status: str

    def __init__(self, id: str, status: str, message: str) -> None:
        super().__init__(message)
        self.id, self.status = id, status


class UniqueConflict(TaskConflict):
    """Another task holds the unique key. Nothing was stored.

    `id` and `status` are that task's. `index` is the place of the refused task among those submitted together.
    """

    problem = ProblemKind(
        "unique-conflict",
        409,
        "Unique key conflict",
        headers={"Link": True},
        members={"task_id": "id", "task_status": "status"},
    )
    key: str
    index: int

    def __init__(self, key: str, id: str, status: str, index: int = 0) -> None:
        super().__init__(id, status, f"task {id} ({status}) has the unique key {key!r}")
        self.key, self.index = key, index


class KeyReused(TaskpoolError):
    """The idempotency key was used for another submission before. Nothing was stored."""

    problem = ProblemKind("idempotency-key-reused", 422, "Idempotency key reused")

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another submission; use a new key for each submission")


class InvalidKey(FieldErrors):
    """A setting of the API key is invalid."""

    problem = ProblemKind("invalid-key", 422, "Invalid API key settings")
    exit_status = Exit.USAGE


class KeyNotFound(TaskpoolError):
    """No API key has this id: it was revoked, or it never existed."""

    problem = ProblemKind("key-not-found", 404, "API key not found")
    exit_status = Exit.NOT_FOUND
    id: str

    def __init__(self, id: str) -> None:
        super().__init__(f"no API key has the id {id!r}; it was revoked, or it never existed")
        self.id = id


class QueueFull(TaskpoolError):
    """The queue holds as many tasks as it may (`max_queue_depth`). Nothing was stored.

    `held` is how many tasks the queue holds. `retry_after_s` is when there may be room, at the queue's pace.
    """

    problem = ProblemKind("queue-full", 429, "Queue full", headers=_RETRY, members={"queue": "queue", "held": "held"})
    queue: str
    held: int
    retry_after_s: float

    def __init__(self, queue: str, held: int, most: int, retry_after_s: float) -> None:
        super().__init__(
            f"the queue {queue!r} has no room: it holds {held:,} tasks, and may hold {most:,}; nothing was stored"
        )
        self.queue, self.held, self.retry_after_s = queue, held, retry_after_s


class CapReached(TaskpoolError):
    """The project uses as many queues, tags, unique keys, idempotency keys or webhooks as it may. Nothing was stored.

    `setting` is the environment variable that sets the cap, `most` is the cap.
    """

    problem = ProblemKind("cap-reached", 403, "Cap reached", members={"cap": "most", "setting": "setting"})
    setting: str
    most: int

    def __init__(self, kind: str, project: str | None, most: int) -> None:
        self.setting, self.most = f"TASKPOOL_MAX_{kind.upper()}", most
        users = f"the project {project!r} uses" if project else "callers without a project use"
        advice = "wait until some expire" if kind == "idempotency_keys" else "use one of those, remove some"
        super().__init__(
            f"{users} {most:,} {kind.replace('_', ' ')}, as many as {self.setting} allows: {advice}, "
            "or raise the setting; nothing was stored"
        )


class WaitTimeout(TaskpoolError):
    """The task didn't end in time. `record` is its latest state."""

    exit_status = Exit.TIMED_OUT
    record: TaskRecord

    def __init__(self, record: TaskRecord, timeout_s: float) -> None:
        super().__init__(f"task {record.id} is still {record.status.value} after {timeout_s:g} s")
        self.record = record


class AttemptLost(TaskpoolError):
    """The attempt no longer holds its lease. Nothing was written."""


class ConfigurationError(TaskpoolError):
    """A setting or a task module is wrong. It is raised before anything starts; the text says what to change."""

    exit_status = Exit.USAGE


class DuplicateType(ConfigurationError):
    """Two places register the same task type. The text names both."""


class NoEventLoop(TaskpoolError, RuntimeError):
    """A method of `AsyncTaskPool` or `AsyncClient` was called without a running asyncio event loop."""


class RedisUnavailable(TaskpoolError):
    """Redis can't be reached, or can't serve the request at the moment. It is unknown whether a write took place.

    `retry_after_s` is how long to wait before trying again. `public_text` is for HTTP clients, because the text of the
    exception may name hosts.
    """

    problem = ProblemKind("redis-unavailable", 503, "Redis unavailable", headers=_RETRY)
    exit_status = Exit.NO_REDIS
    public_text = "Redis doesn't answer"
    retry_after_s: float

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RedisFull(RedisUnavailable):
    """Redis refused a write because its memory is full (`maxmemory`). The write changed nothing."""

    public_text = "Redis has no memory left; nothing was changed"


class RedisRefused(RedisUnavailable):
    """Redis answered with an error: it can't serve, or takes no writes, at the moment.

    `is_known` is False for a reply that taskpool doesn't know. `at` is the place of the refused call among those that
    were sent together.
    """

    public_text = "Redis can't serve this at the moment"

    def __init__(self, message: str, *, is_known: bool = True) -> None:
        super().__init__(message)
        self.is_known, self.at = is_known, 0


class ApiUnavailable(TaskpoolError):
    """The HTTP API can't be reached, or its answer was lost.

    `was_sent`: the request may have reached the API, so it is unknown whether it was carried out.
    """

    exit_status = Exit.NO_REDIS

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class ApiError(TaskpoolError):
    """The HTTP API answered with an error that has no class of its own.

    `kind` is the last part of the problem's type, such as ``body-too-large``. It is empty when the answer was not a
    problem document, for example if a proxy sent it. `errors` as for `InvalidTask`. `retry_after_s` is from
    `Retry-After`, if given.
    """

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


class Unauthorized(ApiError):
    """An API key is needed, or the one given isn't valid."""

    problem = ProblemKind("unauthorized", 401, "Authentication required", headers={"WWW-Authenticate": True})
    exit_status = Exit.USAGE


class NonRetryable(Exception):
    """Raised by a task that would fail in the same way again: the task fails at once, whatever attempts are left."""


class ParentResultGone(TaskpoolError, NonRetryable):
    """A task reads the result of a task it depends on, and that result is gone.

    `parent` is that task's id. The attempt fails and isn't repeated, unless the task catches this.
    """

    def __init__(self, parent: str, why: str) -> None:
        super().__init__(f"the result of task {parent} can't be read: {why}")
        self.parent = parent


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


_OF_CLASSES: Final = [
    cls.problem._replace(meaning=" ".join((cls.__doc__ or "").split("\n\n")[0].split()), error=cls)
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, TaskpoolError) and cls.problem and "problem" in vars(cls)
]
PROBLEMS: Final = {kind.name: kind for kind in sorted([*_OF_HTTP, *_OF_CLASSES], key=lambda kind: kind.status)}
"""Every problem by its name, in the order of their statuses."""
