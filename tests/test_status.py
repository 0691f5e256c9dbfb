"""Ending an attempt as its outcome says, its log, and events as they are published and read."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta

import pytest
from msgspec.structs import replace

from taskpool.operations import status
from taskpool.redis import keys, scripts
from taskpool.tasks.attempt import Outcome, stopped
from taskpool.types import Event, TaskStatus
from tests.states import FAILURE, World
from tests.support import PATIENCE_S

S = TaskStatus


def test_a_good_outcome_ends_the_task_with_its_result(world: World) -> None:
    running = world.start("a")

    assert world.run(status.update_status(running, Outcome(S.DONE, result=b"[1]"))) == "ok"

    record = world.get("a")
    assert (record.status, record.result, record.failure) == (S.DONE, [1], None)


def test_a_failure_ends_the_task_with_what_went_wrong(world: World) -> None:
    running = world.start("a")

    outcome = Outcome(S.FAILED, error="no luck", failure=FAILURE, traceback="Trace")
    assert world.run(status.update_status(running, outcome)) == "ok"

    record = world.get("a")
    assert (record.status, record.error, record.failure, record.reason) == (S.FAILED, "no luck", FAILURE, "exception")
    assert world.snapshot()["rq:results:a 1"]["exc_string"] == "Trace"


def test_a_stop_ends_the_task_as_stopped(world: World) -> None:
    running = world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))

    assert world.run(status.update_status(running, stopped())) == "ok"

    record = world.get("a")
    assert (record.status, record.reason) == (S.STOPPED, "stopped")


def test_an_outcome_to_be_tried_again_is_scheduled(world: World) -> None:
    running = world.start("a", max_attempts=2)

    outcome = Outcome(S.SCHEDULED, error="no luck", failure=FAILURE, delay_s=499.9996)
    assert world.run(status.update_status(running, outcome)) == "ok"

    record = world.get("a")
    assert (record.status, record.error, record.failure) == (S.SCHEDULED, "no luck", FAILURE)
    assert record.run_at is not None
    assert record.started_at is not None
    assert timedelta(seconds=499) < record.run_at - record.started_at < timedelta(seconds=510)


def test_an_outcome_to_be_tried_again_does_not_override_a_stop(world: World) -> None:
    running = world.start("a", max_attempts=2)
    world.run(scripts.stop("a", grace_s=5, force=False))

    assert world.run(status.update_status(running, Outcome(S.SCHEDULED, failure=FAILURE, error="e"))) == "stopping"
    assert world.run(status.update_status(running, stopped())) == "ok"

    assert world.get("a").status is S.STOPPED


def test_the_end_of_a_task_reports_that_children_wait_for_it(world: World) -> None:
    running = world.start("a")
    world.add("child", depends_on=["a"])

    assert world.run(status.update_status(running, Outcome(S.DONE, result=b"1"))) == "children"


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(S.DONE, result=b"1"),
        Outcome(S.FAILED, error="e", failure=FAILURE),
        stopped(),
        Outcome(S.SCHEDULED, error="e", failure=FAILURE, delay_s=5),
    ],
)
def test_no_outcome_counts_of_an_attempt_that_lost_its_task(world: World, outcome: Outcome) -> None:
    running = world.start("a")
    before = world.snapshot()

    assert world.run(status.update_status(replace(running, attempt_id="9"), outcome)) == "lost"

    assert world.since(before) == {}


def test_log_lines_are_kept_with_their_times_and_their_attempt(world: World) -> None:
    running = world.start("a")

    assert world.run(status.log_task(running, [(5, "one"), (6, 'two\n"é"')])) == "ok"

    after = world.snapshot()
    assert after["taskpool:log:a 1"] == {"at_ms": 5, "text": "one", "attempt": 1}
    assert after["taskpool:log:a 2"] == {"at_ms": 6, "text": 'two\n"é"', "attempt": 1}
    assert after["taskpool:log:a expires"] == "now+2592000 s"


def test_every_event_that_a_life_leaves_can_be_read(world: World) -> None:
    running = world.start("a", max_attempts=2)
    world.run(scripts.progress(running, {"done": 1, "total": 2, "note": "x"}))
    world.run(status.log_task(running, [(5, "one")]))
    world.run(scripts.retry(running, delay_ms=0, error="no luck", failure=FAILURE))
    world.claim(attempt_id="2")
    world.run(scripts.crash("a", "2", "default", error="died", failure=FAILURE, max_crashes=3))
    running = world.claim(attempt_id="3")
    world.run(scripts.stop("a", grace_s=5, force=True))
    world.finish(running)

    events = [status.read_event(fields[b"e"]) for _, fields in world.redis.xrange(keys.EVENTS)]
    (last_line,) = [id.decode() for id, _ in world.redis.xrange(keys.LOG + "a")]

    assert [(event.seq, event.event, event.status, dict(event.data)) for event in events] == [
        (1, "queued", S.QUEUED, {"type": "work", "queue": "default"}),
        (2, "started", S.IN_PROGRESS, {"attempt": 1}),
        (3, "progress", S.IN_PROGRESS, {"progress": {"done": 1, "total": 2, "note": "x"}}),
        (4, "log", S.IN_PROGRESS, {"count": 1, "last": last_line}),
        (5, "retry", S.QUEUED, {"error": "no luck", "delay_ms": 0}),
        (6, "started", S.IN_PROGRESS, {"attempt": 2}),
        (7, "crashed", S.QUEUED, {"error": "died", "crashes": 1}),
        (8, "started", S.IN_PROGRESS, {"attempt": 3}),
        (9, "stopping", S.STOPPING, {"force": True}),
        (10, "done", S.DONE, {}),
    ]
    assert {event.id for event in events} == {"a"}
    assert all(abs(event.at_ms / 1000 - world.redis.time()[0]) < 10 for event in events)


@pytest.mark.parametrize("listen", ["subscribe", "psubscribe"])
def test_a_message_is_the_kept_event_with_its_id_and_what_is_only_published(world: World, listen: str) -> None:
    channel = world.redis.pubsub(ignore_subscribe_messages=True)
    getattr(channel, listen)(keys.FIREHOSE if listen == "psubscribe" else keys.CHANNEL + "a")
    channel.get_message(timeout=PATIENCE_S)

    running = world.start("a")
    world.run(status.log_task(running, [(5, "one")]))
    world.finish(running)

    kept = [status.read_event(fields[b"e"], id.decode()) for id, fields in world.redis.xrange(keys.EVENTS)]
    received = [status.read_event(channel.get_message(timeout=PATIENCE_S)["data"]) for _ in kept]
    channel.close()
    assert [dataclasses.replace(event, aside={}) for event in received] == kept
    assert [event.event for event in received] == ["queued", "started", "log", "done"]
    assert received[2].aside == {"lines": [{"at_ms": 5, "text": "one", "attempt": 1}]}
    assert received[3].aside["result"] == 42
    assert len({event.stream for event in received}) == 4


def test_an_event_can_be_published_again(world: World) -> None:
    event = Event("a", 7, "log", S.IN_PROGRESS, 1_800_000_000_000, {"count": 1}, "5-1", {"lines": [{"text": "one"}]})
    channel = world.redis.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(keys.CHANNEL + "a")
    channel.get_message(timeout=PATIENCE_S)
    before = world.snapshot()

    assert world.run(status.notify_websocket(event)) == 1

    message = channel.get_message(timeout=PATIENCE_S)["data"]
    channel.close()
    assert status.read_event(message) == event
    assert json.loads(message)["status"] == "in_progress"
    assert world.since(before) == {}


def test_an_event_without_listeners_reaches_none(world: World) -> None:
    assert world.run(status.notify_websocket(Event("a", 1, "queued", S.QUEUED, 0))) == 0
