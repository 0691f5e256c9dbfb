"""Requests to the HTTP API as values, the errors that their answers stand for, and when a request is sent again.

An operation of a client is a `Plan`: a generator that yields steps and receives their outcomes. The clients carry the
steps out, one blocking and one awaiting; nothing here does any I/O.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from taskpool.errors import (
    PROBLEM_PREFIX,
    PROBLEMS,
    ApiError,
    ApiUnavailable,
    FieldError,
    QueueFull,
    RedisUnavailable,
    TaskpoolError,
    Unauthorized,
    attributes_of,
)
from taskpool.text import seconds_until
from taskpool.types import TaskSpec

T = TypeVar("T")


class Answer(NamedTuple):
    """An answer of the API. The names of `headers` are in lower case. The answer that opens a stream has no `body`."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Lost(NamedTuple):
    """No answer came. `was_sent`: the API may have carried out the request."""

    why: str
    was_sent: bool


@dataclass(frozen=True, slots=True)
class About:
    """The task or the submissions of a request: exceptions carry them, and the answers don't repeat them."""

    id: str = ""
    specs: Sequence[TaskSpec] = ()
    prefix: str = ""  # what precedes the index of a submission in pointers


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """One request, and the function that turns an answer with a status of 2xx into a value."""

    method: str
    path: str
    read: Callable[[Answer], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    again: bool = True  # sent twice, it has the same effect as sent once, so it is sent again when its answer is lost
    waits_s: float = 0.0  # how long the API waits on purpose, on top of the usual time for an answer
    streams: bool = False  # the answer's body is read with `Read`, as it arrives
    about: About = field(default_factory=About)


class Send(NamedTuple):  # the outcome is an `Answer` or `Lost`
    request: Request[Any]


class Read(NamedTuple):
    """Read from the stream that was opened last; the outcome is bytes, or None when it has ended or was cut."""


class Sleep(NamedTuple):
    seconds: float


class Emit(NamedTuple):  # to the program that iterates
    value: Any


Plan = Generator[Send | Read | Sleep | Emit, Any, T]

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
    near: tuple[str, ...] = ()
    task_id: str = ""
    task_status: str = ""
    workflow_status: str = ""
    queue: str = ""
    held: int = 0
    cap: int = 0
    setting: str = ""


_decode = msgspec.json.Decoder(Problem).decode


def error_of(answer: Answer, about: About) -> TaskpoolError:
    """The exception for an answer with a status of 3xx, 4xx or 5xx: that of a `TaskPool`, if there is one."""
    retry_after_s = seconds_until(answer.headers.get("retry-after", ""))
    try:
        is_problem = answer.headers.get("content-type", "").partition(";")[0].strip() == MEDIA_TYPE
        problem = _decode(answer.body) if is_problem else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = None
    if problem is None:
        return _strange(answer, retry_after_s)
    errors = tuple([_field_error(fault, about.prefix) for fault in problem.errors])
    name = problem.type.removeprefix(PROBLEM_PREFIX) if problem.type.startswith(PROBLEM_PREFIX) else ""
    kind = PROBLEMS.get(name)
    if kind is None or kind.error is None or issubclass(kind.error, ApiError):
        cls = Unauthorized if answer.status == 401 else ApiError
        return cls(answer.status, name, problem.title, problem.detail, errors=errors, retry_after_s=retry_after_s)
    # In a batch, the pointers begin with the index of the task that the problem is about.
    first = errors[0].pointer[1:].partition("/")[0] if errors and about.prefix else ""
    index = int(first[:6]) if first.isdecimal() else 0
    spec = about.specs[index] if index < len(about.specs) else None
    known = {
        "id": about.id,
        "errors": errors,
        "retry_after_s": retry_after_s or 1.0,
        "type": spec.type if spec else "",
        "key": (spec.unique_key if spec else None) or "",
        "index": index,
        **{attribute: getattr(problem, member) for member, attribute in kind.members.items()},
    }
    error = kind.error.__new__(kind.error, _message(problem, errors))  # with the API's text instead of the class's
    for name in attributes_of(kind.error):
        setattr(error, name, known.get(name))
    return error


def strange_answer(answer: Answer, why: str) -> ApiError:
    """The exception for an answer that isn't what this API gives."""
    return ApiError(answer.status, "", "That isn't an answer of the Taskpool API", why)


def _strange(answer: Answer, retry_after_s: float | None) -> ApiError:
    """The exception for an answer of a proxy, or of something else altogether."""
    text = " ".join(answer.body.decode("utf-8", "replace").split())[:LONGEST_DETAIL]
    if 300 <= answer.status < 400:
        text = f"it leads to {answer.headers.get('location', 'nowhere')}; give the client that address"
    error = strange_answer(answer, text or f"its status is {answer.status}")
    error.retry_after_s = retry_after_s
    return error


def _field_error(fault: _Fault, prefix: str) -> FieldError:
    pointer = f"/{fault.parameter}" if fault.parameter else fault.pointer or ""
    return FieldError(pointer.removeprefix(prefix), fault.detail)


def _message(problem: Problem, errors: Sequence[FieldError]) -> str:
    """The API's text. Where it begins with a pointer, that is the same as in `errors`."""
    if not (errors and problem.errors[0].pointer):
        return problem.detail
    return problem.detail.replace(f"{problem.errors[0].pointer}: ", f"{errors[0].pointer}: ", 1)


FIRST_S: Final = 0.2
LONGEST_S: Final = 5.0
NOTHING_DONE: Final = frozenset({"too-many-streams", "too-many-connections"})
"""Problems with the status 503 that the API answers before it does anything."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often a request is sent again, and within how many seconds after it was first sent."""

    retries: float = 6
    most_s: float = 30.0
    clock: Callable[[], float] = time.monotonic  # a time in seconds
    chance: Callable[[], float] = random.random  # a number from 0 to 1

    def pause_s(self, tried: int, asked_s: float | None = None) -> float:
        """How long to wait after `tried` retries: longer each time, with jitter, and at least as the API asked."""
        pause_s = min(FIRST_S * 2.0 ** min(tried, 10), LONGEST_S)
        share = self.chance() / 2
        return max(pause_s * (1 - share), (asked_s or 0.0) * (1 + share / 2))

    def without_end(self) -> Retrying:
        """Without a limit: for an operation that has begun and only reads."""
        return replace(self, retries=math.inf, most_s=math.inf)


def sending(request: Request[T], retrying: Retrying, until: float = math.inf) -> Plan[T]:
    """Send a request, again where that is safe, but not after `until` (a time of the clock of `retrying`). Raises the
    error that the API answered, or ApiUnavailable."""
    end = min(until, retrying.clock() + retrying.most_s)
    for tried in count():
        try:
            return (yield from _attempt(request))
        except TaskpoolError as error:
            if tried >= retrying.retries or not _is_safe(error, request):
                raise
            pause_s = retrying.pause_s(tried, getattr(error, "retry_after_s", None))
            if retrying.clock() + pause_s >= end:
                raise
        yield Sleep(pause_s)
    raise AssertionError("unreachable")


def _attempt(request: Request[T]) -> Plan[T]:
    reply: Answer | Lost = yield Send(request)
    if isinstance(reply, Lost):
        raise ApiUnavailable(reply.why, was_sent=reply.was_sent)
    if not 200 <= reply.status < 300:
        raise error_of(reply, request.about)
    try:
        return request.read(reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise strange_answer(reply, str(error)) from error


def _is_safe(error: TaskpoolError, request: Request[T]) -> bool:
    """Whether the request may be sent again after this error: it wasn't carried out, or twice is the same as once."""
    match error:
        case ApiUnavailable():
            return request.again or not error.was_sent
        case QueueFull():
            return True
        case RedisUnavailable():
            return request.again
        case ApiError():
            nothing_done = error.status == 429 or error.kind in NOTHING_DONE
            return nothing_done or (request.again and error.status in (502, 503, 504))
    return False
