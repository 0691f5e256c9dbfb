"""How a task is declared, and what its type has: the schema, the decoding of payloads, the call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict

import jsonschema_rs
import msgspec
import pydantic
import pytest

from taskpool import ConfigurationError, DuplicateType, FieldError, InvalidPayload, Secret, Task, TaskContext, task
from taskpool.tasks.payload.signature import DIALECT
from taskpool.tasks.task_type import TaskType, task_type
from taskpool.testing import RecordingSink
from taskpool.types import TypeInfo

if TYPE_CHECKING:
    from taskpool import TaskContext as OnlyForTheTypeChecker


class Colour(Enum):
    RED = "red"


@dataclass
class Size:
    width: int
    unit: str = "px"


class Item(pydantic.BaseModel):
    name: str
    parts: list[Item] = []


class Order(msgspec.Struct):
    id: int


class Options(TypedDict, total=False):
    fast: bool


class Plain:
    """A payload without any library."""

    width: int
    height: int = 5
    anything = None
    count: ClassVar[int] = 3

    def area(self) -> int:
        return self.width * self.height


CTX = TaskContext(RecordingSink(), id="t1", type="x")


def made(function: Callable[..., Any], name: str = "x", **options: Any) -> TaskType:
    return task_type(task(name, **options)(function))


def call(of: TaskType, payload: Any) -> Any:
    return of.bind(of.decode(payload), CTX)()


def document(**of: Any) -> dict[str, Any]:
    return {"$schema": DIALECT, "title": "x", "type": "object", "required": [], "additionalProperties": False, **of}


def test_a_decorated_function_stays_the_same_and_has_a_complete_task_type() -> None:
    def resize(ctx: TaskContext, url: str, width: int = 80) -> dict[str, Any]:
        """Resize a picture,
        keeping its proportions.

        More of it.
        """
        return {"by": ctx.id, "url": url, "width": width}

    marked = task("resize", queue="images", timeout_s=60, max_attempts=3, result_ttl_s=10)(resize)
    of = task_type(marked)

    line = inspect.getsourcelines(resize)[1]
    assert marked is resize
    assert marked(CTX, "u", width=1) == {"by": "t1", "url": "u", "width": 1}
    assert of.where == f"{Path(__file__).relative_to(Path.cwd())}:{line}"
    assert of.is_async is False
    assert of.info() == TypeInfo(
        name="resize",
        queue="images",
        schema=document(
            title="resize",
            properties={"url": {"type": "string"}, "width": {"type": "integer", "default": 80}},
            required=["url"],
        ),
        description="Resize a picture, keeping its proportions.",
        timeout_s=60,
        max_attempts=3,
        result_ttl_s=10,
        is_async=False,
    )
    assert call(of, {"url": "u"}) == {"by": "t1", "url": "u", "width": 80}


def test_what_a_type_leaves_open_is_the_settings() -> None:
    of = made(lambda: None)

    assert (of.queue, of.options.timeout_s, of.options.max_attempts, of.options.result_ttl_s) == (
        "default",
        None,
        None,
        None,
    )
    assert of.info(max_attempts=4).max_attempts == 4


def any_json(value) -> None: ...  # type: ignore[no-untyped-def]
def many(sizes: list[Size], colour: Colour = Colour.RED) -> None: ...
def choice(mode: Literal["fast", "good"] | None = None, when: datetime | None = None) -> None: ...
def bounded(n: Annotated[int, msgspec.Meta(ge=1, description="How many.")]) -> None: ...
def filed(at: Path = Path("a")) -> None: ...
def mapped(counts: dict[int, float]) -> None: ...
def modelled(item: Item) -> None: ...
def defaulted(tags: list[str] = ["a"], size: Size = Size(1)) -> None: ...  # noqa: B006, B008
def several(many: tuple[int, ...] = (1,), unique: frozenset[str] = frozenset({"a"})) -> None: ...
def extra(a: int, **others: int) -> None: ...
def extra_of_any_kind(ctx: Any, **others: Any) -> None: ...
def by_position(ctx: TaskContext, a: int, /, b: int = 2) -> None: ...


SIZE = {
    "title": "Size",
    "type": "object",
    "properties": {"width": {"type": "integer"}, "unit": {"type": "string", "default": "px"}},
    "required": ["width"],
}
ITEM = "tests.test_task.Item.Item"


@pytest.mark.parametrize(
    ("function", "schema"),
    [
        (lambda: None, document(properties={})),
        (any_json, document(properties={"value": {}}, required=["value"])),
        (
            many,
            document(
                properties={
                    "sizes": {"type": "array", "items": {"$ref": "#/$defs/Size"}},
                    "colour": {"$ref": "#/$defs/Colour", "default": "red"},
                },
                required=["sizes"],
                **{"$defs": {"Size": SIZE, "Colour": {"title": "Colour", "enum": ["red"]}}},
            ),
        ),
        (
            choice,
            document(
                properties={
                    "mode": {"anyOf": [{"enum": ["fast", "good"]}, {"type": "null"}], "default": None},
                    "when": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                }
            ),
        ),
        (
            bounded,
            document(properties={"n": {"type": "integer", "minimum": 1, "description": "How many."}}, required=["n"]),
        ),
        (filed, document(properties={"at": {"type": "string", "default": "a"}})),
        (
            mapped,
            document(
                properties={"counts": {"type": "object", "additionalProperties": {"type": "number"}}},
                required=["counts"],
            ),
        ),
        (
            modelled,
            document(
                properties={"item": {"$ref": f"#/$defs/{ITEM}"}},
                required=["item"],
                **{
                    "$defs": {
                        ITEM: {
                            "title": "Item",
                            "type": "object",
                            "properties": {
                                "name": {"title": "Name", "type": "string"},
                                "parts": {
                                    "title": "Parts",
                                    "type": "array",
                                    "items": {"$ref": f"#/$defs/{ITEM}"},
                                    "default": [],
                                },
                            },
                            "required": ["name"],
                        }
                    }
                },
            ),
        ),
        (
            defaulted,
            document(
                properties={
                    "tags": {"type": "array", "items": {"type": "string"}, "default": ["a"]},
                    "size": {"$ref": "#/$defs/Size", "default": {"width": 1, "unit": "px"}},
                },
                **{"$defs": {"Size": SIZE}},
            ),
        ),
        (
            several,
            document(
                properties={
                    "many": {"type": "array", "items": {"type": "integer"}, "default": [1]},
                    "unique": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "default": ["a"]},
                }
            ),
        ),
        (
            extra,
            document(properties={"a": {"type": "integer"}}, required=["a"], additionalProperties={"type": "integer"}),
        ),
        (extra_of_any_kind, document(properties={"ctx": False}, additionalProperties=True)),
        (
            by_position,
            document(properties={"a": {"type": "integer"}, "b": {"type": "integer", "default": 2}}, required=["a"]),
        ),
    ],
)
def test_the_schema_comes_from_the_annotations(function: Callable[..., Any], schema: dict[str, Any]) -> None:
    of = made(function)

    assert of.schema == schema
    jsonschema_rs.validator_for(of.schema)


def echo_all(**given: Any) -> dict[str, Any]:
    return given


@pytest.mark.parametrize(
    ("function", "payload", "arguments"),
    [
        (many, {"sizes": [{"width": 3}]}, {"sizes": [Size(3)], "colour": Colour.RED}),
        (many, {"sizes": [], "colour": "red"}, {"sizes": [], "colour": Colour.RED}),
        (bounded, {"n": 5.0}, {"n": 5}),
        (mapped, {"counts": {"1": 2}}, {"counts": {1: 2.0}}),
        (filed, {"at": "b/c"}, {"at": Path("b/c")}),
        (modelled, {"item": {"name": "n", "parts": [{"name": "p"}]}}, {"item": Item(name="n", parts=[Item(name="p")])}),
        (choice, {"when": "2026-11-23T10:00:00"}, {"mode": None, "when": datetime(2026, 11, 23, 10)}),
        (extra, {"a": 1, "b": 2.0}, {"a": 1, "b": 2}),
        (any_json, {"value": [None, {"a": 1.5}]}, {"value": [None, {"a": 1.5}]}),
    ],
)
def test_a_payload_the_schema_accepts_is_decoded_to_arguments(
    function: Callable[..., Any], payload: Any, arguments: dict[str, Any]
) -> None:
    of = made(function)

    decoded = of.decode(payload)

    assert decoded == arguments
    assert {key: type(value) for key, value in decoded.items()} == {key: type(v) for key, v in arguments.items()}
    assert jsonschema_rs.is_valid(of.schema, payload)


@pytest.mark.parametrize(
    ("function", "payload", "pointer", "detail"),
    [
        (many, {}, "/payload/sizes", "this field is required"),
        (many, {"sizes": [{"width": 1}, {"width": "2"}]}, "/payload/sizes/1/width", "Expected `int`, got `str`"),
        (many, {"sizes": [], "colour": "blue"}, "/payload/colour", "must be one of 'red'"),
        (many, {"sizes": [{}]}, "/payload/sizes/0/width", "this field is required"),
        (bounded, {"n": 0}, "/payload/n", "Expected `int` >= 1"),
        (bounded, {"n": 1.5}, "/payload/n", "Expected `int`, got `float`"),
        (bounded, {"n": 0.0}, "/payload/n", "Expected `int` >= 1"),
        (bounded, {"n": True}, "/payload/n", "Expected `int`, got `bool`"),
        (bounded, {"n": 1, "a/b~": 2}, "/payload/a~1b~0", "unknown field"),
        (bounded, [1], "/payload", "Expected `object`, got `array`"),
        (bounded, None, "/payload", "Expected `object`, got `null`"),
        (mapped, {"counts": {"1": "x"}}, "/payload/counts", "Expected `float`, got `str` (in one of its values)"),
        (mapped, {"counts": {"x": 1}}, "/payload/counts", "Expected `int`, got `str` as a key"),
        (filed, {"at": 3}, "/payload/at", "Expected `str`, got `int`"),
        (choice, {"when": "soon"}, "/payload/when", "must be a time as RFC 3339 writes it, like 2026-11-24T03:00:00Z"),
        (modelled, {"item": {"name": 3}}, "/payload/item/name", "Input should be a valid string"),
        (extra, {"a": 1, "b": "2"}, "/payload/b", "Expected `int`, got `str`"),
        (extra_of_any_kind, {"ctx": 1}, "/payload/ctx", "this name is the context's"),
    ],
)  # fmt: skip
def test_a_payload_that_does_not_fit_is_refused_with_a_pointer(
    function: Callable[..., Any], payload: Any, pointer: str, detail: str
) -> None:
    of = made(function)

    with pytest.raises(InvalidPayload) as refused:
        of.decode(payload)

    assert refused.value.errors == (FieldError(pointer, detail),)
    assert str(refused.value) == f"the payload doesn't fit the task type 'x': {pointer}: {detail}"


@pytest.mark.parametrize("payload_class", [Plain, Item, dict[str, int]])
def test_half_a_surrogate_pair_is_refused_and_breaks_nothing(payload_class: Any) -> None:
    class Text(Task):
        type = "x"
        Payload = payload_class

        def run(self, ctx: TaskContext) -> None: ...

    with pytest.raises(InvalidPayload):
        task_type(Text).decode({"\ud800": "\ud800"})


def test_pydantic_reports_all_faults_of_a_payload() -> None:
    class Shop(Task):
        type = "shop"
        Payload = Item

        def run(self, ctx: TaskContext) -> None: ...

    with pytest.raises(InvalidPayload) as refused:
        task_type(Shop).decode({"parts": [{"name": 1}]})

    assert refused.value.errors == (
        FieldError("/payload/name", "Field required"),
        FieldError("/payload/parts/0/name", "Input should be a valid string"),
    )
    assert str(refused.value).endswith("/payload/name: Field required (and 1 more)")


def test_each_payload_gets_its_own_copy_of_a_mutable_default() -> None:
    of = made(defaulted)
    first, second = of.decode({}), of.decode({})

    first["tags"].append("b")
    first["size"].width = 9

    assert second == {"tags": ["a"], "size": Size(1)}
    assert of.decode({}) == second


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (lambda a, ctx: (a, ctx), (1, CTX)),
        (lambda a, *, ctx: (a, ctx), (1, CTX)),
        (lambda a, ctx, /: (a, ctx), (1, CTX)),
        (lambda a: a, 1),
        (lambda a, /, **others: (a, others), (1, {})),
    ],
)
def test_the_context_goes_where_it_is_asked_for(function: Callable[..., Any], result: Any) -> None:
    assert call(made(function), {"a": 1}) == result


def test_the_context_is_known_by_its_annotation_even_when_only_a_type_checker_imports_it() -> None:
    def by_type(context: TaskContext, a: int) -> Any:
        return context, a

    def hidden(context: OnlyForTheTypeChecker, a: int) -> Any:
        return context, a

    hidden.__annotations__["context"] = "taskpool.TaskContext"

    assert call(made(by_type), {"a": 1}) == (CTX, 1)
    assert call(made(hidden), {"a": 1}) == (CTX, 1)


async def test_a_coroutine_function_gives_a_coroutine_also_behind_a_wrapper() -> None:
    async def fetch(a: int) -> int:
        return a + 1

    @functools.wraps(fetch)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return fetch(*args, **kwargs)

    for function in (fetch, wrapped):
        of = made(function)

        assert of.is_async
        assert await call(of, {"a": 1}) == 2


class Big(Task):
    """Do big things."""

    type = "big"
    queue = "slow"
    timeout_s = 5
    max_attempts = 2
    result_ttl_s = 60

    class Payload:
        n: int = 1

    def run(self, ctx: TaskContext) -> Any:
        return self.id, self.type, self.payload.n, ctx


class Small(Task):
    type = "small"

    async def run(self) -> Any:  # type: ignore[override]  # a task may do without the context
        return self.payload


def test_a_class_is_a_task_type_with_its_attributes() -> None:
    of = task_type(Big)

    assert of.info() == TypeInfo(
        name="big",
        queue="slow",
        schema=document(title="big", properties={"n": {"type": "integer", "default": 1}}),
        description="Do big things.",
        timeout_s=5,
        max_attempts=2,
        result_ttl_s=60,
    )
    assert of.where.endswith(f"test_task.py:{inspect.getsourcelines(Big)[1]}")
    assert call(of, {"n": 7}) == ("t1", "big", 7, CTX)


async def test_a_class_may_run_async_without_context_and_without_payload() -> None:
    of = task_type(Small)

    assert of.is_async
    assert of.schema == document(title="small", properties={})
    assert msgspec.structs.asdict(await call(of, {})) == {}
    with pytest.raises(InvalidPayload):
        of.decode({"a": 1})


@pytest.mark.parametrize(
    ("payload_class", "payload", "decoded", "is_open"),
    [
        (Item, {"name": "n"}, Item(name="n"), True),
        (Order, {"id": 1}, Order(1), True),
        (Size, {"width": 1}, Size(1), True),
        (Options, {"fast": True}, {"fast": True}, True),
        (dict[str, int], {"a": 1}, {"a": 1}, True),
        (list[int], [1], [1], True),
        (Any, "text", "text", True),
        (Plain, {"width": 2}, {"width": 2, "height": 5, "anything": None}, False),
        (None, {}, {}, False),
    ],
)
def test_a_payload_may_be_any_of_the_usual_classes(
    payload_class: Any, payload: Any, decoded: Any, is_open: bool
) -> None:
    class Any_(Task):
        type = "x"
        Payload = payload_class

        def run(self, ctx: TaskContext) -> Any:
            return self.payload

    of = task_type(Any_)
    result = call(of, payload)

    assert decoded == (result if is_open else msgspec.structs.asdict(result))
    assert of.schema.get("additionalProperties") is not False or not is_open
    assert jsonschema_rs.is_valid(of.schema, payload)


def test_a_plain_payload_class_keeps_its_methods() -> None:
    class Area(Task):
        type = "area"
        Payload = Plain

        def run(self, ctx: TaskContext) -> int:
            return int(self.payload.area())

    assert call(task_type(Area), {"width": 4}) == 20


def stars(*args: int) -> None: ...
def twice(ctx: TaskContext, other: TaskContext) -> None: ...
def unknown(a: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def foreign(a: complex) -> None: ...
def secretly_foreign(a: Secret[complex]) -> None: ...
def unjson(a: Any = object()) -> None: ...  # noqa: B008
def nan(a: float = float("nan")) -> None: ...
def ambiguous(a: Order | Size) -> None: ...


def produce() -> Iterator[int]:
    yield 1


class NoName(Task):
    def run(self, ctx: TaskContext) -> None: ...


class NoRun(Task):
    type = "x"


class NeedsArguments(Task):
    type = "x"

    def __init__(self, a: int) -> None: ...

    def run(self, ctx: TaskContext) -> None: ...


class WrongRun(Task):
    type = "x"

    def run(self, ctx: TaskContext, more: int) -> None: ...  # type: ignore[override]


class UnjsonPayload(Task):
    type = "x"

    class Payload(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        a: Any = object()

    def run(self, ctx: TaskContext) -> None: ...


class UnjsonDataclass(Task):
    type = "x"

    @dataclass
    class Payload:
        a: float = float("inf")

    def run(self, ctx: TaskContext) -> None: ...


@pytest.mark.parametrize(
    ("source", "options", "fault"),
    [
        (stars, {}, "takes *args, but a payload has named fields"),
        (twice, {}, "two parameters would receive the context: ctx, other"),
        (unknown, {}, "the annotation of 'a', 'NoSuchType', can't be resolved: name 'NoSuchType' is not defined"),
        (foreign, {}, "the payload has no JSON form: type <class 'complex'> is not supported"),
        (secretly_foreign, {}, "the payload has no JSON form: type complex is not supported"),
        (unjson, {}, "the default of 'a' isn't JSON: <object object at"),
        (nan, {}, "the default of 'a' isn't JSON: nan"),
        (ambiguous, {}, "the payload has no JSON form: Type unions may not contain"),
        (produce, {}, "can't be a generator"),
        (any_json, {"name": "9x"}, "'9x' can't be the name of a task type"),
        (any_json, {"name": "a b"}, "'a b' can't be the name of a task type"),
        (any_json, {"name": "a" * 65}, "can't be the name of a task type"),
        (any_json, {"queue": "a:b"}, "queue must be the name of a queue: "),
        (any_json, {"timeout_s": 0}, "timeout_s must be a number of seconds from 0.001 to 316224000, not 0"),
        (any_json, {"timeout_s": float("inf")}, "timeout_s must be a number of seconds from 0.001 to 316224000, "),
        (any_json, {"max_attempts": 0}, "max_attempts must be a whole number from 1 to 1000, not 0"),
        (any_json, {"max_attempts": True}, "max_attempts must be a whole number from 1 to 1000, not True"),
        (any_json, {"result_ttl_s": 1.5}, "result_ttl_s must be a whole number from 1 to 316224000, not 1.5"),
        (NoName, None, "the task class NoName has no name"),
        (NoRun, None, "the task class NoRun has no run(self, ctx)"),
        (NeedsArguments, None, "NeedsArguments() must work without arguments"),
        (WrongRun, None, "WrongRun.run must be run(self, ctx), not run(self, ctx:"),
        (UnjsonPayload, None, "the payload has no JSON form: Default value"),
        (UnjsonDataclass, None, "a default in the payload isn't JSON"),
        (Plain, None, "not a task"),
    ],
)  # fmt: skip
def test_what_would_fail_at_run_time_is_refused_at_load_with_its_place(
    source: Any, options: dict[str, Any] | None, fault: str
) -> None:
    line = inspect.getsourcelines(source)[1]

    with pytest.raises(ConfigurationError) as refused:
        task_type(source if options is None else task(**{"name": "x", **options})(source))

    assert str(refused.value).startswith(f"tests/test_task.py:{line}: ")
    assert fault in str(refused.value)


def test_the_decorator_refuses_what_no_registry_would_find() -> None:
    with pytest.raises(ConfigurationError, match=r'write @task\("any_json"\), with a name'):
        task(any_json)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"derive from taskpool\.Task"):
        task("x")(Plain)
    with pytest.raises(ConfigurationError, match=r"the method Plain.area can't be the task 'x'"):
        task("x")(Plain.area)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("a", DuplicateType, "the task type 'a' is registered twice: at .*:2 and at .*:4"),
        ("b", ConfigurationError, "two tasks, 'a' and 'b', are functions named 'f', at .*:2 and at .*:4"),
    ],
)
def test_a_second_task_function_of_one_name_in_one_module_is_refused(name: str, error: type, text: str) -> None:
    source = f'from taskpool import task\n@task("a")\ndef f(): ...\n@task("{name}")\ndef f(): ...\n'

    with pytest.raises(error, match=text):
        exec(compile(source, "tasks.py", "exec"), {"__spec__": object()})
