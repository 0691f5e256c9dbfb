"""Tasks whose payloads have every kind of nested type, for the clients that are generated from the OpenAPI document."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Literal

import msgspec
import pydantic

from taskpool import Task, TaskContext, task


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclass
class Address:
    """Where a parcel goes to."""

    street: str
    colour: Colour = Colour.RED
    note: str | None = None
    tags: list[str] = field(default_factory=list)


class Node(msgspec.Struct):
    """A tree."""

    name: str
    children: list[Node] = []
    parent: Node | None = None


class Circle(msgspec.Struct, tag="circle"):
    radius: float


class Square(msgspec.Struct, tag="square"):
    side: float = 1.0


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=1)
    price: float | None = None


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    friend: Dog | Cat | None = None


class Order(pydantic.BaseModel):
    items: list[Item]
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")] | None = None


@task("parcels.send", max_attempts=2)
def send(
    to: Address, size: Size = Size.SMALL, back: Address | None = None, on: date | None = None, width: int = 80
) -> dict[str, Any]:
    """Send a parcel."""
    return {"street": to.street, "colour": to.colour, "size": size, "width": width, "back": back}


@task("tree.count")
def count(root: Node, extra: dict[str, Node] | None = None) -> int:
    """Count the nodes of a tree."""
    return 1 + sum(count(child) for child in root.children)


@task("area")
def area(shape: Circle | Square, factor: int | str = 1) -> float:
    return shape.radius if isinstance(shape, Circle) else shape.side


class Mail:
    @dataclass
    class Address:
        """Where a mail goes to."""

        mailbox: str
        host: str = "localhost"


@task("mail")
def mail(to: Mail.Address, colour: Colour = Colour.BLUE) -> Any:
    """Has an Address of its own."""
    return [to, colour]


@task("until_stopped")
def until_stopped(ctx: TaskContext, seconds: float = 60) -> None:
    """Run until it is asked to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ctx.raise_if_cancelled()
        time.sleep(0.01)


class OrderTask(Task):
    """Take an order."""

    type = "order"
    Payload = Order

    def run(self, ctx: TaskContext) -> int:
        return len(self.payload.items)
