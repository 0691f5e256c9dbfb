"""What each route declares: who may call it, what it reads, and what it answers.

The table of routes in `app` wraps each handler in one of the constants below, such as READ. `operation` decorates the
handler. `Resource` reads the query and the body as declared, and the OpenAPI document is made from the declarations.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

from taskpool.access.api_key import RIGHTS, Effect, Scope

from .query import NoQuery

H = TypeVar("H", bound=Callable[..., Any])

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
OF_A_CALLER: Final = ("invalid-header", "unauthorized", "forbidden", "misdirected", "rate-limited")
OF_A_BODY: Final = ("invalid-json", "body-timeout", "body-too-large", "unsupported-media-type")


@dataclass(frozen=True, slots=True)
class Access:
    """What a route requires of its caller.

    `scope`: the caller must have it; None: any caller. `public`: callers need no key. `whole`: the answer shows tasks
    of all projects, so callers that are bound to one are refused. `ticket`: a single-use ticket in the query string is
    as good as a key; browsers need that for sockets and streams.
    """

    scope: Scope | None = None
    public: bool = False
    whole: bool = False
    ticket: bool = False

    def __call__(self, handler: Callable[..., Awaitable[Any]]) -> Guarded:
        """The handler with this requirement."""
        return Guarded(handler, self, getattr(handler, "operation", None))


@dataclass(frozen=True, slots=True)
class Guarded:
    """A handler, what it requires of its caller, and what it declares."""

    handler: Callable[..., Awaitable[Any]]
    access: Access
    operation: Operation | None = None


PUBLIC: Final = Access(public=True)
ANYONE: Final = Access()
READ: Final = Access(RIGHTS[Effect.READ].scope)
READ_ALL: Final = replace(READ, whole=True)
STREAM: Final = replace(READ, ticket=True)
START: Final = Access(RIGHTS[Effect.START].scope)
START_ALL: Final = replace(START, whole=True)
STOP: Final = Access(RIGHTS[Effect.STOP].scope)
STOP_ALL: Final = replace(STOP, whole=True)
CONFIRM: Final = Access(RIGHTS[Effect.CONFIRM].scope)
ADMIN: Final = Access(Scope.ADMIN)
"""START, STOP and CONFIRM open a route; `Caller.check` decides for which tasks. STOP_ALL is for what concerns all tasks
of a queue, or more: keys that may stop only some of them are refused by the operation."""


@dataclass(slots=True)
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

    def __post_init__(self) -> None:
        if "next_cursor" in getattr(self.body, "__struct_fields__", ()):
            self.headers += ("Link",)


@dataclass(slots=True)
class Operation:
    """The declaration of one method of one path, used as a decorator of its handler.

    `id` is its operationId. `answers` has a type or an `Answer` for each successful status. The parameters `query` and
    `body` of the handler are read for it, as the types of their annotations; without them a query is refused, unless
    `query` is None, and a body is ignored. A handler that reads the body itself names its type as `body`. `body_fault`
    is the kind of problem for a wrong field. `headers` are the request headers that the handler reads
    (`answers.HEADERS` describes them). `problems` are the kinds that don't follow from the rest. The handler's
    docstring is `METHOD /path: summary`, then the description.
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
    reads_body: bool = field(default=False, init=False)

    def __call__(self, handler: H) -> H:
        types = get_type_hints(handler)
        self.answers = {
            status: each if isinstance(each, Answer) else Answer(each) for status, each in self.answers.items()
        }
        self.query = types.get("query", self.query)
        self.reads_body = "body" in types
        self.body = types.get("body", self.body)
        vars(handler)["operation"] = self
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
