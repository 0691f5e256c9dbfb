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
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
    prefix: str = ""
    """What precedes the index of a submission in pointers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[T]):
    """One request, and the function that turns an answer with a status of 2xx into a value."""

    method: str
    path: str
    read: Callable[[Answer], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    again: bool = True
    """Sent twice, it has the same effect as sent once: it may be sent again when its answer is lost."""
    waits_s: float = 0.0
    """How long the API waits on purpose, on top of the usual time for an answer."""
    streams: bool = False
    """The answer's body is read with `Read`, as it arrives."""
    about: About = field(default_factory=About)


class Send(NamedTuple):
    """Send a request; the outcome is an `Answer` or `Lost`."""

    request: Request[Any]


class Read(NamedTuple):
    """Read from the stream that was opened last; the outcome is bytes, or None when it has ended or was cut."""


class Sleep(NamedTuple):
    """Wait."""

    seconds: float


class Emit(NamedTuple):
    """Give a value to the program that iterates."""

    value: Any


Step = Send | Read | Sleep | Emit
Plan = Generator[Step, Any, T]


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
    queue: str = ""
    held: int = 0
    cap: int = 0
    setting: str = ""

    @property
    def kind(self) -> str:
        """Which of the API's problems it is; empty when it is none of them."""
        return self.type.removeprefix(PROBLEM_PREFIX) if self.type.startswith(PROBLEM_PREFIX) else ""


_decode = msgspec.json.Decoder(Problem).decode


def error_of(answer: Answer, about: About) -> TaskpoolError:
    """The exception for an answer with a status of 3xx, 4xx or 5xx: that of a `TaskPool`, if there is one."""
    problem = _problem(answer)
    if problem is None:
        return _strange(answer)
    errors = tuple([_field_error(fault, about.prefix) for fault in problem.errors])
    retry_after_s = retry_after(answer.headers)
    kind = PROBLEMS.get(problem.kind)
    if kind is None or kind.error is None or issubclass(kind.error, ApiError):
        cls = Unauthorized if answer.status == 401 else ApiError
        return cls(
            answer.status, problem.kind, problem.title, problem.detail, errors=errors, retry_after_s=retry_after_s
        )
    index = _index(errors, about)
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


def _message(problem: Problem, errors: Sequence[FieldError]) -> str:
    """The API's text. Where it begins with a pointer, that is the same as in `errors`."""
    if not (errors and problem.errors[0].pointer):
        return problem.detail
    return problem.detail.replace(f"{problem.errors[0].pointer}: ", f"{errors[0].pointer}: ", 1)


def _index(errors: Sequence[FieldError], about: About) -> int:
    """The index of the submitted task that the problem is about. In a batch, pointers begin with it."""
    pointer = errors[0].pointer if errors and about.prefix else ""
    index = pointer[1:].partition("/")[0]
    return int(index[:6]) if index.isdecimal() else 0


TIMEOUT_S: Final = 10.0
RETRIES: Final = 6
"""A client's defaults: how long an answer may take, and how often a request is sent again."""

FIRST_S: Final = 0.2
LONGEST_S: Final = 5.0
MOST_S: Final = 30.0

NOTHING_DONE: Final = frozenset({"too-many-streams", "too-many-connections"})
"""Problems with the status 503 that the API answers before it does anything."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often a request is sent again, and within how many seconds after it was first sent.

    `clock` returns a time in seconds, `chance` a random number from 0 to 1.
    """

    retries: float = RETRIES
    most_s: float = MOST_S
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def pause_s(self, tried: int, asked_s: float | None = None) -> float:
        """How long to wait after `tried` retries: twice as long each time, with jitter, and at least as long as the API
        asked for."""
        pause_s = min(FIRST_S * 2.0 ** min(tried, 10), LONGEST_S)
        share = self.chance() / 2
        return max(pause_s * (1 - share), (asked_s or 0.0) * (1 + share / 2))

    def without_end(self) -> Retrying:
        """Without a limit: for an operation that has begun and only reads."""
        return replace(self, retries=math.inf, most_s=math.inf)


def sending(request: Request[T], retrying: Retrying, until: float = math.inf) -> Plan[T]:
    """Send a request, again where that is safe, but not after `until` (a time of the clock of `retrying`).

    Raises:
        TaskpoolError: the error that the API answered, or ApiUnavailable without an answer.
    """
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
