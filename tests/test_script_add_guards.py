"""add.lua with a guard: what must hold when tasks are added. Here that of an attempt which adds tasks."""

from __future__ import annotations

from typing import Any

import pytest

from taskpool.redis import keys, scripts
from taskpool.redis.add_script import attempt_guard
from taskpool.redis.scripts import Added, NewTask
from taskpool.types import TaskStatus
from tests.states import World, new_task, race

S = TaskStatus


def add(world: World, *tasks: NewTask, by: str = "a") -> Added:
    return world.run(scripts.add(tasks, guard=attempt_guard(world.running[by])))


def retry(world: World, id: str = "a") -> None:
    """End the running attempt, and begin the next."""
    running = world.running[id]
    assert (
        world.run(scripts.crash(id, running.attempt_id, "default", error="died", failure={}, max_crashes=9)) == "queued"
    )
    assert world.claim(attempt_id=running.attempt_id + "+").id == id


@pytest.mark.parametrize("options", [{}, {"delay_s": 500}, {"unique_key": "k"}, {"tags": ["t"], "front": True}])
def test_an_attempt_adds_what_anyone_adds_and_notes_it(world: World, options: dict[str, Any]) -> None:
    world.start("a")
    plain = world.run(scripts.add([new_task("b", **options)]))
    expected = world.snapshot()
    world.redis.flushall()
    world.start("a")

    added = add(world, new_task("b", **options))

    found = dict(world.snapshot())
    assert added.statuses == plain.statuses
    assert {name: found.pop(name) for name in [*found] if name not in expected} == {
        "taskpool:added:a": {"b"},
        "taskpool:added:a expires": f"now+{keys.ADDED_TTL_S} s",
        "rq:job:b added_by": "a",
    }
    assert found == expected


def test_a_stopping_attempt_still_adds(world: World) -> None:
    world.start("a")
    assert world.run(scripts.stop("a", grace_s=5, force=False)) == "ok"

    assert add(world, new_task("b")).statuses == ("queued",)


@pytest.mark.parametrize("status", [S.QUEUED, S.IN_PROGRESS, S.DONE, S.FAILED, S.CANCELED])
def test_what_an_earlier_attempt_added_is_answered_and_not_added_again(world: World, status: TaskStatus) -> None:
    world.start("a", max_attempts=5)
    add(world, new_task("b"))
    if status is S.CANCELED:
        world.cancel("b")
    elif status is not S.QUEUED:
        running = world.claim(attempt_id="b1")
        if status is not S.IN_PROGRESS:
            world.finish(running, status)
    retry(world)
    before = world.snapshot()

    added = add(world, new_task("b", tags=["other"]))

    assert added.existing == {0: "b"}
    assert added.statuses == (world.redis.hget("rq:job:b", "status").decode(),)
    assert world.since(before) == {}


def test_what_an_earlier_attempt_added_and_was_removed_since_is_not_added_again(world: World) -> None:
    world.start("a", max_attempts=5)
    add(world, new_task("b"))
    world.finish(world.claim(attempt_id="b1"))
    assert world.run(scripts.purge("b")) == "ok"
    retry(world)
    before = world.snapshot()

    added = add(world, new_task("b"))

    assert (added.existing, added.statuses) == ({0: "b"}, ("gone",))
    assert world.since(before) == {}


def test_a_list_that_has_grown_adds_only_what_is_new(world: World) -> None:
    world.start("a", max_attempts=5)
    world.run(scripts.add([new_task("p")]))
    add(world, new_task("b", depends_on=["p"]), new_task("c", unique_key="k"))
    world.cancel("p")
    world.run(scripts.purge("p"))
    retry(world)

    added = add(world, new_task("b", depends_on=["p"]), new_task("c", unique_key="k"), new_task("d"))

    assert added.existing == {0: "b", 1: "c"}
    assert added.statuses[2] == "queued"
    assert world.redis.smembers("taskpool:added:a") == {b"b", b"c", b"d"}


def test_a_holder_of_the_unique_key_is_answered_as_long_as_it_holds_it(world: World) -> None:
    world.add("holder", unique_key="k")
    world.start("a", max_attempts=5)
    task = new_task("b", unique_key="k", on_conflict="return")

    assert add(world, task).existing == {0: "holder"}
    assert add(world, task).existing == {0: "holder"}
    world.cancel("holder")
    added = add(world, task)

    assert (added.existing, added.statuses) == ({}, ("queued",))
    assert world.redis.smembers("taskpool:added:a") == {b"b"}


def test_a_refusal_stores_nothing(world: World) -> None:
    world.add("holder", unique_key="k")
    world.start("a")
    before = world.snapshot()

    assert add(world, new_task("b", depends_on=["ghost"])) == Added(unknown_dependency="ghost")
    assert add(world, new_task("b"), new_task("c", unique_key="k")).conflict == (1, "holder", "queued")

    assert world.since(before) == {}


def test_the_note_goes_with_the_record(world: World) -> None:
    world.start("a")
    add(world, new_task("b"))
    world.finish(world.running["a"])

    assert world.run(scripts.purge("a")) == "ok"

    assert not world.redis.exists("taskpool:added:a")


def test_of_two_attempts_only_the_one_with_the_lease_adds(world: World, redis_url: str) -> None:
    old = world.start("a", max_attempts=5)
    retry(world)
    new = world.running["a"]

    answers = race(
        redis_url,
        20,
        lambda n: scripts.add([new_task(f"old{n}")], guard=attempt_guard(old)),
        lambda n: scripts.add([new_task(f"new{n}")], guard=attempt_guard(new)),
    )

    assert all(first == Added(broken_guard="lost") and second.statuses == ("queued",) for first, second in answers)
    assert world.redis.scard("taskpool:added:a") == 20
