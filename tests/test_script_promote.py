"""due.lua and promote.lua: what is due by Redis's clock, and the move of a scheduled task into its queue."""

from __future__ import annotations

import pytest

from taskpool.redis import scripts
from taskpool.redis.scripts import Due
from taskpool.types import TaskStatus
from tests.states import SEED, World, new_task, race
from workers import housekeeping

S = TaskStatus


def test_nothing_is_due_in_a_registry_that_is_not_there(world: World) -> None:
    assert world.run(scripts.due("rq:scheduled:default", limit=10)) == Due((), None)


def test_what_is_due_is_listed_the_oldest_first_and_the_next_one_announced(world: World) -> None:
    now_s = world.redis.time()[0]
    world.redis.zadd("z", {"old": 1, "older": 0, "new": now_s - 5, "next": now_s + 100, "later": now_s + 200})
    before = world.snapshot()

    due = world.run(scripts.due("z", limit=10))

    assert due.members == ("older", "old", "new")
    assert due.next_in_ms is not None
    assert 90_000 < due.next_in_ms <= 100_000
    assert world.since(before) == {}


def test_no_more_are_listed_than_asked_for(world: World) -> None:
    world.redis.zadd("z", {f"m{n}": n for n in range(9)})

    assert world.run(scripts.due("z", limit=2)) == Due(("m0", "m1"), None)
    assert world.run(scripts.due("z", limit=2, newest_first=True)) == Due(("m8", "m7"), None)


def test_what_is_due_may_be_looked_at_ahead_of_time(world: World) -> None:
    now_s = world.redis.time()[0]
    world.redis.zadd("z", {"soon": now_s + 50, "later": now_s + 200})

    due = world.run(scripts.due("z", limit=10, ahead_s=100))

    assert due.members == ("soon",)
    assert due.next_in_ms is not None
    assert 90_000 < due.next_in_ms <= 100_000


def test_what_is_kept_for_ever_is_never_due(world: World) -> None:
    world.redis.zadd("z", {"for ever": "inf"})

    assert world.run(scripts.due("z", limit=10)) == Due((), None)


def test_a_task_whose_time_has_come_is_queued_behind_the_others(world: World) -> None:
    world.add("a", delay_s=500)
    world.add("b")
    world.make_due("a")
    before = world.snapshot()

    assert world.run(scripts.promote("a", "default")) == "ok"

    assert world.since(before) == {
        "rq:scheduled:default a": None,
        "rq:queue:default": ["b", "a"],
        "taskpool:doorbell:default": ["1", "1"],
        "rq:job:a status": "queued",
        "rq:job:a enqueued_at": "now",
        "rq:job:a seq": "2",
        "taskpool:events a 2": {"event": "queued", "status": "queued", "at_ms": "now"},
    }


def test_after_a_long_pause_tasks_are_queued_in_the_order_of_their_times(world: World) -> None:
    ids = [f"t{n}" for n in range(2 * housekeeping.BATCH + 1)]
    world.run(scripts.add([new_task(id, delay_s=500) for id in ids]))
    world.redis.zadd("rq:scheduled:default", {id: at for at, id in enumerate(ids, start=1)})

    for _ in range(3):
        world.store.carry_out(housekeeping.promote("default"))

    assert world.redis.lrange("rq:queue:default", 0, -1) == [id.encode() for id in ids]


def test_a_task_is_not_queued_before_its_time(world: World) -> None:
    world.add("a", delay_s=500)
    before = world.snapshot()

    assert world.run(scripts.promote("a", "default")) == "early"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [status for status in SEED if status is not S.SCHEDULED])
def test_a_task_that_is_not_scheduled_is_not_queued(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.run(scripts.promote("a", "default")) == "gone"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [status for status in SEED if status is not S.SCHEDULED])
def test_the_entry_of_a_task_that_is_no_longer_scheduled_is_dropped(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()
    world.make_due("a")

    assert world.run(scripts.promote("a", "default")) == "gone"

    assert world.since(before) == {}


def test_the_entry_of_a_deleted_task_is_dropped(world: World) -> None:
    world.make_due("ghost")

    assert world.run(scripts.promote("ghost", "default")) == "gone"

    assert world.snapshot() == {}


def test_two_processes_that_promote_a_task_queue_it_once(world: World) -> None:
    rounds = 100
    for n in range(rounds):
        world.add(f"t{n}", delay_s=500)
        world.make_due(f"t{n}")

    answers = race(
        world.url,
        rounds,
        lambda n: scripts.promote(f"t{n}", "default"),
        lambda n: scripts.promote(f"t{n}", "default"),
    )

    assert all(sorted(each) == ["gone", "ok"] for each in answers)
    assert world.redis.lrange("rq:queue:default", 0, -1) == [f"t{n}".encode() for n in range(rounds)]
