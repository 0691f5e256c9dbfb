"""Token buckets: what is taken out, what flows in, and that no caller gets more than there is."""

from __future__ import annotations

from typing import Any

import pytest

from taskpool.redis.scripts import Taken, take
from tests.states import World, race

KEY = "taskpool:bucket:b"
SLOW = 0.001
"""Tokens a second: none comes while a test runs."""


def taken(world: World, wanted: int, *, rate: float = SLOW, most: int = 10) -> Taken:
    return world.run(take("b", rate=rate, most=most, wanted=wanted))


def left_at(world: World, tokens: float, ago_s: float) -> None:
    """Make the bucket have held so many tokens so long ago."""
    seconds, micros = world.redis.time()
    now_ms = seconds * 1000 + micros / 1000
    world.redis.set(KEY, f"{tokens} {now_ms - ago_s * 1000}")


def test_a_new_bucket_is_full(world: World) -> None:
    assert taken(world, 3) == Taken(3, 7, 0)
    assert taken(world, 3) == Taken(3, 4, 0)


def test_there_is_no_more_than_there_is(world: World) -> None:
    all_there_are = taken(world, 25)
    before = world.redis.get(KEY)

    nothing = taken(world, 1)

    assert all_there_are[:2] == (10, 0)
    assert nothing[:2] == (0, 0)
    assert nothing.next_in_s == pytest.approx(1000, abs=5)
    assert world.redis.get(KEY) == before


@pytest.mark.parametrize(
    ("tokens", "ago_s", "gets", "left"),
    [
        (0.5, 0, 0, 0),
        (0, 2010, 2, 0),  # two have come in
        (0.75, 260, 1, 0),
        (3, 5000, 4, 4),
        (9.5, 1_000_000, 4, 6),  # no more than full
        (3, -50_000, 3, 0),  # Redis's clock was set back: what is there stays there, and nothing comes
    ],
)
def test_what_flows_in_is_by_the_clock_of_redis(
    world: World, tokens: float, ago_s: float, gets: int, left: int
) -> None:
    left_at(world, tokens, ago_s)

    assert taken(world, 4)[:2] == (gets, left)


def test_parts_of_a_token_are_kept(world: World) -> None:
    left_at(world, 1.75, 0)

    last = taken(world, 1)

    assert last[:2] == (1, 0)
    assert last.next_in_s == pytest.approx(250, abs=5)


def test_a_bucket_that_is_full_again_is_forgotten(world: World) -> None:
    taken(world, 4)

    assert world.redis.ttl(KEY) == pytest.approx(4000, abs=5)


def test_a_smaller_bucket_holds_less_at_once(world: World) -> None:
    taken(world, 1)

    assert taken(world, 25, most=5)[:2] == (5, 0)


def test_many_at_once_get_each_token_once(world: World) -> None:
    def move(number: int) -> Any:
        return take(f"b{number}", rate=SLOW, most=10, wanted=4)

    for answers in race(world.url, 20, move, move, move, move):
        assert sorted(answer.tokens for answer in answers) == [0, 2, 4, 4]


def test_a_full_redis_still_counts(world: World) -> None:
    world.redis.config_set("maxmemory", 1)
    try:
        assert taken(world, 3) == Taken(3, 7, 0)
        assert taken(world, 3) == Taken(3, 4, 0)
    finally:
        world.redis.config_set("maxmemory", 0)
