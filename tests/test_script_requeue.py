"""requeue.lua: an attempt ends and its task runs again, after a failure or because its worker is drained."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import FAILURE, FINGERPRINT, SEED, World, ended, race
from tests.test_script_finish import FORGOTTEN

S = TaskStatus


def retry(world: World, delay_ms: int, id: str = "a") -> str:
    return world.run(scripts.retry(world.running[id], delay_ms=delay_ms, error="no luck", failure=FAILURE))


FAILED = {
    "rq:job:a error": "no luck",
    "rq:job:a failure": '{"reason":"exception","message":"no luck"}',
    "rq:job:a fingerprint": FINGERPRINT,
    "rq:job:a attempt_id": "",
    "rq:job:a put_back": "1:retry",
    "rq:job:a history": [ended("failed", "no luck")],
    "rq:job:a seq": "3",
}


def test_a_retry_later_is_scheduled_and_says_what_went_wrong(world: World) -> None:
    world.start("a", max_attempts=2)
    before = world.snapshot()

    assert retry(world, 500_000) == "ok"

    assert world.since(before) == {
        **FORGOTTEN,
        **FAILED,
        "rq:job:a status": "scheduled",
        "rq:job:a run_ms": "now+500 s",
        "rq:job:a run_clock": "0",
        "rq:scheduled:default a": "now+500 s",
        "taskpool:events a 3": {
            "event": "retry",
            "status": "scheduled",
            "at_ms": "now",
            "error": "no luck",
            "delay_ms": 500_000,
        },
    }


def test_a_retry_at_once_goes_to_the_end_of_the_queue(world: World) -> None:
    world.start("a", max_attempts=2)
    world.add("b")
    before = world.snapshot()

    assert retry(world, 0) == "ok"

    assert world.since(before) == {
        **FORGOTTEN,
        **FAILED,
        "rq:job:a status": "queued",
        "rq:queue:default": ["b", "a"],
        "taskpool:doorbell:default": ["1", "1"],
        "taskpool:events a 3": {
            "event": "retry",
            "status": "queued",
            "at_ms": "now",
            "error": "no luck",
            "delay_ms": 0,
        },
    }
    assert world.get("a").attempt == 1


def test_a_task_given_back_is_first_in_its_queue_and_the_attempt_is_not_counted(world: World) -> None:
    world.add("a", expires_in_s=300)
    world.add("b")
    unclaimed = world.snapshot()
    running = world.claim()
    world.run(scripts.progress(running, {"done": 1}))

    assert world.run(scripts.give_back(running)) == "ok"

    assert world.since(unclaimed) == {
        "rq:job:a attempt": "0",
        "rq:job:a attempt_id": "",
        "rq:job:a put_back": "1:given_back",
        "rq:job:a history": [ended("given_back")],
        "rq:job:a started_at": "now",
        "rq:job:a worker_name": "w",
        "rq:job:a seq": "4",
        "taskpool:expiring a": None,
        "taskpool:events a 2": {"event": "started", "status": "in_progress", "at_ms": "now", "attempt": 1},
        "taskpool:events a 3": {
            "event": "progress",
            "status": "in_progress",
            "at_ms": "now",
            "progress": {"done": 1},
        },
        "taskpool:events a 4": {"event": "queued", "status": "queued", "at_ms": "now"},
    }


def test_a_second_attempt_given_back_keeps_what_the_first_one_said(world: World) -> None:
    world.start("a", max_attempts=3, expires_in_s=300)
    retry(world, 0)
    again = world.claim(attempt_id="2")

    world.run(scripts.give_back(again))

    record = world.get("a")
    assert (record.attempt, record.status) == (1, S.QUEUED)
    assert "taskpool:expiring a" not in world.snapshot()
    assert world.claim(attempt_id="3").attempt == 2


def test_a_task_given_back_was_started_in_time_and_does_not_expire_any_more(world: World) -> None:
    running = world.start("a", expires_in_s=300)
    world.run(scripts.give_back(running))
    world.redis.hset("rq:job:a", "expires_ms", 1)

    again = world.claim(attempt_id="2")

    assert (again.id, again.attempt) == ("a", 1)


def test_a_snooze_is_counted_and_published_and_the_attempt_is_not(world: World) -> None:
    world.add("a")
    unclaimed = world.snapshot()
    running = world.claim()
    world.run(scripts.progress(running, {"done": 1}))

    assert world.run(scripts.snooze(running, delay_ms=500_000, message="not yet")) == "ok"
    assert world.run(scripts.snooze(running, delay_ms=500_000, message="not yet")) == "ok"  # sent again

    changed = world.since(unclaimed)
    assert {name: value for name, value in changed.items() if " 2" not in name and " 3" not in name} == {
        "rq:job:a status": "scheduled",
        "rq:job:a attempt": "0",
        "rq:job:a attempt_id": "",
        "rq:job:a put_back": "1:snooze",
        "rq:job:a history": [ended("snoozed", "not yet")],
        "rq:job:a run_ms": "now+500 s",
        "rq:job:a run_clock": "0",
        "rq:job:a seq": "4",
        "rq:job:a snoozes": "1",
        "rq:job:a started_at": "now",
        "rq:job:a worker_name": "w",
        "rq:queue:default": None,
        "rq:scheduled:default a": "now+500 s",
        "taskpool:events a 4": {
            "event": "snoozed",
            "status": "scheduled",
            "at_ms": "now",
            "error": "not yet",
            "delay_ms": 500_000,
        },
    }
    world.make_due("a")
    world.run(scripts.promote("a", "default"))
    again = world.claim(attempt_id="2")
    assert (again.attempt, again.snoozes) == (1, 1)


@pytest.mark.parametrize("delay_ms", [0, 500_000])
def test_a_task_asked_to_stop_does_not_run_again(world: World, delay_ms: int) -> None:
    world.start("a", max_attempts=2)
    world.run(scripts.stop("a", grace_s=5, force=False))
    before = world.snapshot()

    assert retry(world, delay_ms) == "stopping"
    assert world.run(scripts.snooze(world.running["a"], delay_ms=delay_ms, message="")) == "stopping"
    assert world.run(scripts.give_back(world.running["a"])) == "stopping"

    assert world.since(before) == {}


@pytest.mark.parametrize("status", SEED)
def test_an_attempt_that_does_not_hold_the_task_puts_nothing_back(world: World, status: TaskStatus) -> None:
    world.start("b", attempt_id="9")
    SEED[status](world, "a")
    before = world.snapshot()
    world.running["a"] = replace(world.running["b"], id="a")

    assert retry(world, 0) == "lost"
    assert retry(world, 500_000) == "lost"
    assert world.run(scripts.snooze(world.running["a"], delay_ms=0, message="")) == "lost"
    assert world.run(scripts.give_back(world.running["a"])) == "lost"

    assert world.since(before) == {}


def test_either_the_retry_or_the_end_of_an_attempt_counts(world: World) -> None:
    rounds = 50
    running = [world.start(f"t{n}", max_attempts=2) for n in range(rounds)]

    answers = race(
        world.url,
        rounds,
        lambda n: scripts.finish(running[n], S.DONE, result=b"1"),
        lambda n: scripts.retry(running[n], delay_ms=0, error="no luck", failure=FAILURE),
    )

    assert {tuple(each) for each in answers} <= {("ok", "lost"), ("lost", "ok")}
    queued = {id.decode() for id in world.redis.lrange("rq:queue:default", 0, -1)}
    assert queued == {f"t{n}" for n, (end, _) in enumerate(answers) if end == "lost"}


def test_the_lease_of_an_attempt_whose_record_was_deleted_is_dropped(world: World) -> None:
    world.start("a")
    world.redis.delete("rq:job:a")
    before = world.snapshot()

    assert retry(world, 0) == "lost"

    assert world.since(before) == FORGOTTEN


def test_a_task_that_runs_again_has_waited_since_it_was_queued_again(world: World) -> None:
    world.start("a", max_attempts=2)
    world.redis.hset("rq:job:a", "enqueued_at", "2026-01-01T00:00:00.000Z")

    retry(world, 0)

    assert world.snapshot()["rq:job:a enqueued_at"] == "now"
