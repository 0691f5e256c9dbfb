"""The vocabulary of statuses: the diagram that people read, the whitelist, and what the scripts really do, agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rq.job import JobStatus

from taskpool.redis import people_scripts, scripts
from taskpool.redis.people_scripts import By
from taskpool.redis.rq_job import STATUS_OF
from taskpool.types import RQ_STATUS, TERMINAL, TRANSITIONS, TaskOptions, TaskSpec, TaskStatus, utc
from tests.states import FAILURE, SEED, World

S = TaskStatus
RESERVED = {S.THROTTLED}
Edge = tuple[TaskStatus, TaskStatus]


def finish(status: TaskStatus) -> Callable[[World], Any]:
    return lambda world: world.finish(world.running["a"], status)


def retry(delay_ms: int) -> Callable[[World], Any]:
    return lambda world: world.run(
        scripts.retry(world.running["a"], delay_ms=delay_ms, error="no luck", failure=FAILURE)
    )


def release_after(status: TaskStatus) -> Callable[[World], Any]:
    def end_parent(world: World) -> None:
        world.finish(world.claim("parents", attempt_id="p"), status)
        world.run(scripts.release("a-parent"))

    return end_parent


def be_scheduled_after_waiting(world: World) -> None:
    world.redis.hset("rq:job:a", "run_ms", 10**14)
    release_after(S.DONE)(world)


def be_asked_after_waiting(world: World) -> None:
    world.redis.hset("rq:job:a", mapping={"unconfirmed": 1, "confirm": '{"text":"Go?","timeout":60}'})
    release_after(S.DONE)(world)


def be_asked_at_the_claim(world: World) -> None:
    world.redis.hset("rq:job:a", mapping={"unconfirmed": 1, "confirm": '{"text":"Go?","timeout":60}'})
    assert world.try_claim() is None


def decide(decision: str) -> Callable[[World], Any]:
    return lambda world: world.run(people_scripts.confirm("a", decision, By()))


def confirm_a_delayed_task(world: World) -> None:
    world.redis.hset("rq:job:a", "run_ms", 10**14)
    decide("confirmed")(world)


def promote(world: World) -> None:
    world.make_due("a")
    world.run(scripts.promote("a", "default"))


MOVES: dict[Edge, Callable[[World], Any]] = {
    (S.QUEUED, S.IN_PROGRESS): lambda world: world.claim(),
    (S.QUEUED, S.CANCELED): lambda world: world.cancel("a"),
    (S.QUEUED, S.WAITING_CONFIRMATION): be_asked_at_the_claim,
    (S.SCHEDULED, S.QUEUED): promote,
    (S.SCHEDULED, S.CANCELED): lambda world: world.cancel("a"),
    (S.WAITING, S.QUEUED): release_after(S.DONE),
    (S.WAITING, S.SCHEDULED): be_scheduled_after_waiting,
    (S.WAITING, S.CANCELED): release_after(S.FAILED),
    (S.WAITING, S.WAITING_CONFIRMATION): be_asked_after_waiting,
    (S.WAITING_CONFIRMATION, S.QUEUED): decide("confirmed"),
    (S.WAITING_CONFIRMATION, S.SCHEDULED): confirm_a_delayed_task,
    (S.WAITING_CONFIRMATION, S.CANCELED): decide("rejected"),
    (S.IN_PROGRESS, S.STOPPING): lambda world: world.run(scripts.stop("a", grace_s=5, force=False)),
    (S.IN_PROGRESS, S.DONE): finish(S.DONE),
    (S.IN_PROGRESS, S.FAILED): finish(S.FAILED),
    (S.IN_PROGRESS, S.STOPPED): finish(S.STOPPED),
    (S.IN_PROGRESS, S.QUEUED): retry(0),
    (S.IN_PROGRESS, S.SCHEDULED): retry(500_000),
    (S.IN_PROGRESS, S.WAITING_CONFIRMATION): lambda world: world.run(
        people_scripts.ask(world.running["a"], b'{"name":"n","text":"Go?","timeout":60}')
    ),
    (S.STOPPING, S.DONE): finish(S.DONE),
    (S.STOPPING, S.FAILED): finish(S.FAILED),
    (S.STOPPING, S.STOPPED): finish(S.STOPPED),
}


@pytest.mark.parametrize(("old", "new"), MOVES)
def test_a_move_of_the_whitelist_can_be_made(world: World, old: TaskStatus, new: TaskStatus) -> None:
    SEED[old](world, "a")
    assert world.get("a").status is old

    MOVES[old, new](world)

    assert world.get("a").status is new


def test_every_move_of_the_whitelist_is_shown_to_be_possible() -> None:
    allowed = {(old, new) for old, news in TRANSITIONS.items() if old not in RESERVED for new in news}

    assert MOVES.keys() == allowed


def test_exactly_the_terminal_statuses_have_no_way_out() -> None:
    assert TRANSITIONS.keys() == set(TaskStatus)
    assert {status for status, news in TRANSITIONS.items() if not news} == TERMINAL
    assert {status for status in TaskStatus if status.is_terminal} == TERMINAL


def test_rqs_words_are_rqs() -> None:
    assert RQ_STATUS.keys() == set(TaskStatus)
    assert set(RQ_STATUS.values()) <= {status.value for status in JobStatus}
    assert {word.encode() for word in RQ_STATUS.values()} <= STATUS_OF.keys()


def test_every_word_of_rqs_is_understood() -> None:
    assert STATUS_OF.keys() == {status.value.encode() for status in JobStatus}


@pytest.mark.parametrize("status", SEED)
def test_a_status_is_kept_in_rqs_word(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    assert world.redis.hget("rq:job:a", "status").decode() == RQ_STATUS[status]
    assert world.get("a").status is status


def test_utc_gives_an_aware_time() -> None:
    assert utc(1_800_000_000_123.0).isoformat() == "2027-01-15T08:00:00.123000+00:00"


def test_add_task_takes_every_option_that_a_spec_has() -> None:
    assert {"type", "payload", *TaskOptions.__annotations__} == set(TaskSpec.__struct_fields__)
