"""heartbeat.lua: renews leases, and is how a pool learns which of its attempts must stop."""

from __future__ import annotations

import pytest

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import RUNS, SEED, World

S = TaskStatus


def test_a_heartbeat_renews_the_lease_and_is_noted_where_rq_looks(world: World) -> None:
    world.start("a")
    before = world.snapshot()

    assert world.run(scripts.heartbeat([("a", "1", "default")], 500_000)) == ["ok"]

    assert world.since(before) == {
        "rq:wip:default a:1": "now+4100 s",
        "rq:job:a last_heartbeat": "now",
        "rq:execution:a:1 job_id": "a",
        "rq:execution:a:1 created_at": "now",
        "rq:execution:a:1 last_heartbeat": "now",
        "rq:execution:a:1 worker_name": "w",
        "rq:execution:a:1 expires": "now+3600 s",
        "rq:worker:w:executions": {"a:1"},
    }


def test_a_heartbeat_never_shortens_a_lease(world: World) -> None:
    world.start("a")
    before = world.snapshot()

    world.run(scripts.heartbeat([("a", "1", "default")], 15_000))

    assert world.since(before)["rq:job:a last_heartbeat"] == "now"
    assert world.snapshot()["rq:wip:default a:1"] == before["rq:wip:default a:1"]


def test_an_attempt_whose_lease_has_ended_goes_on_until_it_is_taken_back(world: World) -> None:
    world.start("a")
    world.expire_lease("a")

    assert world.run(scripts.heartbeat([("a", "1", "default")], 100_000)) == ["ok"]

    assert world.snapshot()["rq:wip:default a:1"] == "now+3700 s"


@pytest.mark.parametrize(("force", "word"), [(False, "stop"), (True, "force")])
def test_a_heartbeat_reports_a_stop_and_renews_all_the_same(world: World, force: bool, word: str) -> None:
    world.start("a")
    world.run(scripts.stop("a", grace_s=5, force=force))

    assert world.run(scripts.heartbeat([("a", "1", "default")], 500_000)) == [word]

    assert world.snapshot()["rq:wip:default a:1"] == "now+4100 s"


def test_each_attempt_gets_its_own_word_in_order(world: World) -> None:
    for id in ("fine", "asked", "forced", "gone"):
        world.start(id)
    world.run(scripts.stop("asked", grace_s=5, force=False))
    world.run(scripts.stop("forced", grace_s=5, force=True))
    world.redis.delete("rq:job:gone")

    words = world.run(
        scripts.heartbeat([(id, "1", "default") for id in ("asked", "gone", "fine", "ghost", "forced")], 100_000)
    )

    assert words == ["stop", "lost", "ok", "lost", "force"]


def test_a_pool_that_runs_nothing_gets_no_words(world: World) -> None:
    assert world.run(scripts.heartbeat([], 100_000)) == []

    assert world.snapshot() == {}


@pytest.mark.parametrize("status", SEED)
def test_an_attempt_that_does_not_hold_the_task_renews_nothing(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.run(scripts.heartbeat([("a", "9", "default")], 500_000)) == ["lost"]

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [status for status in SEED if status not in RUNS])
def test_an_attempt_that_has_ended_renews_nothing(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert world.run(scripts.heartbeat([("a", "1", "default"), ("a", "", "default")], 500_000)) == ["lost", "lost"]

    assert world.since(before) == {}


def test_a_heartbeat_shows_in_rqs_record_of_the_execution(world: World) -> None:
    world.start("a")
    world.run(scripts.heartbeat([("a", "1", "default")], 100_000))
    world.redis.hset("rq:execution:a:1", "last_heartbeat", 1)
    world.redis.expire("rq:execution:a:1", 100)

    world.run(scripts.heartbeat([("a", "1", "default")], 100_000))

    after = world.snapshot()
    assert after["rq:execution:a:1 last_heartbeat"] == "now"
    assert after["rq:execution:a:1 expires"] == "now+3600 s"
