"""The history of a task's attempts: when, where and how each ended; none for a task that is done at the first."""

from __future__ import annotations

import msgspec

from taskpool.operations.documents import TaskDocument
from taskpool.operations.records import record_at_end
from taskpool.redis import scripts
from taskpool.redis.keys import HISTORY_CAP
from taskpool.types import TaskRecord, TaskStatus
from tests.states import FAILURE, World, ended
from tests.support import PATIENCE_S

S = TaskStatus


def retry(world: World, id: str = "a") -> None:
    call = scripts.retry(world.running[id], delay_ms=0, error='no\n"luck" → ', failure=FAILURE)
    assert world.run(call) == "ok"


def outcomes(record: TaskRecord) -> list[tuple[int, str]]:
    return [(attempt.attempt, attempt.outcome) for attempt in record.history]


def test_a_task_that_is_done_at_the_first_attempt_has_none(world: World) -> None:
    world.end("a")

    assert world.get("a").history == ()
    assert "history" not in msgspec.to_builtins(TaskDocument.of(world.get("a")))
    assert not world.redis.hexists("rq:job:a", "history")


def test_the_history_has_every_way_an_attempt_ends_in_order(world: World) -> None:
    world.add("a", max_attempts=9)
    retry_of = world.claim(worker="w1", attempt_id="1")
    retry(world)
    world.claim(worker="w2", attempt_id="2")
    world.run(scripts.snooze(world.running["a"], delay_ms=0, message="not yet"))
    world.run(scripts.give_back(world.claim(worker="w2", attempt_id="3")))
    world.claim(worker="w2", attempt_id="4")
    world.run(scripts.crash("a", "4", "default", error="died", failure=FAILURE, max_crashes=3))
    world.finish(world.claim(worker="w3", attempt_id="5"))

    record = world.get("a")
    assert outcomes(record) == [(1, "failed"), (2, "snoozed"), (2, "given_back"), (2, "crashed"), (3, "done")]
    assert [attempt.worker for attempt in record.history] == ["w1", "w2", "w2", "w2", "w3"]
    assert [attempt.error for attempt in record.history] == ['no\n"luck" → ', "not yet", None, "died", None]
    assert record.history[0].started_at.timestamp() * 1000 == retry_of.started_ms
    assert all(attempt.started_at <= attempt.ended_at for attempt in record.history)
    assert record.history[-1].ended_at == record.ended_at


def test_a_retry_by_hand_goes_on_with_it(world: World) -> None:
    world.end("a", S.FAILED)
    world.run(scripts.revive("a"))
    world.finish(world.claim(attempt_id="2"), S.STOPPED)

    assert outcomes(world.get("a")) == [(1, "failed"), (2, "stopped")]


def test_an_end_that_is_sent_again_is_in_the_history_once(world: World) -> None:
    running = world.start("a", max_attempts=2)
    retry(world)
    retry(world)
    last = world.claim(attempt_id="2")
    world.finish(last)
    world.finish(last)
    world.finish(running)

    assert outcomes(world.get("a")) == [(1, "failed"), (2, "done")]


def test_only_the_last_attempts_are_kept(world: World) -> None:
    world.add("a", max_attempts=100)
    for number in range(1, HISTORY_CAP + 6):
        world.claim(attempt_id=str(number))
        retry(world)

    record = world.get("a")

    assert [attempt.attempt for attempt in record.history] == list(range(6, HISTORY_CAP + 6))


def test_the_history_has_executions_by_plain_rq_workers_too(world: World) -> None:
    world.add("a")
    world.redis.rpop("rq:queue:default")
    world.redis.hset("rq:job:a", mapping={"status": "started", "worker_name": "w"})
    world.redis.zadd("rq:wip:default", {"a:e1": 1})

    world.run(scripts.crash("a", "e1", "default", error="died", failure=FAILURE, max_crashes=3, only_expired=True))

    assert world.snapshot()["rq:job:a history"] == [ended("lease_lost", "died", attempt=0)]


def test_the_message_of_the_end_leaves_a_task_with_a_history_to_be_read(world: World) -> None:
    world.start("a", max_attempts=2)
    retry(world)
    running = world.claim(attempt_id="2")
    before = world.get("a")
    listener = world.redis.pubsub()
    listener.subscribe("taskpool:task:a")
    listener.get_message(timeout=PATIENCE_S)

    world.finish(running)

    message = listener.get_message(timeout=PATIENCE_S)
    listener.close()
    assert record_at_end(before, message["data"]) is None


def test_a_damaged_history_counts_as_none(world: World) -> None:
    world.end("a", S.FAILED)
    world.redis.hset("rq:job:a", "history", b'{"attempt":\xff')

    assert world.get("a").history == ()


def test_it_is_purged_with_the_task(world: World) -> None:
    world.end("a", S.FAILED)
    world.run(scripts.purge("a"))

    assert not [name for name in world.snapshot() if "a history" in name]
