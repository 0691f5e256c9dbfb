"""What a request asks for beyond its body: query parameters, read strictly, and the headers of a submission."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from types import NoneType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta

from taskpool.access.api_key import KEY_ID
from taskpool.access.audit import What
from taskpool.errors import InvalidTask
from taskpool.operations.flow.values import WorkflowStatus
from taskpool.operations.reading import fields_of
from taskpool.types import TaskStatus, control, refuse_unknown
from taskpool.types.insight import StatsBy, StatsRange, WaitsBy
from taskpool.validation import DURATION, LONGEST_S, Guesses
from taskpool.webhooks.endpoint import DeliveryStatus

from .problems import Problem
from .responses import Headers

MAX_WAIT_S: Final = 50
"""The longest wait for a task's end: less than the 60 s after which nginx and others give up on an answer."""
LONGEST_KEY: Final = 255

_ASKS: Final = frozenset({b"idempotency-key", b"prefer", b"traceparent", b"tracestate"})
_KEY: Final = re.compile(rb"[!-~]{1,%d}" % LONGEST_KEY)
_WAIT: Final = re.compile(rb'(?:^|[,;])[ \t]*wait[ \t]*=[ \t]*"?([0-9]{1,9})"?[ \t]*(?=$|[,;])', re.IGNORECASE)


class Preferences(NamedTuple):
    """What the headers of a submission ask for; most ask for nothing."""

    idempotency_key: str | None = None
    wait_s: int | None = None
    traceparent: str | None = None
    tracestate: str | None = None


def preferences_of(headers: Headers) -> Preferences:
    """What the headers of a submission ask for. A `Prefer` that isn't understood is ignored, as RFC 7240 requires.
    Raises: Problem 400, an invalid Idempotency-Key."""
    given: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in _ASKS:
            continue
        if name == b"idempotency-key" and name in given:
            raise Problem("invalid-header", "Idempotency-Key: given twice")
        # Several lines of a header mean the same as one with commas. So two traceparents are invalid, and ignored.
        given[name] = given[name] + b"," + value if name in given else value
    if not given:
        return NO_PREFERENCES
    key = given.get(b"idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        detail = f"Idempotency-Key: must be 1 to {LONGEST_KEY} letters, digits or marks of ASCII, without blanks"
        raise Problem("invalid-header", detail)
    wait = _WAIT.search(given.get(b"prefer", b""))
    texts = {name: value.decode("latin-1") for name, value in given.items()}
    return Preferences(
        texts.get(b"idempotency-key"),
        None if wait is None else min(int(wait[1]), MAX_WAIT_S),
        texts.get(b"traceparent"),
        texts.get(b"tracestate"),
    )


NO_PREFERENCES: Final = Preferences()


def waited(wait_s: float) -> tuple[bytes, bytes]:
    """The header that says how long the server was ready to wait."""
    return b"preference-applied", f"wait={wait_s:g}".encode()


Cursor = Annotated[str, Meta(min_length=1, max_length=1024, description="the `next_cursor` of the page before")]
# `taskpool` may shorten a page.
Limit = Annotated[int, Meta(ge=1, le=1_000_000, description="the number of entries; a page may be shorter")]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
EventId = Annotated[str, Meta(max_length=128, description="the `id` of the last message; empty: from now on")]


class LogFormat(StrEnum):
    """The form of a log."""

    JSON = "json"
    TEXT = "text"
    EVENTS = "events"


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The path takes no parameters."""


class TaskQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /tasks/{id}: how long to wait for the task's end."""

    wait: Annotated[
        float,
        Meta(
            ge=0,
            le=LONGEST_S,
            description=f"the seconds to wait for its end; more than {MAX_WAIT_S} counts as {MAX_WAIT_S}",
        ),
    ] = 0.0


class Filter(msgspec.Struct, forbid_unknown_fields=True):
    """Which tasks: all given criteria must match. For events, `status` is the status after the event."""

    status: TaskStatus | None = None
    queue: Name | None = None
    type: Name | None = None
    tag: Name | None = None


class ListQuery(control.Filter, frozen=True):
    """GET /tasks: criteria, all of which must match, and the page."""

    cursor: Cursor | None = None
    limit: Limit = 50


class StatsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /stats: the range of time, and what of."""

    range: StatsRange = "1h"
    type: Name | None = None
    queue: Name | None = None
    by: Annotated[StatsBy, Meta(description="a series for each type, queue or build")] | None = None


class WaitsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /waits: what the groups are."""

    by: Annotated[WaitsBy, Meta(description="a group for each queue, task type, API key or project")] = "queue"


class LoadQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /queues/{queue}/load: the target."""

    target: Annotated[
        str,
        Meta(
            pattern=f"^{DURATION.pattern}$",
            description="within which time the workers should have done what waits: seconds, or a text like `5m`, from "
            "a second to a day",
        ),
    ] = "60s"


class TaskEventsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /tasks/{id}/events: the position, for clients that can't send the header."""

    last_event_id: EventId = ""


class EventsQuery(Filter):
    """GET /events: filters and the position."""

    last_event_id: EventId = ""


class LiveQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /live: the tasks to watch."""

    ids: Annotated[
        str,
        Meta(
            pattern=r"^(([A-Za-z0-9_-]{1,200},){0,199}[A-Za-z0-9_-]{1,200})?$", description="ids, separated by commas"
        ),
    ] = ""


class LogQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /tasks/{id}/logs: the page, or whether to follow."""

    follow: Annotated[bool, Meta(description="continue until the task has ended")] = False
    format: Annotated[LogFormat, Meta(description="instead of `Accept`; events only with `follow`")] | None = None
    cursor: Cursor | None = None
    limit: Limit | None = None


class PageQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The page of a listing, such as GET /webhooks/dead."""

    cursor: Cursor | None = None
    limit: Limit = 50


class WorkflowsQuery(PageQuery):
    """GET /workflows: the page, and filters, all of which must match."""

    status: WorkflowStatus | None = None
    name: Name | None = None


class QueueQuery(PageQuery):
    """GET /queues/{name}: the page."""

    limit: Limit = 100


class QueuesQuery(PageQuery):
    """GET /queues: the page."""

    limit: Limit = 500


class FailuresQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /failures: filters, and how many groups."""

    type: Name | None = None
    since: (
        Annotated[
            Name, Meta(description="only groups that failed since this time, or within this duration before now: `1h`")
        ]
        | None
    ) = None
    limit: Limit = 100


class FindingsQuery(msgspec.Struct, forbid_unknown_fields=True):
    """GET /findings: what is checked."""

    installation: Annotated[bool, Meta(description="check the installation, too, as `taskpool doctor` does")] = False


class DeliveriesQuery(PageQuery):
    """GET .../deliveries: the page, and a filter."""

    status: DeliveryStatus | None = None


class AuditQuery(PageQuery):
    """GET /audit: the page, and filters, all of which must match."""

    limit: Limit = 100
    what: What | None = None
    key: Annotated[str, Meta(pattern=f"^{KEY_ID.pattern}$", description="the id of the key that did it")] | None = None
    project: Annotated[Name, Meta(description="the project of the key that did it")] | None = None
    since: Annotated[datetime, Meta(tz=True, description="not before this time")] | None = None
    until: Annotated[datetime, Meta(tz=True, description="before this time")] | None = None
    about: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=200,
                description="the id of what was changed; of a batch, that of its first or last task",
            ),
        ]
        | None
    ) = None


_EXPECTED: Final = re.compile(r"Expected `(int|float|bool)`, got `\w+`")
_NUMBERS: Final = {"int": "a whole number", "float": "a number", "bool": "true or false"}

Q = TypeVar("Q", bound=msgspec.Struct)


def read_query(query_string: bytes, wanted: type[Q]) -> Q:
    """The parameters as a `wanted`. Raises: Problem 400, with an entry for each parameter at fault."""
    if not query_string:
        return wanted()
    try:
        given = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=32)
    except ValueError:
        raise Problem("invalid-query", "too many parameters") from None
    fields = fields_of(wanted)
    values: dict[str, Any] = {}
    faults = []
    guesses = Guesses()
    for name, text in given:
        if name not in fields:
            fault = "unknown parameter" + guesses.hint(name, fields)
        elif name in values:
            fault = "given twice"
        else:
            values[name], fault = _value(text, fields[name].type, guesses)
        if fault:
            faults.append({"parameter": name[:64], "detail": fault})
    if faults:
        raise _invalid(faults)
    return wanted(**values)


def parameters_refused(error: InvalidTask) -> Problem:
    """The problem 400 where `taskpool` refuses a parameter, such as an invalid cursor."""
    return _invalid([{"parameter": at.pointer.removeprefix("/"), "detail": at.detail} for at in error.errors])


def _value(text: str, wanted: Any, guesses: Guesses) -> tuple[Any, str]:
    """The value and no fault, or no value and what is wrong with it."""
    # Without None: text is converted leniently, and "null" would count as None.
    if get_origin(wanted) is Annotated and NoneType in get_args(get_args(wanted)[0]):
        wanted = get_args(wanted)[0]
    forms = tuple([part for part in get_args(wanted) if part is not NoneType])
    plain = Union[forms] if NoneType in get_args(wanted) else wanted  # noqa: UP007
    is_time = datetime in get_args(plain)
    try:
        value = msgspec.convert(text, plain, strict=is_time)  # leniently, a number would count as a time
        refuse_unknown(value)
        return value, ""
    except msgspec.ValidationError as error:
        if is_time:
            return None, "must be a time with its zone: 2026-11-24T03:00:00Z (the + of an offset is %2B in a URL)"
        if str(error).startswith("Invalid enum value"):
            words: Any = get_args(plain)[0] if get_origin(plain) is Annotated else plain
            known = [str(word) for word in (get_args(words) if get_origin(words) is Literal else words)]
            what = "status" if words in (TaskStatus, WorkflowStatus) else "word"
            return None, f"no such {what}{guesses.hint(text, known)}"
        expected = _EXPECTED.fullmatch(str(error))
        return None, f"must be {_NUMBERS[expected[1]]}" if expected else str(error)


def _invalid(faults: list[dict[str, str]]) -> Problem:
    first = faults[0]
    return Problem("invalid-query", f"{first['parameter']}: {first['detail']}", errors=faults)
