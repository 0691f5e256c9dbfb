"""`ctx.add`, `ctx.map` and `ctx.commit`: what a running task adds to its workflow, over its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from taskpool import AttemptLost, InvalidTask, Registry, Task, TaskContext, TaskPool, TaskSpec, TaskStatus, task
from taskpool.operations.flow.expansion import member_id
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec, WorkflowStatus
from taskpool.operations.flow.workflows import stop_workflow
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call, texts
from taskpool.tasks.node import After
from taskpool.testing import InlinePool
from taskpool.types import RunningTask, TaskRecord

S = TaskStatus
W = WorkflowStatus


@task("row")
def row(n: int) -> int:
    if n < 0:
        raise ValueError("a bad row")
    return n


class Code(Task):
    """Runs what a test has put into `code`."""

    type = "code"
    code: Any = None

    def run(self, ctx: TaskContext) -> Any:
        return type(self).code(ctx)


class AsyncCode(Task):
    """The same, as `async def`."""

    type = "async_code"

    async def run(self, ctx: TaskContext) -> Any:
        await asyncio.sleep(0)
        return Code.code(ctx)


REGISTRY = Registry(builtins=True)
for each in (row, Code, AsyncCode):
    REGISTRY.add(each)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url, registry=REGISTRY) as pool:
        yield pool


def submit(pool: TaskPool, *nodes: NodeSpec, type: str = "code", **options: Any) -> WorkflowRecord:
    first = NodeSpec(name="import", task=TaskSpec(type=type, **options))
    return pool.add_workflow(WorkflowSpec(name="test", nodes=(first, *nodes)))


def rows(*numbers: int) -> list[TaskSpec]:
    return [TaskSpec(type="row", payload={"n": n}) for n in numbers]


def run_next(pool: TaskPool, code: Any = None, attempt_id: str = "a") -> TaskRecord:
    if code is not None:
        Code.code = staticmethod(code)
    running = claim(pool, attempt_id)
    pool.execute_task(running)
    for ref in pool.store.run(Call(("SMEMBERS", keys.OUTBOX), texts)):  # what housekeeping does
        pool.store.run(scripts.release(ref))
    return pool.get(running.id)


def claim(pool: TaskPool, attempt_id: str = "a") -> RunningTask:
    running = pool.run_task(["default"], worker="w", attempt_id=attempt_id)
    assert running is not None
    return running


def names(record: WorkflowRecord) -> list[str]:
    return [node.name for node in record.nodes]


@pytest.mark.parametrize("type", ["code", "async_code"])
def test_what_a_task_adds_is_committed_when_it_is_done(pool: TaskPool, type: str) -> None:
    record = submit(pool, type=type)

    def code(ctx: TaskContext) -> None:
        added = ctx.map("rows", (spec for spec in rows(1, -1, 3)))
        ctx.add("summary", "row", {"n": 7}, after=added.any())
        assert names(pool.get_workflow(record.id)) == ["import"]

    assert run_next(pool, code).status is S.DONE

    record = pool.get_workflow(record.id)
    assert (record.total, names(record)) == (5, ["import", "rows", "summary"])
    assert record.nodes[2].after == (After("rows", "any"),)
    ended = [run_next(pool) for _ in range(4)]
    assert [each.status for each in ended] == [S.DONE, S.FAILED, S.DONE, S.DONE]
    assert ended[3].node == "summary"
    record = pool.get_workflow(record.id)
    assert (record.status, record.counts) == (W.DONE, {"done": 4, "failed": 1})


def test_the_workflow_does_not_end_before_what_its_last_task_adds(pool: TaskPool) -> None:
    record = submit(pool)

    run_next(pool, lambda ctx: ctx.map("rows", rows(1)))

    assert pool.get_workflow(record.id).status is W.IN_PROGRESS


@pytest.mark.parametrize("how", ["failed", "retried", "result"])
def test_a_failed_attempt_adds_nothing(pool: TaskPool, how: str) -> None:
    record = submit(pool, max_attempts=2 if how == "retried" else 1, backoff_s=0)

    def code(ctx: TaskContext) -> Any:
        ctx.map("rows", rows(1))
        if how == "result":
            return object()
        raise ValueError("no")

    run_next(pool, code)

    assert names(pool.get_workflow(record.id)) == ["import"]


def test_an_attempt_that_lost_its_lease_adds_nothing(pool: TaskPool) -> None:
    record = submit(pool, max_attempts=2)
    lost = claim(pool, "lost")
    pool.store.run(scripts.give_back(lost))
    Code.code = staticmethod(lambda ctx: ctx.map("rows", rows(1)))

    with pytest.raises(AttemptLost):
        pool.execute_task(lost)

    assert names(pool.get_workflow(record.id)) == ["import"]


def test_a_commit_adds_at_once_and_the_first_list_stays(pool: TaskPool) -> None:
    record = submit(pool, max_attempts=2, backoff_s=0)

    def first(ctx: TaskContext) -> None:
        ctx.map("rows", rows(1, 2))
        ctx.commit()
        raise ValueError("behind the commit")

    def second(ctx: TaskContext) -> None:
        added = ctx.map("rows", rows(1, 2, 3))
        ctx.add("end", "row", {"n": 0}, after=added)

    failed = run_next(pool, first)
    assert failed.status is not S.DONE
    assert names(pool.get_workflow(record.id)) == ["import", "rows"]
    running = [claim(pool, f"a{n}") for n in range(3)]  # the rows, and the second attempt
    (again,) = [each for each in running if each.type == "code"]
    Code.code = staticmethod(second)
    pool.execute_task(again)

    record = pool.get_workflow(record.id)
    assert (names(record), record.nodes[1].size) == (["import", "rows", "end"], 2)
    assert [line.text for line in pool.logs(again.id).items] == [
        "the node 'rows' stays as an earlier attempt has added it, with another list of tasks"
    ]


def test_a_second_attempt_that_adds_the_same_says_nothing(pool: TaskPool) -> None:
    record = submit(pool, max_attempts=2, backoff_s=0)

    def code(ctx: TaskContext) -> None:
        ctx.map("rows", rows(1))
        ctx.commit()
        if ctx.attempt == 1:
            raise ValueError("behind the commit")

    run_next(pool, code)
    running = [claim(pool, f"a{n}") for n in range(2)]
    (again,) = [each for each in running if each.type == "code"]
    pool.execute_task(again)

    assert pool.get_workflow(record.id).total == 2
    assert pool.logs(again.id).items == ()


@pytest.mark.parametrize(
    ("code", "place"),
    [
        (lambda ctx: ctx.map("no name", rows(1)), "/name"),
        (lambda ctx: (ctx.map("rows", rows(1)), ctx.map("rows", rows(1))), "/nodes/1/name"),
        (lambda ctx: (ctx.map("rows", rows(1)), ctx.commit(), ctx.map("rows", rows(1))), "/name"),
        (lambda ctx: ctx.add("import", "row", {"n": 1}), "/name"),
        (lambda ctx: ctx.add("end", "row", {"n": 1}, after="ghost"), "/nodes/0/after/0"),
        (lambda ctx: ctx.add("end", "row", {"n": "x"}), "/nodes/0/task/payload/n"),
        (
            lambda ctx: ctx.add("end", "row", {"n": 1}, unique_key="k", on_conflict="return"),
            "/nodes/0/task/on_conflict",
        ),
    ],
)
def test_what_cannot_be_added_is_refused_with_its_place(pool: TaskPool, code: Any, place: str) -> None:
    submit(pool)

    def checked(ctx: TaskContext) -> str:
        with pytest.raises(InvalidTask) as refused:  # noqa: PT012
            code(ctx)
            ctx.commit()
        return refused.value.errors[0].pointer

    assert run_next(pool, checked).result.startswith(place)


def test_a_name_that_is_taken_is_refused_at_the_end_as_well(pool: TaskPool) -> None:
    submit(pool)

    record = run_next(pool, lambda ctx: ctx.add("import", "row", {"n": 1}) and None)

    assert (record.status, record.error) == (
        S.FAILED,
        "InvalidTask: /name: the workflow has a node 'import' already",
    )


def test_a_task_outside_of_workflows_cannot_add_to_one(pool: TaskPool) -> None:
    pool.add_task("code")

    record = run_next(pool, lambda ctx: ctx.map("rows", rows(1)))

    assert record.status is S.FAILED
    assert record.error is not None
    assert "belongs to no workflow" in record.error


def test_a_stopped_workflow_takes_nothing_any_more(pool: TaskPool) -> None:
    record = submit(pool)
    running = claim(pool)

    def code(ctx: TaskContext) -> None:
        ctx.map("rows", rows(1))
        pool.store.carry_out(stop_workflow(record.id))

    Code.code = staticmethod(code)
    pool.execute_task(running)

    record = pool.get_workflow(record.id)
    assert (record.status, names(record)) == (W.STOPPED, ["import"])


def test_a_failure_that_is_handled_by_what_was_added_later_counts_as_handled(pool: TaskPool) -> None:
    bad = NodeSpec(name="bad", task=rows(-1)[0])
    record = submit(pool, bad)
    importing = claim(pool)
    run_next(pool, attempt_id="b")
    Code.code = staticmethod(lambda ctx: ctx.add("handler", "row", {"n": 0}, after=After("bad", "failure")) and None)

    pool.execute_task(importing)
    assert run_next(pool).node == "handler"

    assert pool.get_workflow(record.id).status is W.DONE


def test_an_empty_map_is_done_at_once(pool: TaskPool) -> None:
    record = submit(pool)

    def code(ctx: TaskContext) -> None:
        ctx.add("end", "row", {"n": 1}, after=ctx.map("rows", []))

    run_next(pool, code)

    assert run_next(pool).node == "end"
    assert pool.get_workflow(record.id).status is W.DONE


def test_members_that_tasks_add_have_the_next_numbers(pool: TaskPool) -> None:
    record = submit(pool)

    run_next(pool, lambda ctx: ctx.add("first", "row", {"n": 1}) and None)

    assert pool.get_workflow(record.id).nodes[1].id == member_id(record.id, 2)


def test_it_runs_without_redis() -> None:
    with InlinePool(Code, row) as pool:
        Code.code = staticmethod(
            lambda ctx: ctx.add("end", "row", {"n": 1}, after=ctx.map("rows", rows(1, -1)).any()) and None
        )
        record = submit(pool)
        pool.run_all()

        record = pool.get_workflow(record.id)
        assert (record.status, record.counts) == (W.DONE, {"done": 3, "failed": 1})
