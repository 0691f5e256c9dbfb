"""Failures are grouped by fingerprint: exception and place, or the reason of other failures; in bounded space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from taskpool.errors import FailureNotFound, InvalidTask
from taskpool.operations.insight.failures import get_failure, list_failures
from taskpool.redis import keys, scripts
from taskpool.types import TaskStatus
from taskpool.types.insight import FailureGroup
from tests.states import World

S = TaskStatus


def fault(fingerprint: str, **more: Any) -> Mapping[str, Any]:
    return {
        "reason": "exception", "message": "m", "exception": "KeyError", "place": "images.py:41 in resize",
        "fingerprint": fingerprint, **more,
    }  # fmt: skip


def fail(world: World, id: str, failure: Mapping[str, Any], *, error: str = "KeyError: 'width'") -> None:
    world.run(scripts.finish(world.start(id), S.FAILED, error=error, failure=failure))


def groups(world: World, **wanted: Any) -> list[FailureGroup]:
    return world.store.carry_out(list_failures(**wanted))


def test_a_group_counts_its_failures_by_type_build_queue_and_worker(world: World) -> None:
    fail(world, "a", fault("0" * 12, build="b1"))
    fail(world, "b", fault("0" * 12, build="b2"), error="KeyError: 'height'")
    world.run(scripts.retry(world.start("c"), delay_ms=0, error="KeyError", failure=fault("0" * 12, build="b2")))

    (group,) = groups(world)

    assert (group.fingerprint, group.error_type, group.place) == ("0" * 12, "KeyError", "images.py:41 in resize")
    assert (group.count, group.tasks, group.sample, group.message) == (3, 2, "c", "KeyError")
    assert group.types == {"work": 3}
    assert group.builds == {"b2": 2, "b1": 1}
    assert group.queues == {"default": 3}
    assert group.workers == {"w": 3}
    assert group.spark[-1] + group.spark[-2] == 3
    assert len(group.spark) == 24
    assert group.first_seen <= group.last_seen
    assert world.get("a").fingerprint == world.get("c").fingerprint == "0" * 12


def test_the_group_itself_has_the_traceback_of_the_last_one(world: World) -> None:
    fail(world, "a", fault("0" * 12, traceback="Trace a"))

    assert world.store.carry_out(get_failure("0" * 12)).traceback == "Trace a"
    assert groups(world)[0].traceback is None

    world.redis.delete("rq:job:a")
    assert world.store.carry_out(get_failure("0" * 12)).traceback is None


@pytest.mark.parametrize("fingerprint", ["f" * 12, "F" * 12, "", 7])
def test_a_fingerprint_without_failures_is_not_found(world: World, fingerprint: Any) -> None:
    with pytest.raises(FailureNotFound):
        world.store.carry_out(get_failure(fingerprint))


def test_failures_without_a_place_are_grouped_by_reason_and_type(world: World) -> None:
    world.run(scripts.crash(world.start("a").id, "1", "default", error="died", max_crashes=3,
                            failure={"reason": "crashed", "signal": "SIGSEGV"}))  # fmt: skip
    fail(world, "b", {"reason": "timeout", "message": "timed out", "exception": "SoftTimeout", "place": "x.py:1 in f"})
    fail(world, "d", {"reason": "exception", "message": "m", "exception": "OSError"})  # it was never raised
    world.redis.zadd("rq:wip:default", {f"{world.start('c').id}:1": 1})
    world.run(scripts.crash("c", "1", "default", error="lost", failure={}, max_crashes=1, only_expired=True))

    found = {group.error_type: group for group in groups(world)}

    assert found.keys() == {"crashed SIGSEGV", "timeout", "lease_lost", "OSError"}
    assert found["crashed SIGSEGV"].tasks == 0
    assert found["lease_lost"].tasks == 1
    assert len({group.fingerprint for group in found.values()}) == 4


def test_a_task_that_is_done_at_last_has_no_fingerprint(world: World) -> None:
    world.run(scripts.retry(world.start("a"), delay_ms=0, error="KeyError", failure=fault("0" * 12)))
    assert world.get("a").fingerprint == "0" * 12

    world.finish(world.claim(attempt_id="2"))

    assert world.get("a").fingerprint is None


def test_snoozes_stops_and_returned_tasks_are_no_failures(world: World) -> None:
    world.run(scripts.snooze(world.start("a"), delay_ms=500_000, message="later"))
    world.run(scripts.give_back(world.start("b")))
    world.run(scripts.finish(world.claim(attempt_id="2"), S.STOPPED, error="stopped", failure={"reason": "stopped"}))

    assert groups(world) == []


def test_the_groups_that_failed_longest_ago_make_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.redis.zadd(keys.FAILURES, {f"{at:012x}": at for at in range(keys.FAILURES_MOST)})
    world.redis.hset(f"{keys.FAILURE}{0:012x}", "kind", "Old")

    fail(world, "a", fault("f" * 12))

    assert world.redis.zcard(keys.FAILURES) == keys.FAILURES_MOST
    assert not world.redis.exists(f"{keys.FAILURE}{0:012x}")
    assert [group.fingerprint for group in groups(world)] == ["f" * 12]


def test_a_group_names_a_bounded_number_of_workers_and_builds(world: World) -> None:
    for number in range(keys.FAILURE_NAMES_MOST + 3):
        fail(world, f"a{number}", fault("0" * 12, build=f"b{number}"))

    (group,) = groups(world)

    assert len(group.builds) == keys.FAILURE_NAMES_MOST + 1
    assert group.builds[""] == 3
    assert sum(group.builds.values()) == group.count == keys.FAILURE_NAMES_MOST + 3


def test_a_list_can_be_of_a_type_and_of_a_time(world: World) -> None:
    fail(world, "a", fault("a" * 12))
    fail(world, "b", fault("b" * 12))
    world.redis.zadd(keys.FAILURES, {"a" * 12: 1000})

    assert [group.fingerprint for group in groups(world)] == ["b" * 12, "a" * 12]
    assert [group.fingerprint for group in groups(world, since="1h")] == ["b" * 12]
    assert [group.fingerprint for group in groups(world, since="1970-01-01T00:00:02Z")] == ["b" * 12]
    assert [group.fingerprint for group in groups(world, limit=1)] == ["b" * 12]
    assert groups(world, type="other") == []
    assert len(groups(world, type="work", limit=1)) == 1


@pytest.mark.parametrize("since", ["soon", "1970-01-01T00:00:02", "", "1 fortnight", 7])
def test_a_wrong_time_is_refused(world: World, since: Any) -> None:
    with pytest.raises(InvalidTask, match="/since"):
        groups(world, since=since)


def test_what_another_program_wrote_there_keeps_no_task_from_ending(world: World) -> None:
    world.redis.set(f"{keys.FAILURE}{'0' * 12}", "x")

    fail(world, "a", fault("0" * 12))

    assert world.get("a").status is S.FAILED
    assert groups(world) == []


def test_a_failure_that_is_sent_twice_counts_once(world: World) -> None:
    call = scripts.finish(world.start("a"), S.FAILED, error="KeyError", failure=fault("0" * 12))

    assert [world.run(call), world.run(call)] == ["ok", "ok"]

    assert groups(world)[0].count == 1
