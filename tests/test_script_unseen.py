"""unseen.lua: a claim whose answer was never read is no attempt that could crash."""

from __future__ import annotations

import itertools

import pytest

from taskpool.redis import scripts
from taskpool.types import TaskStatus
from tests.states import LEASE_MS, SEED, World, ended
from tests.test_script_crash import crash
from workers.housekeeping import reap

S = TaskStatus
MARK = "taskpool:unseen:w a:1"
EXPIRIES = {"taskpool:unseen:w expires": "now+3600 s"}
LISTS = itertools.count(1)


def look(world: World, *runs: str, least_ms: int = 0) -> int:
    """One list of what the worker runs."""
    return world.run(scripts.mark_unseen("w", runs, listed=next(LISTS), least_ms=least_ms))


def mark(world: World, *runs: str, least_ms: int = 0) -> int:
    """Two lists: a claim that both lack is marked."""
    return look(world, *runs, least_ms=least_ms) + look(world, *runs, least_ms=least_ms)


def test_a_claim_that_its_process_does_not_run_is_marked_once(world: World) -> None:
    world.start("a")
    world.start("b", attempt_id="2")
    world.redis.persist("taskpool:attempts:w")
    before = world.snapshot()

    assert (look(world, "2"), look(world, "2"), look(world, "2")) == (0, 1, 0)

    assert world.since(before) == {MARK: "unseen", **EXPIRIES}
    assert world.redis.ttl("taskpool:attempts:w") > 0


def test_a_list_that_arrives_late_marks_no_claim_that_is_newer(world: World) -> None:
    """It was read before the claim, and is sent again because its answer was lost."""
    late = scripts.mark_unseen("w", [], listed=next(LISTS), least_ms=0)
    world.start("a")

    assert (world.run(late), world.run(late), look(world, "1")) == (0, 0, 0)

    assert MARK not in world.snapshot()


def test_a_claim_whose_answer_may_be_on_its_way_is_not_marked(world: World) -> None:
    world.start("a")
    before = world.snapshot()

    assert mark(world, least_ms=60_000) == 0

    assert world.since(before).keys() == {MARK, *EXPIRIES}
    assert world.snapshot()[MARK] == "missed"


def test_an_attempt_that_has_had_a_heartbeat_is_not_marked(world: World) -> None:
    world.start("a")
    world.run(scripts.heartbeat([("a", "1", "default")], LEASE_MS))

    assert mark(world) == 0

    assert MARK not in world.snapshot()


def test_a_marked_claim_is_given_back_when_its_lease_ends(world: World) -> None:
    world.start("a")
    mark(world)
    assert crash(world, only_expired=True) == "lost"  # it hasn't ended
    world.redis.zadd("rq:wip:default", {"a:1": 1})

    world.store.carry_out(reap("default", max_crashes=1))

    record = world.get("a")
    assert (record.status, record.attempt, record.crashes) == (S.QUEUED, 0, 0)
    assert world.snapshot()["rq:job:a history"] == [ended("given_back")]
    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a"]
    assert not world.redis.exists("rq:wip:default", "rq:execution:a:1", "taskpool:attempts:w")
    assert world.events("a")[-1][1:] == ("queued", "queued")


def test_what_a_supervisor_of_the_release_before_has_marked_is_given_back(world: World) -> None:
    world.start("a")
    fields = {"job_id": "a", "worker_name": "w", "created_at": "1.5", "last_heartbeat": "1.5", "unseen": "1"}
    world.redis.hset("rq:execution:a:1", mapping=fields)
    world.expire_lease("a")

    assert crash(world, only_expired=True) == "unseen"


def test_what_was_marked_and_is_seen_after_all_can_crash(world: World) -> None:
    world.start("a")
    mark(world)
    world.run(scripts.heartbeat([("a", "1", "default")], LEASE_MS))
    world.expire_lease("a")

    assert crash(world, only_expired=True) == "queued"

    assert world.get("a").crashes == 1


def test_a_marked_claim_whose_process_is_known_to_be_dead_has_crashed(world: World) -> None:
    world.start("a")
    mark(world)

    assert crash(world) == "queued"

    assert world.get("a").crashes == 1


def test_a_marked_claim_that_is_to_stop_is_stopped_when_its_lease_ends(world: World) -> None:
    SEED[S.STOPPING](world, "a")
    mark(world)
    world.expire_lease("a")

    world.store.carry_out(reap("default", max_crashes=3))

    assert world.get("a").status is S.STOPPED


@pytest.mark.parametrize("status", [status for status in SEED if status not in (S.IN_PROGRESS, S.STOPPING)])
def test_a_worker_that_holds_nothing_gets_no_marks(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    assert mark(world) == 0

    assert world.since(before) == {}
