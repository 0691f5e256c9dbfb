"""Errors as application/problem+json (RFC 9457): the table of kinds, and what some of the library's look like.

Which exception becomes which of them, where nobody catches it, is in `handlers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from math import ceil
from typing import Any, Final

from api.responses import Json
from taskpool.errors import (
    InvalidPayload,
    InvalidTask,
    NotAllowed,
    TaskConflict,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
)

MEDIA_TYPE: Final = b"application/problem+json"
TYPE_PREFIX: Final = "urn:taskpool:problem:"
MAX_SHOWN: Final = 100
"""An answer names this many faults at most."""

KINDS: Final[Mapping[str, tuple[int, str]]] = {
    "invalid-http": (400, "The request is not HTTP"),
    "invalid-json": (400, "The body is not strict JSON"),
    "invalid-query": (400, "The query parameters are wrong"),
    "invalid-event-id": (400, "That is not the id of an event"),
    "invalid-header": (400, "A header is wrong"),
    "unauthorized": (401, "It isn't known who asks"),
    "forbidden": (403, "The caller may not do that"),
    "cap-reached": (403, "Cap reached"),
    "not-found": (404, "There is nothing at this path"),
    "task-not-found": (404, "No such task"),
    "key-not-found": (404, "No such API key"),
    "webhook-not-found": (404, "No such webhook"),
    "delivery-not-found": (404, "No such delivery"),
    "method-not-allowed": (405, "This path doesn't take that method"),
    "body-timeout": (408, "The body didn't arrive in time"),
    "headers-timeout": (408, "The headers didn't arrive in time"),
    "task-conflict": (409, "The task's status doesn't allow that"),
    "unique-conflict": (409, "Another task holds the unique key"),
    "webhook-conflict": (409, "The webhook doesn't allow that now"),
    "delivery-busy": (409, "The delivery is being sent at this moment"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body must be JSON"),
    "misdirected": (421, "That name isn't served here"),
    "invalid-body": (422, "The body isn't what this path takes"),
    "invalid-task": (422, "The submission can't be a task"),
    "invalid-key": (422, "That can't be an API key"),
    "invalid-webhook": (422, "That can't be a webhook"),
    "invalid-payload": (422, "The payload doesn't fit the task type"),
    "unknown-type": (422, "Unknown task type"),
    "unknown-dependency": (422, "A dependency doesn't exist"),
    "idempotency-key-reused": (422, "The idempotency key stands for another request"),
    "rate-limited": (429, "Too many requests"),
    "queue-full": (429, "The queue has no room"),
    "headers-too-large": (431, "The headers are too large"),
    "internal-error": (500, "Something broke on our side"),
    "too-many-streams": (503, "This process serves no more streams"),
    "too-many-connections": (503, "There are too many connections"),
    "redis-unavailable": (503, "Redis can't be reached"),
}
"""The kinds of problems: the last part of `type`, the status and the title. `docs/api.md` has the same table."""

_INVALID: Final = {
    UnknownType: "unknown-type",
    InvalidPayload: "invalid-payload",
    UnknownDependency: "unknown-dependency",
}

SHOWN: Final = 500
"""Characters of a text that an answer shows: names that callers choose stand in it, and may be as long as a body."""


def shortened(text: str) -> str:
    """The text, without its middle if it is long."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[1 - SHOWN // 2 :]}"


class Problem(Exception):
    """Raised where a request can't be served; it is rendered as it is.

    `errors` has one entry a fault; the first MAX_SHOWN are shown. `unread_body`: part of the body wasn't read, so the
    connection ends with the answer. `extra` are further members of the document.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Iterable[dict[str, str]] = (),
        headers: Iterable[tuple[bytes, bytes]] = (),
        unread_body: bool = False,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.extra = kind, detail, extra
        self.errors = list(islice(errors, MAX_SHOWN))
        self.headers, self.unread_body = list(headers), unread_body

    def response(self) -> Json:
        """The answer that says it."""
        status, title = KINDS[self.kind]
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.kind,
            "title": title,
            "status": status,
            "detail": shortened(self.detail),
        }
        if self.errors:
            document["errors"] = [{name: shortened(text) for name, text in error.items()} for error in self.errors]
        document.update(self.extra)
        return Json(document, status=status, headers=self.headers, media_type=MEDIA_TYPE, unread_body=self.unread_body)


def invalid_task(error: InvalidTask) -> Problem:
    """The problem that a refused submission is."""
    kind = next((kind for cls, kind in _INVALID.items() if isinstance(error, cls)), "invalid-task")
    errors = ({"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors)
    problem = Problem(kind, str(error), errors=errors)
    if isinstance(error, UnknownType):
        problem.extra["near"] = error.near
    elif isinstance(error, UnknownDependency):
        problem.extra["task_id"] = error.id
    return problem


def not_allowed(error: NotAllowed) -> Problem:
    """The problem that a type or a queue is which the caller may not use."""
    errors = [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors]
    return Problem("forbidden", str(error), errors=errors)


def conflict(error: TaskConflict, **extra: Any) -> Problem:
    """The problem that a task's status is; `extra` may say what would be possible."""
    return Problem("task-conflict", str(error), task_status=error.status, **extra)


def unique_conflict(error: UniqueConflict, pointer: str, prefix: str = "", *, may_read: bool = True) -> Problem:
    """The problem of a unique key that another task holds; `pointer` is that of the submission in the request, and
    `prefix` that of the API's paths. A caller that may not read tasks isn't told which one it is."""
    if not may_read:
        detail = f"another task has the unique key {error.key!r}"
        return Problem("unique-conflict", detail, errors=[{"pointer": f"{pointer}/unique_key", "detail": detail}])
    holder = f"{prefix}/tasks/{error.id}"
    errors = [{"pointer": f"{pointer}/unique_key", "detail": str(error)}]
    headers = [(b"link", f'<{holder}>; rel="related"'.encode())]
    return Problem(
        "unique-conflict",
        str(error),
        errors=errors,
        headers=headers,
        task=holder,
        task_id=error.id,
        task_status=error.status,
    )


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The header that says when to try again: in whole seconds, one at least."""
    return b"retry-after", b"%d" % max(1, ceil(seconds))
