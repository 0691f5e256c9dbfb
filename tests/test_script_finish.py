"""finish.lua: how an attempt ends with its task, in Redis as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import FAILURE, FINGERPRINT, SEED, World, ended, new_task, race

S = TaskStatus

FORGOTTEN: dict[str, Any] = {
    "rq:wip:default a:1": None,
    "taskpool:attempts:w": None,
}
"""What is gone of the attempt "1" at task "a" when it has ended."""


def test_a_task_is_done_with_its_result_for_as_long_as_it_is_kept(world: World) -> None:
    running = world.start("a")
    before = world.snapshot()

    assert world.run(scripts.finish(running, S.DONE, result=b'{"n":1}')) == "ok"

    assert world.since(before) == {
        **FORGOTTEN,
        "rq:job:a status": "finished",
        "rq:job:a ended_at": "now",
        "rq:job:a result": '{"n":1}',
        "rq:job:a seq": "3",
        "rq:job:a expires": "now+1060 s",
        "rq:finished:default a": "now+1000 s",
        "taskpool:events a 3": {"event": "done", "status": "done", "at_ms": "now"},
    }


@pytest.mark.parametrize(("status", "kind"), [(S.FAILED, "2"), (S.STOPPED, "3")])
def test_a_failed_or_stopped_task_says_why_to_us_and_to_dashboards(world: World, status: TaskStatus, kind: str) -> None:
    running = world.start("a")
    before = world.snapshot()

    word = world.run(scripts.finish(running, status, error='no "luck"', failure=FAILURE, traceback="Trace\nhere"))

    assert word == "ok"
    assert world.since(before) == {
        **FORGOTTEN,
        "rq:job:a status": status.value,
        "rq:job:a ended_at": "now",
        "rq:job:a error": 'no "luck"',
        "rq:job:a failure": '{"reason":"exception","message":"no luck"}',
        **({"rq:job:a fingerprint": FINGERPRINT} if status is S.FAILED else {}),
        "rq:job:a reason": "exception",
        "rq:job:a history": [ended(status.value, 'no "luck"')],
        "rq:job:a seq": "3",
        "rq:job:a expires": "now+2060 s",
        "rq:failed:default a": "now+2000 s",
        "rq:results:a 1": {"type": kind, "worker_name": "w", "exc_string": "Trace\nhere", "execution_id": "1"},
        "rq:results:a expires": "now+2060 s",
        "taskpool:events a 3": {"event": status.value, "status": status.value, "at_ms": "now", "error": 'no "luck"'},
    }


def test_a_task_that_was_asked_to_stop_may_still_end_well(world: World) -> None:
    running = world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))

    assert world.finish(running) == "ok"

    assert world.get("a").status is S.DONE


def test_what_waits_for_a_task_is_noted_in_the_outbox_in_the_same_step(world: World) -> None:
    running = world.start("a")
    world.add("child", depends_on=["a"])
    before = world.snapshot()

    assert world.finish(running) == "children"

    changed = world.since(before)
    assert changed["taskpool:outbox"] == {"a"}
    assert not [name for name in changed if "child" in name]


def test_a_task_kept_for_ever_has_no_expiry(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "result_ttl", -1)

    world.finish(world.claim())

    after = world.snapshot()
    assert after["rq:finished:default a"] == "inf"
    assert "rq:job:a expires" not in after


def test_a_failure_kept_for_ever_keeps_its_traceback_too(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "failure_ttl", -1)

    world.finish(world.claim(), S.FAILED)

    after = world.snapshot()
    assert after["rq:failed:default a"] == "inf"
    assert not {"rq:job:a expires", "rq:results:a expires"} & after.keys()


def test_a_result_to_be_kept_for_no_time_is_kept_for_a_second(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "result_ttl", 0)

    world.finish(world.claim())

    assert world.redis.zscore("rq:finished:default", "a") > world.redis.time()[0]


def test_a_record_without_a_type_gets_the_one_it_ran_as(world: World) -> None:
    world.add("a")
    world.redis.hdel("rq:job:a", "type")
    world.redis.zrem("taskpool:type:work", "a")
    running = world.claim()

    world.finish(running)

    after = world.snapshot()
    assert after["rq:job:a type"] == "work"
    assert after["taskpool:type:work a"] == "0"


@pytest.mark.parametrize("status", SEED)
@pytest.mark.parametrize("end", [S.DONE, S.FAILED, S.STOPPED])
def test_an_attempt_that_does_not_hold_the_task_ends_nothing(world: World, status: TaskStatus, end: TaskStatus) -> None:
    other = world.start("other", attempt_id="9")
    SEED[status](world, "a")
    before = world.snapshot()
    stranger = replace(other, id="a")

    assert world.finish(stranger, end) == "lost"

    assert world.since(before) == {}


def test_an_attempt_that_has_ended_does_not_end_in_another_way(world: World) -> None:
    running = world.start("a")
    assert world.finish(running, S.FAILED) == "ok"
    before = world.snapshot()

    assert world.finish(running, S.DONE) == "lost"
    assert world.finish(running, S.STOPPED) == "lost"
    assert world.run(scripts.finish(running, S.FAILED, error="no", failure={"reason": "timeout"})) == "lost"

    assert world.since(before) == {}


def test_the_lease_of_an_attempt_whose_record_was_deleted_is_dropped_when_it_ends(world: World) -> None:
    running = world.start("a")
    world.redis.delete("rq:job:a")
    before = world.snapshot()

    assert world.finish(running) == "lost"

    assert world.since(before) == FORGOTTEN


def test_either_the_end_or_the_crash_of_an_attempt_counts(world: World) -> None:
    rounds = 100
    world.run(scripts.add([new_task(f"t{n}") for n in range(rounds)]))
    running = [world.claim(attempt_id="1") for _ in range(rounds)]

    answers = race(
        world.url,
        rounds,
        lambda n: scripts.finish(running[n], S.DONE, result=b"1"),
        lambda n: scripts.crash(f"t{n}", "1", "default", error="died", failure=FAILURE, max_crashes=3),
    )

    statuses = {"ok": S.DONE, "lost": S.QUEUED}
    assert {tuple(each) for each in answers} <= {("ok", "lost"), ("lost", "queued")}
    assert [world.get(f"t{n}").status for n in range(rounds)] == [statuses[end] for end, _ in answers]
    assert world.redis.zcard("rq:wip:default") == 0


def test_a_type_first_heard_of_at_the_end_is_in_use(world: World) -> None:
    world.add("a")
    world.redis.hdel("rq:job:a", "type")
    world.redis.delete("taskpool:types:used", "taskpool:type:work")

    world.finish(world.claim())

    assert world.snapshot()["taskpool:types:used"] == {"work"}
