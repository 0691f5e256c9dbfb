"""The OpenAPI document as a contract: every answer is looked up in it, and what it promises is crossed off.

An answer must have a status that the document has for its operation, a media type and a body that fit, the headers
that are always there, and no others but those that every answer has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import httpx
import jsonschema_rs

Object = dict[str, Any]

METHODS: Final = ("get", "put", "post", "delete", "patch")
ON_EVERY_ANSWER: Final = frozenset(
    {
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-security-policy",
        "content-type",
        "cross-origin-resource-policy",
        "date",
        "referrer-policy",
        "server",
        "transfer-encoding",
        "vary",
        "x-accel-buffering",
        "x-content-type-options",
    }
)
"""Headers that are no part of what an operation answers: of HTTP, and of what browsers are told."""
PROBLEM: Final = "application/problem+json"
EVENTS: Final = "text/event-stream"


class Promise(NamedTuple):
    """Something that the document says of an operation: an answer `what` (a media type, the kind of a problem, an
    event of a stream, or "nothing"), or one of its headers."""

    operation: str
    status: str
    what: str


class Contract:
    """A document that keeps account of which of its promises were seen to be kept."""

    def __init__(self, document: Object) -> None:
        self.document = document
        self.operations = {
            operation["operationId"]: (path, method, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if method in METHODS
        }
        for _, _, operation in self.operations.values():
            operation["responses"] = {
                status: self._referred("responses", answer) for status, answer in operation["responses"].items()
            }
        self.kept: set[Promise] = set()
        self._closed = {name: _closed(schema) for name, schema in document["components"]["schemas"].items()}
        self._validators: dict[str, Any] = {}

    def promises(self) -> set[Promise]:
        """All that the document says of answers."""
        return {
            Promise(id, status, what)
            for id, (_, _, operation) in self.operations.items()
            for status, answer in operation["responses"].items()
            for what in _told(answer)
        }

    def check(self, id: str, answer: httpx.Response) -> None:
        """Hold an answer of this operation to the document."""
        at = f"{id} answered {answer.status_code} {answer.headers.get('content-type')}: {answer.text[:500]}"
        status = str(answer.status_code)
        responses = self.operations[id][2]["responses"]
        assert status in responses, f"{at}: no such status in the document"
        described = responses[status]
        self._check_headers(id, status, described.get("headers", {}), answer.headers, at)
        contents = described.get("content")
        if contents is None or answer.request.method == "HEAD":
            assert not answer.content, at
            self.kept |= {Promise(id, status, "nothing")} if contents is None else set()
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in contents, f"{at}: no such media type in the document"
        kind = media_type
        value: Any = answer.text
        if media_type.endswith("json"):
            value = json.loads(answer.content)
        if media_type == PROBLEM:
            kind = value["type"]
        schema = contents[media_type]["schema"]
        try:
            if media_type == EVENTS:
                self.kept |= {Promise(id, status, f"event {name}") for name in self._events(schema, value)}
            else:
                self._validator(schema).validate(value)
                self.kept.add(Promise(id, status, kind))
        except jsonschema_rs.ValidationError as fault:
            raise AssertionError(f"{at}: {fault}") from None

    def _events(self, schema: Object, text: str) -> Iterator[str]:
        """The names of the events in a stream, each held to the document."""
        assert text.startswith("retry: 2000\n")
        known = {each["properties"]["event"]["const"]: each for each in schema["oneOf"]}
        for block in text.partition("\n")[2].split("\n\n")[:-1]:
            event = {"event": "message", **dict(line.split(": ", 1) for line in block.splitlines())}
            described = known[event["event"]]
            self._validator(described).validate(event)
            self._validator(described["properties"]["data"]["contentSchema"]).validate(json.loads(event["data"]))
            yield event["event"]

    def _check_headers(self, id: str, status: str, described: Object, given: httpx.Headers, at: str) -> None:
        known = {name.lower(): (name, self._referred("headers", header)) for name, header in described.items()}
        assert set(given) - ON_EVERY_ANSWER <= known.keys(), f"{at}: headers that aren't in the document: {given}"
        for lower, (name, header) in known.items():
            assert lower in given or not header.get("required"), f"{at}: no {name}"
            if lower in given:
                schema = header["schema"]
                value = int(given[lower]) if schema.get("type") == "integer" else given[lower]
                jsonschema_rs.validate(schema, value)
                self.kept.add(Promise(id, status, f"header {name}"))

    def _referred(self, kind: str, part: Object) -> Object:
        """A part of the document, or the component of this kind that it refers to."""
        name = part.get("$ref", "").rpartition("/")[2]
        found: Object = self.document["components"][kind][name] if name else part
        return found

    def _validator(self, schema: Object) -> Any:
        name = json.dumps(schema)
        if name not in self._validators:
            whole = {"components": {"schemas": self._closed}, **schema, "unevaluatedProperties": False}
            if schema == {"type": "object"} or "additionalProperties" in schema:
                del whole["unevaluatedProperties"]
            self._validators[name] = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        return self._validators[name]


def _told(answer: Object) -> Iterator[str]:
    for name in answer.get("headers", {}):
        yield f"header {name}"
    if "content" not in answer:
        yield "nothing"
    for media_type, content in answer.get("content", {}).items():
        if media_type == PROBLEM:
            yield from content["schema"]["properties"]["type"]["enum"]
        elif media_type == EVENTS:
            yield from (f"event {each['properties']['event']['const']}" for each in content["schema"]["oneOf"])
        else:
            yield media_type


def _closed(schema: Object) -> Object:
    """The schema of an object without room for members that it doesn't name; a problem's is closed where it is used."""
    if schema.get("title") in ("Problem", "ProblemDocument") or "properties" not in schema:
        return schema
    return {"additionalProperties": False, **schema}


def templated(path: str, values: dict[str, str]) -> str:
    """The path with these in place of its names."""
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], path)
