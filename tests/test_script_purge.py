"""purge.lua and sweep_index.lua: what has ended leaves Redis, all of it and nothing else."""

from __future__ import annotations

import pytest

from taskpool.redis import scripts
from taskpool.types import DEFAULT_LIMITS, TaskStatus
from tests.states import ENDED, SEED, World, race

S = TaskStatus
REGISTRY = {
    S.DONE: "rq:finished:default",
    S.FAILED: "rq:failed:default",
    S.STOPPED: "rq:failed:default",
    S.CANCELED: "rq:canceled:default",
}
SHARED = {"rq:queues", "taskpool:doorbell:default"}


def left(world: World) -> set[str]:
    """What is in Redis besides the events and what all tasks share."""
    return {name for name in world.snapshot() if not name.startswith("taskpool:events ")} - SHARED


LINE = b'{"at_ms":1,"text":"line"}'


def a_full_life(world: World, status: TaskStatus) -> None:
    """A task that leaves whatever a task can leave."""
    world.add("a", tags=["x", "y"], max_attempts=3, expires_in_s=300)
    if status is S.CANCELED:
        world.cancel("a")
        world.end_minute()
        return
    running = world.claim()
    world.run(scripts.progress(running, {"done": 1}))
    world.run(scripts.log("a", running.attempt_id, [LINE], DEFAULT_LIMITS))
    world.run(scripts.retry(running, delay_ms=1000, error="no luck", failure={}))
    world.make_due("a")
    world.run(scripts.promote("a", "default"))
    world.claim(attempt_id="2")
    world.run(scripts.crash("a", "2", "default", error="died", failure={}, max_crashes=3))
    running = world.claim(attempt_id="3")
    world.run(scripts.heartbeat([("a", "3", "default")], 100_000))
    world.run(scripts.stop("a", grace_s=5, force=False))
    world.run(scripts.log("a", running.attempt_id, [LINE], DEFAULT_LIMITS))
    assert world.finish(running, status) == "ok"
    world.end_minute()


@pytest.mark.parametrize("status", ENDED)
def test_nothing_of_a_task_is_left_but_its_events(world: World, status: TaskStatus) -> None:
    a_full_life(world, status)

    assert world.run(scripts.purge("a")) == "ok"

    assert left(world) == set()


@pytest.mark.parametrize("status", ENDED)
def test_of_a_family_nothing_is_left(world: World, status: TaskStatus) -> None:
    a_full_life(world, status)
    world.add("b", depends_on=["a"], tags=["x"])
    world.end_minute()
    if status is S.DONE:
        world.finish(world.claim(attempt_id="b1"))

    assert [world.run(scripts.purge(id)) for id in ("a", "b")] == ["ok", "ok"]

    assert left(world) == set()


def test_the_others_keep_their_places_in_every_index(world: World) -> None:
    for id in ("b", "a"):
        world.end(id, S.FAILED, tags=["x", id])
    before = world.snapshot()

    world.run(scripts.purge("a"))

    changed = world.since(before)
    assert changed.pop("taskpool:tags") == {"x", "b"}
    assert set(changed.values()) == {None}
    assert [name for name in changed if " b" in name or ":b" in name] == []


@pytest.mark.parametrize("status", [status for status in SEED if status not in ENDED])
def test_a_task_that_has_not_ended_is_not_purged(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    word = world.run(scripts.purge("a"))

    assert word.encode() == world.redis.hget("rq:job:a", "status")
    assert world.since(before) == {}


def test_purging_again_finds_nothing(world: World) -> None:
    world.end("a")
    world.run(scripts.purge("a"))
    before = world.snapshot()

    assert world.run(scripts.purge("a")) == "gone"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", ENDED)
def test_a_task_is_not_purged_before_its_time_in_its_registry(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.run(scripts.purge("a", REGISTRY[status])) == "early"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", ENDED)
def test_a_task_whose_time_is_over_is_purged(world: World, status: TaskStatus) -> None:
    a_full_life(world, status)
    world.redis.zadd(REGISTRY[status], {"a": 1})

    assert world.run(scripts.purge("a", REGISTRY[status])) == "ok"

    assert left(world) == set()


def test_the_entry_of_a_record_that_is_gone_is_dropped_from_its_registry(world: World) -> None:
    world.redis.zadd("rq:finished:default", {"ghost": 1})

    assert world.run(scripts.purge("ghost", "rq:finished:default")) == "gone"

    assert world.snapshot() == {}


def test_a_registry_forgets_a_task_that_lives_again(world: World) -> None:
    world.start("a")
    world.redis.zadd("rq:failed:default", {"a": 1})
    before = world.snapshot()

    assert world.run(scripts.purge("a", "rq:failed:default")) == "started"

    assert world.since(before) == {"rq:failed:default a": None}


@pytest.mark.parametrize("registry", ["", "rq:finished:default"])
def test_a_task_others_wait_for_is_kept_until_they_know(world: World, registry: str) -> None:
    world.start("a")
    world.add("child", depends_on=["a"])
    world.finish(world.running["a"])
    world.redis.zadd("rq:finished:default", {"a": 1})
    before = world.snapshot()

    assert world.run(scripts.purge("a", registry)) == "children"
    assert world.since(before) == {}

    world.run(scripts.release("a"))
    assert world.get("child").status is S.QUEUED
    assert world.run(scripts.purge("a", registry)) == ("needed" if registry else "ok")


def test_a_task_is_either_purged_or_retried(world: World) -> None:
    rounds = 100
    for n in range(rounds):
        world.end(f"t{n}", S.FAILED)

    answers = race(world.url, rounds, lambda n: scripts.purge(f"t{n}"), lambda n: scripts.revive(f"t{n}"))

    assert {tuple(each) for each in answers} <= {("ok", "gone"), ("queued", "ok")}
    assert world.redis.llen("rq:queue:default") == sum(word == "ok" for _, word in answers)
    assert not world.redis.exists("rq:failed:default")


# --- the backstop for what vanished without a purge ---------------------------------------------------------


def sweep(world: World, index: str, limit: int = 100) -> list[str]:
    """Go round an index once: where each step ended."""
    steps = [world.run(scripts.sweep_index(index, "", limit))]
    while steps[-1]:
        steps.append(world.run(scripts.sweep_index(index, steps[-1], limit)))
    return steps


def test_a_sweep_drops_what_is_left_of_deleted_tasks_in_bounded_steps(world: World) -> None:
    for n in range(10):
        world.end(f"t{n}", S.FAILED, tags=["x"])
    world.redis.delete(*[f"rq:job:t{n}" for n in range(0, 10, 2)])

    steps = [*sweep(world, "taskpool:type:work", 3), *sweep(world, "taskpool:tag:x", 3)]

    odd = [f"t{n}".encode() for n in range(1, 10, 2)]
    assert steps == ["t2", "t5", "t8", ""] * 2
    assert world.redis.zrange("taskpool:type:work", 0, -1) == world.redis.zrange("taskpool:tag:x", 0, -1) == odd
    assert sorted(world.redis.keys("rq:results:*")) == [b"rq:results:" + id for id in odd]


def test_a_sweep_changes_nothing_of_tasks_that_exist(world: World) -> None:
    for status, seed in SEED.items():
        seed(world, status.value)
    before = world.snapshot()

    sweep(world, "taskpool:type:work", 2)

    assert world.since(before) == {}


def test_a_tag_whose_last_task_is_gone_is_no_longer_in_use(world: World) -> None:
    world.add("a", tags=["x"])
    world.add("b", tags=["y"])
    world.redis.delete("rq:job:a")

    sweep(world, "taskpool:tag:x")

    assert world.snapshot()["taskpool:tags"] == {"y"}


def test_what_waits_for_a_deleted_task_is_put_into_the_outbox(world: World) -> None:
    world.add("p")
    world.add("child", depends_on=["p"])
    world.redis.delete("rq:job:p")

    sweep(world, "taskpool:type:work")

    assert world.snapshot()["taskpool:outbox"] == {"p"}


def test_a_type_stays_in_use_while_its_next_task_would_not_enter_it_again(world: World) -> None:
    world.end("a")
    world.run(scripts.purge("a"))
    world.add("b")

    assert world.snapshot()["taskpool:types:used"] == {"work"}


def test_a_type_whose_last_task_is_gone_is_no_longer_in_use(world: World) -> None:
    world.add("a", type="old")
    world.add("b", type="new")
    world.end_minute()
    world.redis.delete("rq:job:a")

    sweep(world, "taskpool:type:old")

    assert world.snapshot()["taskpool:types:used"] == {"new"}
