"""ask.lua, answer.lua, checkpoint.lua, and unanswered.lua for questions: a running task that asks a person."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskpool.redis import keys, people_scripts, scripts
from taskpool.redis.people_scripts import By
from taskpool.types import RunningTask, TaskStatus
from tests.states import World, new_task, race

S = TaskStatus
ANN = By("Ann", "k1", "old rows")
QUESTION = {"name": "delete", "text": "Delete 3,120 rows?", "timeout": 1000, "schema": {"type": "boolean"}}


def ask(world: World, running: RunningTask, **more: Any) -> str:
    return world.run(people_scripts.ask(running, json.dumps({**QUESTION, **more}).encode()))


def step_of(world: World, id: str = "a") -> int:
    return int(world.redis.hget(f"rq:job:{id}", "seq") or 0)


def answer(world: World, value: str, step: int | None = None, by: By = ANN) -> str:
    return world.run(people_scripts.answer("a", step or step_of(world), value.encode(), by))


def make_due(world: World, id: str = "a") -> None:
    """Let the time for an answer be over."""
    world.redis.zadd("taskpool:confirmations", {id: 1})
    world.redis.hset(f"rq:job:{id}", "answer_by_ms", 1000)


def test_a_task_that_asks_is_parked_without_a_lease_and_no_attempt_is_spent(world: World) -> None:
    running = world.start("a")

    assert ask(world, running) == "ok"

    record = world.get("a")
    assert (record.status, record.attempt) == (S.WAITING_CONFIRMATION, 0)
    assert record.question is not None
    assert (record.question.name, record.question.text) == ("delete", "Delete 3,120 rows?")
    assert [(past.attempt, past.outcome) for past in record.history] == [(1, "asked")]
    assert not world.redis.exists("rq:wip:default", "rq:execution:a:1", "taskpool:attempts:w", "rq:queue:default")
    assert world.snapshot()["taskpool:confirmations a"] == "now+1000 s"
    event = json.loads(world.redis.xrevrange("taskpool:events", count=1)[0][1][b"e"])
    assert (event["event"], event["question"], event["text"]) == (
        "waiting_confirmation", "delete", "Delete 3,120 rows?",
    )  # fmt: skip


def test_an_answer_queues_it_for_the_same_attempt_again(world: World) -> None:
    ask(world, world.start("a"))

    assert answer(world, '{"rows": [1]}') == "ok"

    (given,) = world.run(people_scripts.answers_of("a"))
    assert (given.question, given.answer, given.how) == ("delete", {"rows": [1]}, "answered")
    assert (given.by, given.key, given.comment) == ("Ann", "k1", "old rows")
    assert world.get("a").answers == (given,)
    assert world.get("a").question is None
    running = world.claim(attempt_id="2")
    assert (running.id, running.attempt) == ("a", 1)
    assert not world.redis.exists("taskpool:confirmations", "rq:deferred:default")


@pytest.mark.parametrize(
    "value", ["true", "[]", "{}", '"a\\"}"', '{"answer":true}', "null", "12345678901234567890", "1e3"]
)
def test_an_answer_is_kept_as_it_was_given_and_the_same_again_agrees(world: World, value: str) -> None:
    ask(world, world.start("a"))
    step = step_of(world)
    answer(world, value, step)
    before = world.snapshot()

    assert answer(world, value, step, By("Bob")) == "ok"
    assert answer(world, '"other"', step) == "other"

    assert world.since(before) == {}
    (given,) = world.run(people_scripts.answers_of("a"))
    assert given.answer == json.loads(value)


def test_an_answer_to_an_earlier_question_doesnt_answer_the_next_one(world: World) -> None:
    ask(world, world.start("a"))
    first = step_of(world)
    answer(world, "true")
    ask(world, world.claim(attempt_id="2"), name="next")
    before = world.snapshot()

    assert [answer(world, value, first) for value in ("true", "false")] == ["ok", "other"]
    assert answer(world, "true", first + 1) == "changed"

    assert world.since(before) == {}


def test_answers_come_in_the_order_of_the_questions(world: World) -> None:
    for number in range(3):
        ask(world, world.start("a") if not number else world.claim(attempt_id=str(number + 1)), name=f"q{number}")
        answer(world, str(number))

    assert [given.answer for given in world.run(people_scripts.answers_of("a"))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("default", "how", "value"),
    [
        ({"default": [], "default_json": "[]"}, "default", []),
        ({"default_json": "null"}, "default", None),
        ({}, "timeout", None),
    ],
)
def test_without_an_answer_in_time_the_default_counts_or_the_task_is_told(
    world: World, default: dict[str, Any], how: str, value: Any
) -> None:
    ask(world, world.start("a"), **default)
    make_due(world)

    assert world.run(people_scripts.unanswered("a")) == "ok"

    (given,) = world.run(people_scripts.answers_of("a"))
    assert (given.how, given.answer, given.by) == (how, value, None)
    assert world.get("a").status is S.QUEUED


def test_an_answer_and_the_timeout_together_give_one_answer(world: World) -> None:
    rounds = 50
    for n in range(rounds):
        ask(world, world.start(f"t{n}", attempt_id=f"1{n}"))
        make_due(world, f"t{n}")
    step = [step_of(world, f"t{n}") for n in range(rounds)]

    answers = race(
        world.url,
        rounds,
        lambda n: people_scripts.answer(f"t{n}", step[n], b"true", ANN),
        lambda n: people_scripts.unanswered(f"t{n}"),
    )

    assert {tuple(each) for each in answers} <= {("ok", "gone"), ("other", "ok")}
    for n, (word, _) in enumerate(answers):
        (given,) = world.run(people_scripts.answers_of(f"t{n}"))
        assert given.how == ("answered" if word == "ok" else "timeout")


def test_a_stop_that_is_pending_comes_before_a_question(world: World) -> None:
    running = world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))
    before = world.snapshot()

    assert ask(world, running) == "stopping"

    assert world.since(before) == {}


def test_an_attempt_that_lost_its_lease_asks_and_keeps_nothing(world: World) -> None:
    running = world.start("a")
    world.run(scripts.crash("a", "1", "default", error="died", failure={}, max_crashes=3))
    world.claim(attempt_id="2")
    before = world.snapshot()

    assert ask(world, running) == "lost"
    assert world.run(people_scripts.checkpoint(running, b"1")) == "lost"

    assert world.since(before) == {}


def test_a_task_asks_a_hundred_times_a_life(world: World) -> None:
    running = world.start("a")
    world.redis.hset("rq:job:a", "asked", 100)
    before = world.snapshot()

    assert ask(world, running) == "too_many"

    assert world.since(before) == {}
    world.finish(running, S.FAILED)
    world.run(scripts.revive("a"))
    assert ask(world, world.claim(attempt_id="2")) == "ok"


def test_a_parked_task_cant_be_replaced_but_canceled(world: World) -> None:
    ask(world, world.start("a", unique_key="k"))
    before = world.snapshot()

    added = world.run(scripts.add([new_task("b", unique_key="k", on_conflict="replace")]))
    assert added.conflict == (0, "a", "waiting_confirmation")
    assert world.since(before) == {}

    assert world.run(scripts.cancel("a", reason="canceled", error=keys.NOT_STARTED)) == "ok"
    record = world.get("a")
    assert (record.status, record.error, record.question) == (S.CANCELED, keys.NOT_ANSWERED, None)
    assert not world.redis.exists("taskpool:confirmations", "rq:deferred:default")
    assert answer(world, "true", 1) == "changed"


def test_a_new_life_asks_again_and_keeps_the_checkpoint(world: World) -> None:
    running = world.start("a")
    world.run(people_scripts.checkpoint(running, b'{"row":7}'))
    ask(world, running)
    answer(world, "true")
    world.finish(world.claim(attempt_id="2"), S.FAILED)

    world.run(scripts.revive("a"))

    assert world.run(people_scripts.answers_of("a")) == ()
    assert world.run(people_scripts.checkpoint_of("a")) == {"row": 7}


def test_a_parked_task_that_another_program_queued_runs_and_asks_again(world: World) -> None:
    ask(world, world.start("a"))
    world.redis.hset("rq:job:a", "status", "queued")
    world.redis.zrem("rq:deferred:default", "a")
    world.redis.rpush("rq:queue:default", "a")

    running = world.claim(attempt_id="2")

    assert world.run(people_scripts.unanswered("a")) == "gone"
    assert ask(world, running) == "ok"
    assert answer(world, "true") == "ok"


def test_secrets_outlive_the_time_for_an_answer(world: World) -> None:
    running = world.start("a")
    world.redis.hset("rq:job:a", "secret_ttl", 50)
    world.redis.set("taskpool:secrets:a", "[]", ex=5)

    ask(world, running)

    assert world.snapshot()["taskpool:secrets:a expires"] == "now+1050 s"


def test_a_checkpoint_replaces_the_last_one_and_goes_with_the_record(world: World) -> None:
    running = world.start("a")
    assert world.run(people_scripts.checkpoint_of("a")) is None

    for state in (b'{"row":1}', b'{"row":2}'):
        assert world.run(people_scripts.checkpoint(running, state)) == "ok"
    assert world.run(people_scripts.checkpoint_of("a")) == {"row": 2}

    world.finish(running)
    world.run(scripts.purge("a"))
    assert not world.redis.exists("taskpool:checkpoint:a")


def test_a_checkpoint_of_a_record_that_another_program_deleted_is_swept(world: World) -> None:
    running = world.start("a")
    world.run(people_scripts.checkpoint(running, b"1"))
    world.redis.delete("rq:job:a")

    world.run(scripts.sweep_index("taskpool:type:work", "", 100))

    assert not world.redis.exists("taskpool:checkpoint:a")
