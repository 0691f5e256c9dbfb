"""Token buckets in Redis, for limits that all processes share: each fills by itself, by Redis's clock."""

from __future__ import annotations

from typing import Final, NamedTuple

from taskpool.calls import Call
from taskpool.lua import Script

_take: Final = Script("take")


class Taken(NamedTuple):
    """How many tokens were taken, how many are left, and in how many seconds there are as many as are needed (0: there
    are)."""

    tokens: int
    left: int
    next_in_s: float


def take(name: str, *, rate: float, most: int, wanted: int, needed: int = 1) -> Call[Taken]:
    """Take up to `wanted` tokens out of a bucket that holds `most` and gets `rate` a second; with fewer than `needed`
    none."""
    # Sent again because the answer was lost, it takes twice: whoever it is for waits a little longer.
    return _take.call(
        (name, rate, most, wanted, needed), lambda reply: Taken(reply[0], reply[1], reply[2] / 1000), again=True
    )
