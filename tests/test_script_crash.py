"""crash.lua: what becomes of a task whose attempt died, as reported by its supervisor or when its lease ended."""

from __future__ import annotations

from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from taskpool.redis import keys, scripts
from taskpool.redis.keys import MOST_SUSPICIONS, WIP_GRACE_S
from taskpool.tasks.fingerprints import fingerprint_of
from taskpool.types import TaskStatus
from tests.states import LEASE_MS, SEED, World, ended, race
from tests.test_script_finish import FORGOTTEN

S = TaskStatus
DEATH = {"reason": "crashed", "message": "died"}
HIDDEN = {
    f"rq:execution:a:1 {name}": None for name in ("created_at", "expires", "job_id", "last_heartbeat", "worker_name")
} | {"rq:worker:w:executions": None}
"""What RQ's tools were shown of an attempt is gone."""


def crash(
    world: World,
    id: str = "a",
    attempt_id: str = "1",
    *,
    max_crashes: int = 3,
    only_expired: bool = False,
    is_shared: bool = False,
) -> str:
    return world.run(
        scripts.crash(
            id,
            attempt_id,
            "default",
            error="died",
            failure=DEATH,
            max_crashes=max_crashes,
            only_expired=only_expired,
            is_shared=is_shared,
            worker="" if only_expired else "w",
        )
    )


def test_a_task_whose_attempt_died_is_queued_again_at_the_front(world: World) -> None:
    world.start("a")
    world.add("b")
    before = world.snapshot()

    assert crash(world) == "queued"

    assert world.since(before) == {
        **FORGOTTEN,
        "rq:job:a status": "queued",
        "rq:job:a attempt_id": "",
        "rq:job:a crashes": "1",
        "rq:job:a history": [ended("crashed", "died")],
        "rq:job:a error": "died",
        "rq:job:a failure": '{"reason":"crashed","message":"died"}',
        "rq:job:a fingerprint": fingerprint_of("crashed", "work"),
        "rq:job:a seq": "3",
        "rq:queue:default": ["a", "b"],
        "taskpool:doorbell:default": ["1", "1"],
        "taskpool:events a 3": {"event": "crashed", "status": "queued", "at_ms": "now", "error": "died", "crashes": 1},
    }


def test_a_task_that_died_beside_others_is_queued_again_uncounted_and_is_a_suspect(world: World) -> None:
    world.start("a")
    world.add("b")
    before = world.snapshot()

    assert crash(world, is_shared=True) == "given_back"

    assert world.since(before) == {
        **FORGOTTEN,
        "rq:job:a status": "queued",
        "rq:job:a attempt_id": "",
        "rq:job:a attempt": "0",
        "rq:job:a suspect": "1",
        "rq:job:a history": [ended("given_back", "died")],
        "rq:job:a seq": "3",
        "rq:queue:default": ["a", "b"],
        "taskpool:doorbell:default": ["1", "1"],
        "taskpool:events a 3": {"event": "crashed", "status": "queued", "at_ms": "now", "error": "died", "crashes": 0},
    }
    assert world.claim(attempt_id="2").is_suspect


def test_a_suspect_is_one_until_it_fails_by_itself_or_begins_a_new_life(world: World) -> None:
    world.start("a", max_attempts=3)
    crash(world, is_shared=True)
    running = world.claim(attempt_id="2")
    world.run(scripts.snooze(running, delay_ms=0, message="later"))
    running = world.claim(attempt_id="3")
    assert running.is_suspect

    world.run(scripts.retry(running, delay_ms=0, error="no", failure=DEATH))

    assert not world.claim(attempt_id="4").is_suspect


def test_a_task_that_dies_beside_others_again_and_again_is_charged_in_the_end(world: World) -> None:
    world.add("a")
    words: list[str] = []
    while not words or words[-1] != "failed":
        world.claim(attempt_id=str(len(words)))
        words.append(crash(world, attempt_id=str(len(words)), is_shared=True))

    assert words == ["given_back"] * MOST_SUSPICIONS + ["queued"] * 2 + ["failed"]
    assert world.get("a").crashes == 3


def test_a_stopped_task_that_dies_beside_others_is_stopped(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=1, force=False))

    assert crash(world, is_shared=True) == "stopped"


def test_a_task_whose_attempts_keep_dying_fails_and_says_how(world: World) -> None:
    world.add("a")
    for attempt in ("1", "2"):
        world.claim(attempt_id=attempt)
        assert crash(world, attempt_id=attempt) == "queued"
    world.claim(attempt_id="3")
    before = world.snapshot()

    assert crash(world, attempt_id="3") == "failed"

    assert world.since(before) == {
        **{name.replace("a:1", "a:3"): value for name, value in FORGOTTEN.items()},
        "rq:job:a status": "failed",
        "rq:job:a ended_at": "now",
        "rq:job:a crashes": "3",
        "rq:job:a history": [ended("crashed", "died", attempt=attempt) for attempt in (1, 2, 3)],
        "rq:job:a error": "died",
        "rq:job:a failure": '{"reason":"crashed","message":"died"}',
        "rq:job:a fingerprint": fingerprint_of("crashed", "work"),
        "rq:job:a reason": "crashed",
        "rq:job:a seq": "7",
        "rq:job:a expires": "now+2060 s",
        "rq:failed:default a": "now+2000 s",
        "rq:results:a 1": {"type": "2", "worker_name": "w", "exc_string": "died", "execution_id": "3"},
        "rq:results:a expires": "now+2060 s",
        "taskpool:events a 7": {"event": "failed", "status": "failed", "at_ms": "now", "error": "died"},
    }


def test_a_task_asked_to_stop_whose_attempt_died_is_stopped(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=True))
    before = world.snapshot()

    assert crash(world) == "stopped"

    changed = world.since(before)
    assert changed["rq:job:a status"] == "stopped"
    assert changed["rq:job:a reason"] == "stopped"
    assert changed["rq:job:a history"] == [ended("stopped", "died")]
    assert changed["rq:job:a failure"] == '{"reason":"stopped","message":"died"}'
    assert changed["rq:results:a 1"]["type"] == "3"
    assert changed["rq:failed:default a"] == "now+2000 s"
    assert "rq:queue:default" not in changed


def test_what_waits_for_a_task_that_failed_by_dying_goes_into_the_outbox(world: World) -> None:
    world.start("a")
    world.add("child", depends_on=["a"])

    assert crash(world, max_crashes=1) == "failed"

    assert world.snapshot()["taskpool:outbox"] == {"a"}


def test_a_crash_does_not_use_up_an_attempt_of_a_task_with_one(world: World) -> None:
    world.start("a")
    crash(world)

    running = world.claim(attempt_id="2")

    assert (running.attempt, running.max_attempts) == (2, 1)


@pytest.mark.parametrize("status", SEED)
def test_the_death_of_an_attempt_that_does_not_hold_the_task_changes_nothing(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert crash(world, attempt_id="9") == "lost"

    assert world.since(before) == {}


def test_the_death_of_an_attempt_settled_already_changes_nothing(world: World) -> None:
    world.start("a")
    crash(world)
    world.claim(attempt_id="2")
    before = world.snapshot()

    assert crash(world, attempt_id="1") == "lost"

    assert world.since(before) == {}


def test_a_reaper_leaves_an_attempt_whose_lease_has_not_ended(world: World) -> None:
    world.start("a")
    before = world.snapshot()

    assert crash(world, only_expired=True) == "lost"

    assert world.since(before) == {}


def test_a_reaper_takes_back_an_attempt_whose_lease_has_ended(world: World) -> None:
    world.start("a")
    world.expire_lease("a")

    assert crash(world, only_expired=True) == "queued"

    assert world.get("a").status is S.QUEUED


def test_a_lost_lease_is_not_called_a_crash(world: World) -> None:
    world.start("a")
    world.expire_lease("a")
    before = world.snapshot()

    assert crash(world, only_expired=True) == "queued"

    changed = world.since(before)
    assert changed["rq:job:a failure"] == '{"reason":"lease_lost","message":"died"}'
    assert changed["rq:job:a history"] == [ended("lease_lost", "died")]
    assert changed["rq:job:a crashes"] == "1"
    assert changed["taskpool:events a 3"] == {
        "event": "lease_lost",
        "status": "queued",
        "at_ms": "now",
        "error": "died",
        "crashes": 1,
        "reason": "lease_lost",
    }


@pytest.mark.parametrize("stop", [None, False, True])
def test_an_end_after_a_lost_lease_says_that_it_is_presumed(world: World, stop: bool | None) -> None:
    world.start("a")
    if stop is not None:
        world.run(scripts.stop("a", grace_s=5, force=stop))
    world.expire_lease("a")
    status = "failed" if stop is None else "stopped"
    before = world.snapshot()

    assert crash(world, only_expired=True, max_crashes=1) == status

    changed = world.since(before)
    assert (changed["rq:job:a status"], changed["rq:job:a reason"]) == (status, "lease_lost")
    assert changed["rq:job:a failure"] == '{"reason":"lease_lost","message":"died"}'
    assert changed["rq:job:a history"] == [ended("lease_lost", "died")]
    (event,) = [value for name, value in changed.items() if name.startswith("taskpool:events a")]
    assert (event["event"], event["reason"]) == (status, "lease_lost")


def test_lost_leases_count_towards_the_limit_of_crashes(world: World) -> None:
    world.add("a")
    for attempt in ("1", "2"):
        world.claim(attempt_id=attempt)
        world.expire_lease("a", attempt)
        assert crash(world, attempt_id=attempt, only_expired=True) == "queued"
    world.claim(attempt_id="3")

    assert crash(world, attempt_id="3") == "failed"

    assert [attempt.outcome for attempt in world.get("a").history] == ["lease_lost", "lease_lost", "crashed"]
    assert world.get("a").reason == "crashed"


def test_a_reaper_comes_too_late_after_a_heartbeat(world: World) -> None:
    world.start("a")
    world.expire_lease("a")
    world.run(scripts.heartbeat([("a", "1", "default")], 100_000))

    assert crash(world, only_expired=True) == "lost"

    assert world.get("a").status is S.IN_PROGRESS


def test_a_lease_without_a_record_is_dropped(world: World) -> None:
    world.start("a")
    world.redis.delete("rq:job:a")
    world.expire_lease("a")

    assert crash(world, only_expired=True) == "lost"

    after = world.snapshot()
    assert not {"rq:wip:default a:1", "rq:execution:a:1 job_id"} & after.keys()


def end_lease(world: World, *, ago_s: float) -> None:
    """Have the lease of a's attempt end so long ago, entered as we enter leases."""
    world.redis.zadd("rq:wip:default", {"a:1": world.redis.time()[0] + WIP_GRACE_S - ago_s})


def test_an_attempt_whose_record_was_deleted_is_dropped_when_its_lease_ends(world: World) -> None:
    world.start("a")
    world.run(scripts.heartbeat([("a", "1", "default")], LEASE_MS))
    world.redis.delete("rq:job:a")
    before = world.snapshot()

    end_lease(world, ago_s=-50)
    assert crash(world, only_expired=True) == "lost"
    assert world.redis.zcard("rq:wip:default") == 1

    end_lease(world, ago_s=2)
    assert crash(world, only_expired=True) == "lost"
    assert world.since(before) == {**FORGOTTEN, **HIDDEN}


def plain_execution(world: World, id: str, *, ends_s: float) -> None:
    """What a plain RQ worker leaves in Redis that runs one of our tasks: a lease, and no attempt id on the record."""
    world.redis.rpop("rq:queue:default")
    world.redis.hset(f"rq:job:{id}", mapping={"status": "started", "worker_name": "plain"})
    world.redis.zadd("rq:wip:default", {f"{id}:e1": world.redis.time()[0] + ends_s})
    world.redis.hset(f"rq:execution:{id}:e1", mapping={"id": "e1", "job_id": id, "worker_name": "plain"})


def test_the_execution_of_a_plain_rq_worker_is_taken_back_when_its_lease_has_ended(world: World) -> None:
    world.add("a")
    plain_execution(world, "a", ends_s=-1)

    assert crash(world, attempt_id="e1", only_expired=True) == "queued"

    assert world.redis.zcard("rq:wip:default") == 0
    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a"]


@pytest.mark.parametrize("serializer", [None, JSONSerializer])
def test_the_execution_of_another_programs_job_is_left_to_rqs_own_maintenance(world: World, serializer: Any) -> None:
    job = Queue(connection=world.redis, serializer=serializer).enqueue("os.getcwd")
    plain_execution(world, job.id, ends_s=-1)
    before = world.snapshot()

    assert crash(world, id=job.id, attempt_id="e1", only_expired=True) == "lost"

    assert world.since(before) == {}


def test_the_execution_of_a_plain_producers_task_is_taken_back(world: World) -> None:
    job = Queue(connection=world.redis, serializer=JSONSerializer).enqueue(keys.ENTRY_POINT, "work", {})
    plain_execution(world, job.id, ends_s=-1)

    assert crash(world, id=job.id, attempt_id="e1", only_expired=True) == "queued"


def test_the_execution_of_a_plain_rq_worker_is_left_while_its_lease_runs(world: World) -> None:
    world.add("a")
    plain_execution(world, "a", ends_s=50)
    before = world.snapshot()

    assert crash(world, attempt_id="e1", only_expired=True) == "lost"

    assert world.since(before) == {}


def test_the_ended_lease_of_a_plain_rq_worker_takes_nothing_from_our_attempt(world: World) -> None:
    world.start("a")
    world.redis.zadd("rq:wip:default", {"a:e1": 1})
    before = world.snapshot()

    assert crash(world, attempt_id="e1", only_expired=True) == "lost"

    assert world.since(before) == {"rq:wip:default a:e1": None}


def test_two_reapers_take_an_attempt_back_once(world: World) -> None:
    rounds = 50
    for n in range(rounds):
        world.start(f"t{n}")
        world.expire_lease(f"t{n}")

    def reap(n: int) -> Any:
        return scripts.crash(f"t{n}", "1", "default", error="died", failure=DEATH, max_crashes=3, only_expired=True)

    answers = race(world.url, rounds, reap, reap)

    assert all(sorted(each) == ["lost", "queued"] for each in answers)
    assert sorted(world.redis.lrange("rq:queue:default", 0, -1)) == sorted(f"t{n}".encode() for n in range(rounds))
    assert all(world.get(f"t{n}").crashes == 1 for n in range(rounds))


@pytest.mark.parametrize("only_expired", [False, True])
def test_nothing_is_left_of_an_attempt_whose_record_was_deleted_meanwhile(world: World, only_expired: bool) -> None:
    world.start("a")
    world.run(scripts.heartbeat([("a", "1", "default")], LEASE_MS))
    world.redis.delete("rq:job:a")
    before = world.snapshot()
    world.expire_lease("a")

    assert crash(world, only_expired=only_expired) == "lost"

    assert world.since(before) == {**FORGOTTEN, **HIDDEN}


def test_a_task_that_runs_again_has_waited_since_it_was_queued_again(world: World) -> None:
    world.start("a")
    world.redis.hset("rq:job:a", "enqueued_at", "2026-01-01T00:00:00.000Z")

    crash(world)

    assert world.snapshot()["rq:job:a enqueued_at"] == "now"
