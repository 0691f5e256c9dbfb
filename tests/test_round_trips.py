"""A value of every kind is submitted, arrives equal in the task, and is returned as JSON."""

from __future__ import annotations

import datetime as dt
import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, make_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, Required, TypedDict, TypeVar
from uuid import UUID

import annotated_types
import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest
from pydantic_core import core_schema

from taskpool import ConfigurationError, InvalidPayload, Task, TaskContext, TaskSpec, TaskStatus, task
from taskpool.client import values
from taskpool.tasks.payload.encode import encode_value
from taskpool.tasks.payload.json_schema import validator_of
from taskpool.tasks.task_type import task_type
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


class Text(str): ...


@dataclass
class Doubled:
    """A field that `__init__` doesn't take."""

    a: int
    double: int = field(init=False)
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.double = self.a * 2


@dataclass
class Scaled:
    a: int
    scale: InitVar[int] = 2
    b: int = field(init=False, default=0)

    def __post_init__(self, scale: int) -> None:
        self.b = self.a * scale


@dataclass
class Folder:
    """Fields that msgspec can't read by itself."""

    place: Path | int
    sizes: dict[Path, int] = field(default_factory=dict)
    inner: Doubled | None = None
    share: Annotated[int, pydantic.Field(gt=0)] = 1
    root: Path = Path("r")


class Entry(TypedDict, total=False):
    size: Required[Annotated[int, pydantic.Field(gt=0)]]
    place: Path | int


@attrs.define
class Counted:
    a: int
    seen: int = attrs.field(init=False, default=9)


@pydantic.dataclasses.dataclass
class Positive:
    a: int

    @pydantic.field_validator("a")
    @classmethod
    def above_zero(cls, a: int) -> int:
        assert a > 0
        return a


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    age: int = 1


class Hidden(pydantic.BaseModel):
    a: int
    b: int = pydantic.Field(2, exclude=True)
    secret: pydantic.SecretBytes = pydantic.SecretBytes(b"")


class Celsius:
    """A type of the user's that pydantic can read and write."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.float_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda each: each.degrees),
        )


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]


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
    (deque[int], deque([1, 2]), [1, 2]),
    (OrderedDict[str, int], OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (defaultdict[str, list[int]], defaultdict(list, a=[1]), {"a": [1]}),
    (Counter[str], Counter("aab"), {"a": 2, "b": 1}),
    (defaultdict[Path, list[Path]], defaultdict(list, {Path("a"): [Path("b")]}), {"a": ["b"]}),
    (dict[Path, int], {Path("a/b"): 1}, {"a/b": 1}),
    (dict[bool, int], {True: 1}, {"true": 1}),
    (dict[dt.date, int], {NOON.date(): 1}, {"2026-01-02": 1}),
    (dict[Colour, Path], {Colour.RED: Path("a")}, {"red": "a"}),
    (dict[Level, int], {Level.LOW: 2}, {"1": 2}),
    (dict[Text, int], {Text("a"): 1}, {"a": 1}),
    (Text, Text("a"), "a"),
    (Path | int, Path("a"), "a"),
    (Path | int, 3, 3),
    (list[Path | int | None], [Path("a"), 1, None], ["a", 1, None]),
    (Path | list[Path], [Path("a")], ["a"]),
    (Item | int, 4, 4),
    (Rights, Rights.READ | Rights.WRITE, 3),
    (Rights | None, Rights(0), 0),
    (dt.timedelta, dt.timedelta(seconds=-90), "-PT90S"),
    (Doubled, Doubled(2), {"a": 2, "double": 4, "notes": []}),
    (Doubled | int, Doubled(2), {"a": 2, "double": 4, "notes": []}),
    (Scaled, Scaled(2), {"a": 2, "b": 4}),
    (list[Folder], [Folder(Path("p"), {Path("k"): 1}, Doubled(1))],
     [{"place": "p", "sizes": {"k": 1}, "inner": {"a": 1, "double": 2, "notes": []}, "share": 1, "root": "r"}]),
    (Entry, {"size": 1, "place": Path("p")}, {"size": 1, "place": "p"}),
    (Counted, Counted(1), {"a": 1, "seen": 9}),
    (Positive | None, Positive(1), {"a": 1}),
    (dict[str, Positive], {"p": Positive(1)}, {"p": {"a": 1}}),
    (Cat | Dog, Dog(age=2), {"kind": "dog", "age": 2}),
    (list[Pet], [Dog(), Cat()], [{"kind": "dog", "age": 1}, {"kind": "cat"}]),
    (pydantic.HttpUrl, pydantic.HttpUrl("http://a.example/"), "http://a.example/"),
    (Annotated[str, pydantic.AfterValidator(str.upper)], "AB", "AB"),
    (Celsius | None, Celsius(1.5), 1.5),
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
    schema = validator_of(of.schema)
    assert schema is not None
    assert schema.is_valid(body["payload"])
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

    defaults = {"when": "2026-01-02", "inner": {"a": 1, "tags": []}, "anything": None}
    assert record.result == [{"a": 1, **defaults}, {"x": [{"a": 2, **defaults}]}]


def test_the_payload_itself_may_be_a_model() -> None:
    @task("item")
    def item(itemName: str, price: Decimal, where: Path) -> str:
        return f"{itemName} {price}"

    with InlinePool(item, builtins=False) as pool:
        assert pool.run("item", ITEM).result == "hat 1.5"


def of_type(annotation: Any) -> Any:
    def keep(given: Any) -> Any: ...

    keep.__annotations__["given"] = annotation
    return task_type(task("keep")(keep))


@pytest.mark.parametrize(
    ("annotation", "given", "pointer"),
    [
        (Positive, {"a": -1}, "/payload/given/a"),
        (list[Positive], [{"a": 1}, {"a": -1}], "/payload/given/1/a"),
        (Doubled, {"a": "x"}, "/payload/given/a"),
        (Folder, {"place": 1, "share": 0}, "/payload/given/share"),
        (Folder, {"place": 1, "inner": {"a": None}}, "/payload/given/inner/a"),
        (Folder, {}, "/payload/given/place"),
        (Entry, {"size": 0}, "/payload/given/size"),
        (Entry, {}, "/payload/given/size"),
        (Path | int, [1], "/payload/given"),
        (Path | int, 1.5, "/payload/given"),
        (deque[int], [1, "x"], "/payload/given/1"),
        (list[Pet], [{"kind": "cow"}], "/payload/given/0"),
        (Annotated[str, pydantic.Field(max_length=2)], "abc", "/payload/given"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(annotation: Any, given: Any, pointer: str) -> None:
    with pytest.raises(InvalidPayload) as refused:
        of_type(annotation).decode({"given": given})

    assert refused.value.errors[0].pointer == pointer


class Holder(msgspec.Struct):
    inner: Doubled


class PositiveHolder(msgspec.Struct):
    inner: Positive


class PathKeys(msgspec.Struct):
    sizes: dict[Path, int]


@dataclass
class Chain:
    next: Chain | None = None
    length: int = field(init=False, default=1)


@pydantic.dataclasses.dataclass
class Aliased:
    a: int = pydantic.Field(alias="b")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Path | str, "JSON can't distinguish str from Path: both are string"),
        (Folder | Item, "JSON can't distinguish Folder from Item: both are object"),
        (dict[tuple[int, int], str], "keys of the type .* can't be read"),
        (Holder, "the dataclass Doubled has a field with init=False: it can't stand inside"),
        (PositiveHolder, "the dataclass Positive has validators of pydantic: it can't stand inside"),
        (PathKeys, "keys of the type Path can't be read"),
        (Chain, "Chain.*(refers to itself and has fields that msgspec can't read|can't stand inside)"),
        (Aliased, "the field 'a' of the pydantic dataclass Aliased has an alias"),
        (msgspec.Raw, "msgspec.Raw can't be read from a payload; use Any"),
        (Annotated[deque[int], msgspec.Meta(max_length=3)], "limits have no effect on this type"),
        (Annotated[int, annotated_types.Predicate(bool)], "Predicate in Annotated has no effect here"),
    ],
)
def test_a_type_that_cannot_be_read_right_is_refused_when_it_is_loaded(annotation: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        of_type(annotation)


def test_a_field_that_init_does_not_take_may_be_left_out() -> None:
    assert of_type(Doubled).decode({"given": {"a": 3}})["given"] == Doubled(3)
    assert of_type(Scaled).decode({"given": {"a": 3, "scale": 5}})["given"].b == 15


def test_an_excluded_field_and_a_secret_of_bytes_are_submitted_as_they_are() -> None:
    model = Hidden(a=1, b=5, secret=pydantic.SecretBytes(b"abcdef"))
    body = msgspec.json.decode(values.submission(TaskSpec(type="keep", payload={"given": model})))

    assert body["payload"]["given"] == {"a": 1, "b": 5, "secret": "abcdef"}
    assert of_type(Hidden).decode(body["payload"])["given"] == model
    assert b"abcdef" not in encode_value(model)


def test_two_classes_of_one_name_keep_their_own_schemas() -> None:
    def local(kind: Any) -> Any:
        return make_dataclass("Same", [("a", kind), ("b", int, field(init=False, default=1))])

    schema = of_type(tuple[local(int), local(str)]).schema  # type: ignore[misc]

    kinds = [schema["$defs"][name]["properties"]["a"]["type"] for name in sorted(schema["$defs"])]
    assert sorted(kinds) == ["integer", "string"]


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (Doubled, Doubled(2)),
        (Scaled, Scaled(2)),
        (Positive, Positive(1)),
        (Folder, Folder(Path("p"), {Path("k"): 1})),
        (Counted, Counted(1)),
        (Entry, {"size": 1, "place": Path("p")}),
        (Child, Child(1)),
        (Cat | Dog, Dog(age=3)),
    ],
)
def test_the_payload_of_a_class_may_be_of_these_types_too(payload: Any, value: Any) -> None:
    seen = []

    class Keep(Task):
        type = "keep"
        Payload = payload

        def run(self, ctx: TaskContext) -> None:
            seen.append(self.payload)

    with InlinePool(Keep, builtins=False) as pool:
        assert pool.run("keep", value).status is TaskStatus.DONE
        with pytest.raises(InvalidPayload):
            pool.add_task("keep", {"a": "x", "size": "x", "kind": "x", "place": []})

    assert seen == [value]
    assert task_type(Keep).schema["title"] == "keep"
