"""Results of the tasks that a task depends on: how long they are kept for it, and what it sees when one is gone."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from redis import Redis

from taskpool import ParentNotDone, ParentResultGone, Registry, TaskConflict, TaskContext, TaskPool, TaskStatus, task
from taskpool.operations.flow.edges import outcomes_of
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.keys import HELD_LOOK_S, NEEDED_STEP
from taskpool.settings import Settings
from taskpool.tasks.outcomes import results_of
from taskpool.types import TaskRecord
from taskpool.types.dependency import Edge
from tests.states import World, new_task
from workers.duties import Outage
from workers.housekeeping import Housekeeping

S = TaskStatus
FINISHED = "rq:finished:default"


@task("one")
def one() -> int:
    return 1


@task("fail")
def fail() -> None:
    raise ValueError("no luck")


@task("add_up", max_attempts=3)
def add_up(ctx: TaskContext) -> int:
    return sum(ctx.parents.values())


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    registry = Registry()
    for each in (one, fail, add_up):
        registry.add(each)
    with TaskPool(redis_url, registry=registry) as pool:
        yield pool


def run(pool: TaskPool, *, attempt_id: str = "a") -> TaskRecord:
    """Run the next task here; its record then."""
    running = pool.run_task(["default"], worker="w", attempt_id=attempt_id)
    assert running is not None
    pool.execute_task(running)
    return pool.get(running.id)


async def keep_house(redis_url: str) -> None:
    """One round of housekeeping."""
    store = AsyncStore(redis_url)
    await Housekeeping(store, Outage(), Settings()).step()
    await store.close()


def results(world: World, *ids: str) -> Mapping[str, Any]:
    """What a task that depends on these sees in `ctx.parents`."""
    return results_of(outcomes_of("c", [Edge(id) for id in ids], world.store.carry_out))


def make_due(redis: Redis, *ids: str) -> None:
    """Make the retention of done tasks end."""
    redis.zadd(FINISHED, dict.fromkeys(ids, 1), xx=True)


def left_of(redis: Any, id: str) -> list[bytes]:
    """The keys that are left of a task."""
    return [key for key in redis.keys("*") if id.encode() in key]


# --- a record lives as long as it is needed ---------------------------------------------------------------------


async def test_a_result_outlives_its_retention_while_a_child_waits_for_another_parent(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    early, late = pool.add_task("one"), pool.add_task("one")
    child = pool.add_task("add_up", depends_on=[early.id, late.id])
    run(pool)
    make_due(redis, early.id)

    await keep_house(redis_url)

    run(pool)
    assert (run(pool).id, pool.get(child.id).result) == (child.id, 2)
    make_due(redis, early.id, late.id)
    await keep_house(redis_url)
    assert (left_of(redis, early.id), left_of(redis, late.id)) == ([], [])


@pytest.mark.parametrize("options", [{"delay_s": 3600}, {"queue": "unserved"}])
async def test_a_result_is_kept_for_a_child_that_runs_later(
    pool: TaskPool, redis: Redis, redis_url: str, options: dict[str, Any]
) -> None:
    parent = pool.add_task("one")
    pool.add_task("add_up", depends_on=[parent.id], **options)
    run(pool)
    added_later = pool.add_task("add_up", depends_on=[parent.id], **options)
    make_due(redis, parent.id)

    await keep_house(redis_url)

    assert pool.get(parent.id).result == 1
    assert redis.ttl(f"rq:job:{parent.id}") == -1
    assert added_later.id.encode() in redis.smembers(f"taskpool:needed:{parent.id}")


async def test_a_failed_child_is_retried_when_its_parents_retention_is_over(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    parent = pool.add_task("one")
    child = pool.add_task("fail", depends_on=[parent.id])
    run(pool)
    assert run(pool).status is S.FAILED
    make_due(redis, parent.id)
    await keep_house(redis_url)

    assert pool.retry_task(child.id).status is S.QUEUED

    assert pool.get(parent.id).result == 1


def test_a_result_does_not_expire_in_redis_while_no_worker_pool_lives(pool: TaskPool, redis: Redis) -> None:
    parent = pool.add_task("one", result_ttl_s=1)
    pool.add_task("add_up", depends_on=[parent.id])

    run(pool)

    assert redis.ttl(f"rq:job:{parent.id}") == -1


def test_a_needed_record_is_looked_at_again_later(world: World) -> None:
    world.end("p")
    world.add("a", depends_on=["p"])
    world.redis.zadd(FINISHED, {"p": 1})
    before = world.snapshot()

    assert world.run(scripts.purge("p", FINISHED)) == "needed"

    assert world.since(before) == {f"{FINISHED} p": "inf", "taskpool:held p": f"now+{HELD_LOOK_S} s"}
    assert world.run(scripts.purge("p", "taskpool:held")) == "early"


@pytest.mark.parametrize("status", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_parent_that_did_not_end_well_is_purged_in_its_time(world: World, status: TaskStatus) -> None:
    world.add("p") if status is S.CANCELED else world.start("p")
    world.add("a", depends_on=["p"])
    world.cancel("p") if status is S.CANCELED else world.finish(world.running["p"], status)
    world.run(scripts.release("p"))
    registry = "rq:canceled:default" if status is S.CANCELED else "rq:failed:default"
    world.redis.zadd(registry, {"p": 1})

    assert world.run(scripts.purge("p", registry)) == "ok"

    assert not world.redis.exists("taskpool:needed:p")


def test_a_parent_that_was_retried_and_is_done_now_is_kept_until_its_canceled_child_is_revived(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"])
    world.finish(world.running["p"], S.FAILED)
    world.run(scripts.release("p"))
    assert world.run(scripts.revive("p")) == "children"
    assert world.finish(world.claim(attempt_id="2")) == "children"
    world.redis.zadd(FINISHED, {"p": 1})

    assert world.run(scripts.purge("p", FINISHED)) == "children"

    assert world.run(scripts.release("p")) == []
    assert world.get("a").status is S.QUEUED
    assert world.run(scripts.purge("p", FINISHED)) == "needed"
    assert world.redis.ttl("rq:job:p") == -1


def test_a_parent_of_very_many_children_is_looked_at_in_bounded_steps(world: World) -> None:
    world.start("p")
    count = 3 * NEEDED_STEP
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(count)]))
    world.finish(world.running["p"])
    while world.run(scripts.release("p", 1000)):
        pass
    for n in range(count):
        world.redis.hset(f"rq:job:c{n}", "status", "finished")
    world.redis.zadd(FINISHED, {"p": 1})

    words: list[str] = []
    while not words or words[-1] == "needed":
        words.append(world.run(scripts.purge("p", FINISHED)))

    assert words[-1] == "ok"
    assert len(words) >= 3


async def test_a_parent_that_rq_ran_and_let_expire_is_known_to_be_done_by_its_entry_among_the_finished(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    parent = pool.add_task("one")
    child = pool.add_task("fail", depends_on=[parent.id])
    redis.delete("rq:queue:default", f"rq:job:{parent.id}")
    redis.zadd(FINISHED, {parent.id: 1})  # as RQ left it, while no pool lived

    await keep_house(redis_url)
    await keep_house(redis_url)

    assert pool.get(child.id).status is S.QUEUED
    assert redis.zscore(FINISHED, parent.id) is None
    assert not redis.exists(f"taskpool:needed:{parent.id}", f"taskpool:dependents:{parent.id}")


def test_a_parent_removed_by_hand_is_gone_though_a_child_may_read_it(pool: TaskPool, redis: Redis) -> None:
    parent = pool.add_task("one")
    child = pool.add_task("add_up", depends_on=[parent.id])
    run(pool)

    assert pool.remove_task(parent.id) is None

    assert left_of(redis, parent.id) == []
    assert pool.get(child.id).status is S.QUEUED


# --- what a task sees of a result that is gone ------------------------------------------------------------------


def test_a_task_that_reads_a_result_that_is_gone_fails_at_once_and_says_which(pool: TaskPool) -> None:
    kept, gone = pool.add_task("one"), pool.add_task("one")
    pool.add_task("add_up", depends_on=[kept.id, gone.id])
    run(pool)
    run(pool)
    pool.remove_task(gone.id)

    record = run(pool)

    assert (record.status, record.attempt, record.max_attempts) == (S.FAILED, 1, 3)
    assert record.error == (
        f"ParentResultGone: the result of task {gone.id} can't be read: its record expired or was removed"
    )


def test_a_result_that_is_gone_is_never_none(world: World) -> None:
    world.end("p")
    world.end("gone")
    world.end("failed", S.FAILED)
    world.redis.delete("rq:job:gone")

    found = results(world, "p", "gone", "failed")

    assert found["p"] == found.get("p") == 42
    assert list(found) == ["p", "gone", "failed"]
    assert (len(found), "gone" in found, "other" in found) == (3, True, False)
    for read in (lambda: found["gone"], lambda: found.get("gone"), lambda: list(found.values())):
        with pytest.raises(ParentResultGone, match="the result of task gone can't be read: its record expired"):
            read()
    with pytest.raises(ParentNotDone, match="task failed can't be read: it has none, its status is failed"):
        found["failed"]
    with pytest.raises(KeyError):
        found["other"]
    assert "its record expired" in repr(found)
    assert issubclass(ParentResultGone, ParentNotDone)


def test_results_that_are_all_there_are_a_plain_dict(world: World) -> None:
    world.end("p")

    found = results(world, "p")

    assert found == {"p": 42}
    assert type(found) is dict


@pytest.mark.parametrize(
    ("stored", "result"),
    [
        ({"type": 1, "return_value": base64.b64encode(b'{"a": 1}')}, {"a": 1}),
        ({"type": 1}, None),
        ({"type": 1, "return_value": base64.b64encode(b"\x80\x05K\x01.")}, "what is stored is not JSON"),
        ({"type": 1, "return_value": b"~"}, "what is stored is not JSON"),
        ({"type": 2, "exc_string": "x"}, "it is no longer stored"),
        (None, "it is no longer stored"),
    ],
)
def test_a_result_that_rq_stored_is_read_where_it_is_json(world: World, stored: Any, result: Any) -> None:
    world.redis.hset("rq:job:p", mapping={"status": "finished", "data": "x"})
    if stored is not None:
        world.redis.xadd("rq:results:p", stored)

    found = results(world, "p")

    if isinstance(result, str):
        with pytest.raises(ParentResultGone, match=result):
            found["p"]
    else:
        assert found == {"p": result}


def test_a_retry_is_refused_with_the_parent_that_stands_in_its_way(pool: TaskPool, redis: Redis) -> None:
    bad, other = pool.add_task("fail"), pool.add_task("one", queue="unserved")
    child = pool.add_task("add_up", depends_on=[bad.id])
    orphan = pool.add_task("add_up", depends_on=[other.id])
    run(pool)
    pool.kill_task(orphan.id)
    redis.delete(f"rq:job:{other.id}")

    with pytest.raises(TaskConflict, match=f"depends on task {bad.id}, but it is not done: retry that one first"):
        pool.retry_task(child.id)
    with pytest.raises(TaskConflict, match=f"depends on task {other.id}, but its record is gone: submit both again"):
        pool.retry_task(orphan.id)


# --- a cancellation goes down at once ----------------------------------------------------------------------------


def chain(pool: TaskPool, levels: int) -> list[str]:
    """The ids of tasks each of which waits for the one before."""
    names = [f"t{n}" for n in range(levels)]
    for at in range(0, levels, 1000):
        tasks = [new_task(id, depends_on=names[n - 1 : n]) for n, id in enumerate(names[at : at + 1000], start=at)]
        pool.store.run(scripts.add(tasks))
    return names


@pytest.mark.parametrize("move", ["kill_task", "remove_task"])
def test_canceling_the_first_of_a_long_chain_cancels_all_of_it(pool: TaskPool, redis: Redis, move: str) -> None:
    first, *_, last = chain(pool, 1500)

    getattr(pool, move)(first)

    assert redis.zcard("rq:canceled:default") == 1500
    assert pool.get(last).error == "canceled: the task t1498 it depends on did not end well (canceled)"
    assert not redis.exists("taskpool:outbox")


async def test_a_cancellation_whose_caller_dies_is_carried_out_in_one_round(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    first, *_ = chain(pool, 1500)
    pool.store.run(scripts.cancel(first, reason="canceled", error="by hand"))  # the caller dies here

    await keep_house(redis_url)

    assert redis.zcard("rq:canceled:default") == 1500
    assert not redis.exists("taskpool:outbox")


async def test_a_cancellation_cut_off_in_the_middle_is_completed(pool: TaskPool, redis: Redis, redis_url: str) -> None:
    first, *_ = chain(pool, 1500)
    pool.store.run(scripts.cancel(first, reason="canceled", error="by hand"))
    pool.store.run(scripts.release(first))  # its answer is lost, and the caller dies

    await keep_house(redis_url)

    assert redis.zcard("rq:canceled:default") == 1500


async def test_a_wide_tree_is_canceled_in_one_round_after_the_other_without_a_pause(
    pool: TaskPool, redis: Redis, redis_url: str
) -> None:
    pool.store.run(scripts.add([new_task("r")]))
    pool.store.run(scripts.add([new_task(f"b{n}", depends_on=["r"]) for n in range(1000)]))
    pool.store.run(scripts.add([new_task(f"l{n}", depends_on=[f"b{n}"]) for n in range(1000)]))
    pool.store.run(scripts.cancel("r", reason="canceled", error="by hand"))

    store = AsyncStore(redis_url)
    housekeeping = Housekeeping(store, Outage(), Settings())
    waits_s = [await housekeeping.step()]
    while redis.exists("taskpool:outbox"):
        waits_s.append(await housekeeping.step())
    await store.close()

    assert redis.zcard("rq:canceled:default") == 2001
    assert all(wait_s < 0.1 for wait_s in waits_s[:-1])


def test_a_canceled_chain_is_revived_with_its_head(pool: TaskPool) -> None:
    first = pool.add_task("one")
    second = pool.add_task("add_up", depends_on=[first.id])
    third = pool.add_task("add_up", depends_on=[second.id])
    pool.kill_task(first.id)
    assert pool.get(third.id).status is S.CANCELED

    pool.retry_task(first.id)

    assert [run(pool, attempt_id=str(number)).id for number in range(3)] == [first.id, second.id, third.id]
    assert pool.get(third.id).result == 1
