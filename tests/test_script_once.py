"""Idempotency keys: a call that carries one is carried out once, and every later one is answered as the first."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskpool.redis import scripts
from taskpool.redis.add_script import ONCE_KEPT_S, Once, added_before
from taskpool.redis.calls import Call
from taskpool.redis.scripts import Added
from taskpool.types import TaskStatus
from tests.states import World, new_task, race

S = TaskStatus
ONCE = Once.of("project p", "key-1", b"{}")


def test_the_second_call_stores_nothing_and_is_answered_as_the_first(world: World) -> None:
    world.run(scripts.add([new_task("a"), new_task("b", delay_s=500)], ONCE))
    before = world.snapshot()

    added = world.run(scripts.add([new_task("c"), new_task("d", delay_s=500)], ONCE))

    assert (added.replayed, added.statuses) == (("a", "b"), ("queued", "scheduled"))
    assert world.since(before) == {}


def test_the_answer_stays_the_first_whatever_became_of_the_task(world: World) -> None:
    world.run(scripts.add([new_task("a")], ONCE))
    world.finish(world.claim())
    world.run(scripts.purge("a"))

    added = world.run(scripts.add([new_task("b")], ONCE))

    assert (added.replayed, added.statuses) == (("a",), ("queued",))


def test_the_key_is_kept_for_a_day(world: World) -> None:
    world.run(scripts.add([new_task("a")], ONCE))

    assert ONCE_KEPT_S == 24 * 3600
    assert ONCE_KEPT_S - 60 < world.redis.ttl(f"taskpool:once:{ONCE.digest}") <= ONCE_KEPT_S


def test_a_key_of_something_else_is_refused(world: World) -> None:
    world.run(scripts.add([new_task("a")], ONCE))
    before = world.snapshot()

    added = world.run(scripts.add([new_task("b")], Once.of("project p", "key-1", b"[]")))

    assert added.is_other
    assert world.since(before) == {}


@pytest.mark.parametrize("other", [Once.of("project q", "key-1", b"{}"), Once.of("project p", "key-2", b"{}")])
def test_another_callers_key_and_another_key_are_others(world: World, other: Once) -> None:
    world.run(scripts.add([new_task("a")], ONCE))

    assert world.run(scripts.add([new_task("b")], other)).replayed == ()
    assert world.snapshot()["rq:queue:default"] == ["a", "b"]


def test_a_refused_call_keeps_nothing(world: World) -> None:
    world.add("a", unique_key="k")
    before = world.snapshot()

    assert world.run(scripts.add([new_task("b", unique_key="k")], ONCE)).conflict is not None
    assert world.run(scripts.add([new_task("b", depends_on=["none"])], ONCE)).unknown_dependency == "none"
    assert world.since(before) == {}


def test_the_same_call_sent_again_is_known_as_itself(world: World) -> None:
    call = scripts.add([new_task("a"), new_task("b")], ONCE)
    world.run(call)
    before = world.snapshot()

    assert world.run(call).replayed == ("a", "b")
    assert world.since(before) == {}


def test_a_task_that_existed_already_is_returned_again_as_existing(world: World) -> None:
    world.add("a", unique_key="k")
    world.run(scripts.add([new_task("b", unique_key="k", on_conflict="return"), new_task("c")], ONCE))
    world.finish(world.claim())

    added = world.run(scripts.add([new_task("d", unique_key="k", on_conflict="return"), new_task("e")], ONCE))

    assert (added.replayed, added.existing, added.statuses) == (("a", "c"), {0: "a"}, ("queued", "queued"))


def test_the_answer_can_be_read_by_itself(world: World) -> None:
    first = world.run(scripts.add([new_task("a")], ONCE))

    added = world.run(added_before(ONCE))

    assert added is not None
    assert (added.stamp, added.statuses, added.replayed) == (first.stamp, first.statuses, ("a",))
    assert world.run(added_before(Once.of("project p", "key-1", b"[]"))) is None
    assert world.run(added_before(Once.of("project p", "key-2", b"{}"))) is None


def test_of_many_that_come_at_once_one_is_carried_out(world: World) -> None:
    def once(number: int) -> Once:
        return Once.of("", f"key-{number}", b"")

    def move(who: int) -> Callable[[int], Call[Added]]:
        return lambda number: scripts.add([new_task(f"{who}-{number}")], once(number))

    rounds = race(world.url, 30, *[move(who) for who in range(4)])

    assert world.redis.llen("rq:queue:default") == 30
    for answers in rounds:
        assert sorted(len(answer.replayed) for answer in answers) == [0, 1, 1, 1]
