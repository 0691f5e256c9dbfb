"""cancel.lua: taking back a task that hasn't started, by hand or because it has expired."""

from __future__ import annotations

from typing import Any

import pytest

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import A_MARK, ENDED, RUNS, SEED, World, new_task, race

S = TaskStatus
LATE = "too late"


def expire(world: World, id: str) -> str:
    return world.run(scripts.cancel(id, reason="expired", error=LATE))


@pytest.mark.parametrize(
    ("status", "left"),
    [
        (S.QUEUED, {"rq:queue:default": None}),
        (S.SCHEDULED, {"rq:scheduled:default a": None}),
        (S.WAITING, {"rq:deferred:default a": None}),
    ],
)
def test_a_task_that_waits_is_canceled_and_leaves_where_it_waited(
    world: World, status: TaskStatus, left: dict[str, Any]
) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.cancel("a") == "ok"

    assert world.since(before) == {
        **left,
        "rq:job:a status": "canceled",
        "rq:job:a ended_at": "now",
        "rq:job:a reason": "canceled",
        "rq:job:a error": "by hand",
        "rq:job:a seq": "2",
        "rq:job:a by_call": A_MARK,
        "rq:job:a expires": "now+2060 s",
        "rq:canceled:default a": "now+2000 s",
        "taskpool:events a 2": {"event": "canceled", "status": "canceled", "at_ms": "now", "reason": "canceled"},
    }


def test_the_others_keep_their_places_in_the_queue(world: World) -> None:
    for id in "abcd":
        world.add(id)

    world.cancel("b")

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a", b"c", b"d"]


def test_a_task_canceled_by_hand_no_longer_expires(world: World) -> None:
    world.add("a", expires_in_s=300)

    world.cancel("a")

    assert not world.redis.exists("taskpool:expiring")


def test_what_waits_for_a_canceled_task_is_put_into_the_outbox(world: World) -> None:
    world.add("a")
    world.add("child", depends_on=["a"])

    world.cancel("a")

    assert world.snapshot()["taskpool:outbox"] == {"a"}


@pytest.mark.parametrize("options", [{}, {"delay_s": 500}, {"depends_on": ["p"]}])
def test_a_task_that_has_expired_is_canceled_wherever_it_waits(world: World, options: dict[str, Any]) -> None:
    world.add("p", queue="parents")
    world.add("a", expires_in_s=300, **options)
    world.redis.hset("rq:job:a", "expires_ms", 1)

    assert expire(world, "a") == "ok"

    record = world.get("a")
    assert (record.status, record.reason, record.error) == (S.CANCELED, "expired", LATE)
    assert not world.redis.exists("taskpool:expiring")
    assert not world.redis.exists("rq:queue:default", "rq:scheduled:default", "rq:deferred:default")


def test_a_task_does_not_expire_early(world: World) -> None:
    world.add("a", expires_in_s=300)
    before = world.snapshot()

    assert expire(world, "a") == "early"

    assert world.since(before) == {}


def test_a_task_that_never_expires_is_not_canceled_as_expired(world: World) -> None:
    world.add("a")
    before = world.snapshot()

    assert expire(world, "a") == "early"

    assert world.since(before) == {}


def test_a_retry_of_a_task_that_was_started_in_time_does_not_expire(world: World) -> None:
    running = world.start("a", expires_in_s=300, max_attempts=2)
    world.run(scripts.retry(running, delay_ms=0, error="no luck", failure={}))
    world.redis.hset("rq:job:a", "expires_ms", 1)
    before = world.snapshot()

    assert expire(world, "a") == "early"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [*RUNS, *ENDED])
@pytest.mark.parametrize("reason", ["canceled", "expired"])
def test_a_task_that_has_started_or_ended_is_not_canceled(world: World, status: TaskStatus, reason: str) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    word = world.run(scripts.cancel("a", reason=reason, error=LATE))

    assert word.encode() == world.redis.hget("rq:job:a", "status")
    assert world.since(before) == {}


def test_a_task_that_does_not_exist_is_gone(world: World) -> None:
    assert world.cancel("ghost") == "gone"

    assert world.snapshot() == {}


def test_what_is_left_of_a_deleted_task_among_the_expiring_is_dropped(world: World) -> None:
    world.add("a", expires_in_s=300)
    world.redis.delete("rq:job:a")

    assert expire(world, "a") == "gone"

    assert not world.redis.exists("taskpool:expiring")


def test_a_task_is_either_claimed_or_canceled(world: World) -> None:
    rounds = 100
    world.run(scripts.add([new_task(f"t{n}", queue=f"q{n}") for n in range(rounds)]))

    answers = race(
        world.url,
        rounds,
        lambda n: scripts.claim([f"q{n}"], worker="w", attempt_id="1", lease_ms=100_000, was_idle=False),
        lambda n: scripts.cancel(f"t{n}", reason="canceled", error="by hand"),
    )

    for n, (running, word) in enumerate(answers):
        status = world.get(f"t{n}").status
        if running is None:
            assert (word, status) == ("ok", S.CANCELED)
        else:
            assert (word, status) == ("started", S.IN_PROGRESS)


@pytest.mark.parametrize("status", [*RUNS, *ENDED])
def test_a_task_that_can_no_longer_expire_is_forgotten_among_the_expiring(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()
    world.redis.zadd("taskpool:expiring", {"a": 1})

    expire(world, "a")

    assert world.since(before) == {}
