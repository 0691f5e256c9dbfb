"""The OpenAPI 3.1 document: made of the routes' declarations, the types that parse and render, and the task types.

`describe` is pure. What a document says beyond its declarations (security, headers, parameters) stands in the
tables here; `schemas` makes the schemas.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from starlette.routing import BaseRoute, Route

from api.access.access import Access, Guarded
from api.headers import METHODS
from api.openapi.answers import HEADERS, responses
from api.openapi.examples import batch_examples, submission_examples
from api.openapi.operation import JSON, Answer, Operation, operation_of
from api.openapi.page import FILES
from api.openapi.schemas import Schemas
from api.openapi.types import submissions
from api.openapi.webhooks import callbacks, webhooks
from api.resource import Resource
from api.submission import Batch
from taskpool.fleet import TypeInfo
from taskpool.types import TaskSpec

Object = dict[str, Any]
Found = tuple[str, str, Operation, Guarded]

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


def describe(
    routes: Iterable[BaseRoute], types: Sequence[TypeInfo], *, needs_key: bool = True, prefix: str = ""
) -> Object:
    """The document of these routes and task types, for a server that needs a key or one that doesn't.

    `prefix`: the path prefix at which clients reach the server.
    """
    found = list(operations(routes))
    schemas = Schemas([operation for _, _, operation, _ in found])
    schemas.components.update(submissions(schemas.components["TaskSpec"], types, schemas.components))
    paths: dict[str, Object] = defaultdict(dict)
    problems: Object = {}
    examples = {TaskSpec: submission_examples(types), Batch: batch_examples(types)}
    for path, method, operation, guarded in found:
        paths[path][method.lower()] = _operation(path, operation, guarded, schemas) | {
            **_body(operation, schemas, examples.get(operation.body, {})),
            "security": _security(guarded.access, needs_key),
            "responses": responses(operation, guarded.access, schemas, partial(_links, found, path), problems),
        }
    return {
        "openapi": "3.1.1",
        "info": _INFO | {"version": version("taskpool")},
        "servers": [{"url": prefix or "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "webhooks": webhooks(schemas),
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": dict(sorted(problems.items())),
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
    """Path, method, declaration and guarded handler of every method that declares something, the reading ones first;
    HEAD is in GET."""
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            for method in METHODS:
                guarded = route.endpoint.guarded.get(method)
                operation = None if guarded is None else operation_of(guarded.handler)
                if guarded is not None and operation is not None:
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
    if told := callbacks(operation, schemas):
        document["callbacks"] = told
    return document


def _body(operation: Operation, schemas: Schemas, examples: Object) -> Object:
    """What an operation takes, if it takes anything."""
    if operation.body is None:
        return {}
    content = {"schema": schemas.of(operation.body), **({"examples": examples} if examples else {})}
    return {"requestBody": {"required": not operation.body_optional, "content": {JSON: content}}}


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


def _links(found: Iterable[Found], path: str, answer: Answer) -> Object:
    """What can be done with what an operation at `path` has made: the operations of the paths below, by its id."""
    made = answer.made or (path if "Location" in answer.headers else "")
    below = re.compile(re.escape(made) + r"/{(\w+)}(/\w+)?")
    return {
        operation.id: {"operationId": operation.id, "parameters": {match[1]: f"$response.body#{answer.made_id}"}}
        for other, _, operation, _ in found
        if made and (match := below.fullmatch(other))
    }
