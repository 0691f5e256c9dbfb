"""Errors as application/problem+json (RFC 9457). `taskpool.errors` declares their kinds."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from math import ceil
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from taskpool.errors import PROBLEM_PREFIX, PROBLEMS, FieldErrors, TaskpoolError, UniqueConflict

from .responses import Json

MEDIA_TYPE: Final = b"application/problem+json"
MAX_SHOWN: Final = 100
"""An answer lists this many faults at most."""
SHOWN: Final = 500
"""Characters of a text that an answer shows. It may contain a name that the caller chose, as long as a body."""


def shortened(text: str) -> str:
    """The text, shortened in the middle if it is long."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[1 - SHOWN // 2 :]}"


class Problem(Exception):
    """Raised to answer a request with an error.

    `errors` has one entry for each fault; the first MAX_SHOWN are shown. `unread_body`: part of the body wasn't read,
    so the connection is closed after the answer. `extra` are further members of the document.
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
        """The problem as an HTTP response."""
        kind = PROBLEMS[self.kind]
        document: dict[str, Any] = {
            "type": PROBLEM_PREFIX + kind.name,
            "title": kind.title,
            "status": kind.status,
            "detail": shortened(self.detail),
        }
        if self.errors:
            document["errors"] = [{name: shortened(text) for name, text in error.items()} for error in self.errors]
        document.update(self.extra)
        return Json(
            document, status=kind.status, headers=self.headers, media_type=MEDIA_TYPE, unread_body=self.unread_body
        )

    async def refuse_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a WebSocket's handshake with the problem, after `websocket.connect` was received."""
        if "websocket.http.response" in scope.get("extensions", {}):
            await self.response()(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": self.detail[:120]})


def problem_of(error: TaskpoolError, **extra: Any) -> Problem:
    """The problem that the class of an error declares, with the error's text, faults and members."""
    assert error.problem is not None
    members = {member: getattr(error, attribute) for member, attribute in error.problem.members.items()}
    faults = error.errors if isinstance(error, FieldErrors) else ()
    errors = ({"pointer": fault.pointer, "detail": fault.detail} for fault in faults)
    headers = [retry_after(error.retry_after_s)] if "Retry-After" in error.problem.headers else []  # type: ignore[attr-defined]
    return Problem(error.problem.name, str(error), errors=errors, headers=headers, **members, **extra)


def unique_conflict(error: UniqueConflict, pointer: str, prefix: str = "", *, may_read: bool = True) -> Problem:
    """The problem of a unique key that another task holds. `pointer` is that of the submission in the request, `prefix`
    that of the API's paths. A caller that may not read tasks doesn't learn which task it is."""
    detail = str(error) if may_read else f"another task has the unique key {error.key!r}"
    errors = [{"pointer": f"{pointer}/unique_key", "detail": detail}]
    if not may_read:
        return Problem("unique-conflict", detail, errors=errors)
    holder = f"{prefix}/tasks/{error.id}"
    problem = problem_of(error, task=holder)
    problem.errors, problem.headers = errors, [(b"link", f'<{holder}>; rel="related"'.encode())]
    return problem


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The header that says when to try again: in whole seconds, at least one."""
    return b"retry-after", b"%d" % max(1, ceil(seconds))
