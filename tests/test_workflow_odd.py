"""Workflows in odd forms and at odd moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taskpool import TaskContext, TaskPool
from taskpool.errors import RedisFull, TaskNotFound, UniqueConflict, WorkflowNotFound
from taskpool.operations.flow import expansion
from taskpool.operations.flow.expansion import member_id
from taskpool.operations.flow.upkeep import look_after_workflows
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowStatus
from taskpool.operations.flow.workflows import member_kinds, remove_workflow, retry_workflow, stop_workflow
from taskpool.operations.queue import submit as submit_task
from taskpool.redis import workflow_scripts
from taskpool.redis.calls import Plan
from taskpool.runner import retry_task
from taskpool.tasks.node import After
from taskpool.types import TaskSpec, TaskStatus
from taskpool.types.dependency import Dependency
from tests.states import World
from tests.test_add_nodes import pool, rows, run_next
from tests.test_add_nodes import submit as submit_code
from tests.test_workflows import end_next, fetch, node, rules, settle, spread, statuses, submit, work

S = TaskStatus
W = WorkflowStatus
__all__ = ["pool"]


def add(world: World, **options: Any) -> str:
    submitted = world.store.carry_out(submit_task(work(**options), rules()))
    return submitted.receipts[0].id


def status_of(world: World, id: str) -> str | None:
    status = world.redis.hget(f"rq:job:{id}", "status")
    return None if status is None else status.decode()


@contextmanager
def dying() -> Iterator[None]:
    """Callers die right after a commit."""

    def die(workflow: str) -> Plan[None]:
        yield from ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expansion, "_expand", die)
        yield


def test_a_deleted_task_beside_a_map_without_tasks_counts_as_removed(world: World) -> None:
    record = submit(world, spread("y", 0), spread("z", 0), node("a"), spread("b", 0))
    world.redis.delete("rq:job:" + member_id(record.id, 1))

    world.store.carry_out(look_after_workflows())

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.FAILED, {"removed": 1})
    assert [each.name for each in record.nodes] == ["y", "z", "a", "b"]


def test_what_comes_after_a_map_without_tasks_waits_for_what_the_map_comes_after(world: World) -> None:
    record = submit(world, node("a"), spread("y", 0, "a"), spread("z", 0, "y"), node("b", "z"), node("c", "z", "a"))

    assert {name: statuses(record)[name] for name in "abc"} == {"a": S.QUEUED, "b": S.WAITING, "c": S.WAITING}
    for _ in "abc":
        end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_a_failure_before_a_map_without_tasks_cancels_what_comes_after_it_until_the_retry(world: World) -> None:
    record = submit(world, node("a"), spread("z", 0, "a"), node("b", "z"))

    end_next(world, S.FAILED)

    assert statuses(fetch(world, record.id))["b"] is S.CANCELED
    world.store.carry_out(retry_workflow(record.id))
    for _ in "ab":
        end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_a_task_that_comes_with_a_workflow_is_not_replaced(world: World) -> None:
    with dying():
        submit(world, NodeSpec(name="a", task=work(unique_key="u")))

    with pytest.raises(UniqueConflict):
        add(world, unique_key="u", on_conflict="replace")


def test_a_workflow_that_is_removed_releases_its_dependents_first(world: World) -> None:
    record = submit(world, node("a"))
    child = add(world, depends_on=[Dependency(workflow=record.id)])
    world.finish(world.claim(), S.DONE)

    world.store.carry_out(remove_workflow(record.id))
    settle(world)

    assert status_of(world, child) == "queued"


@pytest.mark.parametrize("end", [":nodes", ":counted", ":order", ":", "\n", "/../x"])
def test_an_id_that_would_name_another_key_is_that_of_no_workflow(world: World, end: str) -> None:
    id = submit(world, node("status")).id + end

    with pytest.raises(WorkflowNotFound):
        fetch(world, id)
    for operation in (remove_workflow, retry_workflow, stop_workflow):
        with pytest.raises(WorkflowNotFound):
            world.store.carry_out(operation(id))


def test_a_workflow_fails_if_a_task_outside_of_it_keeps_its_own_from_running(world: World) -> None:
    outside = add(world)
    record = submit(world, NodeSpec(name="a", task=work(depends_on=[outside])), node("b", "a"))

    end_next(world, S.FAILED)

    record = fetch(world, record.id)
    assert (record.status, statuses(record)) == (W.FAILED, {"a": S.CANCELED, "b": S.CANCELED})


def test_a_handler_that_runs_once_more_begins_without_its_last_checkpoint(world: World) -> None:
    record = submit(world, node("a"), node("b", After("a", "any")), node("c", "b"))
    for status in (S.FAILED, S.DONE, S.FAILED):
        end_next(world, status)
    failed, handler = (f"taskpool:checkpoint:{member_id(record.id, number)}" for number in (1, 2))
    world.redis.mset({failed: "1", handler: "1"})

    world.store.carry_out(retry_workflow(record.id))

    assert world.redis.exists(failed) == 1
    assert world.redis.exists(handler) == 0


def test_tasks_of_later_commits_are_stored_after_those_of_earlier_ones(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> None:
        ctx.add("s", *rows(1))
        with dying():
            ctx.commit()
        ctx.add("t", *rows(2), after="s")

    record = submit_code(pool)

    record = run_next_of(pool, record, code)
    assert {each.name: each.status for each in record.nodes} == {"import": S.DONE, "s": S.QUEUED, "t": S.WAITING}


def run_next_of(pool: TaskPool, record: WorkflowRecord, code: Callable[[TaskContext], None]) -> WorkflowRecord:
    assert run_next(pool, code).status is S.DONE
    return pool.get_workflow(record.id)


def test_numbers_that_were_reserved_in_vain_hide_no_task(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> None:
        ctx.map("rows", [TaskSpec(type="row", payload={"n": 1}, queue="other")])

    record = submit_code(pool)
    pool.store.run(workflow_scripts.reserve(record.id, 1000))
    record = run_next_of(pool, record, code)

    added = member_id(record.id, 1002)
    assert added in {each.id for each in pool.list_tasks(workflow=record.id).items}
    assert ("row", "other") in pool.store.carry_out(member_kinds(record.id))


def test_a_task_adds_behind_a_map_without_tasks_that_was_there_before(pool: TaskPool) -> None:
    record = submit_code(pool, node("a"), spread("y", 0, "a"), spread("z", 0, "y"))

    def code(ctx: TaskContext) -> None:
        ctx.add("b", *rows(1), after="z")

    record = run_next_of(pool, record, code)

    assert {each.name: each.status for each in record.nodes if each.id} == {
        "import": S.DONE,
        "a": S.QUEUED,
        "b": S.WAITING,
    }


@pytest.mark.parametrize(
    ("depends_on", "error"),
    [
        (lambda ctx: Dependency(workflow=f"{ctx.id[:16]}0000", on="any"), "the workflow that it belongs to"),
        (lambda ctx: member_id(ctx.id, 500), "which doesn't exist"),
    ],
)
def test_a_task_of_a_workflow_waits_neither_for_that_nor_for_a_task_to_come(
    pool: TaskPool, depends_on: Callable[[TaskContext], Any], error: str
) -> None:
    def code(ctx: TaskContext) -> None:
        ctx.add("x", TaskSpec(type="row", payload={"n": 1}, depends_on=[depends_on(ctx)]))

    record = submit_code(pool)
    failed = run_next(pool, code)

    assert failed.status is S.FAILED
    assert failed.error is not None
    assert error in failed.error
    assert pool.get_workflow(record.id).total == 1


def test_a_parent_that_is_named_twice_counts_once(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> None:
        ctx.add("x", TaskSpec(type="row", payload={"n": 1}, depends_on=[ctx.id]), after="import")

    record = run_next_of(pool, submit_code(pool), code)

    assert record.nodes[1].status is S.QUEUED


def test_a_retried_workflow_revives_the_tasks_outside_that_were_canceled_because_of_it(world: World) -> None:
    record = submit(world, node("a"))
    outside = add(world, depends_on=[Dependency(workflow=record.id)])
    end_next(world, S.FAILED)
    assert status_of(world, outside) == "canceled"

    world.store.carry_out(retry_workflow(record.id))
    settle(world)

    assert status_of(world, outside) == "deferred"
    end_next(world)
    assert status_of(world, outside) == "queued"


def test_a_task_of_a_map_that_is_retried_by_hand_revives_what_comes_after_the_map(world: World) -> None:
    record = submit(world, spread("rows", 2), node("summary", "rows"))
    for status in (S.FAILED, S.DONE):
        end_next(world, status)
    assert statuses(fetch(world, record.id))["summary"] is S.CANCELED

    world.store.carry_out(retry_task(member_id(record.id, 1)))
    settle(world)

    assert statuses(fetch(world, record.id))["summary"] is S.WAITING
    for _ in range(2):
        end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_a_task_of_a_workflow_that_is_being_removed_is_not_retried(world: World) -> None:
    record = submit(world, node("a"))
    end_next(world, S.FAILED)
    assert world.run(workflow_scripts.remove(record.id)) == "ok"

    with pytest.raises(TaskNotFound):
        world.store.carry_out(retry_task(member_id(record.id, 1)))


def test_a_chunk_has_few_edges(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "CHUNK_EDGES", 10)
    parents = [f"a{number}" for number in range(4)]

    with dying():
        record = submit(world, *map(node, parents), *[node(f"b{number}", *parents) for number in range(5)])

    assert world.redis.hget(f"taskpool:workflow:{record.id}", "chunks") == b"3"


@pytest.fixture
def memory(world: World) -> Iterator[Callable[[int], None]]:
    """Sets how many bytes of memory Redis may use; 0: any number."""

    def set_most(most: int) -> None:
        world.redis.config_set("maxmemory", most)

    yield set_most
    world.redis.config_set("maxmemory", 0)


def test_a_redis_whose_memory_is_full_stops_and_removes_workflows(world: World, memory: Callable[[int], None]) -> None:
    with dying():
        unstored = submit(world, node("x"))
    record, old = submit(world, node("a"), node("b", "a"), spread("m", 3)), submit(world, node("a"))
    world.store.carry_out(stop_workflow(old.id))
    world.redis.zadd("taskpool:workflows:expanding", {unstored.id: 1})
    world.redis.zadd("taskpool:workflows:ended", {old.id: 1})
    memory(1)

    stopped = world.store.carry_out(stop_workflow(record.id))
    with pytest.raises(RedisFull):
        world.store.carry_out(look_after_workflows())

    assert stopped.status is W.STOPPED
    with pytest.raises(WorkflowNotFound):
        fetch(world, old.id)
    memory(0)
    world.store.carry_out(look_after_workflows())
    assert statuses(fetch(world, unstored.id)) == {"x": S.QUEUED}
