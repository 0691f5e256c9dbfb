"""The outbox of webhooks: written in the script of the transition, by those events alone that somebody wants."""

from __future__ import annotations

import json
from typing import Any

from taskpool.redis import keys, scripts
from taskpool.types import TaskStatus
from tests.states import World, new_task

S = TaskStatus
URL = "https://hooks.example/in"


def outbox(world: World) -> list[dict[str, Any]]:
    """What stands in it, without what is empty."""
    entries = []
    for _, fields in world.redis.xrange(keys.WEBHOOKS_OUTBOX):
        entry = {name.decode(): value.decode() for name, value in fields.items() if value}
        entries.append({**entry, "event": json.loads(entry["event"])})
    return entries


def received(world: World) -> list[tuple[str, int, str]]:
    """The events in it, by task, number and name."""
    return [(each["event"]["id"], each["event"]["seq"], each["event"]["event"]) for each in outbox(world)]


def test_nothing_is_written_for_tasks_without_webhooks(world: World) -> None:
    world.end("a")

    assert not [key for key in world.redis.keys("taskpool:*") if b"webhooks" in key]


def test_a_callback_gets_its_own_tasks_end_with_what_filters_and_the_body_need(world: World) -> None:
    world.end("other")
    world.end("a", tags=["x", "y"], queue="mails", callback_url=URL)

    (entry,) = outbox(world)

    assert entry.pop("created_at") <= entry.pop("started_at") <= entry.pop("ended_at")
    assert entry.pop("event").items() >= {"id": "a", "seq": 3, "event": "done", "status": "done"}.items()
    assert entry == {"type": "work", "queue": "mails", "tags": "x,y", "attempt": "1", "callback_url": URL}
    assert world.get("a").callback_events == ("done", "failed", "stopped", "canceled")


def test_a_callback_gets_the_events_it_names_and_no_others(world: World) -> None:
    world.end("a", S.FAILED, callback_url=URL, callback_events=["queued", "started"])

    assert received(world) == [("a", 1, "queued"), ("a", 2, "started")]
    assert world.get("a").callback_events == ("queued", "started")


def test_in_a_batch_each_task_has_its_own_callback(world: World) -> None:
    told_at_once = new_task("b", callback_url=URL, callback_events=["queued"])
    tasks = [new_task("a"), told_at_once, new_task("c"), new_task("d", callback_url=URL)]

    world.run(scripts.add(tasks))

    assert received(world) == [("b", 1, "queued")]


def test_a_repeated_submission_writes_its_event_once(world: World) -> None:
    call = scripts.add([new_task("a", callback_url=URL, callback_events=["queued"])])

    world.run(call)
    world.run(call)

    assert received(world) == [("a", 1, "queued")]


def test_a_task_that_lives_again_calls_back_again_and_one_that_is_gone_leaves_nothing(world: World) -> None:
    world.end("a", S.FAILED, callback_url=URL)
    world.run(scripts.revive("a"))
    world.finish(world.claim(attempt_id="2"))

    assert received(world) == [("a", 3, "failed"), ("a", 6, "done")]
    assert world.run(scripts.purge("a")) == "ok"
    assert not world.redis.exists(keys.WEBHOOKS_WANTED)


def test_a_record_that_somebody_deleted_is_forgotten_by_the_sweep(world: World) -> None:
    world.add("a", callback_url=URL)
    world.redis.delete("rq:job:a")

    world.run(scripts.sweep_index("taskpool:type:work", "", 10))

    assert not world.redis.exists(keys.WEBHOOKS_WANTED)


def test_events_that_a_full_outbox_loses_are_counted(world: World) -> None:
    fill = "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], n .. '-1', 'e', '') end"
    world.redis.eval(fill, 1, keys.WEBHOOKS_OUTBOX, keys.WEBHOOKS_OUTBOX_MAX - 1)

    world.end("a", callback_url=URL)
    world.end("b", callback_url=URL)

    assert world.redis.xlen(keys.WEBHOOKS_OUTBOX) == keys.WEBHOOKS_OUTBOX_MAX
    assert world.redis.hget(keys.COUNTERS, "webhooks|lost") == b"1"
    assert world.get("b").status is S.DONE
