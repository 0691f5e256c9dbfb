"""`ctx.add_task` and `ctx.add_tasks`: tasks that a running task adds, over its attempts, in each kind of process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from taskpool import (
    AttemptLost,
    InvalidPayload,
    InvalidTask,
    QueueFull,
    Registry,
    Secret,
    Task,
    TaskContext,
    TaskPool,
    TaskSpec,
    TaskStatus,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
    task,
)
from taskpool.access.audit import Actor
from taskpool.redis import scripts
from taskpool.settings import Settings
from taskpool.testing import InlinePool, RecordingSink
from taskpool.types import Receipt, RunningTask
from tests.api_client import publish_types
from tests.support import eventually
from tests.tasks_for_adding import add, add_async, leaf

S = TaskStatus
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@task("keep")
def keep(token: Secret[str], n: int = 0) -> int:
    return n


class Adds(Task):
    """Runs what a test has put into `code`."""

    type = "adds"
    code: Any = None

    def run(self, ctx: TaskContext) -> Any:
        return type(self).code(ctx)


REGISTRY = Registry(builtins=True)
for each in (leaf, keep, add, add_async, Adds):
    REGISTRY.add(each)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url, registry=REGISTRY) as pool:
        yield pool


def claim(pool: TaskPool, attempt_id: str = "a1") -> RunningTask:
    running = pool.run_task(["default"], worker="w", attempt_id=attempt_id)
    assert running is not None
    return running


def run(pool: TaskPool, code: Any, **options: Any) -> Any:
    """Run a task with this code, and return its record."""
    Adds.code = staticmethod(code)
    id = pool.add_task("adds", front=True, **options).id
    pool.execute_task(claim(pool))
    return pool.get(id)


# --- what is added ------------------------------------------------------------------------------------------------


def test_a_task_adds_what_a_program_adds(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> list[str]:
        first = ctx.add_task("leaf", {"n": 1}, queue="other", tags=["x"])
        late = ctx.add_task(leaf.spec(n=2), delay="1h")
        child = ctx.add_task("leaf", depends_on=[first.id])
        assert (first.status, late.status, child.status) == (S.QUEUED, S.SCHEDULED, S.WAITING)
        return [first.id, late.id, child.id]

    record = run(pool, code)

    first, late, child = [pool.get(id) for id in record.result]
    assert (first.payload, first.queue, first.tags) == ({"n": 1}, "other", ("x",))
    assert late.status is S.SCHEDULED
    assert child.depends_on == (first.id,)
    assert all(each.id[:8] == record.id[:8] for each in (first, late, child))


def test_it_has_the_project_and_the_trace_context_of_the_running_task(pool: TaskPool) -> None:
    elsewhere = pool.submit(TaskSpec(type="leaf"), by=Actor(None, "", "other", "")).receipts[0].id
    Adds.code = staticmethod(
        lambda ctx: [ctx.add_task("leaf").id, ctx.add_task("leaf", traceparent=TRACE[:-1] + "0").id]
    )
    spec = TaskSpec(type="adds", traceparent=TRACE, tracestate="a=1", front=True)
    id = pool.submit(spec, by=Actor(None, "", "mine", "")).receipts[0].id

    pool.execute_task(claim(pool))

    first, second = [pool.get(each) for each in pool.get(id).result]
    in_mine = pool.list_tasks(added_by=id, project="mine").items
    assert ({task.id for task in in_mine}, pool.list_tasks(added_by=id, project="other").items) == (
        {first.id, second.id},
        (),
    )
    assert (first.project, first.traceparent, first.tracestate) == ("mine", TRACE, "a=1")
    assert second.traceparent == TRACE[:-1] + "0"

    Adds.code = staticmethod(lambda ctx: ctx.add_task("leaf", depends_on=[elsewhere]).id)
    id = pool.submit(spec, by=Actor(None, "", "mine", "")).receipts[0].id
    pool.execute_task(claim(pool, "a2"))

    assert pool.get(id).error == f"UnknownDependency: depends_on names task {elsewhere!r}, which doesn't exist"


def test_added_tasks_know_which_task_has_added_them(pool: TaskPool, redis: Redis) -> None:
    def code(ctx: TaskContext) -> list[str]:
        many = ctx.add_tasks([leaf.spec(n=n) for n in range(3)])
        late, child = ctx.add_task(leaf.spec(), delay="1h"), ctx.add_task("leaf", tags=["x"], depends_on=[many[0].id])
        return [each.id for each in (*many, late, child, ctx.add_task(leaf.spec(n=0)), ctx.add_task("adds"))]

    other = run(pool, lambda ctx: ctx.add_task("leaf").id)
    record = run(pool, code)

    assert {pool.get(id).added_by for id in record.result} == {record.id}
    assert {task.id for task in pool.list_tasks(added_by=record.id).items} == {*record.result}
    assert [task.id for task in pool.list_tasks(added_by=other.id).items] == [other.result]
    assert {task.id for task in pool.list_tasks(added_by=record.id, status=S.SCHEDULED).items} == {record.result[3]}
    assert {task.id for task in pool.list_tasks(added_by=record.id, type="adds").items} == {record.result[6]}
    assert {task.id for task in pool.list_tasks(added_by=record.id, tag="x").items} == {record.result[4]}
    assert (record.added_by, redis.hexists(f"rq:job:{record.id}", "added_by")) == (None, False)


def test_what_an_added_task_adds_itself_is_that_of_the_inner_one(pool: TaskPool) -> None:
    outer = run(pool, lambda ctx: ctx.add_task("adds", front=True).id)
    Adds.code = staticmethod(lambda ctx: ctx.add_task("leaf").id)
    pool.execute_task(claim(pool, "a2"))
    inner = pool.get(outer.result)

    assert [task.id for task in pool.list_tasks(added_by=outer.id).items] == [inner.id]
    assert [task.id for task in pool.list_tasks(added_by=inner.id).items] == [inner.result]
    assert inner.id[:8] == outer.id[:8] == inner.result[:8]


def test_an_earlier_task_that_holds_a_unique_key_was_not_added(pool: TaskPool) -> None:
    held = pool.add_task("leaf", unique_key="held", delay="1h")

    record = run(pool, lambda ctx: ctx.add_task("leaf", unique_key="held", on_conflict="return").id)

    assert record.result == held.id
    assert pool.get(held.id).added_by is None
    assert pool.list_tasks(added_by=record.id).items == ()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (lambda ctx: ctx.add_task("ghost"), UnknownType),
        (lambda ctx: ctx.add_task("leaf", {"m": 1}), InvalidPayload),
        (lambda ctx: ctx.add_task(leaf.spec(n="x")), InvalidPayload),  # type: ignore[arg-type]
        (lambda ctx: ctx.add_task("leaf", delay="soon"), InvalidTask),
        (lambda ctx: ctx.add_task("leaf", depends_on=["ghost"]), UnknownDependency),
        (lambda ctx: ctx.add_task("leaf", unique_key="held"), UniqueConflict),
        (lambda ctx: ctx.add_task("leaf", queue="full"), QueueFull),
        (lambda ctx: ctx.add_tasks([leaf.spec(), "leaf"]), InvalidTask),
        (lambda ctx: ctx.add_tasks("leaf"), InvalidTask),
        (lambda ctx: ctx.add_task("leaf", dealy="5m"), TypeError),
        (lambda ctx: ctx.add_task("leaf", {"n": object()}), InvalidPayload),
    ],
)
def test_what_a_program_may_not_add_is_refused_and_nothing_stored(
    redis_url: str, redis: Redis, code: Any, error: type[Exception]
) -> None:
    caught: list[Exception] = []

    def catch(ctx: TaskContext) -> None:
        try:
            code(ctx)
        except Exception as raised:
            caught.append(raised)

    with TaskPool(redis_url, registry=REGISTRY, settings=Settings(max_queue_depth=2)) as pool:
        pool.add_task("leaf", unique_key="held", delay="1h")
        pool.add_tasks([TaskSpec(type="leaf", queue="full") for _ in range(2)])
        run(pool, catch)

    assert [type(each) for each in caught] == [error]
    assert not redis.keys("taskpool:added:*")


def test_a_list_names_the_place_of_a_fault(pool: TaskPool) -> None:
    record = run(pool, lambda ctx: ctx.add_tasks([leaf.spec(), TaskSpec(type="leaf", payload={"n": "x"})]))

    assert "/1/payload/n" in record.error
    assert run(pool, lambda ctx: ctx.add_tasks([])).result == []


def test_more_than_a_thousand_tasks_are_added(pool: TaskPool) -> None:
    record = run(pool, lambda ctx: [each.id for each in ctx.add_tasks(leaf.spec(n=n) for n in range(2100))])

    assert len(set(record.result)) == 2100
    (info,) = [info for info in pool.queues() if info.name == "default"]
    assert info.queued == 2100


def test_a_type_that_only_other_workers_know_is_checked_by_its_published_schema(redis_url: str, redis: Redis) -> None:
    publish_types(redis_url)
    own = Registry()
    own.add(Adds)

    def code(ctx: TaskContext) -> str:
        with pytest.raises(InvalidPayload):
            ctx.add_task("echo", {"massage": 1})
        return ctx.add_task("echo", {"message": 1}).id

    with TaskPool(redis_url, registry=own) as pool:
        record = run(pool, code)

        assert record.error is None
        assert pool.get(record.result).payload == {"message": 1}
    assert redis.zcard("taskpool:type:echo") == 1


def test_threads_of_a_task_add_equal_tasks_side_by_side(pool: TaskPool, redis: Redis) -> None:
    def code(ctx: TaskContext) -> list[str]:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda _: ctx.add_task("leaf", {"n": 1}).id, range(40)))

    assert len(set(run(pool, code).result)) == 40
    assert redis.zcard("taskpool:type:leaf") == 40


def test_a_generator_of_specs_may_add_tasks_itself(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> list[str]:
        specs = (leaf.spec(n=2, note="") for _ in range(2) if ctx.add_task("leaf", {"n": 1}).id)
        return [each.id for each in ctx.add_tasks(specs)]

    assert len(set(run(pool, code).result)) == 2


# --- once over all attempts -----------------------------------------------------------------------------------------


def test_equal_submissions_of_an_attempt_are_different_tasks(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> list[str]:
        ids = [ctx.add_task("leaf", {"n": 1}).id for _ in range(2)]
        return ids + [each.id for each in ctx.add_tasks([leaf.spec(n=1), leaf.spec(n=1), leaf.spec(n=2)])]

    assert len(set(run(pool, code).result)) == 5


def test_a_second_attempt_adds_nothing_twice_and_gets_the_same_ids(pool: TaskPool, redis: Redis) -> None:
    seen: list[list[Receipt]] = []

    def code(ctx: TaskContext) -> None:
        more = ctx.attempt - 1
        seen.append([ctx.add_task("leaf", {"n": 1}), *ctx.add_tasks(leaf.spec(n=n) for n in [1, 1, 2, *range(more)])])
        raise ValueError("again")

    run(pool, code, max_attempts=3, backoff_s=0)
    for attempt in (2, 3):
        eventually(lambda: pool.store.run(scripts.promote(id_of(pool), "default")) in ("ok", "gone"))
        pool.execute_task(first_of(pool, "adds", f"a{attempt}"))

    first, second, third = [[each.id for each in receipts] for receipts in seen]
    assert second[:4] == third[:4] == first
    assert [each.is_existing for each in seen[1]] == [True] * 4 + [False]
    assert len({*third}) == len(third) == 6
    assert redis.zcard("taskpool:type:leaf") == 6


def id_of(pool: TaskPool) -> str:
    return pool.list_tasks(type="adds").items[0].id


def first_of(pool: TaskPool, type: str, attempt_id: str) -> RunningTask:
    """Claim the task of this type; those before it run."""
    while (running := claim(pool, attempt_id)).type != type:
        pool.execute_task(running)
        attempt_id += "+"
    return running


def test_a_retry_by_hand_adds_nothing_twice(pool: TaskPool, redis: Redis) -> None:
    def code(ctx: TaskContext) -> list[str]:
        ids = [each.id for each in ctx.add_tasks([leaf.spec(n=1), leaf.spec(n=1)])]
        if not redis.exists("good"):
            raise ValueError(" ".join(ids))
        return ids

    failed = run(pool, code)
    redis.set("good", 1)
    pool.retry_task(failed.id)
    pool.execute_task(first_of(pool, "adds", "b1"))

    ended = pool.get(failed.id)
    assert ended.status is S.DONE
    assert failed.error == "ValueError: " + " ".join(ended.result)
    assert redis.zcard("taskpool:type:leaf") == 2


def test_what_was_added_and_is_gone_is_not_added_again(pool: TaskPool, redis: Redis) -> None:
    def code(ctx: TaskContext) -> list[str]:
        receipt = ctx.add_task("leaf", {"n": 1})
        if ctx.attempt == 1:
            raise ValueError(receipt.id)
        return [receipt.id]

    failed = run(pool, code)
    pool.execute_task(claim(pool, "leaf1"))
    pool.remove_task(failed.error.removeprefix("ValueError: "))
    pool.retry_task(failed.id)
    pool.execute_task(claim(pool, "b1"))

    assert failed.error == f"ValueError: {pool.get(failed.id).result[0]}"
    assert not redis.exists("taskpool:type:leaf")


def test_a_refused_submission_may_be_tried_again_under_the_same_id(pool: TaskPool, redis: Redis) -> None:
    def code(ctx: TaskContext) -> list[str]:
        specs = [*(leaf.spec(n=n) for n in range(1001)), TaskSpec(type="leaf", unique_key="held")]
        with pytest.raises(UniqueConflict):
            ctx.add_tasks(specs)
        pool.remove_task(holder.id)
        return [each.id for each in ctx.add_tasks(specs)]

    holder = pool.add_task("leaf", unique_key="held", delay="1h")
    ids = run(pool, code).result

    assert len(set(ids)) == 1002
    assert redis.zcard("taskpool:type:leaf") == 1002 + 1


def test_secrets_are_no_part_of_what_identifies_a_task(pool: TaskPool) -> None:
    def code(ctx: TaskContext) -> list[str]:
        token = f"token of attempt {ctx.attempt}"
        ids = [ctx.add_task("keep", {"token": token + each}).id for each in ("a", "b")]
        if ctx.attempt == 1:
            raise ValueError(" ".join(ids))
        return ids

    failed = run(pool, code)
    pool.retry_task(failed.id)
    pool.execute_task(first_of(pool, "adds", "b1"))

    ids = pool.get(failed.id).result
    assert failed.error == "ValueError: " + " ".join(ids)
    assert len(set(ids)) == 2
    assert pool.get(ids[0]).payload == {"token": "***"}


def test_an_attempt_that_lost_its_lease_adds_nothing_and_learns_it(pool: TaskPool, redis: Redis) -> None:
    def code(ctx: TaskContext) -> None:
        redis.hset(f"rq:job:{ctx.id}", "attempt_id", "another")
        with pytest.raises(AttemptLost, match=f"attempt 1 of task {ctx.id} no longer holds its lease: it can't add"):
            ctx.add_task("leaf")
        with pytest.raises(AttemptLost):
            ctx.add_tasks([leaf.spec()])

    with pytest.raises(AttemptLost):
        run(pool, code)

    assert not redis.exists("taskpool:type:leaf")


# --- in each kind of process ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["add", "add_async"])
def test_an_inline_pool_runs_it(type: str) -> None:
    with InlinePool(leaf, add, add_async) as pool:
        parent = pool.run(type, {"attempts": 3})
        pool.run_all()

        assert parent.attempt == 3
        assert [pool.get(id).result for id in parent.result] == [1, 1, 1, 1, 2]
        assert len(pool.list_tasks(type="leaf", limit=100).items) == 5


def test_a_recording_sink_keeps_what_is_added() -> None:
    ctx = TaskContext(sink := RecordingSink(), id="t1", type="add")

    ids = add(ctx, note="n")

    assert ids == ["added-1", "added-2", "added-3", "added-4", "added-5"]
    assert sink.added[0] == leaf.spec(n=1, note="n")
    assert sink.added[1] == TaskSpec(type="leaf", payload={"n": 1, "note": "n"}, tags=["x"])
    assert [spec.payload["n"] for spec in sink.added] == [1, 1, 1, 1, 2]
