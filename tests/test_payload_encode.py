"""The encoder for the values of users: JSON of every supported value, and refusals with the place of the fault."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import json
import math
import types
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpool.tasks.payload.encode import DEEPEST, encode_value, json_value, strict_json_value
from taskpool.tasks.payload.faults import NotJson


class Text(str): ...


class Whole(int): ...


class Number(float): ...


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.StrEnum):
    RED = "red"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Ratio(enum.Enum):
    HALF = Number(0.5)


@dataclass
class Place:
    x: Any
    y: Any = 2


class Box(msgspec.Struct, rename="camel", tag=True, omit_defaults=True):
    long_name: Any
    other_name: Any = 3


class Pair(msgspec.Struct, array_like=True, tag="pair"):
    a: Any
    b: Any = 2


class Point(NamedTuple):
    x: Any
    y: Any = 0


@attrs.define
class Crate:
    a: Any


class Model(pydantic.BaseModel):
    size: Any = pydantic.Field(alias="theSize")
    secret: pydantic.SecretStr = pydantic.SecretStr("hidden")
    other: int = pydantic.Field(3, validation_alias="theOther")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.other * 2


class Models(pydantic.RootModel[list[Model]]): ...


class Exact(pydantic.BaseModel):
    price: Decimal = pydantic.Field(allow_inf_nan=True)


class Scalar:
    """What a numpy scalar looks like from outside."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        return self.value


Scalar.__module__ = "numpy"


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError


class Broken(collections.UserDict[str, int]):
    def items(self) -> Any:
        raise Unreadable


AN_ID = UUID("d8a1e5f0-0b44-4a52-9b3c-6f6f2f0f1a11")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Text("a"), "a"),
        (Whole(3), 3),
        (Number(1.5), 1.5),
        ([Level.LOW, Colour.RED, Rights.READ | Rights.WRITE, Ratio.HALF], [1, "red", 3, 0.5]),
        (Path("a/b"), "a/b"),
        ({"paths": (Path("a"),)}, {"paths": ["a"]}),
        (AN_ID, str(AN_ID)),
        (Decimal("1.50"), "1.50"),
        (b"ab", "YWI="),
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05Z"),
        (dt.timedelta(days=1), "P1D"),
        (Place(Text("a")), {"x": "a", "y": 2}),
        ([Box(Path("p")), Box(1)], [{"type": "Box", "longName": "p"}, {"type": "Box", "longName": 1}]),
        (Box(Path("p"), 4), {"type": "Box", "longName": "p", "otherName": 4}),
        (Pair(Whole(1)), ["pair", 1, 2]),
        (Point(Text("a")), ["a", 0]),
        (Crate(Path("c")), {"a": "c"}),
        (msgspec.Raw(b'{"a": [1]}'), {"a": [1]}),
        ([msgspec.Raw(b"1"), Text("x")], [1, "x"]),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"k": 1}.keys(), ["k"]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (collections.ChainMap({"a": 1}), {"a": 1}),
        ({Text("a"): 1, Whole(2): 2, 3: 3, Level.LOW: 4, Colour.RED: 5, dt.date(2026, 1, 2): 6, None: 7},
         {"a": 1, "2": 2, "3": 3, "1": 4, "red": 5, "2026-01-02": 6, "null": 7}),
        ([Scalar(3), Scalar([1.5, 2.5])], [3, [1.5, 2.5]]),
        ("NaN null Infinity", "NaN null Infinity"),
        ([None, {"nan": None, "-inf": "]}{["}], [None, {"nan": None, "-inf": "]}{["}]),
        (2**70, 2**70),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_json_can_hold_goes_through_as_a_result_and_as_a_payload(value: Any, expected: Any) -> None:
    assert json.loads(encode_value(value)) == expected
    assert json.loads(json.dumps(json_value(value))) == expected
    assert json.loads(json.dumps(strict_json_value(value))) == expected


def test_a_pydantic_model_is_a_result_as_it_writes_itself_and_a_payload_as_it_reads_itself() -> None:
    model = Model.model_validate({"theSize": Path("a"), "theOther": 4})

    written = {"theSize": "a", "secret": "**********", "other": 4, "double": 8}
    read = {"theSize": "a", "secret": "hidden", "theOther": 4}
    assert json.loads(encode_value([model])) == [written]
    assert json_value({"m": model}) == {"m": read}
    assert json_value(Models([model])) == [read]
    assert Model.model_validate_json(json.dumps(json_value(model))).secret.get_secret_value() == "hidden"


def nested(levels: int, of: str = "list") -> Any:
    value: Any = "]}" * 100
    for _ in range(levels):
        value = [value] if of == "list" else {"[": value}
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


@pytest.mark.parametrize(
    ("value", "pointer", "detail"),
    [
        (math.nan, "", "nan is not JSON"),
        ({"a/b": [1, {"~": -math.inf}]}, "/a~1b/1/~0", "-inf is not JSON"),
        (Place(1, math.nan), "/y", "nan is not JSON"),
        ([Box(math.inf)], "/0/longName", "inf is not JSON"),
        (Pair(1, math.nan), "/2", "nan is not JSON"),
        (Point(1, math.nan), "/1", "nan is not JSON"),
        (Crate(math.nan), "/a", "nan is not JSON"),
        ({"s": frozenset([math.nan])}, "/s/0", "nan is not JSON"),
        ([Decimal("NaN")], "/0", "NaN is not JSON"),
        ({"d": Decimal("-Infinity")}, "/d", "-Infinity is not JSON"),
        ({math.nan: 1}, "", "a key, an object of the type float: nan is not JSON"),
        ([{-math.inf: 1}], "/0", "a key, an object of the type float: -inf is not JSON"),
        ([msgspec.Raw(b"{bad")], "/0", "an object of the type Raw can't be turned into JSON"),
        ({"a": msgspec.Raw(b"1,2")}, "/a", "an object of the type Raw can't be turned into JSON"),
        (msgspec.Raw(b'"\xff"'), "", "an object of the type Raw can't be turned into JSON"),
        ({math.nan: Whole(1)}, "", "a key, an object of the type float: nan is not JSON"),
        ([{Decimal("NaN"): 1}], "/0", "a key, an object of the type Decimal: NaN is not JSON"),
        ([Number("nan")], "/0", "nan is not JSON"),
        ([Scalar(math.nan)], "/0", "nan is not JSON"),
        ([Scalar(None)], "/0", "NaT is not JSON"),
        ([Model.model_validate({"theSize": math.nan})], "/0/theSize", "nan is not JSON"),
        ([Exact(price=Decimal("NaN"))], "/0/price", "NaN is not JSON"),
        ({"a": ["\ud800"]}, "/a/0", "the text has half of a surrogate pair"),
        ({"a": {"\ud800": 1}}, "/a", "a key, an object of the type str: the text has half of a surrogate pair"),
        ({"a": [1, 1j]}, "/a/1", "an object of the type complex has no JSON form"),
        ([object()], "/0", "an object of the type object has no JSON form"),
        ({"f": print}, "/f", "an object of the type builtin_function_or_method has no JSON form"),
        ((each for each in "ab"), "", "an object of the type generator has no JSON form"),
        ({(1, 2): 3}, "", "a key is an object of the type tuple; keys must be text or numbers"),
        ([{1: Whole(1), "1": 2}], "/0/1", "two keys of this object are the same in JSON"),
        ([Broken(a=1)], "/0", "an object of the type Broken can't be turned into JSON: Unreadable"),
        (endless(), "/0/again", "the list contains itself"),
        (nested(DEEPEST + 1), "/0" * DEEPEST, "nested more than 64 levels deep"),
        (nested(DEEPEST + 1, "dict"), "/[" * DEEPEST, "nested more than 64 levels deep"),
        (nested(100_000), "/0" * DEEPEST, "nested more than 64 levels deep"),
    ],
)  # fmt: skip
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, pointer: str, detail: str) -> None:
    for encode in (encode_value, strict_json_value):
        with pytest.raises(NotJson) as refused:
            encode(value)

        assert refused.value.pointer == pointer
        assert refused.value.detail.startswith(detail)


@pytest.mark.parametrize("of", ["list", "dict"])
def test_the_deepest_value_that_is_allowed_goes_through(of: str) -> None:
    assert json.loads(encode_value(nested(DEEPEST, of))) == nested(DEEPEST, of)


ODD_TEXT = st.text(alphabet='\\"[]{}:naNifty,', max_size=12)
KEYS = ODD_TEXT | st.integers(-3, 3)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats()
    | ODD_TEXT
    | st.decimals(allow_nan=True)
    | st.dates()
    | st.uuids()
    | st.binary(max_size=4)
    | st.timedeltas()
    | st.sampled_from([*Level, *Colour, *Rights])
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=3).filter(lambda value: len({str(key) for key in value}) == len(value))
        | st.builds(Place, inner, inner)
        | st.builds(Box, inner, inner)
        | st.builds(Pair, inner)
        | st.builds(Point, inner, SCALARS)
        | st.builds(Crate, inner)
    )


def has_no_json_number(value: Any) -> bool:
    """Whether there is a NaN or an infinity in a value: found in another way than the encoder does."""
    if isinstance(value, Decimal):
        return not value.is_finite()
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(has_no_json_number, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_no_json_number, value))
    if isinstance(value, Place | Crate | msgspec.Struct):
        names = getattr(value, "__match_args__", ()) or value.__struct_fields__  # type: ignore[union-attr]
        return any(has_no_json_number(getattr(value, name)) for name in names)
    return False


@given(st.recursive(SCALARS, containers, max_leaves=12))
def test_the_quick_way_and_the_careful_way_agree(value: Any) -> None:
    if has_no_json_number(value):
        with pytest.raises(NotJson):
            encode_value(value)
        with pytest.raises(NotJson):
            strict_json_value(value)
        return

    encoded = encode_value(value)

    assert encoded == msgspec.json.encode(value)
    assert msgspec.json.encode(strict_json_value(value)) == encoded
    assert msgspec.json.encode(json_value(value)) == encoded


@given(st.integers(DEEPEST - 2, DEEPEST + 2), st.lists(ODD_TEXT, max_size=3))
def test_the_depth_is_counted_by_brackets_outside_of_texts(levels: int, texts: list[str]) -> None:
    value: Any = list(texts)
    for level in range(levels - 1):
        value = [*texts, value, *texts] if level % 2 else {"k": value, **dict.fromkeys(texts, 1)}

    if levels <= DEEPEST:
        assert encode_value(value) == msgspec.json.encode(value)
    else:
        with pytest.raises(NotJson, match="nested more than 64 levels deep"):
            encode_value(value)
