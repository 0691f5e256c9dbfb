"""stop.lua: the request to stop a running task: a flag on the record, an event, and a message to its worker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import RUNS, SEED, World, race
from tests.support import PATIENCE_S

S = TaskStatus


def stop_channel(world: World, worker: str = "w") -> Any:
    """A subscription to the commands of a worker."""
    channel = world.redis.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(f"rq:pubsub:{worker}")
    channel.get_message(timeout=PATIENCE_S)
    return channel


def messages(channel: Any) -> list[dict[str, Any]]:
    found = []
    while (message := channel.get_message(timeout=0.05)) is not None:
        found.append(json.loads(message["data"]))
    channel.close()
    return found


def test_a_running_task_is_flagged_and_its_worker_notified(world: World) -> None:
    world.start("a")
    channel = stop_channel(world)
    before = world.snapshot()

    assert world.run(scripts.stop("a", grace_s=7.5, force=False)) == "ok"

    assert world.since(before) == {
        "rq:job:a stop_ms": "now",
        "rq:job:a stop_grace_s": "7.5",
        "rq:job:a stop_force": "",
        "rq:job:a seq": "3",
        "taskpool:events a 3": {"event": "stopping", "status": "stopping", "at_ms": "now", "force": False},
    }
    assert world.get("a").status is S.STOPPING
    assert messages(channel) == [
        {"command": "taskpool-stop", "job_id": "a", "attempt_id": "1", "force": False, "grace_s": 7.5}
    ]


def test_asked_again_the_sooner_deadline_counts(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=60, force=False))
    world.redis.hset("rq:job:a", "stop_ms", int(world.redis.hget("rq:job:a", "stop_ms")) - 10_000)
    channel = stop_channel(world)
    before = world.snapshot()

    assert world.run(scripts.stop("a", grace_s=40, force=False, audited=b"{}")) == "ok"
    assert world.run(scripts.stop("a", grace_s=40, force=False, audited=b"{}")) == "ok"

    assert {name: value for name, value in world.since(before).items() if name.startswith("rq:")} == {
        "rq:job:a stop_ms": "now",
        "rq:job:a stop_grace_s": "40",
    }
    assert world.redis.xlen("taskpool:audit:tasks") == 1
    assert [message["grace_s"] for message in messages(channel)] == [40, 40]


def test_a_second_stop_with_a_later_deadline_only_repeats_the_first_to_the_worker(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))
    channel = stop_channel(world)
    before = world.snapshot()

    assert world.run(scripts.stop("a", grace_s=9, force=False)) == "ok"

    assert world.since(before) == {}
    assert [message["grace_s"] for message in messages(channel)] == [5]


def test_a_shorter_grace_whose_deadline_is_later_changes_nothing(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=60, force=False))
    world.redis.hset("rq:job:a", "stop_ms", int(world.redis.hget("rq:job:a", "stop_ms")) - 50_000)
    before = world.snapshot()

    assert world.run(scripts.stop("a", grace_s=30, force=False)) == "ok"

    assert world.since(before) == {}


def test_force_escalates_once(world: World) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=False))
    world.redis.hset("rq:job:a", "stop_ms", 77)
    before = world.snapshot()

    assert world.run(scripts.stop("a", grace_s=0, force=True)) == "ok"
    assert world.run(scripts.stop("a", grace_s=5, force=False)) == "ok"

    assert world.since(before) == {
        "rq:job:a stop_ms": "now",
        "rq:job:a stop_grace_s": "0",
        "rq:job:a stop_force": "1",
        "rq:job:a seq": "4",
        "taskpool:events a 4": {"event": "stopping", "status": "stopping", "at_ms": "now", "force": True},
    }


def test_a_plain_rq_worker_gets_rqs_own_stop_command(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", mapping={"status": "started", "worker_name": "plain"})
    channel = stop_channel(world, "plain")

    assert world.run(scripts.stop("a", grace_s=5, force=False)) == "ok"

    assert {"command": "stop-job", "job_id": "a"} in messages(channel)


@pytest.mark.parametrize("status", [status for status in SEED if status not in RUNS])
@pytest.mark.parametrize("force", [False, True])
def test_a_task_that_does_not_run_is_not_asked(world: World, status: TaskStatus, force: bool) -> None:
    SEED[status](world, "a")
    channel = stop_channel(world)
    before = world.snapshot()

    word = world.run(scripts.stop("a", grace_s=5, force=force))

    assert word.encode() == world.redis.hget("rq:job:a", "status")
    assert world.since(before) == {}
    assert messages(channel) == []


def test_a_task_that_does_not_exist_is_gone(world: World) -> None:
    assert world.run(scripts.stop("ghost", grace_s=5, force=False)) == "gone"

    assert world.snapshot() == {}


def test_a_stop_comes_before_the_end_or_is_refused(world: World) -> None:
    rounds = 100
    running = [world.start(f"t{n}") for n in range(rounds)]

    answers = race(
        world.url,
        rounds,
        lambda n: scripts.finish(running[n], S.DONE, result=b"1"),
        lambda n: scripts.stop(f"t{n}", grace_s=5, force=False),
    )

    assert {tuple(each) for each in answers} <= {("ok", "ok"), ("ok", "finished")}
    for n, (_, stop) in enumerate(answers):
        names = [event for _, event, _ in world.events(f"t{n}")]
        assert names == ["queued", "started", *(["stopping"] if stop == "ok" else []), "done"]


def test_a_stop_holds_against_a_retry_that_comes_at_the_same_moment(world: World) -> None:
    rounds = 100
    running = [world.start(f"t{n}", max_attempts=2) for n in range(rounds)]

    answers = race(
        world.url,
        rounds,
        lambda n: scripts.retry(running[n], delay_ms=0, error="no luck", failure={}),
        lambda n: scripts.stop(f"t{n}", grace_s=5, force=False),
    )

    assert {tuple(each) for each in answers} <= {("ok", "queued"), ("stopping", "ok")}
