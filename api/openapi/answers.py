"""The responses in the OpenAPI document: description, headers, media types and schemas for each status."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from taskpool.errors import PROBLEM_PREFIX, PROBLEMS

from ..http.declarations import EVENT_STREAM, JSON, Access, Answer, Operation
from ..http.query import MAX_WAIT_S
from .schemas import REFS, Schemas

Object = dict[str, Any]

PROBLEM: Final = "application/problem+json"


def text(description: str, *, required: bool = False, **limits: Any) -> Object:
    """A header or a parameter: a text, unless `limits` have another type."""
    about: Object = {"description": description, "schema": {"type": "string", **limits}}
    return about | ({"required": True} if required else {})


HEADERS: Final[Mapping[str, Object]] = {
    "Accept": text("The accepted media type."),
    "Accept-Encoding": text("The accepted content coding."),
    "ETag": text("Changes whenever the response does.", required=True),
    "Last-Event-ID": text("The `id` of the last message received: continue after it."),
    "Idempotency-Key": text(
        "Repeated requests with the same key within 24 hours are carried out once.", pattern="^[!-~]{1,255}$"
    ),
    "Idempotency-Replayed": text("This is the response to an earlier request.", const="true"),
    "If-None-Match": text("The ETag of the known response."),
    "Link": text('The next page, as `rel="next"`.'),
    "Location": text(
        "The path of the new or existing resource, from the root of the host.", required=True, format="uri-reference"
    ),
    "Prefer": text(f"`wait=S`: respond when the task has ended, or after S seconds (at most {MAX_WAIT_S})."),
    "Preference-Applied": text(f"`wait=S`: how long the server was ready to wait, at most {MAX_WAIT_S} seconds."),
    "RateLimit": text(
        "The requests left (`r`), and the seconds until more are allowed (`t`).", examples=['"requests";r=58;t=1']
    ),
    "RateLimit-Policy": text(
        "The limit: `q` requests in `w` seconds. Present only if there is a limit.", examples=['"requests";q=100;w=10']
    ),
    "Retry-After": text("Seconds to wait before the next attempt.", required=True, type="integer", minimum=1),
    "Set-Cookie": text("The session, for the web page; removed when it ends.", required=True),
    "traceparent": text("The W3C trace context, passed to the task; ignored if invalid."),
    "tracestate": text("The state of the trace context."),
    "WWW-Authenticate": text("How to authenticate."),
}
"""Headers of responses, and those of requests that handlers declare."""

OF_A_LIMIT: Final = ("RateLimit", "RateLimit-Policy")
BEFORE_ANY_LIMIT: Final = frozenset(("unauthorized", "misdirected", "invalid-header"))

TITLES: Final = {
    200: "Success.",
    201: "Created.",
    202: "Accepted: stored, not run yet.",
    204: "Removed.",
    304: "Not modified.",
}


def responses(
    operation: Operation, access: Access, schemas: Schemas, links: Callable[[Answer], Object], shared: Object
) -> Object:
    """The responses of an operation by status. `links` gives the operations on a resource that a response created.

    Operations share responses with the same problems: those are put into `shared`, and referred to.
    """
    limits = () if access.public else OF_A_LIMIT
    found = {
        str(status): _answer(status, answer, (*answer.headers, *limits), schemas, links(answer))
        for status, answer in operation.answers.items()
    }
    kinds: dict[int, list[str]] = defaultdict(list)
    for kind in dict.fromkeys(operation.kinds(access)):
        kinds[PROBLEMS[kind].status].append(kind)
    suffix = ".public" if access.public else ".anyone" if access.scope is None else ""
    for status in sorted(kinds):
        assert str(status) not in found
        name = ".".join(sorted(kinds[status])) + suffix
        if name not in shared:
            shared[name] = _problem(status, kinds[status], _problem_headers(status, kinds[status], access))
        found[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return found


def _answer(status: int, answer: Answer, headers: Sequence[str], schemas: Schemas, links: Object) -> Object:
    response: Object = {"description": TITLES[status]}
    if links:
        response["links"] = links
    if headers:
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    if answer.body is not None:
        response["content"] = {
            media_type: {"schema": _content(media_type, answer, schemas)} for media_type in answer.media_types
        }
    return response


def _content(media_type: str, answer: Answer, schemas: Schemas) -> Object:
    if media_type != EVENT_STREAM:
        return schemas.of(answer.body if media_type == JSON else str)
    messages = [_message(name, schemas.of(kind)) for name, kind in answer.events.items()]
    return {"description": "One message of the stream.", "oneOf": messages}


def _message(name: str, content: Object) -> Object:
    """An event as clients receive it. An event without a name is a `message`."""
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": content}
    properties = {"id": {"type": "string"}, "event": {"const": name}, "data": data}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _problem_headers(status: int, kinds: Sequence[str], access: Access) -> Object:
    """The headers of the problems of one status."""
    given = [PROBLEMS[kind].headers for kind in kinds]
    needed = {name: all(headers.get(name, False) for headers in given) for headers in given for name in headers}
    is_refused_at_once = BEFORE_ANY_LIMIT.issuperset(kinds)
    if status == 403 and access.scope is None:  # only a request from another origin is refused
        is_refused_at_once = True
        del needed["WWW-Authenticate"]
    if not access.public and not is_refused_at_once:
        needed.update(dict.fromkeys(OF_A_LIMIT, False))
    return {name: _header(name, required) for name, required in needed.items()}


def _header(name: str, required: bool) -> Object:
    """A reference to a header, or the header itself if it is required here and not there, or the other way round."""
    if HEADERS[name].get("required", False) == required:
        return {"$ref": f"#/components/headers/{name}"}
    return {**HEADERS[name], "required": required}


def _problem(status: int, kinds: Sequence[str], headers: Object) -> Object:
    types = [PROBLEM_PREFIX + kind for kind in kinds]
    schema = {
        "allOf": [{"$ref": f"{REFS}Problem"}],
        "properties": {"type": {"enum": types}, "status": {"const": status}},
    }
    response: Object = {
        "description": "; ".join(PROBLEMS[kind].title for kind in kinds) + ".",
        "content": {PROBLEM: {"schema": schema}},
    }
    if headers:
        response["headers"] = headers
    return response
