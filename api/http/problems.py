"""Errors as application/problem+json (RFC 9457): the table of kinds, and what some of the library's look like.

Which exception becomes which of them, where nobody catches it, is in `handlers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from math import ceil
from typing import Any, Final

from taskpool.errors import (
    InvalidPayload,
    InvalidTask,
    NotAllowed,
    TaskConflict,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
)

from .responses import Json

MEDIA_TYPE: Final = b"application/problem+json"
TYPE_PREFIX: Final = "urn:taskpool:problem:"
MAX_SHOWN: Final = 100
"""An answer names this many faults at most."""

KINDS: Final[Mapping[str, tuple[int, str]]] = {
    "invalid-http": (400, "Malformed HTTP request"),
    "invalid-json": (400, "Invalid JSON"),
    "invalid-query": (400, "Invalid query parameters"),
    "invalid-event-id": (400, "Invalid event id"),
    "invalid-header": (400, "Invalid header"),
    "unauthorized": (401, "Authentication required"),
    "forbidden": (403, "Permission denied"),
    "cap-reached": (403, "Cap reached"),
    "not-found": (404, "Path not found"),
    "task-not-found": (404, "Task not found"),
    "key-not-found": (404, "API key not found"),
    "webhook-not-found": (404, "Webhook not found"),
    "delivery-not-found": (404, "Delivery not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "body-timeout": (408, "Request body timeout"),
    "headers-timeout": (408, "Request headers timeout"),
    "task-conflict": (409, "Task status conflict"),
    "unique-conflict": (409, "Unique key conflict"),
    "webhook-conflict": (409, "Webhook conflict"),
    "delivery-busy": (409, "Delivery in progress"),
    "body-too-large": (413, "Request body too large"),
    "unsupported-media-type": (415, "Unsupported media type"),
    "misdirected": (421, "Unknown host name"),
    "invalid-body": (422, "Invalid request body"),
    "invalid-task": (422, "Invalid task"),
    "invalid-key": (422, "Invalid API key settings"),
    "invalid-webhook": (422, "Invalid webhook"),
    "invalid-payload": (422, "Invalid payload"),
    "unknown-type": (422, "Unknown task type"),
    "unknown-dependency": (422, "Unknown dependency"),
    "idempotency-key-reused": (422, "Idempotency key reused"),
    "rate-limited": (429, "Rate limit exceeded"),
    "queue-full": (429, "Queue full"),
    "headers-too-large": (431, "Request headers too large"),
    "internal-error": (500, "Internal server error"),
    "too-many-streams": (503, "Too many streams"),
    "too-many-connections": (503, "Too many connections"),
    "redis-unavailable": (503, "Redis unavailable"),
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
