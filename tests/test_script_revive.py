"""revive.lua: a retry by hand, the only way out of an end."""

from __future__ import annotations

import pytest

from taskpool.redis import scripts
from taskpool.types import RETRYABLE, RQ_STATUS, TaskStatus
from tests.states import A_MARK, SEED, World, race

S = TaskStatus


def fail(world: World, id: str, attempt_id: str) -> None:
    """Let a queued task fail for good."""
    assert world.finish(world.claim(attempt_id=attempt_id), S.FAILED) == "ok"


def test_a_failed_task_is_queued_again_without_the_traces_of_its_end(world: World) -> None:
    world.end("a", S.FAILED)
    before = world.snapshot()

    assert world.run(scripts.revive("a")) == "ok"

    assert world.since(before) == {
        "rq:job:a status": "queued",
        "rq:job:a attempt_id": None,
        "rq:job:a attempts_a_life": "1",
        "rq:job:a by_call": A_MARK,
        "rq:job:a max_attempts": "2",
        "rq:job:a ended_at": None,
        "rq:job:a error": None,
        "rq:job:a expires": None,
        "rq:job:a failure": None,
        "rq:job:a fingerprint": None,
        "rq:job:a reason": None,
        "rq:job:a started_at": None,
        "rq:job:a worker_name": None,
        "rq:job:a seq": "4",
        "rq:failed:default a": None,
        "rq:queue:default": ["a"],
        "taskpool:events a 4": {"event": "queued", "status": "queued", "at_ms": "now", "retried_by": "hand"},
    }


def test_a_stopped_task_starts_anew_unasked(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=True))
    world.finish(world.running["a"], S.STOPPED)

    assert world.run(scripts.revive("a")) == "ok"

    world.claim(attempt_id="2")
    assert world.get("a").status is S.IN_PROGRESS


def test_a_task_canceled_as_expired_does_not_expire_again(world: World) -> None:
    world.add("a", expires_in_s=300)
    world.redis.hset("rq:job:a", "expires_ms", 1)
    world.run(scripts.cancel("a", reason="expired", error="late"))

    assert world.run(scripts.revive("a")) == "ok"

    assert world.claim(attempt_id="2").id == "a"


def test_a_task_canceled_before_its_time_does_not_wait_for_it_any_more(world: World) -> None:
    world.add("a", delay_s=500)
    world.cancel("a")

    assert world.run(scripts.revive("a")) == "ok"

    record = world.get("a")
    assert (record.status, record.run_at) == (S.QUEUED, None)


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_each_life_has_as_many_attempts_as_the_first(world: World, max_attempts: int) -> None:
    world.add("a", max_attempts=max_attempts)

    allowed = []
    for _ in range(4):
        for _ in range(max_attempts - 1):
            world.run(scripts.retry(world.claim(), delay_ms=0, error="no luck", failure={}))
        running = world.claim()
        allowed.append((running.attempt, running.max_attempts))
        world.finish(running, S.FAILED)
        assert world.run(scripts.revive("a")) == "ok"

    assert allowed == [(n * max_attempts, n * max_attempts) for n in (1, 2, 3, 4)]


def test_a_task_that_never_ran_has_its_attempts_still(world: World) -> None:
    world.add("a", max_attempts=3)
    world.cancel("a")
    world.run(scripts.revive("a"))

    running = world.claim()

    assert (running.attempt, running.max_attempts) == (1, 3)


def test_crashes_are_counted_anew(world: World) -> None:
    world.start("a")
    world.run(scripts.crash("a", "1", "default", error="died", failure={"reason": "crashed"}, max_crashes=1))

    world.run(scripts.revive("a"))

    assert world.get("a").crashes == 0
    assert world.claim(attempt_id="2").max_attempts == 2


@pytest.mark.parametrize("status", [status for status in SEED if status not in RETRYABLE])
def test_a_task_in_any_other_status_is_not_revived(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    word = world.run(scripts.revive("a"))

    assert word.encode() == world.redis.hget("rq:job:a", "status")
    assert world.since(before) == {}


def test_a_task_that_does_not_exist_is_gone(world: World) -> None:
    assert world.run(scripts.revive("ghost")) == "gone"

    assert world.snapshot() == {}


@pytest.mark.parametrize("parent", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_task_is_not_revived_while_a_parent_has_ended_badly(world: World, parent: TaskStatus) -> None:
    world.end("good")
    SEED[parent](world, "bad")
    world.add("a", depends_on=["good", "bad"])
    assert world.cancel("a") == "canceled"
    before = world.snapshot()

    assert world.run(scripts.revive("a")) == f"dependency bad {RQ_STATUS[parent]}"

    assert world.since(before) == {}


@pytest.mark.parametrize("parent", [status for status in SEED if not status.is_terminal])
def test_a_task_that_is_revived_waits_for_a_parent_that_has_not_ended(world: World, parent: TaskStatus) -> None:
    world.end("good")
    SEED[parent](world, "p")
    world.add("a", depends_on=["good", "p"])
    assert world.cancel("a") == "ok"

    assert world.run(scripts.revive("a")) == "ok"

    after = world.snapshot()
    assert (after["rq:job:a status"], after["rq:job:a pending"]) == ("deferred", "1")
    assert (after["rq:deferred:default a"], after["taskpool:dependents:p"]) == ("now", {"a"})


def test_a_task_is_not_revived_when_it_is_unknown_how_a_parent_ended(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"])
    world.cancel("a")
    world.redis.delete("rq:job:p")
    before = world.snapshot()

    assert world.run(scripts.revive("a")) == "dependency p gone"

    assert world.since(before) == {}


@pytest.mark.parametrize("ended", ["before the child was added", "afterwards"])
def test_a_task_that_was_released_once_is_revived_though_its_parents_record_is_gone(world: World, ended: str) -> None:
    world.start("p")
    if ended == "afterwards":
        world.add("a", depends_on=["p"])
    world.finish(world.running["p"])
    if ended == "afterwards":
        world.run(scripts.release("p"))
    else:
        world.add("a", depends_on=["p"])
    world.finish(world.claim(attempt_id="2"), S.FAILED)
    world.run(scripts.purge("p"))

    assert world.run(scripts.revive("a")) == "ok"

    assert world.claim(attempt_id="3").id == "a"


def test_a_task_released_by_the_release_before_is_revived_as_well(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"])
    world.finish(world.running["p"])
    world.run(scripts.release("p"))
    world.redis.delete("taskpool:needed:p", "rq:job:p")  # the release before kept neither
    world.finish(world.claim(attempt_id="2"), S.FAILED)

    assert world.run(scripts.revive("a")) == "ok"


def test_a_task_whose_parent_was_retried_and_is_done_now_can_be_retried(world: World) -> None:
    world.end("p", S.FAILED)
    world.add("a", depends_on=["p"])
    assert world.get("a").status is S.CANCELED
    world.run(scripts.revive("p"))
    world.finish(world.claim(attempt_id="2"))

    assert world.run(scripts.revive("a")) == "ok"

    assert world.claim(attempt_id="3").id == "a"


def test_what_waits_for_a_revived_task_waits_on(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"])
    world.finish(world.running["p"], S.FAILED)
    world.run(scripts.revive("p"))

    assert world.run(scripts.release("p")) == []

    assert world.get("a").status is S.WAITING
    assert not world.redis.exists("taskpool:outbox")
    assert world.finish(world.claim(attempt_id="2")) == "children"
    assert world.run(scripts.release("p")) == []
    assert world.get("a").status is S.QUEUED


def test_two_callers_that_retry_a_task_queue_it_once(world: World) -> None:
    rounds = 50
    for n in range(rounds):
        world.end(f"t{n}", S.FAILED)

    answers = race(world.url, rounds, lambda n: scripts.revive(f"t{n}"), lambda n: scripts.revive(f"t{n}"))

    assert all(sorted(each) == ["ok", "queued"] for each in answers)
    assert world.redis.llen("rq:queue:default") == rounds


@pytest.mark.parametrize("status", sorted(RETRYABLE))
def test_a_task_that_lives_again_stands_in_no_registry_of_ended_ones(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    world.redis.hset("rq:job:a", "enqueued_at", "2026-01-01T00:00:00.000Z")

    world.run(scripts.revive("a"))

    assert not world.redis.exists("rq:failed:default", "rq:canceled:default")
    assert world.snapshot()["rq:job:a enqueued_at"] == "now"
