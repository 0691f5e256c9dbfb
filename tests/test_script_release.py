"""release.lua and sweep_waiting.lua: what becomes of tasks that wait for others."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import ENDED, FAILURE, SEED, World, new_task, race

S = TaskStatus


def family(world: World, *parents: str) -> None:
    """A task "a" that waits for running parents."""
    for parent in parents:
        world.start(parent)
    world.add("a", depends_on=parents)


def end(world: World, id: str, status: TaskStatus) -> str:
    """End a running task in any way there is. A running one isn't canceled: that is only shown here."""
    if status is not S.CANCELED:
        return world.finish(world.running[id], status)
    world.run(scripts.give_back(world.running[id]))
    return world.cancel(id)


def release_all(world: World) -> None:
    """What housekeeping does: the outbox until it is empty."""
    while ids := world.redis.smembers("taskpool:outbox"):
        for id in ids:
            world.run(scripts.release(id.decode()))


def test_a_task_whose_only_parent_is_done_is_queued(world: World) -> None:
    family(world, "p")
    end(world, "p", S.DONE)
    before = world.snapshot()

    assert world.run(scripts.release("p")) == []

    assert world.since(before) == {
        "taskpool:outbox": None,
        "taskpool:dependents:p": None,
        "taskpool:needed:p": {"a"},
        "rq:deferred:default a": None,
        "rq:queue:default": ["a"],
        "rq:job:a status": "queued",
        "rq:job:a enqueued_at": "now",
        "rq:job:a pending": "0",
        "rq:job:a seq": "2",
        "taskpool:events a 2": {"event": "queued", "status": "queued", "at_ms": "now"},
    }


def test_a_task_waits_on_while_another_parent_runs(world: World) -> None:
    family(world, "p", "q")
    end(world, "p", S.DONE)
    before = world.snapshot()

    assert world.run(scripts.release("p")) == []

    assert world.since(before) == {
        "taskpool:outbox": None,
        "taskpool:dependents:p": None,
        "taskpool:needed:p": {"a"},
        "rq:job:a pending": "1",
    }


def test_a_task_with_a_time_of_its_own_is_scheduled_when_it_need_not_wait_any_more(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"], delay_s=500)
    end(world, "p", S.DONE)
    before = world.snapshot()

    world.run(scripts.release("p"))

    changed = world.since(before)
    assert changed["rq:job:a status"] == "scheduled"
    assert changed["rq:scheduled:default a"] == "now+500 s"
    assert changed["taskpool:events a 2"] == {"event": "scheduled", "status": "scheduled", "at_ms": "now"}
    assert "rq:queue:default" not in changed


def test_a_task_whose_time_came_while_it_waited_is_queued(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"], delay_s=500)
    world.redis.hset("rq:job:a", "run_ms", 1)
    end(world, "p", S.DONE)

    world.run(scripts.release("p"))

    assert world.get("a").status is S.QUEUED


@pytest.mark.parametrize("status", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_task_whose_parent_ended_badly_is_canceled_with_the_reason(world: World, status: TaskStatus) -> None:
    world.start("p")
    world.add("a", depends_on=["p"], expires_in_s=300)
    end(world, "p", status)
    before = world.snapshot()

    assert world.run(scripts.release("p")) == []

    assert world.since(before) == {
        "taskpool:outbox": None,
        "taskpool:dependents:p": None,
        "taskpool:revivable:p": {"a"},
        "rq:job:a canceled_by": "p",
        "taskpool:expiring a": None,
        "rq:deferred:default a": None,
        "rq:canceled:default a": "now+2000 s",
        "rq:job:a status": "canceled",
        "rq:job:a ended_at": "now",
        "rq:job:a reason": "dependency_failed",
        "rq:job:a error": f"canceled: the task p it depends on did not end well ({status})",
        "rq:job:a expires": "now+2060 s",
        "rq:job:a seq": "2",
        "taskpool:events a 2": {
            "event": "canceled",
            "status": "canceled",
            "at_ms": "now",
            "reason": "dependency_failed",
            "dependency": "p",
        },
    }


@pytest.mark.parametrize("first", ["p", "q"])
@pytest.mark.parametrize(("p", "q"), list(product(ENDED, ENDED)))
def test_only_when_all_parents_are_done_does_a_task_run(world: World, p: TaskStatus, q: TaskStatus, first: str) -> None:
    family(world, "p", "q")
    order = [("p", p), ("q", q)] if first == "p" else [("q", q), ("p", p)]

    for parent, status in order:
        end(world, parent, status)
        release_all(world)

    record = world.get("a")
    assert record.status is (S.QUEUED if p is q is S.DONE else S.CANCELED)
    assert [each for each in world.events("a") if each[1] != "waiting"] == [(2, record.status, record.status)]
    assert not world.redis.keys("taskpool:dependents:*")
    assert not world.redis.exists("rq:deferred:default")


def test_a_diamond_runs_its_last_task_once_after_both_sides(world: World) -> None:
    world.add("top")
    world.add("left", depends_on=["top"])
    world.add("right", depends_on=["top"])
    world.add("bottom", depends_on=["left", "right"])

    order: list[str] = []
    while (running := world.try_claim(attempt_id=f"at {len(order)}")) is not None:
        order.append(running.id)
        world.finish(running)
        release_all(world)

    assert sorted(order[1:3]) == ["left", "right"]
    assert (order[0], order[3]) == ("top", "bottom")
    assert len(order) == 4


def test_a_cancellation_goes_down_to_the_last_descendant(world: World) -> None:
    world.add("t0")
    for n in range(1, 6):
        world.add(f"t{n}", depends_on=[f"t{n - 1}"])

    world.cancel("t0")
    release_all(world)

    assert [world.get(f"t{n}").status for n in range(6)] == [S.CANCELED] * 6
    assert world.get("t5").error == "canceled: the task t4 it depends on did not end well (canceled)"
    assert not world.redis.keys("taskpool:dependents:*")


def chain(world: World, levels: int) -> None:
    """Tasks t0, t1, ... each of which waits for the one before."""
    for at in range(0, levels, 1000):
        numbers = range(at, min(at + 1000, levels))
        world.run(scripts.add([new_task(f"t{n}", depends_on=[f"t{n - 1}"] if n else ()) for n in numbers]))


def test_one_call_cancels_as_many_levels_as_it_may_and_says_where_to_go_on(world: World) -> None:
    chain(world, 1500)
    world.cancel("t0")

    assert world.run(scripts.release("t0", 1000)) == ["t1000"]

    assert [world.get(f"t{n}").status for n in (1000, 1001)] == [S.CANCELED, S.WAITING]
    assert world.snapshot()["taskpool:outbox"] == {"t1000"}
    assert world.run(scripts.release("t1000", 1000)) == []
    assert world.redis.zcard("rq:canceled:default") == 1500
    assert not world.redis.exists("taskpool:outbox", "rq:deferred:default")
    assert not world.redis.keys("taskpool:dependents:*")


def test_a_cancellation_reaches_every_branch_of_a_tree_in_bounded_calls(world: World) -> None:
    world.add("r")
    world.run(scripts.add([new_task(f"b{n}", depends_on=["r"]) for n in range(30)]))
    world.run(scripts.add([new_task(f"l{n}-{m}", depends_on=[f"b{n}"]) for n in range(30) for m in range(10)]))
    world.cancel("r")

    left, calls = ["r"], 0
    while left:
        before = world.redis.zcard("rq:canceled:default")
        left = [*left[1:], *world.run(scripts.release(left[0], 7))]
        calls += 1
        assert world.redis.zcard("rq:canceled:default") - before <= 7

    assert world.redis.zcard("rq:canceled:default") == 1 + 30 + 300
    assert calls >= 330 // 7
    assert not world.redis.keys("taskpool:dependents:*")


def test_many_children_are_released_in_bounded_steps(world: World) -> None:
    world.start("p")
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(25)]))
    world.finish(world.running["p"])

    left = [world.run(scripts.release("p", 10)) for _ in range(4)]

    assert left == [["p"], ["p"], [], []]
    assert world.redis.llen("rq:queue:default") == 25
    assert not world.redis.exists("taskpool:outbox", "taskpool:dependents:p")


def test_the_outbox_keeps_a_task_until_its_last_child_is_released(world: World) -> None:
    world.start("p")
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(2)]))
    world.finish(world.running["p"])

    world.run(scripts.release("p", 1))

    assert world.snapshot()["taskpool:outbox"] == {"p"}


@pytest.mark.parametrize("status", [status for status in SEED if status not in ENDED])
def test_a_task_that_has_not_ended_releases_no_child(world: World, status: TaskStatus) -> None:
    SEED[status](world, "p")
    world.add("a", depends_on=["p"])
    before = world.snapshot()
    world.redis.sadd("taskpool:outbox", "p")

    assert world.run(scripts.release("p")) == []

    assert world.since(before) == {}


def test_a_child_that_was_canceled_meanwhile_stays_canceled(world: World) -> None:
    family(world, "p")
    world.cancel("a")
    end(world, "p", S.DONE)
    before = world.snapshot()

    assert world.run(scripts.release("p")) == []

    assert world.since(before) == {
        "taskpool:outbox": None,
        "taskpool:dependents:p": None,
        "taskpool:needed:p": {"a"},
    }


def test_a_child_that_was_canceled_and_purged_meanwhile_is_not_brought_back(world: World) -> None:
    family(world, "p")
    world.cancel("a")
    world.run(scripts.purge("a"))
    end(world, "p", S.DONE)

    assert world.run(scripts.release("p")) == []

    assert [name for name in world.snapshot() if name.startswith("rq:job:a")] == []


def test_a_child_canceled_and_retried_while_it_was_to_be_released_is_queued_once(world: World) -> None:
    family(world, "p")
    world.cancel("a")
    end(world, "p", S.DONE)
    world.run(scripts.revive("a"))

    assert world.run(scripts.release("p")) == []

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a"]


def test_two_processes_that_release_the_same_children_queue_each_once(world: World) -> None:
    rounds = 20
    for n in range(rounds):
        world.start(f"p{n}")
        world.run(scripts.add([new_task(f"c{n}-{m}", depends_on=[f"p{n}"]) for m in range(10)]))
        world.finish(world.running[f"p{n}"])

    race(world.url, rounds, *[lambda n: scripts.release(f"p{n}", 3)] * 4)
    release_all(world)

    queued = world.redis.lrange("rq:queue:default", 0, -1)
    assert sorted(queued) == sorted(f"c{n}-{m}".encode() for n in range(rounds) for m in range(10))


def test_two_parents_that_end_at_one_moment_release_their_child_once(world: World) -> None:
    rounds = 50
    for n in range(rounds):
        world.start(f"p{n}")
        world.start(f"q{n}")
        world.add(f"c{n}", depends_on=[f"p{n}", f"q{n}"])
        world.finish(world.running[f"p{n}"])
        world.finish(world.running[f"q{n}"])

    race(world.url, rounds, lambda n: scripts.release(f"p{n}"), lambda n: scripts.release(f"q{n}"))

    assert sorted(world.redis.lrange("rq:queue:default", 0, -1)) == sorted(f"c{n}".encode() for n in range(rounds))


# --- the backstop for parents that ended unnoticed ----------------------------------------------------------


def sweep(world: World, limit: int = 1000) -> int:
    """Go once round a queue's waiting tasks; how many steps that took."""
    steps = 1
    while world.run(scripts.sweep_waiting("default", limit)) == "more":
        steps += 1
    return steps


@pytest.mark.parametrize(
    ("left", "then"),
    [
        ({"status": "finished"}, S.QUEUED),
        ({"status": "failed"}, S.CANCELED),
        ({"status": "stopped"}, S.CANCELED),
        ({"status": "canceled"}, S.CANCELED),
        ({}, S.CANCELED),
    ],
)
def test_a_parent_that_ended_or_vanished_outside_our_scripts_is_noticed(
    world: World, left: dict[str, Any], then: TaskStatus
) -> None:
    family(world, "p")
    world.redis.delete("rq:job:p")
    if left:
        world.redis.hset("rq:job:p", mapping=left)

    assert sweep(world) == 1

    assert world.snapshot()["taskpool:outbox"] == {"p"}
    release_all(world)
    record = world.get("a")
    assert record.status is then
    if not left:
        gone = "canceled: the task p it depends on is gone (removed or expired), so its outcome is unknown"
        assert (record.reason, record.error) == ("dependency_failed", gone)


@pytest.mark.parametrize("status", [status for status in SEED if status not in ENDED])
def test_a_parent_that_has_not_ended_is_left_alone(world: World, status: TaskStatus) -> None:
    SEED[status](world, "p")
    world.add("a", depends_on=["p"])
    before = world.snapshot()

    sweep(world)

    assert world.since(before) == {}


def test_a_parent_that_was_released_already_is_not_looked_at_again(world: World) -> None:
    family(world, "p", "q")
    end(world, "p", S.DONE)
    world.run(scripts.release("p"))
    before = world.snapshot()

    sweep(world)

    assert world.since(before) == {}


def test_a_parent_that_the_release_before_released_is_kept_for_the_task_that_still_waits(world: World) -> None:
    family(world, "p", "q")
    end(world, "p", S.DONE)
    world.redis.delete("taskpool:dependents:p", "taskpool:outbox")  # all that it did
    world.redis.hincrby("rq:job:a", "pending", -1)
    before = world.snapshot()

    sweep(world)

    assert world.since(before) == {"taskpool:needed:p": {"a"}}


def test_a_sweep_goes_round_in_bounded_steps(world: World) -> None:
    world.start("p")
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(5)]))

    assert sweep(world, 2) == 5  # a task and its parent are a step
    assert not world.redis.exists("taskpool:swept:default")


def test_a_sweep_stops_in_the_middle_of_a_tasks_parents_and_goes_on_there(world: World) -> None:
    for n in range(30):
        world.start(f"p{n}", attempt_id=str(n))
    world.add("a", depends_on=[f"p{n}" for n in range(30)])
    world.redis.hset("rq:job:p29", "status", "finished")

    words = [world.run(scripts.sweep_waiting("default", 11)) for _ in range(3)]

    assert words == ["more", "more", "end"]
    assert world.snapshot()["taskpool:outbox"] == {"p29"}


def test_the_sweeps_of_several_pools_share_one_round(world: World) -> None:
    world.start("p")
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(40)]))

    answers = race(world.url, 10, *[lambda n: scripts.sweep_waiting("default", 2)] * 4)

    assert [word for each in answers for word in each].count("end") == 1
    assert not world.redis.exists("taskpool:swept:default")


@pytest.mark.parametrize("place", ["", "x", "999 1", "0 99999"])
def test_a_sweep_whose_place_makes_no_sense_begins_anew(world: World, place: str) -> None:
    family(world, "p")
    world.redis.hset("rq:job:p", "status", "finished")
    world.redis.set("taskpool:swept:default", place)

    world.run(scripts.sweep_waiting("default", 1000))
    world.run(scripts.sweep_waiting("default", 1000))

    assert world.snapshot()["taskpool:outbox"] == {"p"}


def test_the_entry_of_a_task_that_does_not_wait_is_dropped(world: World) -> None:
    world.add("a")
    before = world.snapshot()
    world.redis.zadd("rq:deferred:default", {"a": 1, "ghost": 1})

    sweep(world)

    assert world.since(before) == {}


def test_a_task_that_rq_itself_deferred_is_rqs_own_matter(world: World) -> None:
    world.redis.hset("rq:job:plain", mapping={"status": "deferred", "dependency_ids": '["ghost"]', "data": "x"})
    world.redis.zadd("rq:deferred:default", {"plain": 1})
    before = world.snapshot()

    sweep(world)

    assert world.since(before) == {}


def test_a_child_of_a_failed_attempt_that_is_retried_waits_on(world: World) -> None:
    world.start("p", max_attempts=2)
    world.add("a", depends_on=["p"])
    world.run(scripts.retry(world.running["p"], delay_ms=0, error="no luck", failure=FAILURE))

    sweep(world)

    assert not world.redis.exists("taskpool:outbox")
    assert world.get("a").status is S.WAITING
