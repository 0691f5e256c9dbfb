"""Two task types for the requests that schemathesis makes up: one of any form, and one that takes nothing."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from taskpool import task


class Item(msgspec.Struct, forbid_unknown_fields=True):
    """What was ordered."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=10)]
    pieces: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


@task("order")
def order(items: list[Item], colour: Literal["red", "blue"] | None = None) -> int:
    """Counts the pieces."""
    print("counting", colour)
    return sum(item.pieces for item in items)


@task("nothing")
def nothing() -> None:
    """Does nothing."""
