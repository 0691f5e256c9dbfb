"""What a handler declares of itself: what it takes and every answer it may give. `document` makes the document of it.

The declaration is a decorator that only leaves a mark, so a request pays nothing for it. What follows from the
shape of an operation (every body may be too large) isn't declared again: see `Operation.kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from api.access.access import Access
from api.query import NoQuery

H = TypeVar("H", bound=Callable[..., Any])

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
OF_A_CALLER: Final = ("invalid-header", "unauthorized", "forbidden", "misdirected", "rate-limited")
MARK: Final = "operation"
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
        """Every kind of problem that it may answer with behind `access`; `api.problems.KINDS` has their statuses."""
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
        vars(handler)[MARK] = mark
        return handler

    return declare


def operation_of(handler: Callable[..., Any]) -> Operation | None:
    """What a handler declared; None if nothing."""
    mark: Operation | None = getattr(handler, MARK, None)
    return mark
