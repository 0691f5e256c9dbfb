"""What the fields of request bodies mean and which values they take, in the words of JSON Schema.

The core checks the same, in words of its own; the bounds here are the core's. A new field of `TaskSpec` needs a line
here. A body whose fields say it themselves (`msgspec.Meta`) needs none.

What a handler declares of itself: what it takes and every answer it may give. `document` makes the document of it.

The declaration is a decorator that only leaves a mark, so a request pays nothing for it. What follows from the
shape of an operation (every body may be too large) isn't declared again: see `Operation.kinds`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from taskpool.access.api_key import MOST_A_MINUTE, MOST_NAMES, PROJECT
from taskpool.types import WEBHOOK_EVENTS, TaskSpec, TaskStatus
from taskpool.url_guard import LONGEST_URL, URL
from taskpool.validation import LONGEST_S, QUEUE_NAME, TAG, TYPE_NAME, Declared, declared
from taskpool.webhooks.endpoint import LONGEST_DESCRIPTION
from taskpool.webhooks.endpoint import MOST_NAMES as MOST_FILTERED

from ..auth.caller import DECLARATION, Access
from ..http.query import NoQuery

Object = dict[str, Any]

_FOUR: Final = "[A-Za-z0-9+/]{4}"
SECRET: Final = f"^whsec_(({_FOUR}){{8,20}}([A-Za-z0-9+/]{{3}}=)?|({_FOUR}){{8,21}}([A-Za-z0-9+/]{{2}}==)?)$"
"""24 to 64 bytes in base64."""


def _says(description: str, **limits: Any) -> Object:
    return {"description": description, **limits}


def _names(description: str, pattern: re.Pattern[str]) -> Object:
    items = {"type": "string", "pattern": _pattern(pattern)}
    return _says(description + " If not given, any.", minItems=1, maxItems=MOST_NAMES, items=items)


def _pattern(pattern: re.Pattern[str] | None) -> str:
    return f"^{pattern.pattern}$" if pattern else ""


_A_TARGET: Final = {
    "maxLength": LONGEST_URL,
    "pattern": _pattern(re.compile(re.sub(r"\?P<[a-z]+>", "", URL.pattern))),  # JSON Schema names no groups
    "examples": ["https://hooks.example/in"],
}


def _limits(field: Declared) -> Object:
    """What a field means and takes, besides its type."""
    about = field.about
    limits: Object = {"description": about.description}
    if about.default and about.default != "required":
        limits["description"] += f" Default: {about.default}."
    if field.is_list:
        items = {"enum": [*about.choices]} if about.choices else {"type": "string", "pattern": _pattern(about.pattern)}
        limits |= {"maxItems": about.most, "items": items} | ({"minItems": about.least} if about.least else {})
    elif about.least is not None:
        limits |= {"minimum": about.least, "maximum": about.most}
    elif about.is_url:
        limits |= _A_TARGET
    elif about.pattern is not None:
        limits["pattern"] = _pattern(about.pattern)
    return limits | ({"examples": [*about.examples]} if about.examples else {})


def _rules(fields: Sequence[Declared]) -> Iterator[Object]:
    """The combinations of fields that are refused."""
    given = {each.name: _given(each) for each in fields}
    for each in fields:
        if other := each.about.excludes:
            yield {"properties": given[other] | given[each.name], "required": [other, each.name]}
    for needed in dict.fromkeys(each.about.needs for each in fields if each.about.needs):
        missing = {needed: {"type": "null"}}
        names = [each.name for each in fields if each.about.needs == needed]
        if len(names) == 1:
            yield {"properties": given[names[0]] | missing, "required": names}
        else:
            forms = [{"properties": given[name], "required": [name]} for name in names]
            yield {"properties": missing, "anyOf": forms}


_JSON_TYPES: Final = {str: "string", datetime: "string", float: "number", int: "integer"}


def _given(field: Declared) -> Object:
    """The schema of a field that isn't null and hasn't its default."""
    if field.is_list:
        return {field.name: {"type": "array"}}
    if get_origin(field.type) is Literal and field.default is not None:
        return {field.name: {"enum": [each for each in get_args(field.type) if each != field.default]}}
    return {field.name: {"type": _JSON_TYPES.get(field.type, "string")}}


OF_A_KEY: Final[Mapping[str, Object]] = {
    "name": _says("What people call it.", minLength=1, maxLength=64, pattern=r"^\S(.*\S)?$", examples=["a service"]),
    "scopes": _says("What its holder may do.", minItems=1),
    "project": _says("The only one whose tasks it sees; if not given, all.", pattern=_pattern(PROJECT)),
    "types": _names("It starts and stops tasks of these types alone.", TYPE_NAME),
    "queues": _names("It starts and stops tasks in these queues alone.", QUEUE_NAME),
    "expires_in_s": _says("When it ends; if not given, never.", minimum=1, maximum=LONGEST_S),
    "rate_limit": _says(
        "How many requests a minute it may make, 0 for any number; if not given, what the server allows each key.",
        minimum=0,
        maximum=MOST_A_MINUTE,
    ),
}


def _filter(description: str, **items: Any) -> Object:
    return _says(
        description + " If not given, or empty, all.", maxItems=MOST_FILTERED, items={"type": "string", **items}
    )


_A_SECRET: Final = _says(
    "What signs: `whsec_` and 24 to 64 bytes in base64. If not given, one is made.", pattern=SECRET, writeOnly=True
)

OF_A_WEBHOOK: Final[Mapping[str, Object]] = {
    "url": _says("Where to. Which targets are allowed is for the server to say.", **_A_TARGET),
    "events": _says(
        "The events that it is told; if not given, the ends: with `statuses`, all but `progress`.",
        minItems=1,
        maxItems=len(WEBHOOK_EVENTS),
        items={"enum": [*WEBHOOK_EVENTS]},
    ),
    "types": _filter("Of tasks of these types.", pattern=_pattern(TYPE_NAME)),
    "queues": _filter("Of tasks in these queues.", pattern=_pattern(QUEUE_NAME)),
    "tags": _filter("Of tasks with one of these tags.", pattern=_pattern(TAG)),
    "statuses": _filter("When the task has one of these.", enum=[*TaskStatus]),
    "description": _says("For people.", maxLength=LONGEST_DESCRIPTION),
    "enabled": _says("Whether it is told at all."),
    "project": _says("The only one whose tasks it is told of; if not given, all.", pattern=_pattern(PROJECT)),
    "secret": _A_SECRET,
}

_A_BOUND_ADMIN: Final = {
    "properties": {"scopes": {"contains": {"const": "admin"}}},
    "required": ["scopes"],
    "anyOf": [
        {"properties": {name: {"type": kind}}, "required": [name]}
        for name, kind in (("project", "string"), ("types", "array"), ("queues", "array"))
    ],
}

FIELDS: Final[Mapping[str, tuple[Mapping[str, Object], Sequence[Object]]]] = {
    "TaskSpec": (
        {each.name: _limits(each) for each in declared(TaskSpec)},
        [{"not": rule} for rule in _rules(declared(TaskSpec))],
    ),
    "KeySpec": (OF_A_KEY, ({"not": _A_BOUND_ADMIN},)),
    "NewWebhook": (OF_A_WEBHOOK, ()),
    "WebhookFields": (OF_A_WEBHOOK, ()),
    "NewSecret": ({"secret": _A_SECRET}, ()),
}
"""By the type of a body: its fields, and what holds for several of them at once."""


def with_limits(name: str, schema: Object) -> Object:
    """The schema of a body, which knows the types of its fields, with what the fields mean and take."""
    if name not in FIELDS:
        return schema
    fields, rules = FIELDS[name]
    properties = {field: _narrowed(plain, fields.get(field, {})) for field, plain in schema["properties"].items()}
    return {**schema, "properties": properties, **({"allOf": rules} if rules else {})}


def _narrowed(schema: Object, limits: Object) -> Object:
    """A field may be null if it could be before: the limits are those of its other form."""
    limits = dict(limits)
    description = {"description": limits.pop("description")} if limits else {}
    if "anyOf" not in schema:
        return schema | limits | description
    forms = [form if form == {"type": "null"} else form | limits for form in schema["anyOf"]]
    return {**schema, "anyOf": forms, **description}


H = TypeVar("H", bound=Callable[..., Any])

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
OF_A_CALLER: Final = ("invalid-header", "unauthorized", "forbidden", "misdirected", "rate-limited")
OF_A_BODY: Final = ("invalid-json", "body-timeout", "body-too-large", "unsupported-media-type")


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer: the type of its document (None: no body; a tuple: one of them) and the headers that only it has.

    `media_types` other than JSON: the body may be text of one of them; `body` is str when it can't be anything else.
    `events`: by the names of a stream's events, what each of them tells. `made`: the path below which that is found
    which the body's member `made_id` names; not given, that of the operation, if there is a `Location`.
    """

    body: Any
    headers: tuple[str, ...] = ()
    media_types: tuple[str, ...] = (JSON,)
    events: Mapping[str, Any] = field(default_factory=dict)
    made: str = ""
    made_id: str = "/id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `query` is None where any parameter is let through."""

    id: str
    tag: str
    answers: Mapping[int, Answer]
    query: type[msgspec.Struct] | None
    body: Any
    body_optional: bool
    body_fault: str
    headers: tuple[str, ...]
    problems: tuple[str, ...]
    asks_redis: bool

    def kinds(self, access: Access) -> Iterator[str]:
        """Every kind of problem that it may answer with behind `access`; `errors.PROBLEMS` has their statuses."""
        yield from self.problems
        if not access.public:
            yield from OF_A_CALLER
        if self.query is not None:
            yield "invalid-query"
        if self.body is not None:
            yield from OF_A_BODY
            yield self.body_fault
        if self.asks_redis or not access.public:  # keys are in Redis
            yield "redis-unavailable"
        yield "internal-error"


def operation(
    id: str,
    *,
    tag: str,
    answers: Mapping[int, Any],
    query: type[msgspec.Struct] | None = NoQuery,
    body: Any = None,
    body_optional: bool = False,
    body_fault: str = "invalid-task",
    headers: Sequence[str] = (),
    problems: Sequence[str] = (),
    asks_redis: bool = True,
) -> Callable[[H], H]:
    """Declare a handler: `id` is its operationId, `answers` has a type or an `Answer` for each good status.

    `query` and `body` are the types it reads, `body_fault` is the kind of a body with a wrong field; `headers` are the
    request's own that it minds (`openapi.HEADERS` describes them), `problems` the kinds that don't follow from the
    rest. Its docstring is `METHOD /path: summary`, and whatever is to be said below.
    """
    mark = Operation(
        id=id,
        tag=tag,
        answers={
            status: answer if isinstance(answer, Answer) else Answer(answer) for status, answer in answers.items()
        },
        query=query,
        body=body,
        body_optional=body_optional,
        body_fault=body_fault,
        headers=tuple(headers),
        problems=tuple(problems),
        asks_redis=asks_redis,
    )

    def declare(handler: H) -> H:
        vars(handler)[DECLARATION] = mark
        return handler

    return declare


def operation_of(handler: Callable[..., Any]) -> Operation | None:
    """What a handler declared; None if nothing."""
    mark: Operation | None = getattr(handler, DECLARATION, None)
    return mark
