"""The moves of running: claim, stop, retry by hand, and what a task reads of its parents."""

from __future__ import annotations

import pytest

from taskpool import runner
from taskpool.errors import TaskConflict, TaskNotFound
from taskpool.redis import scripts
from taskpool.types import RETRYABLE, TaskRecord, TaskStatus
from tests.states import ENDED, RUNS, SEED, WAITS, World, race

S = TaskStatus


def kill(world: World, id: str, *, force: bool = False) -> TaskRecord:
    return world.store.carry_out(runner.kill_task(id, grace_s=7, force=force))


def retry(world: World, id: str) -> TaskRecord:
    return world.store.carry_out(runner.retry_task(id))


def test_a_claim_is_for_the_first_queue_that_has_a_task(world: World) -> None:
    world.add("low", queue="low")
    world.add("high", queue="high")

    call = runner.run_task(["high", "low"], worker="w", attempt_id="1", lease_s=100)
    running = world.run(call)

    assert running is not None
    assert (running.id, running.attempt_id, running.worker) == ("high", "1", "w")


@pytest.mark.parametrize("status", WAITS)
@pytest.mark.parametrize("force", [False, True])
def test_a_task_that_has_not_started_is_canceled(world: World, status: TaskStatus, force: bool) -> None:
    SEED[status](world, "a")

    record = kill(world, "a", force=force)

    assert record == world.get("a")
    assert (record.status, record.reason) == (S.CANCELED, "canceled")


@pytest.mark.parametrize("force", [False, True])
def test_a_running_task_is_asked_to_stop(world: World, force: bool) -> None:
    world.start("a")

    record = kill(world, "a", force=force)

    assert record.status is S.STOPPING
    assert world.snapshot()["rq:job:a stop_grace_s"] == "7"
    assert world.snapshot()["rq:job:a stop_force"] == ("1" if force else "")


@pytest.mark.parametrize("status", ENDED)
def test_an_ended_task_stays_as_it_is(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert kill(world, "a", force=True) == world.get("a")

    assert world.since(before) == {}


def test_a_task_that_does_not_exist_is_not_found(world: World) -> None:
    for move in (kill, retry):
        with pytest.raises(TaskNotFound):
            move(world, "ghost")

    assert world.snapshot() == {}


def test_a_task_claimed_between_the_look_and_the_cancellation_is_stopped(world: World) -> None:
    world.add("a")
    plan = runner.kill_task("a")
    (stop,) = next(plan)
    (cancel,) = plan.send([world.run(stop)])
    world.claim()

    (stop_again,) = plan.send([world.run(cancel)])
    (look,) = plan.send([world.run(stop_again)])

    with pytest.raises(StopIteration) as ended:
        plan.send([world.run(look)])
    assert ended.value.value.status is S.STOPPING


def test_a_stop_at_the_moment_of_the_claim_is_never_without_effect(world: World) -> None:
    rounds = 50
    for n in range(rounds):
        world.add(f"t{n}", queue=f"q{n}")

    race(
        world.url,
        rounds,
        lambda n: scripts.claim([f"q{n}"], worker="w", attempt_id="1", lease_ms=100_000, was_idle=False),
        lambda n: scripts.cancel(f"t{n}", reason="canceled", error="by hand"),
    )

    assert {kill(world, f"t{n}").status for n in range(rounds)} <= {S.STOPPING, S.CANCELED}


@pytest.mark.parametrize("status", sorted(RETRYABLE))
def test_a_task_that_did_not_end_well_lives_again(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    record = retry(world, "a")

    assert record == world.get("a")
    assert record.status is S.QUEUED
    assert world.claim(attempt_id="2").id == "a"


@pytest.mark.parametrize("status", [*WAITS, *RUNS, S.DONE])
def test_any_other_task_is_in_conflict_with_a_retry(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    with pytest.raises(TaskConflict, match=status.value) as conflict:
        retry(world, "a")

    assert (conflict.value.id, conflict.value.status) == ("a", status)
    assert world.since(before) == {}


def test_a_task_whose_parent_did_not_end_well_says_to_retry_that_first(world: World) -> None:
    world.end("p", S.FAILED)
    world.add("a", depends_on=["p"])

    with pytest.raises(TaskConflict, match="retry that one first") as conflict:
        retry(world, "a")

    assert conflict.value.status is S.CANCELED


def test_rqs_entry_point_is_for_rqs_workers() -> None:
    with pytest.raises(RuntimeError, match="use TaskPool"):
        runner.run("echo", {"message": 1})
