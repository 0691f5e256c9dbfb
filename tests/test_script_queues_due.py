"""queues_due.lua: what there is to do in a queue, and when it is forgotten."""

from __future__ import annotations

from typing import Final

import pytest

from taskpool.redis import keys, scripts
from taskpool.redis.scripts import QueueDue
from tests.states import SEED, World, new_task, race

EMPTY_SINCE: Final = "taskpool:queues:empty"
NOTHING: Final = QueueDue("", None, None)


def look(world: World, *queues: str) -> list[str]:
    """The marks of these queues."""
    return [found.marks for found in world.run(scripts.queues_due(queues or ("default",))).values()]


def make_empty(world: World, *queues: str) -> None:
    """Have empty queues that were first seen so, one after the other, long ago."""
    now_ms = world.redis.time()[0] * 1000
    for queue in queues:
        world.redis.sadd("rq:queues", f"rq:queue:{queue}")
        world.redis.zadd(EMPTY_SINCE, {queue: now_ms - keys.QUEUE_KEPT_S * 1000})


def test_each_registry_says_what_is_due_and_when(world: World) -> None:
    assert world.run(scripts.queues_due(["nowhere", "default"])) == {"nowhere": NOTHING, "default": NOTHING}

    world.add("a", delay_s=100)
    found = world.run(scripts.queues_due(["default"]))["default"]
    assert found.marks == ""
    assert 99 < (found.scheduled_in_s or 0) <= 100
    assert found.next_in_s == found.scheduled_in_s
    world.make_due("a")
    assert look(world) == ["s"]

    world.start("b", queue="q1")
    found = world.run(scripts.queues_due(["q1"]))["q1"]
    assert (found.marks, found.scheduled_in_s) == ("", None)
    assert 99 < (found.next_in_s or 0) <= 100
    world.expire_lease("b", queue="q1")
    assert look(world, "q1") == ["l"]

    world.add("c", queue="q2", depends_on=["b"])
    world.redis.sadd("rq:workers:q2", "rq:worker:w")
    assert look(world, "q2", "default") == ["wv", "s"]

    for registry in ("finished", "failed", "canceled"):
        world.redis.zadd(f"rq:{registry}:{registry}", {"x": "+inf"})
        assert look(world, registry) == [""]
        world.redis.zadd(f"rq:{registry}:{registry}", {"y": 1})
        assert look(world, registry) == ["e"]


def test_nothing_is_due_before_the_time_that_the_caller_names(world: World) -> None:
    world.add("a", delay_s=100)
    at_ms = world.redis.time()[0] * 1000 + 200_000
    world.redis.zadd("rq:scheduled:default", {"a": 1000})

    assert world.run(scripts.queues_due(["default"], by_ms=999_000))["default"].marks == ""
    assert world.run(scripts.queues_due(["default"], by_ms=at_ms))["default"].marks == "s"


def test_a_queue_that_has_been_empty_for_a_while_is_forgotten_with_all_that_is_its(world: World) -> None:
    make_empty(world, "old", "young")
    world.redis.zincrby(EMPTY_SINCE, 60_000, "young")
    world.redis.rpush("taskpool:doorbell:old", "1")
    world.redis.hset("taskpool:foreign:old", "-", "x")
    world.redis.zadd("taskpool:foreign", {"old": 1})
    world.redis.sadd("rq:queues", "rq:queue:new")

    assert look(world, "old", "young", "new") == ["x", "", ""]

    left = dict(world.snapshot())
    assert left.pop("taskpool:queues:empty new") == "now"
    assert left == {"rq:queues": {"rq:queue:young", "rq:queue:new"}, "taskpool:queues:empty young": "now-240 s"}


@pytest.mark.parametrize("status", SEED)
def test_a_queue_with_a_task_in_any_status_stays_and_begins_anew_when_it_is_empty(world: World, status: str) -> None:
    SEED[status](world, "a")  # type: ignore[index]
    make_empty(world, "default")

    assert look(world)[0] in ("", "w")

    assert world.redis.smembers("rq:queues") >= {b"rq:queue:default"}
    assert world.redis.zcard(EMPTY_SINCE) == 0


def test_a_queue_that_a_worker_serves_stays(world: World) -> None:
    make_empty(world, "default")
    world.redis.sadd("rq:workers:default", "rq:worker:w")

    assert look(world) == ["v"]
    assert world.redis.scard("rq:queues") == 1


def test_a_queue_is_known_again_with_its_next_task(world: World) -> None:
    make_empty(world, "default")
    assert look(world) == ["x"]

    world.add("a")

    assert world.redis.smembers("rq:queues") == {b"rq:queue:default"}
    assert world.claim().id == "a"


def test_a_task_that_comes_at_the_same_moment_is_in_a_known_queue(world: World) -> None:
    rounds = 200
    make_empty(world, *[f"q{n}" for n in range(rounds)])

    race(
        world.url,
        rounds,
        lambda n: scripts.queues_due([f"q{n}"]),
        lambda n: scripts.add([new_task(f"t{n}", queue=f"q{n}")]),
    )

    assert world.redis.scard("rq:queues") == rounds
    assert all(world.redis.llen(f"rq:queue:q{n}") == 1 for n in range(rounds))


def test_what_is_no_registry_is_nothing_to_do(world: World) -> None:
    make_empty(world, "default")
    for key in ("wip", "scheduled", "finished", "failed", "canceled"):
        world.redis.set(f"rq:{key}:default", "no registry")
    world.redis.zadd("rq:scheduled:other", {"a": 1})

    assert look(world, "default", "other") == ["", "s"]

    world.redis.set(EMPTY_SINCE, "no sorted set")
    assert look(world, "default", "other", "empty") == ["", "s", ""]
