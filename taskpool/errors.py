"""One tree of exceptions. Each carries data, so that the API and the command line can render it for people.

TaskpoolError
├── InvalidTask                what was submitted can't be a task, or a parameter can't be
│   ├── UnknownType            no worker ever registered the type, or none serves it any more
│   ├── InvalidPayload         the payload doesn't fit the type's schema
│   └── UnknownDependency      depends_on names a task that doesn't exist
├── InvalidWebhook             a field of a webhook can't be
├── NotAllowed                 who submits may not use that type or that queue
├── TaskNotFound               no task has this id
│   └── UnreadableTask         something else than a task is stored under this id
├── WebhookNotFound            no webhook has this id
├── WebhookConflict            that can't be done with it now
├── DeliveryNotFound           no delivery has this id
├── DeliveryBusy               it is being sent at this moment
├── TaskConflict               the task's status doesn't allow that
│   └── UniqueConflict         another task holds the unique key
├── KeyReused                  the idempotency key stands for another submission
├── InvalidKey                 what was asked for can't be an API key
├── KeyNotFound                no API key has this id
├── QueueFull                  the queue has no room for what was submitted
├── CapReached                 the project uses as many queues, tags, keys or webhooks as it may
├── WaitTimeout                the task didn't end in time
├── AttemptLost                the attempt no longer holds the lease
├── ParentResultGone           the result of a task that this one depends on can't be read (in `interrupts`)
├── ConfigurationError         a setting or a task module is wrong
│   └── DuplicateType          two places register one type
├── NoEventLoop                an async method was called where asyncio doesn't run
├── RedisUnavailable           Redis can't be reached, or refused
│   ├── RedisFull              it refused for want of memory: nothing was changed
│   └── RedisRefused           it answered with an error: it can't serve, or takes no writes, at the moment
├── ApiUnavailable             the HTTP API can't be reached, or doesn't answer
└── ApiError                   it answered with an error that is none of the above
    └── Unauthorized           it doesn't know who asks: the API key is missing or wrong
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskpool.types import TaskRecord


class TaskpoolError(Exception):
    """Root of every error this library raises."""


class InvalidTask(TaskpoolError):
    """Raised when a submission can't become a task, or a parameter such as `grace_s` or `limit` can't be; nothing was
    done.

    `errors` holds one entry a fault: the JSON Pointer of the field or the parameter and what is wrong with it.
    """

    def __init__(self, message: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault of one field: `pointer` is a JSON Pointer (RFC 6901) into the submitted document."""

    pointer: str
    detail: str


class UnknownType(InvalidTask):
    """Raised when a type isn't registered; `near` lists similar known types, best first."""

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
    """Raised when the payload doesn't fit the type's JSON Schema."""


class UnknownDependency(InvalidTask):
    """Raised when `depends_on` names a task that doesn't exist; `id` is that task's."""

    def __init__(self, id: str) -> None:
        self.id = id
        message = f"depends_on names task {id!r}, which doesn't exist"
        super().__init__(message, [FieldError("/depends_on", message)])


class InvalidWebhook(TaskpoolError):
    """Raised when a webhook can't be stored as it was asked for; nothing was. `errors` as for `InvalidTask`."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(f"{errors[0].pointer}: {errors[0].detail}")
        self.errors = tuple(errors)


class WebhookNotFound(TaskpoolError):
    """Raised when no webhook has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no webhook has the id {id!r}")


class WebhookConflict(TaskpoolError):
    """Raised when a webhook isn't one with which that can be done now: somebody else changed it meanwhile, it is
    disabled, it is a built-in one, or there are too many."""


class DeliveryNotFound(TaskpoolError):
    """Raised when no delivery has this id: it never existed, or its time ran out."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no delivery has the id {id!r}; they are kept for a week after their last attempt")


class DeliveryBusy(TaskpoolError):
    """Raised when a delivery is being sent at this moment, so it can't be sent again just now."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the delivery {id} is being sent at this moment; ask again when that attempt is over")


class NotAllowed(TaskpoolError):
    """Raised when whoever submits may not use the task's type or queue; nothing was stored. `errors` as above."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(errors[0].detail)
        self.errors = tuple(errors)


class TaskNotFound(TaskpoolError):
    """Raised when no task has this id: it never existed, was removed, or its result's time ran out; or no task can."""

    def __init__(self, id: Any) -> None:
        if isinstance(id, str):
            super().__init__(f"no task has the id {id!r}; it was removed, its retention ended, or it never existed")
        else:
            super().__init__(f"a task's id is a text, not {type(id).__name__}; pass the `id` of its record")
        self.id = id


class UnreadableTask(TaskNotFound):
    """Raised when what Redis holds under a task's id isn't a task's record: another program wrote there."""

    def __init__(self, id: Any) -> None:
        TaskpoolError.__init__(
            self, f"the task {id!r} can't be read: its key in Redis holds something else than a task's record"
        )
        self.id = id


class TaskConflict(TaskpoolError):
    """Raised when a task's status doesn't allow the operation; nothing changed. `status` is what it is now."""

    def __init__(self, id: str, status: str, message: str) -> None:
        super().__init__(message)
        self.id, self.status = id, status


class UniqueConflict(TaskConflict):
    """Raised when a task with the same unique key is there; nothing was stored. `id` and `status` are that task's,
    `index` is the place of the refused one among those submitted together."""

    def __init__(self, key: str, id: str, status: str, index: int = 0) -> None:
        super().__init__(id, status, f"task {id} ({status}) has the unique key {key!r}")
        self.key, self.index = key, index


class KeyReused(TaskpoolError):
    """Raised when an idempotency key was used for another submission before; nothing was stored."""

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another submission; take a new one for each")


class InvalidKey(TaskpoolError):
    """Raised when what was asked for can't be an API key; `errors` as for `InvalidTask`."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(f"{errors[0].pointer}: {errors[0].detail}")
        self.errors = tuple(errors)


class KeyNotFound(TaskpoolError):
    """Raised when no API key has this id: it was revoked, or it never existed."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no API key has the id {id!r}; it was revoked, or it never existed")
        self.id = id


class QueueFull(TaskpoolError):
    """Raised when a queue holds as many tasks as it may (`max_queue_depth`); nothing was stored.

    `queue` and `held` are its name and how many it holds; `retry_after_s` is when there may be room, at its pace.
    """

    def __init__(self, queue: str, held: int, most: int, retry_after_s: float) -> None:
        super().__init__(f"the queue {queue!r} has no room: it holds {held:,} tasks, and may hold {most:,}")
        self.queue, self.held, self.retry_after_s = queue, held, retry_after_s


class CapReached(TaskpoolError):
    """Raised when something new would go beyond a cap of its project; nothing was stored.

    `setting` is the environment variable that sets the cap, `most` is the cap.
    """

    def __init__(self, kind: str, project: str | None, most: int) -> None:
        self.setting, self.most = f"TASKPOOL_MAX_{kind.upper()}", most
        whose = f"the project {project!r} uses" if project else "what belongs to no project uses"
        advice = "wait until some expire" if kind == "idempotency_keys" else "use one of those, remove some"
        super().__init__(
            f"{whose} {most:,} {kind.replace('_', ' ')}, as many as {self.setting} allows: {advice}, "
            "or have the setting raised"
        )


class WaitTimeout(TaskpoolError):
    """Raised when a task hasn't ended within the time given; `record` is its latest state."""

    def __init__(self, record: TaskRecord, timeout_s: float) -> None:
        super().__init__(f"task {record.id} is still {record.status.value} after {timeout_s:g} s")
        self.record = record


class AttemptLost(TaskpoolError):
    """Raised when an attempt that no longer holds its lease tries to write; nothing was written."""


class ConfigurationError(TaskpoolError):
    """Raised before anything starts, when a setting or a task module is wrong; the text says what to change."""


class DuplicateType(ConfigurationError):
    """Raised when two places register the same task type; the text names both."""


class NoEventLoop(TaskpoolError, RuntimeError):
    """Raised when a method of `AsyncTaskPool` or `AsyncClient` is called without a running asyncio event loop."""


class RedisUnavailable(TaskpoolError):
    """Raised when Redis can't be reached or answers that it can't serve; whether a write took place is unknown.

    `retry_after_s` is how long to wait before trying again.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RedisFull(RedisUnavailable):
    """Raised when Redis refuses a write because its memory is full (`maxmemory`): nothing was changed by it."""


class RedisRefused(RedisUnavailable):
    """Raised when Redis answers with an error that says it can't serve, or takes no writes, at the moment.

    `is_known` is False for a reply that taskpool doesn't know. `at` is the place of the refused call among those that
    were sent together.
    """

    def __init__(self, message: str, *, is_known: bool = True) -> None:
        super().__init__(message)
        self.is_known, self.at = is_known, 0


class ApiUnavailable(TaskpoolError):
    """Raised when the HTTP API can't be reached or an answer of it is lost.

    `was_sent`: the request may have reached it, so whether it was carried out is unknown.
    """

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class ApiError(TaskpoolError):
    """Raised when the HTTP API answers with an error that no other class stands for.

    `kind` is the last part of the problem's type, such as ``body-too-large``; empty when the answer was no problem
    document, but perhaps a proxy's. `errors` as for `InvalidTask`. `retry_after_s`: when to come again, if it says so.
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
    """Raised when the HTTP API doesn't know who asks: an API key is needed, or the one given isn't good (any more)."""


class NonRetryable(Exception):
    """Raised by a task that would fail in the same way again: it fails at once, whatever attempts are left."""


class ParentResultGone(TaskpoolError, NonRetryable):
    """Raised in a task that reads the result of a task it depends on, when there is none (any more). `parent` is that
    task's id. The attempt fails and isn't repeated, unless the task catches this."""

    def __init__(self, parent: str, why: str) -> None:
        super().__init__(f"the result of task {parent} can't be read: {why}")
        self.parent = parent
