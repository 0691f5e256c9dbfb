"""confirm.lua and unanswered.lua: a task that a person has to confirm before it starts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from taskpool.redis import people_scripts, scripts
from taskpool.redis.keys import OPEN_S
from taskpool.redis.people_scripts import By
from taskpool.types import Confirm, TaskStatus
from tests.states import World, new_task, race

S = TaskStatus
ANN = By("Ann", "k1", "looks right")
GO = Confirm("Go?", timeout=1000)


def decide(world: World, decision: str, by: By = ANN, id: str = "a") -> str:
    return world.run(people_scripts.confirm(id, decision, by))


def make_due(world: World, id: str = "a") -> None:
    """Let the time for an answer be over."""
    world.redis.zadd("taskpool:confirmations", {id: 1})
    world.redis.hset(f"rq:job:{id}", "answer_by_ms", 1000)


def last_event(world: World) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(world.redis.xrevrange("taskpool:events", count=1)[0][1][b"e"])
    return event


def requeue(world: World) -> None:
    """Queue a task as a dashboard does, whatever it waits for."""
    world.redis.hset("rq:job:a", "status", "queued")
    world.redis.zrem("rq:deferred:default", "a")
    world.redis.rpush("rq:queue:default", "a")


def test_a_task_that_must_be_confirmed_is_asked_at_once_and_not_claimed(world: World) -> None:
    added = world.add("a", confirm=GO)

    assert added.statuses == ("waiting_confirmation",)
    assert world.try_claim() is None
    record = world.get("a")
    assert (record.status, record.confirm) == (S.WAITING_CONFIRMATION, GO)
    assert record.answer_by is not None
    assert record.asked_at is not None
    assert (record.answer_by - record.asked_at).total_seconds() == 1000
    assert last_event(world).items() >= {"event": "waiting_confirmation", "text": "Go?"}.items()


@pytest.mark.parametrize("by", [ANN, By()])
def test_a_confirmed_task_is_queued_and_shows_who_confirmed_it(world: World, by: By) -> None:
    world.add("a", confirm=GO)

    assert decide(world, "confirmed", by) == "ok"

    decided = world.get("a").confirmation
    assert decided is not None
    assert (decided.decision, decided.by, decided.key, decided.comment) == ("confirmed", by.name, by.key, by.comment)
    assert world.events("a")[-1] == (2, "queued", "queued")
    assert last_event(world)["decision"]["decision"] == "confirmed"
    assert world.claim().id == "a"
    assert not world.redis.exists("taskpool:confirmations", "rq:deferred:default")


def test_a_rejected_task_is_canceled_and_so_are_its_children(world: World) -> None:
    world.add("a", confirm=GO)
    world.add("child", depends_on=["a"])

    assert decide(world, "rejected") == "children"
    world.run(scripts.release("a"))

    record = world.get("a")
    assert (record.status, record.reason, record.error) == (S.CANCELED, "rejected", "rejected by Ann: looks right")
    assert world.get("child").reason == "dependency_failed"
    assert not world.redis.exists("taskpool:confirmations", "rq:deferred:default")


def test_the_question_is_asked_when_the_parents_are_satisfied(world: World) -> None:
    parent = world.start("p")
    world.add("a", depends_on=["p"], confirm=GO)
    assert (world.get("a").status, decide(world, "confirmed")) == (S.WAITING, "deferred")

    world.finish(parent)
    world.run(scripts.release("p"))

    assert world.get("a").status is S.WAITING_CONFIRMATION
    assert world.events("a") == [(1, "waiting", "waiting"), (2, "waiting_confirmation", "waiting_confirmation")]
    assert decide(world, "confirmed") == "ok"
    assert world.claim().id == "a"


def test_a_question_whose_parent_is_done_already_is_asked_at_once(world: World) -> None:
    world.end("p")

    assert world.add("a", depends_on=["p"], confirm=GO).statuses == ("waiting_confirmation",)


def test_a_parent_that_fails_cancels_the_task_unasked(world: World) -> None:
    parent = world.start("p")
    world.add("a", depends_on=["p"], confirm=GO)

    world.finish(parent, S.FAILED)
    world.run(scripts.release("p"))

    assert [event for _, event, _ in world.events("a")] == ["waiting", "canceled"]


def test_with_a_delay_it_is_asked_at_once_and_scheduled_then(world: World) -> None:
    world.add("a", delay_s=500, confirm=GO)
    assert world.get("a").status is S.WAITING_CONFIRMATION

    assert decide(world, "confirmed") == "ok"

    assert world.get("a").status is S.SCHEDULED
    assert world.snapshot()["rq:scheduled:default a"] == "now+500 s"


def test_a_delay_that_is_over_when_it_is_confirmed_holds_nothing_up(world: World) -> None:
    world.add("a", delay_s=500, confirm=GO)
    world.redis.hset("rq:job:a", "run_ms", 1000)

    decide(world, "confirmed")

    assert world.get("a").status is S.QUEUED


def test_of_an_expiry_and_the_time_for_an_answer_the_earlier_one_counts(world: World) -> None:
    world.add("a", expires_in_s=500, confirm=GO)
    world.redis.hset("rq:job:a", "expires_ms", 1000)

    assert world.run(people_scripts.unanswered("a")) == "early"
    assert world.run(scripts.cancel("a", reason="expired", error="late")) == "ok"

    assert (world.get("a").status, world.get("a").reason) == (S.CANCELED, "expired")
    assert decide(world, "confirmed") == "canceled"
    assert not world.redis.exists("taskpool:confirmations")


@pytest.mark.parametrize(("default", "status"), [("confirm", S.QUEUED), ("reject", S.CANCELED)])
def test_without_an_answer_in_time_the_default_counts(world: World, default: Any, status: TaskStatus) -> None:
    world.add("a", confirm=Confirm("Go?", timeout=1000, default=default))
    make_due(world)

    assert world.run(people_scripts.unanswered("a")) == "ok"

    record = world.get("a")
    assert record.status is status
    assert record.confirmation is not None
    assert (record.confirmation.by_default, record.confirmation.by) == (True, None)
    assert world.run(people_scripts.unanswered("a")) == "gone"


def test_an_answer_and_the_timeout_together_give_one_decision(world: World) -> None:
    rounds = 50
    for n in range(rounds):
        world.add(f"t{n}", confirm=GO)
        make_due(world, f"t{n}")

    answers = race(
        world.url,
        rounds,
        lambda n: people_scripts.confirm(f"t{n}", "confirmed", ANN),
        lambda n: people_scripts.unanswered(f"t{n}"),
    )

    assert {tuple(each) for each in answers} <= {("ok", "gone"), ("decided", "ok")}
    for n, (answer, _) in enumerate(answers):
        assert world.get(f"t{n}").status is (S.QUEUED if answer == "ok" else S.CANCELED)


@pytest.mark.parametrize("moved_s", [500, -500])
def test_the_time_for_an_answer_moves_with_a_step_of_redis_clock(world: World, moved_s: int) -> None:
    world.add("a", confirm=GO)
    world.redis.hset("taskpool:clock", "stepped_ms", moved_s * 1000)

    world.run(scripts.rebase(":", "0", 100))

    assert world.snapshot()["taskpool:confirmations a"] == f"now+{1000 + moved_s} s"
    assert world.snapshot()["rq:job:a answer_by_ms"] == f"now+{1000 + moved_s} s"


def test_a_step_of_the_clock_answers_nothing_before_its_time(world: World) -> None:
    world.add("a", confirm=GO)
    now_ms = round(world.redis.time()[0] * 1000)
    world.redis.hset("rq:job:a", "answer_by_ms", now_ms - 1000)
    world.redis.zadd("taskpool:confirmations", {"a": 1})
    world.redis.hset("taskpool:clock", "stepped_ms", 500_000)

    assert world.run(people_scripts.unanswered("a")) == "early"

    assert world.get("a").status is S.WAITING_CONFIRMATION


@pytest.mark.parametrize("decision", ["confirmed", "rejected"])
def test_the_first_decision_counts_and_the_same_again_agrees(world: World, decision: str) -> None:
    other = {"confirmed": "rejected", "rejected": "confirmed"}[decision]
    world.add("a", confirm=GO)
    decide(world, decision)
    before = world.snapshot()

    assert decide(world, decision, By("Bob")) == "ok"
    assert decide(world, other, By("Bob")) == "decided"

    assert world.since(before) == {}


@pytest.mark.parametrize("who", [["k1"], ["Ann"], ["Bob", "Ann"], []])
def test_the_keys_that_a_task_names_may_decide(world: World, who: list[str]) -> None:
    world.add("a", confirm=Confirm("Go?", who=who))

    assert decide(world, "confirmed") == "ok"


def test_other_keys_may_not_decide_and_without_keys_anyone_may(world: World) -> None:
    world.add("a", confirm=Confirm("Go?", who=["Bob"]))
    before = world.snapshot()

    assert decide(world, "confirmed") == "not_allowed"
    assert world.since(before) == {}
    assert decide(world, "confirmed", By(comment="by hand")) == "ok"


@pytest.mark.parametrize("id", ["gone", "plain"])
def test_a_task_that_asks_nothing_takes_no_decision(world: World, id: str) -> None:
    world.add("plain")
    before = world.snapshot()

    assert decide(world, "confirmed", id=id) == {"gone": "gone", "plain": "queued"}[id]
    assert world.since(before) == {}


def test_the_claim_puts_back_what_another_program_queued(world: World) -> None:
    world.add("a", confirm=GO)
    requeue(world)

    assert world.try_claim() is None

    assert world.get("a").status is S.WAITING_CONFIRMATION
    assert world.snapshot()["rq:deferred:default a"] == "now"
    assert decide(world, "confirmed") == "ok"
    assert world.claim().id == "a"


def test_a_rejected_task_that_another_program_queued_is_asked_again(world: World) -> None:
    world.add("a", confirm=GO)
    decide(world, "rejected")
    requeue(world)

    assert world.try_claim() is None

    record = world.get("a")
    assert (record.status, record.reason, record.confirmation) == (S.WAITING_CONFIRMATION, None, None)
    assert "rq:job:a expires" not in world.snapshot()


def test_a_retry_asks_again_after_a_rejection_and_not_after_a_confirmation(world: World) -> None:
    world.add("a", confirm=GO)
    decide(world, "rejected")

    assert world.run(scripts.revive("a")) == "ok"

    assert (world.get("a").status, world.get("a").confirmation) == (S.WAITING_CONFIRMATION, None)
    decide(world, "confirmed")
    world.finish(world.claim(), S.FAILED)
    assert world.run(scripts.revive("a")) == "ok"
    assert world.claim(attempt_id="2").id == "a"


def test_a_task_canceled_while_it_waits_is_asked_again_when_it_is_retried(world: World) -> None:
    world.add("a", confirm=GO)
    world.cancel("a")

    world.run(scripts.revive("a"))

    assert world.get("a").status is S.WAITING_CONFIRMATION


def test_secrets_outlive_the_time_for_an_answer(world: World) -> None:
    task = new_task("a", confirm=GO, delay_s=500)
    fields = [*task.fields, "secret_ttl", 50]
    world.run(scripts.add([replace(task, fields=fields, secrets=b"[]", secret_ttl_s=50)]))
    assert world.snapshot()["taskpool:secrets:a expires"] == "now+1550 s"

    decide(world, "confirmed")

    assert world.snapshot()["taskpool:secrets:a expires"] == "now+550 s"


def test_a_damaged_question_is_open_for_the_usual_time(world: World) -> None:
    world.add("a", confirm=GO)
    world.redis.hset("rq:job:a", "confirm", "[1")
    world.cancel("a")

    assert world.run(scripts.revive("a")) == "ok"

    assert world.snapshot()["taskpool:confirmations a"] == f"now+{OPEN_S} s"
    assert world.get("a").status is S.WAITING_CONFIRMATION


def test_the_sweep_of_waiting_tasks_leaves_it_alone(world: World) -> None:
    world.end("p")
    world.add("a", depends_on=["p"], confirm=GO)
    before = world.snapshot()

    world.run(scripts.sweep_waiting("default", 100))

    assert world.since(before) == {}


def test_an_entry_of_a_task_that_is_gone_is_dropped(world: World) -> None:
    world.add("a", confirm=GO)
    world.redis.delete("rq:job:a")

    assert world.run(people_scripts.unanswered("a")) == "gone"

    assert not world.redis.exists("taskpool:confirmations")


def test_a_task_that_waits_for_a_person_can_be_replaced(world: World) -> None:
    world.add("a", confirm=GO, unique_key="k")

    assert world.add("b", unique_key="k").conflict == (0, "a", "waiting_confirmation")
    world.add("b", unique_key="k", on_conflict="replace")

    assert (world.get("a").status, world.get("a").reason) == (S.CANCELED, "replaced")
    assert not world.redis.exists("taskpool:confirmations")
