"""The OpenAPI document: every route is in it, it is valid, and it changes with the task types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest
from openapi_spec_validator import validate
from redis import Redis
from starlette.applications import Starlette
from starlette.routing import Route

from api.app import create_app
from api.http.declarations import READ, Guarded
from api.openapi.answers import HEADERS
from api.openapi.document import TAGS, describe
from api.openapi.schemas import with_refs
from api.routing import Resource
from taskpool import Registry, task
from taskpool.errors import PROBLEM_PREFIX, PROBLEMS
from taskpool.settings import Settings
from taskpool.types import TypeInfo
from taskpool.validation import LONGEST_S
from tests.api_client import api, publish_types
from tests.keys import bearer, make_key

NOBODY_DECLARES = {
    "method-not-allowed",
    "invalid-http",
    "headers-timeout",
    "headers-too-large",
    "too-many-connections",
}
"""Kinds that no operation answers with: there is none, or not yet."""


@pytest.fixture
def app() -> Starlette:
    return create_app(Settings(redis_url="redis://nowhere"))


def handlers(app: Starlette) -> list[tuple[str, str, Guarded]]:
    """Path, method and handler of every route."""
    found = []
    for route in app.routes:
        if isinstance(route, Route):
            assert isinstance(route.endpoint, Resource), f"{route.path} isn't a Resource"
            found += [
                (route.path_format, method, guarded)
                for method, guarded in route.endpoint.guarded.items()
                if method != "HEAD"
            ]
    return found


def document(app: Starlette, types: list[TypeInfo] | None = None) -> Any:
    """The document as a client reads it."""
    if types is None:
        types = [task_type.info() for task_type in Registry(builtins=True)]
    return msgspec.json.decode(msgspec.json.encode(describe(app.routes, types)))


def test_every_handler_declares_what_it_takes_and_answers(app: Starlette) -> None:
    assert [f"{method} {path}" for path, method, guarded in handlers(app) if guarded.operation is None] == []


def test_every_handler_says_in_its_docstring_which_route_it_is_and_what_it_does(app: Starlette) -> None:
    wrong = [
        f"{method} {path}: {guarded.handler.__doc__}"
        for path, method, guarded in handlers(app)
        if not re.match(re.escape(f"{method} {path}") + r": \S", guarded.handler.__doc__ or "")
    ]

    assert wrong == []


def test_every_route_is_in_the_document(app: Starlette) -> None:
    described = {(path, method.upper()) for path, methods in document(app)["paths"].items() for method in methods}

    assert described == {(path, method) for path, method, _ in handlers(app)}


@pytest.mark.parametrize("builtins", [True, False])
def test_the_document_is_valid(app: Starlette, builtins: bool) -> None:
    types = [task_type.info() for task_type in Registry(builtins=builtins)]

    validate(document(app, types))


def test_what_declarations_name_exists(app: Starlette) -> None:
    declared = [operation for _, _, guarded in handlers(app) if (operation := guarded.operation)]

    assert len({operation.id for operation in declared}) == len(declared)
    assert {operation.tag for operation in declared} == TAGS.keys()
    assert {kind for operation in declared for kind in operation.kinds(READ)} == PROBLEMS.keys() - NOBODY_DECLARES
    assert {name for each in declared for answer in each.answers.values() for name in answer.headers} <= HEADERS.keys()
    assert {name for operation in declared for name in operation.headers} <= HEADERS.keys()


def test_every_problem_is_described_by_its_type(app: Starlette) -> None:
    described = document(app)
    responses = described["paths"]["/tasks/{id}/stop"]["post"]["responses"]
    problems = described["components"]["responses"]

    assert responses["409"] == {"$ref": "#/components/responses/task-conflict"}
    schema = problems["task-conflict"]["content"]["application/problem+json"]["schema"]
    assert schema["properties"]["type"] == {"enum": [PROBLEM_PREFIX + "task-conflict"]}
    assert responses["503"] == {"$ref": "#/components/responses/redis-unavailable"}
    assert "Retry-After" in problems["redis-unavailable"]["headers"]


def test_no_field_of_an_answer_is_described_as_null(app: Starlette) -> None:
    task = document(app)["components"]["schemas"]["Task"]

    assert task["properties"]["error"]["type"] == "string"
    assert set(task["required"]) == {
        "id", "type", "status", "queue", "payload", "attempt", "max_attempts", "seq",
    }  # fmt: skip


def test_the_fields_of_a_submission_say_what_they_mean_and_take(app: Starlette) -> None:
    fields = document(app)["components"]["schemas"]["echo.task"]["properties"]

    silent = [name for name, schema in fields.items() if "description" not in schema]
    assert silent == ["type", "payload"]
    assert fields["timeout_s"]["anyOf"][0] == {"type": "number", "minimum": 0.001, "maximum": LONGEST_S}
    assert fields["tags"]["items"]["pattern"] == "^[A-Za-z0-9_.:-]{1,64}$"


async def test_what_a_server_asks_for_depends_on_whether_it_needs_keys(redis_url: str) -> None:
    async with api(redis_url) as client:
        without = (await client.get("/openapi.json")).json()["paths"]
    key = make_key(redis_url)
    async with api(redis_url) as client:
        with_keys = (await client.get("/openapi.json", headers=bearer(key))).json()["paths"]

    assert without["/tasks"]["post"]["security"] == [{}, {"bearer": ["tasks:write"]}]
    assert with_keys["/tasks"]["post"]["security"] == [{"bearer": ["tasks:write"]}]
    assert with_keys["/livez"]["get"]["security"] == []


class Point(msgspec.Struct):
    """A place."""

    x: int
    nearest: Point | None = None


@task("plot")
def plot(points: list[Point], label: str = "#/$defs/Point") -> None:
    """Draw some points."""


def test_a_type_nested_in_a_payload_is_a_component(app: Starlette) -> None:
    registry = Registry()
    registry.add(plot)

    described = document(app, [task_type.info() for task_type in registry])

    validate(described)
    payload = described["components"]["schemas"]["plot.payload"]
    place = "#/components/schemas/Point"
    assert payload["properties"]["points"]["items"] == {"$ref": place}
    assert payload["properties"]["label"] == {"type": "string", "description": 'Default: `"#/$defs/Point"`.'}
    assert {"$ref": place} in described["components"]["schemas"]["Point"]["properties"]["nearest"]["anyOf"]
    assert "$defs" not in payload
    assert described["components"]["schemas"]["plot.task"]["required"] == ["type", "payload"]
    assert "$schema" not in payload


class Inner:
    @dataclass
    class Point:
        """Another type of the same name."""

        latitude: float


@task("fly")
def fly(to: Inner.Point) -> None:
    """Has a Point of its own."""


@task("draw")
def draw(point: Point) -> None:
    """Has the Point that `plot` has."""


class Circle(msgspec.Struct, tag="circle"):
    radius: float = 1.0


class Square(msgspec.Struct, tag="square"):
    side: float


@task("shape")
def shape(a: Circle | Square, b: Literal["x", 1, None] = None, ctx: Any = None, **others: int) -> None: ...


class Problem(msgspec.Struct):
    """A type with the name of one of the document's own."""

    x: int


@task("solve")
def solve(problem: Problem, nothing: list[Any] = [], colour: str | None = None) -> None: ...  # noqa: B006


def components(app: Starlette, *tasks: Any) -> Any:
    registry = Registry()
    for each in tasks:
        registry.add(each)
    described = document(app, [task_type.info() for task_type in registry])
    validate(described)
    return described["components"]["schemas"]


def test_types_of_one_name_share_a_component_if_they_are_alike_and_only_then(app: Starlette) -> None:
    alike = components(app, plot, draw)
    different = components(app, plot, fly)

    assert {name for name in alike if "Point" in name} == {"Point"}
    assert alike["draw.payload"]["properties"]["point"] == {"$ref": "#/components/schemas/Point"}
    assert {name for name in different if "Point" in name} == {"plot.Point", "fly.Point"}
    assert different["fly.payload"]["properties"]["to"] == {"$ref": "#/components/schemas/fly.Point"}
    nearest = different["plot.Point"]["properties"]["nearest"]
    assert {"$ref": "#/components/schemas/plot.Point"} in nearest["anyOf"]


def test_a_type_never_takes_the_place_of_one_of_the_documents_own(app: Starlette) -> None:
    found = components(app, solve)

    assert "detail" in found["Problem"]["properties"]
    assert found["solve.Problem"]["properties"].keys() == {"x"}
    assert found["solve.payload"]["properties"]["problem"] == {"$ref": "#/components/schemas/solve.Problem"}


def test_the_mapping_of_a_union_names_components(app: Starlette) -> None:
    found = components(app, shape)["shape.payload"]["properties"]["a"]

    assert set(found["discriminator"]["mapping"].values()) == {
        "#/components/schemas/Circle",
        "#/components/schemas/Square",
    }


def test_no_component_says_what_generators_misread(app: Starlette) -> None:
    found = components(app, shape, solve, plot, *Registry(builtins=True))

    def look(node: Any, where: str) -> Iterator[str]:
        if isinstance(node, list):
            for at, each in enumerate(node):
                yield from look(each, f"{where}/{at}")
        if not isinstance(node, dict):
            return
        is_schema = not where.endswith("properties")
        if is_schema and "default" in node:
            yield f"{where}: default"
        if is_schema and node.get("type") == "array" and "items" not in node:
            yield f"{where}: items"
        if is_schema and len({type(each) for each in node.get("enum", ())}) > 1:
            yield f"{where}: enum"
        for name, each in node.items():
            if name in ("properties", "items") and each in (True, False):
                yield f"{where}: {name}"
            if where.endswith("properties") and not isinstance(each, dict):
                yield f"{where}/{name}: {each}"
            if name not in ("enum", "const", "examples", "mapping", "required"):
                yield from look(each, f"{where}/{name}")

    assert list(look(found, "")) == []
    assert found["shape.payload"]["properties"]["ctx"] == {"not": {}}


@pytest.mark.parametrize(
    ("schema", "moved"),
    [
        ({"$ref": "a"}, {"$ref": "b"}),
        ({"properties": {"$ref": {"$ref": "a"}}}, {"properties": {"$ref": {"$ref": "b"}}}),
        ({"properties": {"default": {"$ref": "a"}}}, {"properties": {"default": {"$ref": "b"}}}),
        ({"default": {"$ref": "a"}}, {"default": {"$ref": "a"}}),
        ({"const": {"$ref": "a"}, "items": {"$ref": "a"}}, {"const": {"$ref": "a"}, "items": {"$ref": "b"}}),
        ({"prefixItems": [True, {"$ref": "a"}]}, {"prefixItems": [True, {"$ref": "b"}]}),
        (
            {"discriminator": {"propertyName": "p", "mapping": {"x": "a"}}},
            {"discriminator": {"propertyName": "p", "mapping": {"x": "b"}}},
        ),
    ],
)
def test_references_are_moved_where_schemas_stand_and_nowhere_else(schema: Any, moved: Any) -> None:
    assert with_refs(schema, lambda ref: "b") == moved


async def test_the_document_has_the_task_types_that_are_known_at_that_moment(redis_url: str) -> None:
    async with api(redis_url) as client:
        before = (await client.get("/openapi.json")).json()
        publish_types(redis_url)

        after = (await client.get("/openapi.json")).json()

    assert before["components"]["schemas"]["Submission"]["$ref"] == "#/components/schemas/TaskSpec"
    assert after["components"]["schemas"]["long_task.task"]["properties"]["type"] == {"const": "long_task"}
    assert {"$ref": "#/components/schemas/echo.task"} in after["components"]["schemas"]["Submission"]["oneOf"]


async def test_a_type_that_takes_no_tasks_any_more_is_not_in_the_document(redis_url: str, redis: Redis) -> None:
    publish_types(redis_url)
    redis.delete("taskpool:pool:pool-1")

    async with api(redis_url) as client:
        within_the_grace = (await client.get("/openapi.json")).json()
    async with api(redis_url, type_grace_s=0) as client:
        after_it = (await client.get("/openapi.json")).json()

    assert "echo.task" in within_the_grace["components"]["schemas"]
    assert "echo.task" not in after_it["components"]["schemas"]
