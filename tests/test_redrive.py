"""Canary redrive: a group of failures is retried in growing steps, and it stops by itself when they fail again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from taskpool.access.audit import Actor, read_audit
from taskpool.errors import FailureNotFound, InvalidTask, NotAllowed, RedriveConflict
from taskpool.operations.insight.redrive import drive_redrives, get_redrive, start_redrive, stop_redrive
from taskpool.redis import bulk_scripts, keys, scripts
from taskpool.redis.calls import Call
from taskpool.types import TaskStatus
from taskpool.types.insight import Redrive, RedriveStatus
from tests.states import FINGERPRINT, World
from tests.test_failures import fail

S = TaskStatus
BROKEN = {"reason": "exception", "message": "no luck"}
ME = Actor("k1", "Ann", None, "here")
MOST_ROUNDS = 100


@pytest.fixture
def broken(world: World) -> World:
    """30 failed tasks with one fingerprint, and one with another."""
    for number in range(30):
        fail(world, f"a{number:02}", BROKEN)
    fail(world, "other", {"reason": "timeout", "message": "slow"})
    return world


def rounds(world: World, *, works: bool = True) -> Redrive:
    """Rounds of housekeeping, with a worker that runs what is queued after each, until the redrive has ended."""
    for number in range(MOST_ROUNDS):
        world.store.carry_out(drive_redrives("me"))
        while (running := world.try_claim(attempt_id=f"r{number}")) is not None:
            if works:
                world.finish(running)
            else:
                world.run(scripts.finish(running, S.FAILED, error="again", failure=BROKEN))
        redrive = world.store.carry_out(get_redrive(FINGERPRINT))
        if redrive.status is not RedriveStatus.RUNNING:
            return redrive
    raise AssertionError(f"still {redrive}")


def statuses(world: World) -> dict[TaskStatus, int]:
    found = [world.get(f"a{number:02}").status for number in range(30)]
    return {status: found.count(status) for status in set(found)}


def end_lease(world: World) -> None:
    """Let the lease of the pool that drives the redrive end."""
    world.redis.hset(f"{keys.REDRIVE}{FINGERPRINT}", "driver_ms", 1)


def start(world: World, **options: Any) -> Redrive:
    return world.store.carry_out(start_redrive(FINGERPRINT, **options))


def test_a_group_that_works_again_is_retried_whole(broken: World) -> None:
    assert start(broken).status is RedriveStatus.RUNNING

    ended = rounds(broken)

    assert (ended.status, ended.step, ended.retried, ended.succeeded, ended.failed_again) == ("done", 3, 30, 30, 0)
    assert statuses(broken) == {S.DONE: 30}
    assert broken.get("other").status is S.FAILED
    assert ended.ended_at is not None


def test_one_failure_stops_it_in_its_first_step(broken: World) -> None:
    start(broken)

    ended = rounds(broken, works=False)

    assert (ended.status, ended.step, ended.retried, ended.failed_again) == ("stopped", 1, 1, 1)
    assert ended.why == "step 1 (1): 1 of 1 failed again"
    assert statuses(broken) == {S.FAILED: 30}
    assert not broken.redis.smembers(keys.REDRIVES)


def test_the_last_step_stops_when_many_fail_again(broken: World) -> None:
    start(broken, steps=["all"])

    ended = rounds(broken, works=False)

    assert ended.status is RedriveStatus.STOPPED
    assert ended.failed_again == ended.retried == 30  # all were retried in its first round


def test_a_step_waits_until_the_one_before_has_ended(broken: World) -> None:
    start(broken)

    for _ in range(5):
        broken.store.carry_out(drive_redrives("me"))

    assert statuses(broken) == {S.QUEUED: 1, S.FAILED: 29}
    assert broken.store.carry_out(get_redrive(FINGERPRINT)).step == 1


def test_a_failure_with_attempts_left_counts_as_one(world: World) -> None:
    world.add("a", max_attempts=2)
    world.run(scripts.finish(world.claim(), S.FAILED, error="no luck", failure=BROKEN))
    start(world)
    world.store.carry_out(drive_redrives("me"))

    world.run(scripts.retry(world.claim(attempt_id="2"), delay_ms=500_000, error="again", failure=BROKEN))
    world.store.carry_out(drive_redrives("me"))

    assert world.store.carry_out(get_redrive(FINGERPRINT)).status is RedriveStatus.STOPPED


def test_failures_that_no_retry_mends_are_left_out_unless_asked_for(world: World) -> None:
    fail(world, "a", BROKEN)
    fail(world, "b", {**BROKEN, "reason": "non_retryable", "exception": "X", "fingerprint": FINGERPRINT})

    start(world)
    assert rounds(world).left_out == 1
    assert (world.get("a").status, world.get("b").status) == (S.DONE, S.FAILED)

    start(world, include_nonretryable=True)
    assert rounds(world).succeeded == 1
    assert world.get("b").status is S.DONE


def test_a_task_that_cannot_be_retried_is_left_out(broken: World) -> None:
    broken.redis.hset("rq:job:a00", "secret_ttl", 100)  # and its secrets are gone

    start(broken)
    ended = rounds(broken)

    assert ended.status is RedriveStatus.DONE
    assert (ended.succeeded, broken.get("a00").status) == (29, S.FAILED)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_redrive_goes_on_after_its_driver_died_at_any_step(broken: World, cut: int) -> None:
    start(broken)
    for pool in "abc":  # pools that die in their first rounds
        plan = drive_redrives(pool)
        calls: Sequence[Call[Any]] = next(plan)
        try:
            for _ in range(cut):
                calls = plan.send([broken.run(call) for call in calls])
        except StopIteration:
            pass
        plan.close()
        end_lease(broken)

    ended = rounds(broken)

    assert (ended.status, ended.retried, ended.succeeded) == ("done", 30, 30)
    assert statuses(broken) == {S.DONE: 30}


def test_two_pools_do_not_drive_at_once(broken: World) -> None:
    start(broken)
    broken.run(bulk_scripts.take_redrive(FINGERPRINT, "another pool"))

    broken.store.carry_out(drive_redrives("me"))

    assert statuses(broken) == {S.FAILED: 30}


def test_a_driver_that_lost_its_lease_retries_nothing_twice(broken: World) -> None:
    start(broken, steps=[1])
    slow = drive_redrives("slow")
    calls: Sequence[Call[Any]] = next(slow)
    while not any(call.script == scripts.revive("a").script for call in calls):
        calls = slow.send([broken.run(call) for call in calls])
    end_lease(broken)
    broken.store.carry_out(drive_redrives("me"))
    running = broken.claim(attempt_id="2")
    broken.finish(running, S.FAILED)

    with suppress(StopIteration):
        slow.send([broken.run(call) for call in calls])

    assert broken.get(running.id).status is S.FAILED
    assert broken.redis.llen("rq:queue:default") == 0


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_pool_that_wakes_up_after_another_has_finished_the_redrive_changes_nothing(broken: World, cut: int) -> None:
    start(broken)
    plan = drive_redrives("sleeper")
    calls: Sequence[Call[Any]] = next(plan)
    for _ in range(cut):
        calls = plan.send([broken.run(call) for call in calls])
    end_lease(broken)
    ended = rounds(broken)
    for id in ("a00", "a01"):  # retried by hand, and failed once more: they are ready for another retry
        broken.redis.hset(f"rq:job:{id}", mapping={"status": "failed", "by_call": "a person"})
    before = broken.snapshot()

    with suppress(StopIteration):
        while True:
            calls = plan.send([broken.run(call) for call in calls])

    assert (ended.status, ended.retried, ended.succeeded) == ("done", 30, 30)
    assert broken.since(before) == {}


def test_a_task_that_can_not_be_retried_is_counted_once_although_the_driver_died(broken: World) -> None:
    broken.redis.hset("rq:job:a00", "secret_ttl", 100)  # and its secrets are gone
    start(broken, steps=["all"])
    for cut in range(1, 12):
        plan = drive_redrives(f"pool {cut}")
        calls: Sequence[Call[Any]] = next(plan)
        with suppress(StopIteration):
            for _ in range(cut):
                calls = plan.send([broken.run(call) for call in calls])
        end_lease(broken)

    ended = rounds(broken)

    assert (ended.succeeded, ended.left_out, ended.failed_again) == (29, 1, 0)


@pytest.mark.parametrize("starter", [None, ME, replace(ME, queues=("default", "other")), replace(ME, types=("t",))])
def test_a_bound_key_stops_only_what_a_key_with_its_bounds_or_fewer_started(
    broken: World, starter: Actor | None
) -> None:
    bound = Actor("k2", "Bo", None, "here", queues=("default",))
    start(broken, by=starter)

    with pytest.raises(NotAllowed, match="may retry tasks that the key 'Bo' may not"):
        broken.store.carry_out(stop_redrive(FINGERPRINT, bound))

    assert broken.store.carry_out(get_redrive(FINGERPRINT)).status == "running"
    broken.store.carry_out(stop_redrive(FINGERPRINT, ME))
    start(broken, by=replace(bound, types=("t",)))
    assert broken.store.carry_out(stop_redrive(FINGERPRINT, bound)).status == "stopped"


def test_a_person_stops_it(broken: World) -> None:
    start(broken, by=ME)
    broken.store.carry_out(drive_redrives("me"))

    stopped = broken.store.carry_out(stop_redrive(FINGERPRINT, ME))

    assert (stopped.status, stopped.why) == ("stopped", "stopped by Ann")
    broken.store.carry_out(drive_redrives("me"))
    assert statuses(broken) == {S.QUEUED: 1, S.FAILED: 29}
    with pytest.raises(RedriveConflict):
        broken.store.carry_out(stop_redrive(FINGERPRINT))
    entries = broken.store.carry_out(read_audit()).items
    assert [each.entry.what for each in entries] == ["failures.redrive_stopped", "task.retried", "failures.redriven"]
    assert {each.entry.name for each in entries} == {"Ann"}


def test_only_tasks_that_the_caller_may_start_are_retried(broken: World) -> None:
    fail(broken, "b", {**BROKEN, "fingerprint": FINGERPRINT, "exception": "X"})
    broken.redis.hset("rq:job:b", "type", "secret")

    start(broken, by=Actor("k", "Bo", None, "", types=("secret",)))
    ended = rounds(broken)

    assert (ended.succeeded, ended.left_out) == (1, 30)
    assert statuses(broken) == {S.FAILED: 30}


def test_there_is_one_at_a_time_of_a_group_that_is_there(broken: World) -> None:
    start(broken)

    with pytest.raises(RedriveConflict):
        start(broken)
    for wrong in ("f" * 12, "nothing"):
        with pytest.raises(FailureNotFound):
            broken.store.carry_out(start_redrive(wrong))
        with pytest.raises(FailureNotFound):
            broken.store.carry_out(get_redrive(wrong))
        with pytest.raises(FailureNotFound):
            broken.store.carry_out(stop_redrive(wrong))


@pytest.mark.parametrize("steps", [[], [0], ["all", 1], [1, "ALL"], "all", [True], [1] * 11, [1.5], None, [100_001]])
def test_wrong_steps_are_refused(broken: World, steps: Any) -> None:
    with pytest.raises(InvalidTask, match="/steps"):
        start(broken, steps=steps)

    assert not broken.redis.exists(keys.REDRIVES)


def test_a_group_may_be_spread_over_queues(world: World) -> None:
    for number in range(12):
        world.add(f"a{number}", queue=f"q{number % 3}")
        world.run(scripts.finish(world.claim(f"q{number % 3}"), S.FAILED, error="e", failure=BROKEN))
    start(world)

    for number in range(MOST_ROUNDS):
        world.store.carry_out(drive_redrives("me"))
        while (running := world.try_claim("q0", "q1", "q2", attempt_id=f"r{number}")) is not None:
            world.finish(running)

    assert world.store.carry_out(get_redrive(FINGERPRINT)).succeeded == 12
