"""What the document says about request bodies and handlers.

The first half describes the fields of bodies as JSON Schema. Those of a task are declared in `taskpool.types`; a body
whose fields have `msgspec.Meta` needs nothing here. The second half is the declaration of a handler: a decorator that
only leaves a mark, so it costs a request nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
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
    return _says(description + " Default: any.", minItems=1, maxItems=MOST_NAMES, items=items)


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
    "name": _says("A name for people.", minLength=1, maxLength=64, pattern=r"^\S(.*\S)?$", examples=["a service"]),
    "scopes": _says("What the key allows.", minItems=1),
    "project": _says("The only project whose tasks the key can see. Default: all.", pattern=_pattern(PROJECT)),
    "types": _names("The only task types that the key can start and stop.", TYPE_NAME),
    "queues": _names("The only queues in which the key can start and stop tasks.", QUEUE_NAME),
    "expires_in_s": _says("When the key expires, in seconds from now. Default: never.", minimum=1, maximum=LONGEST_S),
    "rate_limit": _says(
        "Requests per minute; 0 for any number. Default: the server's limit for each key.",
        minimum=0,
        maximum=MOST_A_MINUTE,
    ),
}


def _filter(description: str, **items: Any) -> Object:
    return _says(
        description + " Default, and if empty: all.", maxItems=MOST_FILTERED, items={"type": "string", **items}
    )


_A_SECRET: Final = _says(
    "The signing secret: `whsec_` and 24 to 64 bytes in base64. Default: a new one.", pattern=SECRET, writeOnly=True
)

OF_A_WEBHOOK: Final[Mapping[str, Object]] = {
    "url": _says("The target. The server's settings say which targets are allowed.", **_A_TARGET),
    "events": _says(
        "The events to send. Default: the ends of tasks; with `statuses`, all except `progress`.",
        minItems=1,
        maxItems=len(WEBHOOK_EVENTS),
        items={"enum": [*WEBHOOK_EVENTS]},
    ),
    "types": _filter("Only for tasks of these types.", pattern=_pattern(TYPE_NAME)),
    "queues": _filter("Only for tasks in these queues.", pattern=_pattern(QUEUE_NAME)),
    "tags": _filter("Only for tasks with one of these tags.", pattern=_pattern(TAG)),
    "statuses": _filter("Only when the task has one of these statuses.", enum=[*TaskStatus]),
    "description": _says("A description for people.", maxLength=LONGEST_DESCRIPTION),
    "enabled": _says("Whether events are sent."),
    "project": _says("The only project whose events are sent. Default: all.", pattern=_pattern(PROJECT)),
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
"""The fields of each body, and the rules for several fields at once."""


def with_limits(name: str, schema: Object) -> Object:
    """The schema of a body, which has the types of its fields, with descriptions and limits."""
    if name not in FIELDS:
        return schema
    fields, rules = FIELDS[name]
    properties = {field: _narrowed(plain, fields.get(field, {})) for field, plain in schema["properties"].items()}
    return {**schema, "properties": properties, **({"allOf": rules} if rules else {})}


def _narrowed(schema: Object, limits: Object) -> Object:
    """The schema of a field with these limits. If the field may be null, the limits are those of the other form."""
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
    """A successful response: the type of its document (None: no body; a tuple: one of them) and its own headers.

    `media_types` other than JSON: the body may be text of one of them; `body` is str if it is never JSON. `events`: the
    type of each event of a stream, by its name. `made`: the path below which the created resource is found whose id is
    the body's member `made_id`. By default it is the operation's path, if there is a `Location`.
    """

    body: Any
    headers: tuple[str, ...] = ()
    media_types: tuple[str, ...] = (JSON,)
    events: Mapping[str, Any] = field(default_factory=dict)
    made: str = ""
    made_id: str = "/id"


@dataclass(frozen=True, slots=True)
class Operation:
    """The declaration of one method of one path, used as a decorator of its handler.

    `id` is its operationId. `answers` has a type or an `Answer` for each successful status. `query` is the type of the
    query parameters; None accepts any. `body` is the type of the body, `body_fault` the kind of problem for a wrong
    field. `headers` are the request headers that the handler reads (`answers.HEADERS` describes them). `problems` are
    the kinds that don't follow from the rest. The handler's docstring is `METHOD /path: summary`, then the description.
    """

    id: str
    _: KW_ONLY
    tag: str
    answers: Mapping[int, Any]
    query: type[msgspec.Struct] | None = NoQuery
    body: Any = None
    body_optional: bool = False
    body_fault: str = "invalid-task"
    headers: Sequence[str] = ()
    problems: Sequence[str] = ()
    asks_redis: bool = True

    def __post_init__(self) -> None:
        answers = {status: each if isinstance(each, Answer) else Answer(each) for status, each in self.answers.items()}
        object.__setattr__(self, "answers", answers)

    def __call__(self, handler: H) -> H:
        vars(handler)[DECLARATION] = self
        return handler

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


operation: Final = Operation


def operation_of(handler: Callable[..., Any]) -> Operation | None:
    """The declaration of a handler, if it has one."""
    return getattr(handler, DECLARATION, None)
