"""Examples of submissions: one of each type whose payload can be guessed, and none that would be refused."""

from __future__ import annotations

from typing import Any

import pytest

from api.http.submission import Batch
from api.openapi.document import examples
from taskpool.types import TaskSpec, TypeInfo
from tests.api_client import api, publish_types

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]}


def payload_of(schema: Any) -> Any:
    """The payload of the example of a type with this schema; None if there is no example."""
    found = examples([TypeInfo(name="t", queue="default", schema=schema)])[TaskSpec]
    return found["t"]["value"]["payload"] if found else None


async def test_every_example_in_the_document_is_taken(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        for path, known in (("/tasks", 5), ("/tasks/batch", 1), ("/workflows", 1)):
            examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
            answers = [await client.post(path, json=example["value"]) for example in examples.values()]

            assert [answer.status_code for answer in answers] == [202] * known


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        ({"type": "object"}, {}),
        ({"examples": [{"a": 1}], "type": "object"}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}, {"a": "x"}),
        ({"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}, {"a": 7}),
        ({"type": "object", "properties": {"a": {"type": "number", "minimum": 5}}, "required": ["a"]}, {"a": 5}),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/B"}}},
                "required": ["a"],
                "$defs": {"B": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
            },
            {"a": [False, False]},
        ),
    ],
)
def test_what_is_required_is_there_and_no_more(schema: Any, payload: Any) -> None:
    assert payload_of(schema) == payload


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"pattern": "^b{3}$", "type": "string"}}, "required": ["a"]},
        {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
        {"$ref": "#/$defs/Nobody"},
        {"$ref": "https://elsewhere.example/schema"},
        {"type": "object", "properties": {"a": {"$ref": 1}}, "required": ["a"]},
        {"not": {}},
    ],
)
def test_a_payload_that_cannot_be_guessed_has_no_example(schema: Any) -> None:
    assert payload_of(schema) is None


def test_without_types_there_is_no_batch() -> None:
    assert examples([])[Batch] == {}
