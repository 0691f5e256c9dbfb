"""add.lua: what a submission leaves in Redis, for every way a task can begin; all of it or nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from taskpool.redis import scripts
from taskpool.redis.scripts import Added, NewTask
from taskpool.types import TaskStatus
from tests.states import ENDED, FAILURE_TTL_S, RESULT_TTL_S, SEED, World, new_task

S = TaskStatus
FIRST = {"type": "work", "queue": "default"}
"""What a task's first event tells besides."""
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def add(world: World, *tasks: NewTask) -> Added:
    return world.run(scripts.add(tasks))


def hash_of(id: str, **fields: Any) -> dict[str, Any]:
    """What the snapshot shows of a task's hash that was just added."""
    fields = {
        "created_at": "now",
        "data": '["taskpool.runner.run",null,["work",{}],{}]',
        "description": "work()",
        "failure_ttl": "2000",
        "origin": "default",
        "result_ttl": "1000",
        "seq": "1",
        "timeout": "600",
        "type": "work",
        **fields,
    }
    return {f"rq:job:{id} {name}": value for name, value in fields.items()}


def test_a_task_is_queued_with_its_indexes_one_event_and_a_ring(world: World) -> None:
    added = world.add("a", tags=["x", "y"])

    assert added.statuses == ("queued",)
    assert STAMP.fullmatch(added.stamp)
    assert world.snapshot() == {
        **hash_of("a", status="queued", enqueued_at="now", tags="x,y"),
        "rq:queues": {"rq:queue:default"},
        "rq:queue:default": ["a"],
        "taskpool:doorbell:default": ["1"],
        "taskpool:type:work a": "0",
        "taskpool:types:used": {"work"},
        "taskpool:tag:x a": "0",
        "taskpool:tag:y a": "0",
        "taskpool:tags": {"x", "y"},
        "taskpool:events a 1": {"event": "queued", "status": "queued", "at_ms": "now", **FIRST, "tags": ["x", "y"]},
    }


def test_a_delayed_task_is_scheduled_and_wakes_no_worker(world: World) -> None:
    added = world.add("a", delay_s=500)

    assert added.statuses == ("scheduled",)
    assert world.snapshot() == {
        **hash_of("a", status="scheduled", run_ms="now+500 s", run_clock="0"),
        "rq:queues": {"rq:queue:default"},
        "rq:scheduled:default a": "now+500 s",
        "taskpool:type:work a": "0",
        "taskpool:types:used": {"work"},
        "taskpool:events a 1": {"event": "scheduled", "status": "scheduled", "at_ms": "now", **FIRST},
    }


def test_a_time_to_come_schedules_the_task_for_it(world: World) -> None:
    run_ms = int(world.redis.time()[0] * 1000) + 500_000

    added = world.run(scripts.add([replace(new_task("a"), run_ms=run_ms, is_plain=False)]))

    assert added.statuses == ("scheduled",)
    assert world.redis.zscore("rq:scheduled:default", "a") == run_ms / 1000
    assert world.redis.hget("rq:job:a", "run_ms") == str(run_ms).encode()


def test_a_time_that_has_passed_queues_at_once(world: World) -> None:
    run_ms = int(world.redis.time()[0] * 1000) - 1

    added = world.run(scripts.add([replace(new_task("a"), run_ms=run_ms, is_plain=False)]))

    assert added.statuses == ("queued",)
    assert "rq:job:a run_ms" not in world.snapshot()


def needed(parent: str, child: str, *, is_done: bool) -> dict[str, Any]:
    """What keeps a parent's record for a task that depends on it."""
    kept: dict[str, Any] = {f"taskpool:needed:{parent}": {child}}
    held = {f"rq:job:{parent} expires": None, f"taskpool:held {parent}": f"now+{RESULT_TTL_S + 60} s"}
    return kept | (held if is_done else {})


def test_a_task_waits_for_parents_that_have_not_ended(world: World) -> None:
    world.end("done")
    world.start("running")
    world.add("queued", queue="other")
    before = world.snapshot()

    added = world.add("a", depends_on=["done", "running", "queued"])

    assert added.statuses == ("deferred",)
    assert world.since(before) == {
        **hash_of("a", status="deferred", pending="2", dependency_ids='["done","running","queued"]'),
        "rq:deferred:default a": "now",
        "taskpool:dependents:running": {"a"},
        "taskpool:dependents:queued": {"a"},
        **needed("done", "a", is_done=True),
        "taskpool:type:work a": "0",
        "taskpool:events a 1": {"event": "waiting", "status": "waiting", "at_ms": "now", **FIRST},
    }


def test_a_task_whose_parents_are_all_done_is_queued(world: World) -> None:
    world.end("p")
    world.end("q")
    before = world.snapshot()

    world.add("a", depends_on=["p", "q"])

    assert world.since(before) == {
        **hash_of("a", status="queued", enqueued_at="now", dependency_ids='["p","q"]', pending="0"),
        **needed("p", "a", is_done=True),
        **needed("q", "a", is_done=True),
        # The parents' ring is still there, because no claim found the queue empty since: one is enough.
        "rq:queue:default": ["a"],
        "taskpool:type:work a": "0",
        "taskpool:events a 1": {"event": "queued", "status": "queued", "at_ms": "now", **FIRST},
    }


@pytest.mark.parametrize("end", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_task_is_canceled_at_once_when_a_parent_ended_badly(world: World, end: TaskStatus) -> None:
    SEED[end](world, "bad")
    world.start("running")
    before = world.snapshot()

    added = world.add("a", depends_on=["running", "bad"], expires_in_s=300)

    assert added.statuses == ("canceled",)
    assert world.since(before) == {
        **hash_of(
            "a",
            status="canceled",
            dependency_ids='["running","bad"]',
            pending="2",
            ended_at="now",
            reason="dependency_failed",
            error=f"canceled: the task bad it depends on did not end well ({end})",
            canceled_by="bad",
            expires=f"now+{FAILURE_TTL_S + 60} s",
        ),
        "rq:canceled:default a": f"now+{FAILURE_TTL_S} s",
        # Retried by hand, the parents may still be done, and then this one.
        "taskpool:revivable:bad": {"a"},
        "taskpool:revivable:bad expires": f"now+{FAILURE_TTL_S + 60} s",
        **needed("running", "a", is_done=False),
        "taskpool:type:work a": "0",
        "taskpool:events a 1": {
            "event": "canceled",
            "status": "canceled",
            "at_ms": "now",
            **FIRST,
            "reason": "dependency_failed",
            "dependency": "bad",
        },
    }


def test_a_delay_is_kept_while_a_task_waits_for_others(world: World) -> None:
    world.add("p")

    world.add("a", depends_on=["p"], delay_s=500)

    after = world.snapshot()
    assert after["rq:job:a status"] == "deferred"
    assert after["rq:job:a run_ms"] == "now+500 s"
    assert "rq:scheduled:default a" not in after


@pytest.mark.parametrize(
    ("status", "options"),
    [(S.QUEUED, {}), (S.SCHEDULED, {"delay_s": 500}), (S.WAITING, {"depends_on": ["p"]})],
)
def test_an_expiry_is_noted_wherever_a_task_waits(world: World, status: TaskStatus, options: dict[str, Any]) -> None:
    world.add("p", queue="parents")

    world.add("a", expires_in_s=300, **options)

    after = world.snapshot()
    assert world.get("a").status is status
    assert after["rq:job:a expires_ms"] == "now+300 s"
    assert after["taskpool:expiring a"] == "now+300 s"


def test_tasks_are_queued_in_order_behind_what_is_there_and_front_ones_before(world: World) -> None:
    world.add("old")

    add(world, new_task("a"), new_task("b", queue="other"), new_task("c"), new_task("f", front=True))

    assert world.snapshot()["rq:queue:default"] == ["f", "old", "a", "c"]
    assert world.snapshot()["rq:queue:other"] == ["b"]


def test_a_doorbell_rings_once_for_each_task_in_the_queue_up_to_its_cap(world: World) -> None:
    rings: list[int] = []
    for count in (1, 1, 2, 100):
        add(world, *[new_task(f"t{len(rings)}-{n}") for n in range(count)])
        rings.append(world.redis.llen("taskpool:doorbell:default"))

    assert rings == [1, 2, 4, 64]


def test_a_parent_may_stand_earlier_in_the_same_call(world: World) -> None:
    added = add(world, new_task("p"), new_task("a", depends_on=["p"]), new_task("b", depends_on=["a", "p"]))

    after = world.snapshot()
    assert added.statuses == ("queued", "deferred", "deferred")
    assert after["taskpool:dependents:p"] == {"a", "b"}
    assert after["taskpool:dependents:a"] == {"b"}


def test_a_thousand_tasks_go_in_one_call(world: World) -> None:
    tasks = [new_task(f"t{n:04}", tags=["bulk"]) for n in range(1000)]

    added = add(world, *tasks)

    assert added.statuses == ("queued",) * 1000
    assert world.redis.lrange("rq:queue:default", 0, -1) == [task.id.encode() for task in tasks]
    assert world.redis.zcard("taskpool:type:work") == world.redis.zcard("taskpool:tag:bulk") == 1000
    assert world.redis.xlen("taskpool:events") == 1000


@pytest.mark.parametrize("position", [0, 1, 999])
def test_an_unknown_parent_of_any_task_refuses_them_all(world: World, position: int) -> None:
    world.add("p")
    before = world.snapshot()
    tasks: Sequence[NewTask] = [
        new_task(f"t{n}", tags=["t"], delay_s=n % 2, depends_on=["p", "ghost"] if n == position else ["p"])
        for n in range(1000)
    ]

    added = add(world, *tasks)

    assert added == Added(unknown_dependency="ghost")
    assert world.since(before) == {}


def test_a_parent_later_in_the_same_call_is_unknown(world: World) -> None:
    added = add(world, new_task("a", depends_on=["b"]), new_task("b"))

    assert added == Added(unknown_dependency="b")
    assert world.snapshot() == {}


@pytest.mark.parametrize("status", SEED)
def test_adding_the_same_task_again_changes_nothing_and_returns_its_status(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.snapshot()

    added = world.run(scripts.add([new_task("a", tags=["other"], queue="other"), new_task("b")]))

    word = world.redis.hget("rq:job:a", "status").decode()
    assert added.statuses == (status.value if status is S.WAITING_CONFIRMATION else word, "gone")
    assert world.since(before) == {}


def test_a_repeated_call_returns_what_the_first_one_returned(world: World) -> None:
    world.add("p")
    call = scripts.add([new_task("a", depends_on=["p"]), new_task("b", delay_s=500), new_task("c")])
    first = world.run(call)
    before = world.snapshot()

    again = world.run(call)

    assert again == first
    assert world.since(before) == {}


def test_a_call_is_known_as_repeated_when_a_parent_has_been_purged_since(world: World) -> None:
    world.end("p")
    call = scripts.add([new_task("a", depends_on=["p"])])
    first = world.run(call)
    assert world.run(scripts.purge("p")) == "ok"

    assert world.run(call) == first


def test_what_a_child_depends_on_may_have_ended_in_every_combination(world: World) -> None:
    for status in (*ENDED, S.QUEUED):
        SEED[status](world, f"p-{status}")

    found = {}
    for one in (*ENDED, S.QUEUED):
        for two in (*ENDED, S.QUEUED):
            id = f"{one}-{two}"
            found[one, two] = world.add(id, depends_on=[f"p-{one}", f"p-{two}"]).statuses[0]

    for parents, rq_status in found.items():
        if {*parents} & {S.FAILED, S.STOPPED, S.CANCELED}:
            assert rq_status == "canceled", parents
        else:
            assert rq_status == ("deferred" if S.QUEUED in parents else "queued"), parents


@pytest.mark.parametrize("end", [S.IN_PROGRESS, S.FAILED])
def test_a_queue_is_known_from_its_first_task_even_if_that_waits_or_never_runs(world: World, end: TaskStatus) -> None:
    SEED[end](world, "p")

    world.add("a", queue="new", depends_on=["p"])

    assert world.redis.sismember("rq:queues", "rq:queue:new")


def test_tasks_for_the_front_keep_their_order_there(world: World) -> None:
    world.add("last")

    add(world, new_task("a", front=True), new_task("z"), new_task("b", front=True), new_task("c", front=True))

    assert world.snapshot()["rq:queue:default"] == ["a", "b", "c", "last", "z"]


def test_tasks_of_one_kind_leave_what_they_leave_in_a_call_with_others(world: World) -> None:
    def snapshot_after(*others: NewTask) -> dict[str, Any]:
        world.redis.flushall()
        world.add("known")  # its queue is known from here on
        plain = [new_task("a", payload={"text": "ü\n", "n": 1}), new_task("b", payload=[None])]
        assert set(world.run(scripts.add([*plain, *others], audited=b"{}\n{}")).statuses) == {"queued"}
        return {name: value for name, value in world.snapshot().items() if "work" in name or "job" in name}

    of_one_kind = snapshot_after()
    with_others = snapshot_after(new_task("c", type="other"))

    assert of_one_kind.items() <= with_others.items()
    assert {name.split()[0] for name in with_others.keys() - of_one_kind.keys()} == {"rq:job:c"}


def test_a_call_whose_script_redis_does_not_know_is_sent_with_its_text(world: World) -> None:
    world.redis.script_flush()

    assert add(world, new_task("a")).statuses == ("queued",)
