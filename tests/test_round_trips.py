"""What goes in comes out: a value of every kind is submitted, arrives equal in the task, and is a result as JSON."""

from __future__ import annotations

import datetime as dt
import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Required, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from taskpool import InvalidPayload, TaskSpec, TaskStatus, task
from taskpool.client import values
from taskpool.payload.encode import encode_value
from taskpool.tasktype import task_type
from taskpool.testing import InlinePool

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    HI = "hi"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Base:
    a: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    a: int
    tags: list[str] = field(default_factory=list)


@dataclass
class Child(Base):
    when: dt.date = dt.date(2026, 1, 2)
    inner: Frozen = field(default_factory=lambda: Frozen(a=1))
    anything: object = None


class Total(TypedDict, total=False):
    a: Required[int]
    b: str


class Point(NamedTuple):
    x: int
    y: str = "y"


class Node(msgspec.Struct):
    value: int
    next: Node | None = None


class Circle(msgspec.Struct, tag="circle", rename="camel"):
    outer_radius: float


class Square(msgspec.Struct, tag="square"):
    side: float


@attrs.define
class Crate:
    a: int
    path: Path


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(alias="itemName")
    price: Decimal = Decimal("1.5")
    where: Path = Path("w")

    @pydantic.field_validator("name")
    @classmethod
    def no_digits(cls, name: str) -> str:
        assert not any(letter.isdigit() for letter in name)
        return name


class Box(pydantic.BaseModel, Generic[T]):
    content: T
    children: list[Box[T]] = []


class Items(pydantic.RootModel[list[Item]]): ...


AN_ID = UUID("d8a1e5f0-0b44-4a52-9b3c-6f6f2f0f1a11")
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
ITEM = Item(itemName="hat")
ITEM_JSON = {"itemName": "hat", "price": "1.5", "where": "w"}

KINDS: list[tuple[Any, Any, Any]] = [
    (object, {"a": [1, None]}, {"a": [1, None]}),
    (dict[str, object], {"a": [1]}, {"a": [1]}),
    (Sequence[int], [1, 2], [1, 2]),
    (Mapping[str, int], {"a": 1}, {"a": 1}),
    (Iterable[int], [1, 2], [1, 2]),
    (Optional[int], None, None),  # noqa: UP045
    (int | None, 3, 3),
    (Literal["a", 1], "a", "a"),
    (Annotated[int, msgspec.Meta(ge=1)], 1, 1),
    (Annotated[int, pydantic.Field(gt=0)], 1, 1),
    (UserId, UserId(3), 3),
    (tuple[int, ...], (1, 2), [1, 2]),
    (tuple[int, str], (1, "a"), [1, "a"]),
    (set[str], {"a"}, ["a"]),
    (frozenset[int], frozenset([1]), [1]),
    (dict[int, str], {1: "a"}, {"1": "a"}),
    (dict[UUID, int], {AN_ID: 1}, {str(AN_ID): 1}),
    (dt.datetime, NOON, "2026-01-02T12:00:00Z"),
    (dt.date, NOON.date(), "2026-01-02"),
    (dt.time, dt.time(12, 30), "12:30:00"),
    (dt.timedelta, dt.timedelta(hours=1), "PT3600S"),
    (UUID, AN_ID, str(AN_ID)),
    (Decimal, Decimal("1.50"), "1.50"),
    (bytes, b"ab", "YWI="),
    (Path, Path("a/b"), "a/b"),
    (Path | None, Path("a"), "a"),
    (list[Path], [Path("a")], ["a"]),
    (Colour, Colour.RED, "red"),
    (Level, Level.LOW, 1),
    (Word, Word.HI, "hi"),
    (Rights, Rights.READ, 1),
    (Child, Child(1), {"a": 1, "when": "2026-01-02", "inner": {"a": 1, "tags": []}, "anything": None}),
    (Total, {"a": 1}, {"a": 1}),
    (Point, Point(1), [1, "y"]),
    (Node, Node(1, Node(2)), {"value": 1, "next": {"value": 2, "next": None}}),
    (Circle | Square, Circle(1.5), {"type": "circle", "outerRadius": 1.5}),
    (Crate, Crate(1, Path("p")), {"a": 1, "path": "p"}),
    (Item, ITEM, ITEM_JSON),
    (list[Item], [ITEM], [ITEM_JSON]),
    (dict[str, Item | None], {"a": ITEM, "b": None}, {"a": ITEM_JSON, "b": None}),
    (Box[int], Box[int](content=1, children=[Box[int](content=2)]),
     {"content": 1, "children": [{"content": 2, "children": []}]}),
    (Items, Items([ITEM]), [ITEM_JSON]),
]  # fmt: skip


def named(kind: tuple[Any, Any, Any]) -> str:
    return str(kind[0]).rpartition(".")[2].strip("'>")


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_a_value_of_every_kind_goes_in_and_comes_out(kind: tuple[Any, Any, Any]) -> None:
    annotation, value, as_json = kind
    seen = []

    def keep(given: Any) -> Any:
        seen.append(given)
        return given

    keep.__annotations__["given"] = annotation
    marked = task("keep")(keep)

    with InlinePool(marked, builtins=False) as pool:
        one = pool.run("keep", {"given": value})
        (many,) = pool.add_tasks([TaskSpec(type="keep", payload={"given": value})])
        pool.run_all()
        result = pool.get(many.id).result

    assert (one.status, one.payload, one.result) == (TaskStatus.DONE, {"given": as_json}, as_json)
    assert result == as_json
    assert seen == [value, value]
    assert [type(each) for each in seen] == [type(value)] * 2


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_the_client_submits_the_same_json_and_a_default_is_published_so(kind: tuple[Any, Any, Any]) -> None:
    annotation, value, as_json = kind

    def keep(given: Any = value) -> Any: ...

    keep.__annotations__["given"] = annotation
    of = task_type(task("keep")(keep))
    body = msgspec.json.decode(values.submission(TaskSpec(type="keep", payload={"given": value})))

    assert body["payload"] == {"given": as_json}
    assert of.schema["properties"]["given"]["default"] == as_json
    assert of.decode(body["payload"])["given"] == value
    assert of.decode({})["given"] == value
    assert msgspec.json.decode(encode_value({"given": value})) == body["payload"]


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        (Child(1, anything=[math.nan]), "/payload/given/anything/0"),
        ([Decimal("NaN")], "/payload/given/0"),
        ([Decimal("-Infinity")], "/payload/given/0"),
        ({"a": {"b": Square(math.inf)}}, "/payload/given/a/b/side"),
        (Box[float](content=math.nan), "/payload/given/content"),
        ([object()], "/payload/given/0"),
        ({"a": "\ud800"}, "/payload/given/a"),
    ],
)
def test_a_payload_that_is_not_json_is_refused_with_its_place(value: Any, pointer: str) -> None:
    @task("keep")
    def keep(given: object) -> None: ...

    with InlinePool(keep, builtins=False) as pool, pytest.raises(InvalidPayload) as refused:
        pool.add_task("keep", {"given": value})
    with pytest.raises(InvalidPayload) as refused_by_client:
        values.submission(TaskSpec(type="keep", payload={"given": value}))

    assert [fault.pointer for fault in refused.value.errors] == [pointer]
    assert refused_by_client.value.errors == refused.value.errors


def test_a_default_of_a_dataclass_comes_out_though_it_did_not_go_in() -> None:
    @task("child")
    def child(given: Child, others: dict[str, list[Child]]) -> Any:
        return [given, others]

    with InlinePool(child, builtins=False) as pool:
        record = pool.run("child", {"given": {"a": 1}, "others": {"x": [{"a": 2}]}})

    whole = {"when": "2026-01-02", "inner": {"a": 1, "tags": []}, "anything": None}
    assert record.result == [{"a": 1, **whole}, {"x": [{"a": 2, **whole}]}]


def test_a_whole_payload_may_be_a_model() -> None:
    @task("item")
    def item(itemName: str, price: Decimal, where: Path) -> str:
        return f"{itemName} {price}"

    with InlinePool(item, builtins=False) as pool:
        assert pool.run("item", ITEM).result == "hat 1.5"


def test_a_limit_that_has_no_effect_is_refused() -> None:
    def after(value: int) -> int:
        return value

    def run(a: Any) -> None: ...

    run.__annotations__["a"] = Annotated[int, pydantic.AfterValidator(after)]

    with pytest.raises(Exception, match="AfterValidator in Annotated has no effect here"):
        task_type(task("x")(run))
