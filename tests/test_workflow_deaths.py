"""The caller of each operation of workflows dies at each of its commands, or sends each twice; housekeeping goes on.

A caller that dies before the commit has changed nothing; one that dies behind it leaves all that it wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskpool import Registry, TaskSpec, TaskStatus
from taskpool.errors import AttemptLost, WorkflowNotFound
from taskpool.operations.catalog import Catalogue
from taskpool.operations.flow.additions import Additions
from taskpool.operations.flow.upkeep import look_after_workflows
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec, WorkflowStatus
from taskpool.operations.flow.workflows import (
    fetch_workflow,
    list_workflows,
    remove_workflow,
    retry_workflow,
    stop_workflow,
    submit_workflow,
)
from taskpool.operations.queue import Rules
from taskpool.operations.submit import Defaults
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Plan
from taskpool.tasks.node import After
from tests.states import World

S = TaskStatus
W = WorkflowStatus
RULES = Rules(Catalogue(type_grace_s=60), Registry(builtins=True), Defaults())
ROWS = 520  # three chunks
MOST_COMMANDS = 60


def spec() -> WorkflowSpec:
    row = TaskSpec(type="echo", payload={"message": 1})
    nodes = (
        NodeSpec(name="first", task=row),
        NodeSpec(name="rows", map=(row,) * ROWS, after=("first",)),
        NodeSpec(name="end", task=row, after=(After("rows", "any"),)),
    )
    return WorkflowSpec(name="test", nodes=nodes)


def submit(world: World) -> str:
    return world.store.carry_out(submit_workflow(spec(), RULES)).id


def die_at(world: World, plan: Plan[Any], n: int, *, twice: bool) -> bool:
    """Carry out the first `n` calls of a plan; whether it had more. `twice`: each call is sent twice."""
    calls = next(plan)
    while True:
        values = []
        for call in calls:
            if n == 0:
                plan.close()
                return True
            n -= 1
            values.append(world.run(call))
            if twice and call.again:
                values[-1] = world.run(call)
        try:
            calls = plan.send(values)
        except StopIteration:
            return False


def keep_house(world: World) -> None:
    """Rounds of housekeeping, later than the caller's last step."""
    for _ in range(6):
        for member in world.redis.zrange(keys.EXPANDING, 0, -1):
            world.redis.zadd(keys.EXPANDING, {member: 1})
        world.store.carry_out(look_after_workflows())
        for ref in world.redis.smembers(keys.OUTBOX):
            world.run(scripts.release(ref.decode(), 1000))


def drain(world: World, status: TaskStatus = S.DONE) -> None:
    """Run all tasks until nothing waits any more."""
    number = 0
    while True:
        keep_house(world)
        if not world.redis.llen("rq:queue:default"):
            return
        while (running := world.try_claim(attempt_id=f"d{number}")) is not None:
            number += 1
            world.finish(running, status)


def sweep(world: World, make: Callable[[], Plan[Any]], check: Callable[[int], None], *, twice: bool = False) -> int:
    """The plan dies at each of its commands in turn, each time in a new world; how many commands it has."""
    for n in range(MOST_COMMANDS):
        world.redis.flushall()
        has_more = die_at(world, make(), n, twice=twice)
        keep_house(world)
        check(n)
        if not has_more:
            return n
    raise AssertionError("the plan has no end")


@pytest.mark.parametrize("twice", [False, True])
def test_a_submission(world: World, twice: bool) -> None:
    seen = set()

    def check(_: int) -> None:
        listed = world.store.carry_out(list_workflows()).items
        seen.add(len(listed))
        assert world.redis.zcard("taskpool:type:echo") == (ROWS + 2 if listed else 0)
        if listed:
            assert not world.redis.keys("taskpool:staged:*")

    assert sweep(world, lambda: submit_workflow(spec(), RULES), check, twice=twice) > 7
    assert seen == {0, 1}
    drain(world)
    (record,) = world.store.carry_out(list_workflows()).items
    assert (record.status, record.counts) == (W.DONE, {"done": ROWS + 2})


@pytest.mark.parametrize("twice", [False, True])
def test_what_a_running_task_adds(world: World, twice: bool) -> None:
    row = TaskSpec(type="echo", payload={"message": 1})
    sizes = set()

    def make() -> Plan[Any]:
        one = WorkflowSpec(name="test", nodes=(NodeSpec(name="import", task=row),))
        world.store.carry_out(submit_workflow(one, RULES))
        additions = Additions(world.claim(), RULES)
        rows = additions.add_map("rows", [row] * ROWS, ())
        additions.add_node("end", (row,), rows.any(), {})
        return additions.commit()

    def check(_: int) -> None:
        (record,) = world.store.carry_out(list_workflows()).items
        sizes.add(record.total)
        assert world.redis.zcard("taskpool:type:echo") == record.total
        if not twice:  # the attempt dies as well; the next one does the same
            (running,) = world.running.values()
            world.run(scripts.give_back(running))
            again = Additions(world.claim(attempt_id="2"), RULES)
            rows = again.add_map("rows", [row] * ROWS, ())
            again.add_node("end", (row,), rows.any(), {})
            assert world.store.carry_out(again.commit()) == []
            assert world.store.carry_out(fetch_workflow(record.id)).total == ROWS + 2
        world.running.clear()

    assert sweep(world, make, check, twice=twice) > 7
    assert sizes == {1, ROWS + 2}


def test_what_an_attempt_adds_that_has_lost_its_lease_meanwhile(world: World) -> None:
    row = TaskSpec(type="echo", payload={"message": 1})
    one = WorkflowSpec(name="test", nodes=(NodeSpec(name="import", task=row),))
    world.store.carry_out(submit_workflow(one, RULES))
    running = world.claim()
    additions = Additions(running, RULES)
    additions.add_map("rows", [row] * 3, ())
    world.run(scripts.give_back(running))

    with pytest.raises(AttemptLost):
        world.store.carry_out(additions.commit())

    assert world.redis.zcard("taskpool:type:echo") == 1


def stopping(world: World) -> Plan[Any]:
    id = submit(world)
    world.claim()
    return stop_workflow(id)


@pytest.mark.parametrize("twice", [False, True])
def test_a_stop(world: World, twice: bool) -> None:
    def check(n: int) -> None:
        (record,) = world.store.carry_out(list_workflows()).items
        if n > 0:
            assert (record.status, record.counts) == (W.STOPPING, {"canceled": ROWS + 1})
        (running,) = world.running.values()
        if n > 0:
            world.finish(running, S.STOPPED)
            (record,) = world.store.carry_out(list_workflows()).items
            assert record.status is W.STOPPED
        world.running.clear()

    for n in (0, 1, 2, 3, 100, 600):
        world.redis.flushall()
        die_at(world, stopping(world), n, twice=twice)
        keep_house(world)
        check(n)


@pytest.mark.parametrize("twice", [False, True])
def test_a_retry(world: World, twice: bool) -> None:
    def make() -> Plan[Any]:
        id = submit(world)
        drain(world, S.FAILED)
        record = world.store.carry_out(fetch_workflow(id))
        assert (record.status, record.counts) == (W.FAILED, {"failed": 1 + 1, "canceled": ROWS})
        return retry_workflow(id)

    seen = set()

    def check(_: int) -> None:
        (record,) = world.store.carry_out(list_workflows()).items
        seen.add(record.status)
        if record.status is W.IN_PROGRESS:
            assert record.counts == {}
            assert world.redis.llen("rq:queue:default") == 1

    assert sweep(world, make, check, twice=twice) > 5
    assert seen == {W.FAILED, W.IN_PROGRESS}
    drain(world)
    (record,) = world.store.carry_out(list_workflows()).items
    assert (record.status, record.counts) == (W.DONE, {"done": ROWS + 2})


@pytest.mark.parametrize("twice", [False, True])
def test_a_removal(world: World, twice: bool) -> None:
    def make() -> Plan[Any]:
        id = submit(world)
        drain(world)
        ids[:] = [id]
        return remove_workflow(id)

    ids: list[str] = []

    def check(n: int) -> None:
        if n == 0:
            return
        with pytest.raises(WorkflowNotFound):
            world.store.carry_out(fetch_workflow(ids[0]))
        assert not world.redis.keys("taskpool:workflow:*")
        assert len(world.redis.zrangebyscore("rq:finished:default", "-inf", "+1e11")) == ROWS + 2

    assert sweep(world, make, check, twice=twice) >= 2
