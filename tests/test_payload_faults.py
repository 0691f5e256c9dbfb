"""The texts of faults: a wrong choice names the allowed ones, wherever it is; times have an example."""

from __future__ import annotations

from datetime import date, datetime, time
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from taskpool.errors import FieldError
from taskpool.tasks.payload.faults import MOST_CHOICES, field_errors


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Wall(msgspec.Struct):
    colour: Colour | None = None
    several: Annotated[list[Colour], Meta(max_length=5)] = []
    sizes: set[Literal[1, 2]] = set()
    named: dict[str, list[Colour]] = {}
    counts: dict[Colour, int] = {}
    pair: tuple[int, Annotated[Literal["x", "y"], Meta(description="a word")]] = (0, "x")
    next: Wall | None = None
    day: date | None = None
    hour: time | None = None
    at: Annotated[datetime, Meta(tz=True)] | None = None


def fault(document: Any, wanted: Any = Wall) -> FieldError:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(document, wanted)
    (found,) = field_errors(refused.value, "", wanted)
    return found


@pytest.mark.parametrize(
    ("document", "pointer", "detail"),
    [
        ({"colour": "?"}, "/colour", "must be one of 'red', 'blue'"),
        ({"several": ["red", "?"]}, "/several/1", "must be one of 'red', 'blue'"),
        ({"sizes": [3]}, "/sizes/0", "must be one of 1, 2"),
        ({"named": {"a": ["?"]}}, "/named", "must be one of 'red', 'blue' (in one of its values, at [0])"),
        ({"counts": {"?": 1}}, "/counts", "must be one of 'red', 'blue' as a key"),
        ({"pair": [1, "?"]}, "/pair/1", "must be one of 'x', 'y'"),
        ({"next": {"next": {"colour": "?"}}}, "/next/next/colour", "must be one of 'red', 'blue'"),
        ({"day": "?"}, "/day", "must be a date, like 2026-11-24"),
        ({"hour": "?"}, "/hour", "must be a time of day, like 03:00:00"),
        ({"at": "?"}, "/at", "must be a time as RFC 3339 writes it, like 2026-11-24T03:00:00Z"),
        ({"at": "2026-11-24T03:00:00"}, "/at", "must be a time with its zone, like 2026-11-24T03:00:00Z"),
    ],
)
def test_a_fault_names_the_allowed_values(document: Any, pointer: str, detail: str) -> None:
    assert fault(document) == FieldError(pointer, detail)


def test_a_fault_names_the_first_of_very_many_choices() -> None:
    many = Enum("many", {f"N{n}": n for n in range(MOST_CHOICES + 5)})  # type: ignore[misc]

    found = fault({"one": -1}, msgspec.defstruct("Holder", [("one", many)]))

    assert found.detail.endswith(f", {MOST_CHOICES - 1} or 5 others")


def test_a_fault_of_an_unknown_type_keeps_its_text() -> None:
    error = msgspec.ValidationError("Invalid enum value 'x' - at `$.a`")

    assert field_errors(error, "") == [FieldError("/a", "Invalid enum value 'x'")]
