"""An operation as a value: a `Call` is one Redis command and how to read its reply; a `Plan` is several, in steps.

Either store runs them, the one that blocks and the one that awaits, so that no operation is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

Part = str | bytes | int | float


class Call(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One command and the function that turns Redis's raw reply into a value (or raises for it)."""

    command: Sequence[Part]
    """Its parts; or bytes: packed already, as Redis reads it."""
    read: Callable[[Any], T]
    script: bytes | None = None
    """The text of the script an EVALSHA names: sent instead when Redis doesn't know it (any more)."""
    blocks_s: float = 0.0
    """How long the command itself may block, on top of the usual time for a reply."""
    again: bool = False
    """Sending it twice is as good as once: after a lost connection it may be repeated."""


Plan = Generator[Sequence[Call[Any]], list[Any], T]
"""Steps of calls: each yield sends its calls in one round trip and gets their values back. An empty step sends nothing:
in an event loop it lets others have their turn, which a plan owes them every SLICE_S."""

SLICE_S: Final = 0.005


def one(call: Call[T]) -> Plan[T]:
    """A plan of a single call."""
    (value,) = yield (call,)
    return value  # type: ignore[no-any-return]
