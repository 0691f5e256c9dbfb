"""The OpenAPI 3.1 document: made of the routes' declarations, the types that parse and render, and the task types.

`describe` is pure. What a document says beyond its declarations (security, headers, parameters) stands in the
tables here; `openapi_schemas` makes the schemas.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from starlette.routing import BaseRoute, Route

from api.access import Access, Guarded
from api.docs_page import FILES
from api.openapi_schemas import REFS, Schemas
from api.openapi_types import submissions
from api.operation import JSON, Answer, Operation, operation_of
from api.problems import KINDS, TYPE_PREFIX
from api.resource import Resource
from taskpool.fleet import TypeInfo

Object = dict[str, Any]
Found = tuple[str, str, Operation, Guarded]

PROBLEM: Final = "application/problem+json"

TAGS: Final = {
    "tasks": "Submit, read, list, cancel, stop and retry tasks.",
    "keys": "API keys, tickets and the audit.",
    "events": "Follow tasks as they go. `/asyncapi.json` describes the WebSocket at `/ws`.",
    "webhooks": "Standing endpoints that are told of tasks, and the messages to them.",
    "fleet": "Queues, task types and worker processes.",
    "service": "Probes, metrics and this document.",
}

PARAMETERS: Final[Mapping[str, Object]] = {
    "id": {"description": "A task's id.", "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,200}$"}},
    "file": {"description": "A file of the page.", "schema": {"enum": [*FILES]}},
    "key": {"description": "An API key's id.", "schema": {"type": "string", "pattern": "^[0-9a-z]{12}$"}},
    "webhook": {
        "description": "A webhook's id, `callback` or `callback.PROJECT`.",
        "schema": {"type": "string", "minLength": 1},
    },
    "delivery": {"description": "A delivery's id.", "schema": {"type": "string", "minLength": 1}},
    "name": {"description": "A queue's name.", "schema": {"type": "string", "minLength": 1}},
}
"""What stands in a path."""

_TEXT: Final = {"type": "string"}

HEADERS: Final[Mapping[str, Object]] = {
    "Accept": {"description": "The media type that is taken.", "schema": _TEXT},
    "Accept-Encoding": {"description": "The coding that is taken.", "schema": _TEXT},
    "ETag": {"description": "Changes with the answer.", "required": True, "schema": _TEXT},
    "Last-Event-ID": {"description": "The `id` of the last message: go on after it.", "schema": _TEXT},
    "Idempotency-Key": {
        "description": "The request is carried out once, however often it comes within 24 hours.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
    "Idempotency-Replayed": {"description": "This is the answer to an earlier request.", "schema": {"const": "true"}},
    "If-None-Match": {"description": "The ETag of what is known already.", "schema": _TEXT},
    "Link": {"description": 'The next page, as `rel="next"`.', "schema": _TEXT},
    "Location": {
        "description": "The path of what was made, or is there already.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Prefer": {"description": "`wait=S`: answer once the task has ended, or after S seconds (60).", "schema": _TEXT},
    "Preference-Applied": {"description": "The preference that was minded.", "schema": _TEXT},
    "RateLimit": {
        "description": "The requests left (`r`) and the seconds until all are again, or of none the next (`t`).",
        "schema": {"type": "string", "examples": ['"requests";r=58;t=1']},
    },
    "RateLimit-Policy": {
        "description": "How many requests (`q`) there may be in how many seconds (`w`); only where there is a limit.",
        "schema": {"type": "string", "examples": ['"requests";q=100;w=10']},
    },
    "Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer", "minimum": 1}},
    "traceparent": {"description": "The W3C trace context, handed to the task; ignored if invalid.", "schema": _TEXT},
    "tracestate": {"description": "What belongs to it.", "schema": _TEXT},
    "WWW-Authenticate": {"description": "How to show who asks.", "schema": _TEXT},
}
"""Headers of answers, and those of requests that handlers declare."""

SECURITY: Final[Mapping[str, Object]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "tp_<id>_<secret>",
        "description": "An API key. A server that runs without keys needs none.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A single-use ticket, for browsers' sockets and streams, which can't send a key.",
    },
}

PROBLEM_HEADERS: Final[Mapping[str, Mapping[str, bool]]] = {
    "unauthorized": {"WWW-Authenticate": True},
    "forbidden": {"WWW-Authenticate": False},
    "unique-conflict": {"Link": True},
    "unsupported-media-type": {"Accept": False, "Accept-Encoding": False},
    "rate-limited": {"Retry-After": True},
    "queue-full": {"Retry-After": True},
    "too-many-streams": {"Retry-After": True},
    "redis-unavailable": {"Retry-After": True},
}
"""The headers of problems by kind, and whether each of them is always there."""

OF_A_LIMIT: Final = ("RateLimit", "RateLimit-Policy")
BEFORE_ANY_LIMIT: Final = (401, 421)

TITLES: Final = {
    200: "It is done.",
    201: "It is made.",
    202: "It is stored.",
    204: "It is gone.",
    304: "It hasn't changed.",
}


def describe(routes: Iterable[BaseRoute], types: Sequence[TypeInfo], *, needs_key: bool = True) -> Object:
    """The document of these routes and task types, for a server that needs a key or one that doesn't."""
    found = list(operations(routes))
    schemas = Schemas([operation for _, _, operation, _ in found])
    schemas.components.update(submissions(schemas.components["TaskSpec"], types))
    paths: dict[str, Object] = defaultdict(dict)
    for path, method, operation, guarded in found:
        paths[path][method.lower()] = _operation(path, operation, guarded, schemas) | {
            "security": _security(guarded.access, needs_key),
            "responses": _responses(operation, guarded.access, schemas, _links(path, found)),
        }
    return {
        "openapi": "3.1.1",
        "info": _INFO | {"version": version("taskpool")},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "headers": dict(HEADERS),
            "securitySchemes": dict(SECURITY),
        },
    }


_INFO: Final = {
    "title": "Taskpool",
    "summary": "A job service on Redis: typed tasks over HTTP, run by worker processes.",
    "description": (
        "Everything is JSON in UTF-8. Times are RFC 3339 in UTC, durations end in `_s` and are in seconds. What isn't"
        " there is left out. `HEAD` works wherever `GET` does; any other method gets 405.\n\nThe payloads of the"
        " task types are in here as they are known now: read it again when workers bring new ones."
    ),
    "license": {"name": "MIT", "identifier": "MIT"},
}


def operations(routes: Iterable[BaseRoute]) -> Iterator[Found]:
    """Path, method, declaration and guarded handler of every method that declares something; HEAD is in GET."""
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            for method, guarded in route.endpoint.guarded.items():
                operation = operation_of(guarded.handler)
                if operation is not None and method != "HEAD":
                    yield route.path, method, operation, guarded


def _operation(path: str, operation: Operation, guarded: Guarded, schemas: Schemas) -> Object:
    summary, description = _texts(guarded.handler.__doc__ or "")
    document: Object = {"operationId": operation.id, "tags": [operation.tag], "summary": summary}
    if description:
        document["description"] = description
    parameters = [
        {"name": name, "in": "path", "required": True, **PARAMETERS[name]} for name in re.findall(r"{(\w+)}", path)
    ]
    if operation.query is not None:
        parameters += [
            {"name": name, "in": "query", "required": False, **_parameter(schema)}
            for name, schema in schemas.parameters(operation.query).items()
        ]
    parameters += [{"name": name, "in": "header", **HEADERS[name]} for name in operation.headers]
    if parameters:
        document["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": schemas.of(operation.body)}}
        document["requestBody"] = {"required": not operation.body_optional, "content": content}
    return document


def _security(access: Access, needs_key: bool) -> list[Object]:
    """What a caller shows; a server that needs no key still refuses a wrong one."""
    if access.public:
        return []
    scopes = [] if access.scope is None else [access.scope.value]
    ways: list[Object] = [{"bearer": scopes}, *([{"ticket": scopes}] if access.ticket else [])]
    return ways if needs_key else [{}, *ways]


def _parameter(schema: Object) -> Object:
    """A parameter has its description beside its schema."""
    schema = dict(schema)
    description = schema.pop("description", None)
    return {"schema": schema} if description is None else {"description": description, "schema": schema}


def _texts(docstring: str) -> tuple[str, str]:
    """The summary and the description in a docstring `METHOD /path: summary`, and paragraphs."""
    first, _, rest = docstring.partition("\n\n")
    summary = " ".join(first.partition(": ")[2].split())
    return summary[:1].upper() + summary[1:], "\n\n".join(" ".join(part.split()) for part in rest.split("\n\n")).strip()


def _links(path: str, found: Iterable[Found]) -> Object:
    """What can be done with what was made at `path`: the operations of the paths below it, by its id."""
    below = re.compile(re.escape(path) + r"/{(\w+)}(/\w+)?")
    return {
        operation.id: {"operationId": operation.id, "parameters": {match[1]: "$response.body#/id"}}
        for other, _, operation, _ in found
        if (match := below.fullmatch(other))
    }


def _responses(operation: Operation, access: Access, schemas: Schemas, links: Object) -> Object:
    limits = () if access.public else OF_A_LIMIT
    responses = {
        str(status): _answer(status, answer, (*answer.headers, *limits), schemas, links)
        for status, answer in operation.answers.items()
    }
    kinds: dict[int, list[str]] = defaultdict(list)
    for kind in dict.fromkeys(operation.kinds(access)):
        kinds[KINDS[kind][0]].append(kind)
    for status in sorted(kinds):
        assert str(status) not in responses
        responses[str(status)] = _problem(status, kinds[status], _problem_headers(status, kinds[status], access))
    return responses


def _answer(status: int, answer: Answer, headers: Sequence[str], schemas: Schemas, links: Object) -> Object:
    response: Object = {"description": TITLES[status]}
    if links and "Location" in headers:
        response["links"] = links
    if headers:
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    if answer.body is not None:
        response["content"] = {
            media_type: {"schema": schemas.of(answer.body if media_type == JSON else str)}
            for media_type in answer.media_types
        }
    return response


def _problem_headers(status: int, kinds: Sequence[str], access: Access) -> Object:
    """The headers of the problems of one status."""
    given = [PROBLEM_HEADERS.get(kind, {}) for kind in kinds]
    needed = {name: all(headers.get(name, False) for headers in given) for headers in given for name in headers}
    is_refused_at_once = status in BEFORE_ANY_LIMIT
    if status == 403 and access.scope is None:  # it can only have come from another origin
        is_refused_at_once = True
        del needed["WWW-Authenticate"]
    if not access.public and not is_refused_at_once:
        needed.update(dict.fromkeys(OF_A_LIMIT, False))
    return {name: {"required": required, **HEADERS[name]} for name, required in needed.items()}


def _problem(status: int, kinds: Sequence[str], headers: Object) -> Object:
    types = [TYPE_PREFIX + kind for kind in kinds]
    schema = {
        "allOf": [{"$ref": f"{REFS}Problem"}],
        "properties": {"type": {"enum": types}, "status": {"const": status}},
    }
    response: Object = {
        "description": "; ".join(KINDS[kind][1] for kind in kinds) + ".",
        "content": {PROBLEM: {"schema": schema}},
    }
    if headers:
        response["headers"] = headers
    return response
