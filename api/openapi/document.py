"""The OpenAPI 3.1 document, made from the routes' declarations, the types of bodies, and the task types.

`describe` makes it. `schemas` makes the schemas, `answers` the responses. The tables here hold the rest: security,
parameters in paths, tags, and the messages of webhooks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from starlette.routing import BaseRoute, Route

from taskpool.operations.flow.values import WorkflowSpec
from taskpool.redis.calls import UNREADABLE, tell_unreadable
from taskpool.tasks.payload.json_schema import validator_of
from taskpool.text import own_version
from taskpool.types import WEBHOOK_EVENTS, TaskSpec, TypeInfo
from taskpool.webhooks.endpoint import ENDPOINT_EVENTS, TEST_EVENT, Message, message_type

from ..http.declarations import JSON, Access, Answer, Guarded, Operation
from ..http.submission import Batch
from ..routing import METHODS, Resource
from .answers import HEADERS, responses, text
from .schemas import REFS, Schema, Schemas, hoisted, payload_name

Object = dict[str, Any]

DEEPEST: Final = 8
PLAIN: Final[Mapping[str, Any]] = {
    "string": "text",
    "integer": 1,
    "number": 1,
    "boolean": False,
    "array": [],
    "object": {},
    "null": None,
}


def examples(types: Sequence[TypeInfo]) -> Mapping[type, Object]:
    """The examples of each body: a task of each type, by its name, a batch and a workflow of them. Types for which no
    valid payload can be made have none."""
    tasks = {}
    for info in types:
        schema = dict(info.schema)
        payload = _value(schema, schema, DEEPEST)
        validator = validator_of(schema)
        if validator is not None and validator.is_valid(payload):
            tasks[info.name] = {"type": info.name, "payload": payload}
    batch = {"one of each": {"value": {"tasks": [*tasks.values()]}}} if tasks else {}
    nodes = [{"name": name, "task": task} for name, task in tasks.items()]
    workflow = {"one of each": {"value": {"name": "example", "nodes": nodes}}} if tasks else {}
    return {TaskSpec: {name: {"value": task} for name, task in tasks.items()}, Batch: batch, WorkflowSpec: workflow}


def _value(schema: Any, whole: Object, depth: int) -> Any:
    """A value that usually fits a schema: one that the schema contains, or else the required fields."""
    if not isinstance(schema, dict) or depth == 0:
        return None
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    for name in ("examples", "enum"):
        if schema.get(name):
            return schema[name][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _value(schema[name][0], whole, depth - 1)
    if "$ref" in schema:
        return _value(_referred(schema["$ref"], whole), whole, depth - 1)
    return _of_type(schema, whole, depth)


def _of_type(schema: Object, whole: Object, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: _value(fields.get(name), whole, depth - 1) for name in schema.get("required", ())}
    if kind == "array" and schema.get("minItems"):
        return [_value(schema.get("items"), whole, depth - 1)] * schema["minItems"]
    if kind in ("integer", "number") and "minimum" in schema:
        return max(schema["minimum"], 1)
    return PLAIN.get(kind) if isinstance(kind, str) else "anything"


def _referred(ref: Any, whole: Object) -> Any:
    """The target of a reference within the schema; None for any other reference."""
    found: Any = whole if isinstance(ref, str) and ref.startswith("#") else None
    for step in str(ref).split("/")[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return found


CALLBACK_URLS: Final = {TaskSpec: "{$request.body#/callback_url}", Batch: "{$request.body#/tasks/0/callback_url}"}
"""Where the body of a submission has the URL. In a batch each task has its own."""

SIGNATURE_HEADERS: Final = {
    "webhook-id": text("The same for every attempt to send the message: use it to skip duplicates."),
    "webhook-timestamp": text("When it was sent, in seconds since 1970. Refuse messages older than a few minutes."),
    "webhook-signature": text(
        "`v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`, for each secret that is valid.",
        pattern="^v1,[A-Za-z0-9+/]+=*( v1,[A-Za-z0-9+/]+=*)*$",
    ),
}
"""The headers that sign a message, as in Standard Webhooks."""

ANSWERS: Final = {
    "2XX": "Received.",
    "410": "Gone: the message isn't sent again, and a standing endpoint is disabled.",
    "default": "Failed: the message is sent again, for days, and not before `Retry-After`. Redirects aren't followed.",
}

_SENT: Final = (
    "Sent by worker processes, at least once, signed after [Standard Webhooks](https://standardwebhooks.com)."
)


def webhooks(schemas: Schemas) -> Object:
    """The messages to standing endpoints."""
    summary = "An event of a task or a workflow, sent to a standing endpoint"
    return {"task": {"post": _message("hear_of_task", summary, (*ENDPOINT_EVENTS, TEST_EVENT), schemas)}}


def callbacks(operation: Operation, schemas: Schemas) -> Object:
    """The messages to the callbacks of the tasks that an operation submits."""
    where = CALLBACK_URLS.get(operation.body)
    if where is None:
        return {}
    message = _message(f"hear_of_{operation.id}", "An event of the task, sent to its callback", WEBHOOK_EVENTS, schemas)
    return {"step": {where: {"post": message}}}


def _message(id: str, summary: str, events: Sequence[str], schemas: Schemas) -> Object:
    required = list(Message.__struct_fields__)
    types = {"type": {"enum": [message_type(event) for event in events]}}
    return {
        "operationId": id,
        "tags": ["webhooks"],
        "summary": summary,
        "description": _SENT,
        "security": [],
        "parameters": [
            {"name": name, "in": "header", "required": True, **about} for name, about in SIGNATURE_HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"allOf": [schemas.of(Message)], "properties": types, "required": required}
                }
            },
        },
        "responses": {
            status: {"description": text, **({"headers": _RETRY_AFTER} if status == "default" else {})}
            for status, text in ANSWERS.items()
        },
    }


_RETRY_AFTER: Final = {"Retry-After": text("Seconds, or a date. The message isn't sent again before that.")}


def submissions(generic: Schema, types: Sequence[TypeInfo], taken: Collection[str] = ()) -> dict[str, Schema]:
    """The components of these types, and `Submission`, which is a task of any of them.

    `generic` is the schema of TaskSpec, `taken` are the names of the other components.
    """
    types = [info for info in types if _is_fit(info)]
    if not types:
        return {"Submission": {"title": "Submission", "$ref": REFS + "TaskSpec"}}
    tasks = {info.name: f"{info.name}.task" for info in types}
    components = hoisted(types, {*taken, "Submission", *tasks.values()})
    for info in types:
        components[tasks[info.name]] = _submission(generic, info, REFS + payload_name(info))
    refs = {info.name: f"{REFS}{info.name}.task" for info in types}
    components["Submission"] = {
        "title": "Submission",
        "description": "A task of one of the current types. `TaskSpec` is the form for any type.",
        "oneOf": [{"$ref": ref} for ref in refs.values()],
        "discriminator": {"propertyName": "type", "mapping": refs},
    }
    return components


def _is_fit(info: TypeInfo) -> bool:
    """Whether a type's schema can be part of the document. If not, the log says so."""
    try:
        hoisted([info], ())
        _takes_nothing(info.schema)
    except UNREADABLE as error:
        tell_unreadable(f"the schema of the task type {info.name!r}", error)
        return False
    return True


def _submission(generic: Schema, info: TypeInfo, payload: str) -> Schema:
    """The schema of a submission of this type. A payload of null counts as an empty payload."""
    may_be_empty = _takes_nothing(info.schema)
    properties: Schema = dict(generic["properties"])
    properties["type"] = {"const": info.name}
    properties["payload"] = {"anyOf": [{"$ref": payload}, {"type": "null"}]} if may_be_empty else {"$ref": payload}
    required = ["type"] if may_be_empty else ["type", "payload"]
    schema = {**generic, "title": f"{info.name}.task", "properties": properties, "required": required}
    schema["description"] = info.description or f"A task of the type {info.name}."
    return schema


def _takes_nothing(schema: Any) -> bool:
    validator = validator_of(schema)
    return validator is None or validator.is_valid({})


Found = tuple[str, str, Operation, Guarded]

FILES: Final = {
    "docs.js": "text/javascript",
    "docs.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
"""The files that the page /docs loads, with their media types."""

TAGS: Final = {
    "tasks": "Submit, read, list, cancel, stop and retry tasks.",
    "workflows": "Submit, read, list, stop, retry and remove groups of named tasks.",
    "schedules": "Make, read, list, pause, run and remove schedules, which submit tasks at given times.",
    "operations": "Change many tasks at once: preview, start, read, list, cancel and undo operations.",
    "keys": "API keys, tickets and the audit.",
    "events": "Follow tasks. `/asyncapi.json` describes the WebSocket at `/ws`.",
    "webhooks": "Standing endpoints that receive events of tasks, and the messages to them.",
    "fleet": "Queues, task types and worker processes.",
    "failures": "Groups of failures, and their retry in growing steps.",
    "findings": "What is wrong now.",
    "service": "Health checks, metrics and this document.",
}

PARAMETERS: Final[Mapping[str, Object]] = {
    "id": text("A task's id.", pattern="^[A-Za-z0-9_-]{1,200}$"),
    "workflow": text("A workflow's id.", pattern="^[A-Za-z0-9_-]{1,200}$"),
    "schedule": text(
        "A schedule's name; `project:name` for callers without a project.", pattern="^[A-Za-z0-9_.:-]{1,129}$"
    ),
    "file": text("A file of the page."),
    "version": text("The version of the page's files, as the page names it."),
    "operation": text("An operation's id.", pattern="^[A-Za-z0-9_-]{1,200}$"),
    "key": text("An API key's id.", pattern="^[0-9a-z]{12}$"),
    "webhook": text("A webhook's id, `callback` or `callback.PROJECT`.", minLength=1),
    "delivery": text("A delivery's id.", minLength=1),
    "name": text("A queue's name.", minLength=1),
    "queue": text("A queue's name.", pattern="^[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*$", maxLength=64),
    "pool": text("A worker pool's name.", minLength=1),
    "fingerprint": text("The fingerprint of a group of failures.", pattern="^[0-9a-f]{12}$"),
}
"""The parameters in paths."""
_names_in: Final = re.compile(r"{(\w+)}").findall

SECURITY: Final[Mapping[str, Object]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "tp_<id>_<secret>",
        "description": "An API key. It isn't needed if the server runs without keys.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A single-use ticket, for sockets and streams of browsers, which can't send a key.",
    },
}


def describe(
    routes: Iterable[BaseRoute], types: Sequence[TypeInfo], *, needs_key: bool = True, prefix: str = ""
) -> Object:
    """The document of these routes and task types. `prefix`: the path prefix at which clients reach the server."""
    found = list(operations(routes))
    schemas = Schemas([operation for _, _, operation, _ in found])
    schemas.components.update(submissions(schemas.components["TaskSpec"], types, schemas.components))
    paths: dict[str, Object] = defaultdict(dict)
    problems: Object = {}
    bodies = examples(types)
    for path, method, operation, guarded in found:
        paths[path][method.lower()] = _operation(path, operation, guarded, schemas, bodies.get(operation.body, {})) | {
            "security": _security(guarded.access, needs_key),
            "responses": responses(operation, guarded.access, schemas, partial(_links, found, path), problems),
        }
    return {
        "openapi": "3.1.1",
        "info": _INFO | {"version": own_version()},
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
        "All bodies are JSON in UTF-8. Times are RFC 3339 in UTC; names of durations end in `_s`, and their unit is"
        " seconds. Members without a value are left out. `HEAD` works wherever `GET` does; other methods get 405.\n\n"
        "The document contains the current task types: read it again when workers with new types have started."
    ),
    "license": {"name": "MIT", "identifier": "MIT"},
}


def operations(routes: Iterable[BaseRoute]) -> Iterator[Found]:
    """Path, method, declaration and guarded handler of every declared operation. HEAD is part of GET."""
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            for method in METHODS:
                guarded = route.endpoint.guarded.get(method)
                if guarded is not None and guarded.operation is not None:
                    yield route.path_format, method, guarded.operation, guarded


def _operation(path: str, operation: Operation, guarded: Guarded, schemas: Schemas, examples: Object) -> Object:
    """What an operation is and reads."""
    summary, description = _texts(guarded.handler.__doc__ or "")
    queries = {} if operation.query is None else schemas.parameters(operation.query)
    body: Object = {}
    if operation.body is not None:
        content = {"schema": schemas.of(operation.body), **({"examples": examples} if examples else {})}
        body = {"required": not operation.body_optional, "content": {JSON: content}}
    document: Object = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": summary,
        "description": description,
        "parameters": [
            *({"name": name, "in": "path", "required": True, **PARAMETERS[name]} for name in _names_in(path)),
            *({"name": name, "in": "query", "required": False, **_parameter(queries[name])} for name in queries),
            *({"name": name, "in": "header", **HEADERS[name]} for name in operation.headers),
        ],
        "callbacks": callbacks(operation, schemas),
        "requestBody": body,
    }
    return {member: value for member, value in document.items() if value}


def _security(access: Access, needs_key: bool) -> list[Object]:
    """How a caller authenticates. A server that needs no key still refuses a wrong one."""
    if access.public:
        return []
    scopes = [] if access.scope is None else [access.scope.value]
    ways: list[Object] = [{"bearer": scopes}, *([{"ticket": scopes}] if access.ticket else [])]
    return ways if needs_key else [{}, *ways]


def _parameter(schema: Object) -> Object:
    """The description and the schema of a parameter."""
    schema = dict(schema)
    description = schema.pop("description", None)
    return {"schema": schema} if description is None else {"description": description, "schema": schema}


def _texts(docstring: str) -> tuple[str, str]:
    """The summary and the description in a docstring `METHOD /path: summary`, and paragraphs."""
    first, _, rest = docstring.partition("\n\n")
    summary = " ".join(first.partition(": ")[2].split())
    return summary[:1].upper() + summary[1:], "\n\n".join(" ".join(part.split()) for part in rest.split("\n\n")).strip()


def _links(found: Iterable[Found], path: str, answer: Answer) -> Object:
    """The operations on what an operation at `path` has created: those of the paths below, by its id."""
    made = answer.made or (path if "Location" in answer.headers else "")
    below = re.compile(re.escape(made) + r"/{(\w+)}(/\w+)?")
    return {
        operation.id: {"operationId": operation.id, "parameters": {match[1]: f"$response.body#{answer.made_id}"}}
        for other, _, operation, _ in found
        if made and (match := below.fullmatch(other))
    }
