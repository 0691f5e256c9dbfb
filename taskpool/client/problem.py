"""From an answer that tells of an error to the exception: those that a `TaskPool` raises, where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.client.request import About, Answer
from taskpool.errors import (
    ApiError,
    CapReached,
    FieldError,
    InvalidKey,
    InvalidPayload,
    InvalidTask,
    KeyNotFound,
    KeyReused,
    NotAllowed,
    QueueFull,
    RedisUnavailable,
    TaskConflict,
    TaskNotFound,
    TaskpoolError,
    Unauthorized,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
)
from taskpool.types import TaskSpec

TYPE_PREFIX: Final = "urn:taskpool:problem:"
MEDIA_TYPE: Final = "application/problem+json"
LONGEST_DETAIL: Final = 300


class _Fault(msgspec.Struct):
    detail: str
    pointer: str | None = None
    parameter: str | None = None


class Problem(msgspec.Struct):
    """The members of a problem document (RFC 9457) that exceptions are made of."""

    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    errors: Sequence[_Fault] = ()
    near: Sequence[str] = ()
    task_id: str = ""
    task_status: str = ""
    queue: str = ""
    held: int = 0
    cap: int = 0
    setting: str = ""

    @property
    def kind(self) -> str:
        """Which of the API's problems it is; empty when it is none of them."""
        return self.type.removeprefix(TYPE_PREFIX) if self.type.startswith(TYPE_PREFIX) else ""


_decode = msgspec.json.Decoder(Problem).decode


class _Told(NamedTuple):
    """All that is known of an error."""

    problem: Problem
    about: About
    errors: tuple[FieldError, ...]
    retry_after_s: float | None


def error_of(answer: Answer, about: About) -> TaskpoolError:
    """The exception that an answer with a status of 3xx, 4xx or 5xx stands for."""
    problem = _problem(answer)
    if problem is None:
        return _strange(answer)
    errors = tuple([_field_error(fault, about.prefix) for fault in problem.errors])
    told = _Told(problem, about, errors, retry_after(answer.headers))
    if problem.kind in _KINDS:
        cls, fields_of = _KINDS[problem.kind]
        return _as_told(cls, _message(told), fields_of(told))
    general = Unauthorized if answer.status == 401 else ApiError
    return general(
        answer.status, problem.kind, problem.title, problem.detail, errors=errors, retry_after_s=told.retry_after_s
    )


def strange_answer(answer: Answer, why: str) -> ApiError:
    """The exception for an answer that isn't what this API gives."""
    return ApiError(answer.status, "", "That isn't an answer of the Taskpool API", why)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """In how many seconds to come again; None: it isn't said."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _problem(answer: Answer) -> Problem | None:
    if answer.headers.get("content-type", "").partition(";")[0].strip() != MEDIA_TYPE:
        return None
    try:
        return _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _strange(answer: Answer) -> ApiError:
    """What something between us and the API answers, or something else altogether."""
    text = " ".join(answer.body.decode("utf-8", "replace").split())[:LONGEST_DETAIL]
    if 300 <= answer.status < 400:
        text = f"it leads to {answer.headers.get('location', 'nowhere')}; give the client that address"
    error = strange_answer(answer, text or f"its status is {answer.status}")
    error.retry_after_s = retry_after(answer.headers)
    return error


def _field_error(fault: _Fault, prefix: str) -> FieldError:
    pointer = f"/{fault.parameter}" if fault.parameter else fault.pointer or ""
    return FieldError(pointer.removeprefix(prefix), fault.detail)


def _message(told: _Told) -> str:
    """The API's words, in which a place has the name that it has in `errors`."""
    problem = told.problem
    if not (told.errors and problem.errors and problem.errors[0].pointer):
        return problem.detail
    return problem.detail.replace(f"{problem.errors[0].pointer}: ", f"{told.errors[0].pointer}: ", 1)


Fields = Mapping[str, Any]


def _faults(told: _Told) -> Fields:
    return {"errors": told.errors}


def _unknown_type(told: _Told) -> Fields:
    spec = _spec_at_fault(told)
    type = spec.type if spec else ""
    return {"errors": told.errors, "type": type, "near": tuple(told.problem.near), "last_served_ms": None}


def _unknown_dependency(told: _Told) -> Fields:
    return {"errors": told.errors, "id": told.problem.task_id}


def _not_found(told: _Told) -> Fields:
    return {"id": told.about.id}


def _conflict(told: _Told) -> Fields:
    return {"id": told.about.id, "status": told.problem.task_status}


def _unique_conflict(told: _Told) -> Fields:
    problem, spec = told.problem, _spec_at_fault(told)
    key = (spec.unique_key if spec else None) or ""
    return {"id": problem.task_id, "status": problem.task_status, "key": key, "index": _index(told)}


def _queue_full(told: _Told) -> Fields:
    return {"queue": told.problem.queue, "held": told.problem.held, **_come_again(told)}


def _cap_reached(told: _Told) -> Fields:
    return {"setting": told.problem.setting, "most": told.problem.cap}


def _come_again(told: _Told) -> Fields:
    return {"retry_after_s": told.retry_after_s or 1.0}


def _spec_at_fault(told: _Told) -> TaskSpec | None:
    specs, index = told.about.specs, _index(told)
    return specs[index] if index < len(specs) else None


def _index(told: _Told) -> int:
    """Which of the submitted tasks is meant: 0 of one; of many their pointers begin with it."""
    pointer = told.errors[0].pointer if told.errors and told.about.prefix else ""
    index = pointer[1:].partition("/")[0]
    return int(index[:6]) if index.isdecimal() else 0


_KINDS: Final[Mapping[str, tuple[type[TaskpoolError], Callable[[_Told], Fields]]]] = {
    "invalid-task": (InvalidTask, _faults),
    "invalid-body": (InvalidTask, _faults),
    "invalid-query": (InvalidTask, _faults),
    "invalid-payload": (InvalidPayload, _faults),
    "unknown-type": (UnknownType, _unknown_type),
    "unknown-dependency": (UnknownDependency, _unknown_dependency),
    "forbidden": (NotAllowed, _faults),
    "task-not-found": (TaskNotFound, _not_found),
    "task-conflict": (TaskConflict, _conflict),
    "unique-conflict": (UniqueConflict, _unique_conflict),
    "invalid-key": (InvalidKey, _faults),
    "key-not-found": (KeyNotFound, _not_found),
    "idempotency-key-reused": (KeyReused, lambda told: {}),
    "queue-full": (QueueFull, _queue_full),
    "cap-reached": (CapReached, _cap_reached),
    "redis-unavailable": (RedisUnavailable, _come_again),
}
"""Which exception a kind of problem is, and what it carries. All others are an `ApiError`."""


def _as_told(cls: type[TaskpoolError], message: str, fields: Fields) -> TaskpoolError:
    """An exception with the API's words instead of those that its class would find."""
    error = cls.__new__(cls, message)
    for name, value in fields.items():
        setattr(error, name, value)
    return error
