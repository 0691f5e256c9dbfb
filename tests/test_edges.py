"""Edges: what becomes of a task that depends on the failure, or on any end, of others; groups of tasks; what is revived
with a parent that is retried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from redis import Redis
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from taskpool import (
    Dependency,
    InvalidTask,
    ParentNotDone,
    Registry,
    TaskConflict,
    TaskContext,
    TaskPool,
    TaskSpec,
    task,
)
from taskpool.cli.__main__ import main
from taskpool.operations.flow.edges import outcomes_of
from taskpool.operations.queue import MOST_EDGES
from taskpool.redis import keys, scripts, workflow_scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.settings import Settings
from taskpool.tasks.outcomes import PAGE, GroupOutcomes, TaskOutcome
from taskpool.testing import InlinePool, RecordingSink
from taskpool.types import TaskRecord, TaskStatus
from taskpool.types.dependency import Edge
from tests.api_client import api, publish_types
from tests.model import verdict
from tests.states import ENDED, FAILURE, World, new_task
from workers.duties import Outage
from workers.housekeeping import Housekeeping

S = TaskStatus
ONS = ("success", "failure", "any")
WORKFLOW = "d217r8m2n3aolstf0000"


def on(ref: str, how: str) -> Mapping[str, str]:
    return {"id": ref, "on": how}


def end(world: World, id: str, status: TaskStatus) -> None:
    """End a running task, and do what follows."""
    world.cancel(id) if status is S.CANCELED else world.finish(world.running[id], status)
    release_all(world)


def release_all(world: World) -> None:
    while left := world.redis.smembers("taskpool:outbox"):
        for ref in left:
            world.run(scripts.release(ref.decode()))


def statuses(world: World, *ids: str) -> list[TaskStatus]:
    return [world.get(id).status for id in ids]


# --- what an end means ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["added before the end", "added after it"])
@pytest.mark.parametrize("how", ONS)
@pytest.mark.parametrize("status", ENDED)
def test_each_end_means_the_same_for_a_task_before_and_after_it(
    world: World, status: TaskStatus, how: str, before: bool
) -> None:
    world.add("p") if status is S.CANCELED else world.start("p")
    if not before:
        end(world, "p", status)
    world.add("a", depends_on=[on("p", how)])
    if before:
        assert world.get("a").status is S.WAITING
        end(world, "p", status)

    record = world.get("a")
    meaning = verdict(how, "done" if status is S.DONE else "failed")
    if meaning == "ok":
        assert record.status is S.QUEUED
        assert world.redis.smembers("taskpool:needed:p") == {b"a"}
    else:
        assert (record.status, record.reason, record.canceled_by) == (S.CANCELED, meaning, "p")
    assert not world.redis.keys("taskpool:followers:*") + world.redis.keys("taskpool:dependents:*")
    assert world.events("a")[-1][2] == record.status


@pytest.mark.parametrize("how", ONS)
def test_a_parent_that_is_gone_satisfies_any_alone(world: World, how: str) -> None:
    world.add("p")
    world.add("a", depends_on=[on("p", how)])
    world.redis.delete("rq:job:p", "rq:queue:default")

    world.run(scripts.sweep_waiting("default", 100))
    release_all(world)

    record = world.get("a")
    assert record.status is (S.QUEUED if how == "any" else S.CANCELED)
    if how != "any":
        assert record.reason == "dependency_failed"
        assert (
            record.error == "canceled: the task p it depends on is gone (removed or expired), so its outcome is unknown"
        )


def test_what_is_not_needed_is_no_failure_and_goes_on_as_such(world: World) -> None:
    world.start("p")
    world.add("handler", depends_on=[on("p", "failure")])
    world.add("after", depends_on=["handler"])
    world.add("if-handler-failed", depends_on=[on("handler", "failure")])
    world.add("whatever", depends_on=[on("handler", "any")])

    end(world, "p", S.DONE)

    found = {id: (world.get(id).status, world.get(id).reason) for id in ("handler", "after", "if-handler-failed")}
    assert set(found.values()) == {(S.CANCELED, "not_needed")}
    assert world.get("whatever").status is S.QUEUED
    assert world.get("handler").error == "canceled: it is not needed, because the task p is done"
    assert world.get("after").error == "canceled: it is not needed, as the task handler it depends on was not"


def test_a_parent_that_waits_for_its_retry_has_not_ended(world: World) -> None:
    world.start("p", max_attempts=2)
    for how in ONS:
        world.add(how, depends_on=[on("p", how)])

    world.run(scripts.retry(world.running["p"], delay_ms=60_000, error="no luck", failure=FAILURE))
    world.run(scripts.release("p"))
    world.run(scripts.sweep_waiting("default", 100))

    assert world.get("p").status is S.SCHEDULED
    assert statuses(world, *ONS) == [S.WAITING] * 3


def test_edges_of_all_kinds_are_counted_together(world: World) -> None:
    for id in ("p", "q", "r"):
        world.start(id, attempt_id=id)
    world.add("a", depends_on=["p", on("q", "failure"), on("r", "any"), on("p", "any")])
    assert world.snapshot()["rq:job:a pending"] == "4"

    end(world, "q", S.FAILED)
    end(world, "r", S.STOPPED)
    assert world.get("a").status is S.WAITING
    end(world, "p", S.DONE)

    assert world.get("a").status is S.QUEUED


@pytest.mark.parametrize("status", [S.DONE, S.FAILED])
def test_an_end_that_no_script_of_this_release_wrote_is_found_by_the_sweep(world: World, status: TaskStatus) -> None:
    world.start("p")
    world.add("a", depends_on=[on("p", "any")])
    word = "finished" if status is S.DONE else "failed"
    world.redis.hset("rq:job:p", mapping={"status": word, "reason": "by a pool of the release before"})

    world.run(scripts.sweep_waiting("default", 100))
    release_all(world)

    assert world.get("a").status is S.QUEUED


def test_a_sweep_reads_a_bounded_part_of_many_edges(world: World) -> None:
    ids = [f"p{n}" for n in range(1000)]
    world.run(scripts.add([new_task(id) for id in ids]))
    world.run(scripts.add([new_task(f"c{n}", depends_on=[on(id, "any") for id in ids]) for n in range(3)]))

    steps = 1
    while world.run(scripts.sweep_waiting("default", 500)) == "more":
        steps += 1

    assert steps >= 6


# --- groups -----------------------------------------------------------------------------------------------------------


def put_workflow(world: World, status: str, **fields: Any) -> None:
    """The hash of a workflow, as the scripts of workflows write it."""
    world.redis.hset(keys.WORKFLOW + WORKFLOW, mapping={"status": status, "total": 3, **fields})


def follow(world: World, ref: str) -> None:
    """Tasks that follow a group, one in each way."""
    for how in ONS:
        each = new_task(f"after-{how}", depends_on=[{"workflow": "any", "on": how}])
        world.run(scripts.add([replace(each, edges=(Edge(ref, how),))]))


@pytest.mark.parametrize(
    ("ref", "ended", "outcome"),
    [
        (f"{WORKFLOW}:", {"status": "done"}, "done"),
        (f"{WORKFLOW}:", {"status": "failed"}, "failed"),
        (f"{WORKFLOW}:", {"status": "stopped"}, "failed"),
        (f"{WORKFLOW}:rows", {"map:rows:ended": 2, "map:rows:n:done": 2}, "done"),
        (f"{WORKFLOW}:rows", {"map:rows:ended": 2, "map:rows:n:done": 1, "map:rows:n:failed": 1}, "failed"),
    ],
)
def test_a_task_follows_a_group_by_one_edge(world: World, ref: str, ended: Mapping[str, Any], outcome: str) -> None:
    put_workflow(world, "in_progress", **{"map:rows:total": 2, "map:rows:ended": 1})
    follow(world, ref)
    assert statuses(world, *(f"after-{how}" for how in ONS)) == [S.WAITING] * 3
    assert world.redis.smembers(f"taskpool:followers:{ref}") == {f"{how}:after-{how}".encode() for how in ONS}

    world.redis.hset(keys.WORKFLOW + WORKFLOW, mapping=ended)
    world.run(scripts.sweep_waiting("default", 100))
    release_all(world)

    for how in ONS:
        meaning = verdict(how, outcome)
        record = world.get(f"after-{how}")
        assert (record.status, record.reason) == ((S.QUEUED, None) if meaning == "ok" else (S.CANCELED, meaning))


def test_a_map_that_is_still_to_be_added_has_not_ended_until_its_workflow_has(world: World) -> None:
    put_workflow(world, "in_progress")
    follow(world, f"{WORKFLOW}:rows")
    world.run(scripts.sweep_waiting("default", 100))
    assert world.get("after-any").status is S.WAITING

    put_workflow(world, "done")
    world.run(scripts.sweep_waiting("default", 100))
    release_all(world)

    assert statuses(world, *(f"after-{how}" for how in ONS)) == [S.CANCELED, S.CANCELED, S.QUEUED]


def test_a_group_that_was_retried_revives_what_was_canceled_because_of_it(world: World) -> None:
    put_workflow(world, "failed")
    follow(world, f"{WORKFLOW}:")
    assert world.get("after-success").canceled_by == f"{WORKFLOW}:"

    put_workflow(world, "in_progress")
    world.run(scripts.release(f"{WORKFLOW}:"))
    assert world.get("after-success").status is S.WAITING
    put_workflow(world, "done")
    world.run(scripts.release(f"{WORKFLOW}:"))

    assert world.get("after-success").status is S.QUEUED


# --- what is revived ----------------------------------------------------------------------------------------------


def failed_family(world: World) -> None:
    """p has failed; a and b waited for it, c for both, d for c."""
    world.start("p")
    for id, parents in {"a": ["p"], "b": ["p"], "c": ["a", "b"], "d": ["c"]}.items():
        world.add(id, depends_on=parents)
    end(world, "p", S.FAILED)
    assert statuses(world, "a", "b", "c", "d") == [S.CANCELED] * 4


def test_all_that_was_canceled_because_of_a_task_is_revived_with_it(world: World) -> None:
    failed_family(world)

    assert world.run(scripts.revive("p")) == "children"
    release_all(world)

    assert statuses(world, "p", "a", "b", "c", "d") == [S.QUEUED, *[S.WAITING] * 4]
    assert [world.snapshot()[f"rq:job:{id} pending"] for id in "abcd"] == ["1", "1", "2", "1"]
    assert all(world.get(id).canceled_by is None for id in "abcd")
    assert not world.redis.keys("taskpool:revivable:*")
    order: list[str] = []
    while (running := world.try_claim(attempt_id=f"again-{len(order)}")) is not None:
        order.append(running.id)
        world.finish(running)
        release_all(world)
    assert (order[0], set(order[1:3]), order[3:]) == ("p", {"a", "b"}, ["c", "d"])


def test_a_revival_goes_on_in_bounded_steps_whoever_died_in_between(world: World) -> None:
    world.start("p")
    world.run(scripts.add([new_task(f"c{n}", depends_on=["p"]) for n in range(30)]))
    world.run(scripts.add([new_task(f"g{n}", depends_on=[f"c{n}"]) for n in range(30)]))
    end(world, "p", S.FAILED)
    world.run(scripts.revive("p"))  # its caller dies here

    calls = 0
    while world.redis.exists("taskpool:outbox"):
        before = world.redis.zcard("rq:deferred:default")
        world.run(scripts.release(world.redis.srandmember("taskpool:outbox").decode(), 5))
        assert world.redis.zcard("rq:deferred:default") - before <= 5
        calls += 1

    assert world.redis.zcard("rq:deferred:default") == 60
    assert calls >= 12


def test_a_task_that_another_parent_keeps_from_running_stays_canceled_and_is_revived_with_that_one(
    world: World,
) -> None:
    world.start("p", attempt_id="p")
    world.start("q", attempt_id="q")
    world.add("a", depends_on=["p", "q"])
    end(world, "p", S.FAILED)
    end(world, "q", S.FAILED)
    assert world.get("a").canceled_by == "p"

    world.run(scripts.revive("p"))
    release_all(world)
    record = world.get("a")
    assert (record.status, record.canceled_by) == (S.CANCELED, "q")
    assert record.error == "canceled: the task q it depends on did not end well (failed)"

    world.run(scripts.revive("q"))
    release_all(world)
    assert (world.get("a").status, world.snapshot()["rq:job:a pending"]) == (S.WAITING, "2")


def test_what_a_revived_task_waits_for_is_computed_anew_though_a_parent_has_still_to_release_it(world: World) -> None:
    world.start("p", attempt_id="p")
    world.start("q", attempt_id="q")
    world.add("a", depends_on=["p", "q"])
    end(world, "p", S.FAILED)
    world.finish(world.running["q"], S.DONE)  # its worker dies before it releases anything
    world.run(scripts.revive("p"))
    world.run(scripts.release("p"))
    assert world.snapshot()["rq:job:a pending"] == "1"

    world.run(scripts.release("q"))

    assert world.get("a").status is S.WAITING
    world.finish(world.claim(attempt_id="again"))
    release_all(world)
    assert world.get("a").status is S.QUEUED


def test_a_task_that_a_person_canceled_is_not_revived(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"])
    world.cancel("a")
    end(world, "p", S.FAILED)

    world.run(scripts.revive("p"))
    release_all(world)

    assert world.get("a").status is S.CANCELED


def test_a_task_whose_unique_key_another_one_holds_by_then_stays_canceled_and_says_so(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"], unique_key="k")
    end(world, "p", S.FAILED)
    world.add("rival", unique_key="k", queue="other")

    world.run(scripts.revive("p"))
    release_all(world)

    record = world.get("a")
    assert record.status is S.CANCELED
    assert record.error == ("canceled: the task p was retried, but not this task: the task rival holds its unique key")


def test_a_revived_task_keeps_its_own_time(world: World) -> None:
    world.start("p")
    world.add("a", depends_on=["p"], delay_s=500)
    end(world, "p", S.FAILED)
    world.run(scripts.revive("p"))
    release_all(world)

    world.finish(world.claim(attempt_id="again"))
    release_all(world)

    assert world.get("a").status is S.SCHEDULED
    assert world.snapshot()["rq:scheduled:default a"] == "now+500 s"


def test_a_parent_that_rqs_dashboard_queued_again_revives_its_children_when_it_is_done(world: World) -> None:
    failed_family(world)
    Job.fetch("p", connection=world.redis, serializer=JSONSerializer).requeue()

    assert world.finish(world.claim(attempt_id="again")) == "children"
    release_all(world)

    assert statuses(world, "a", "b", "c", "d") == [S.QUEUED, S.QUEUED, S.WAITING, S.WAITING]


def test_a_parent_that_rqs_dashboard_queued_again_and_that_fails_again_leaves_its_children_canceled(
    world: World,
) -> None:
    failed_family(world)
    Job.fetch("p", connection=world.redis, serializer=JSONSerializer).requeue()

    assert world.finish(world.claim(attempt_id="again"), S.FAILED) == "ok"
    release_all(world)

    assert statuses(world, "a", "b", "c", "d") == [S.CANCELED] * 4
    assert world.redis.smembers("taskpool:revivable:p") == {b"a", b"b"}


def test_a_parent_that_rqs_dashboard_deleted_is_found_by_the_sweep_of_its_index(world: World) -> None:
    world.add("p", queue="other", tags=["x"])
    for how in ONS:
        world.add(how, depends_on=[on("p", how)])
    Job.fetch("p", connection=world.redis, serializer=JSONSerializer).delete()

    world.run(scripts.sweep_index("taskpool:tag:x", "", 100))
    release_all(world)

    assert statuses(world, *ONS) == [S.CANCELED, S.CANCELED, S.QUEUED]


def test_nothing_is_left_of_a_family_that_was_canceled_and_removed(world: World) -> None:
    failed_family(world)

    for id in "pabcd":
        assert world.run(scripts.purge(id)) == "ok"

    left = [key for key in world.redis.keys("taskpool:*") if key.rpartition(b":")[2] in b"p a b c d".split()]
    assert left == []
    assert not world.redis.exists("taskpool:held", "taskpool:outbox")


# --- records live as long as they are needed --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [S.DONE, S.FAILED])
def test_a_record_with_a_living_child_has_no_expiry_and_gets_it_back_behind_the_child(
    world: World, status: TaskStatus
) -> None:
    world.start("p")
    world.add("a", depends_on=[on("p", "any")], queue="unserved")
    end(world, "p", status)
    registry = "rq:finished:default" if status is S.DONE else "rq:failed:default"
    assert world.redis.ttl("rq:job:p") == -1

    world.redis.zadd("taskpool:held", {"p": 1})
    assert world.run(scripts.purge("p", keys.HELD)) == "needed"
    world.redis.zadd(registry, {"p": 1})
    assert world.run(scripts.purge("p", registry)) == "needed"
    assert world.redis.ttl("rq:job:p") == -1

    world.finish(world.claim("unserved"))
    world.redis.zadd("taskpool:held", {"p": 1})
    world.redis.zadd(registry, {"p": world.redis.time()[0] + 100})
    assert world.run(scripts.purge("p", keys.HELD)) == "early"
    assert 100 < world.redis.ttl("rq:job:p") <= 161
    assert world.redis.zscore("taskpool:held", "p") is None


def test_the_record_of_another_programs_job_is_kept_for_a_task_and_expires_behind_it(world: World) -> None:
    job = Job.create("os.getpid", id="p", origin="rq", connection=world.redis, serializer=JSONSerializer)
    job.set_status(JobStatus.FINISHED)
    job.save()
    world.redis.expire("rq:job:p", 500)
    world.add("a", depends_on=["p"])
    assert world.redis.ttl("rq:job:p") == -1

    world.redis.zadd("taskpool:held", {"p": 1})
    assert world.run(scripts.purge("p", keys.HELD)) == "needed"
    world.finish(world.claim())
    world.redis.zadd("taskpool:held", {"p": 1})
    assert world.run(scripts.purge("p", keys.HELD)) == "early"

    assert 0 < world.redis.ttl("rq:job:p") <= 60
    assert not world.redis.exists("taskpool:held", "taskpool:needed:p")


async def test_housekeeping_removes_a_record_that_was_kept_when_its_child_has_ended(
    world: World, redis_url: str
) -> None:
    world.start("p")
    world.add("a", depends_on=[on("p", "any")])
    end(world, "p", S.FAILED)
    world.finish(world.claim(attempt_id="2"))
    world.redis.zadd("rq:failed:default", {"p": "+inf"})
    world.redis.zadd("taskpool:held", {"p": 1})
    store = AsyncStore(redis_url)

    await Housekeeping(store, Outage(), Settings()).step()

    await store.close()
    assert not world.redis.exists("rq:job:p", "taskpool:held")


# --- what a task sees -------------------------------------------------------------------------------------------------


@task("one")
def one() -> int:
    return 1


@task("fail")
def fail() -> None:
    raise ValueError("no luck")


@task("look")
def look(ctx: TaskContext) -> list[Any]:
    seen = [[each.id, each.status, each.result, each.error, each.ok] for each in ctx.outcomes.values()]
    assert [each[0] for each in seen] == list(ctx.parents)
    return seen


@task("look_async")
async def look_async(ctx: TaskContext) -> list[Any]:
    return look(ctx)


@task("read_all")
def read_all(ctx: TaskContext) -> list[Any]:
    return list(ctx.parents.values())


TASKS = (one, fail, look, look_async, read_all)


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    registry = Registry()
    for each in TASKS:
        registry.add(each)
    with TaskPool(redis_url, registry=registry) as pool:
        yield pool


def run_next(pool: TaskPool, attempt_id: str) -> TaskRecord:
    running = pool.run_task(["default"], worker="w", attempt_id=attempt_id)
    assert running is not None
    pool.execute_task(running)
    return pool.get(running.id)


def test_a_task_sees_how_its_parents_have_ended(pool: TaskPool) -> None:
    good, bad, gone = pool.add_task("one"), pool.add_task("fail"), pool.add_task("one", queue="other")
    child = pool.add_task("look", depends_on=[good.id, Dependency(bad.id, "failure"), {"id": gone.id, "on": "any"}])
    assert child.depends_on == (good.id, Dependency(bad.id, "failure"), Dependency(gone.id, "any"))
    run_next(pool, "1")
    run_next(pool, "2")
    pool.remove_task(gone.id)
    pool.remove_task(gone.id)

    record = run_next(pool, "3")

    assert record.result == [
        [good.id, "done", 1, None, True],
        [bad.id, "failed", None, "ValueError: no luck", False],
        [gone.id, None, None, "its record expired or was removed", False],
    ]


def test_reading_the_result_of_a_parent_that_failed_fails_the_task_at_once(pool: TaskPool) -> None:
    bad = pool.add_task("fail")
    pool.add_task("read_all", depends_on=[{"id": bad.id, "on": "any"}], max_attempts=3)
    run_next(pool, "1")

    record = run_next(pool, "2")

    assert (record.status, record.attempt) == (S.FAILED, 1)
    assert record.error == (
        f"ParentNotDone: the result of task {bad.id} can't be read: it has none, its status is failed"
    )


def test_the_inline_pool_shows_outcomes_too() -> None:
    with InlinePool(*TASKS) as pool:
        bad = pool.add_task(fail)
        record = pool.run("look_async", depends_on=[{"id": bad.id, "on": "failure"}])

    assert record.result == [[bad.id, "failed", None, "ValueError: no luck", False]]


def test_a_recording_sink_has_the_outcomes_that_a_test_gives_it() -> None:
    rows = [TaskOutcome(id="r1", status=S.DONE, result=1), TaskOutcome(id="r2", status=S.FAILED, error="bad row")]
    sink = RecordingSink(results={"p": 42}, ended={"rows": rows})
    ctx = TaskContext(sink, id="t", type="x")

    assert (ctx.parents["p"], ctx.outcomes["p"].ok) == (42, True)
    assert [each.error for each in ctx.outcomes["rows"] if not each.ok] == ["bad row"]
    assert ctx.parents["rows"][0] == 1
    with pytest.raises(ParentNotDone, match="r2"):
        list(ctx.parents["rows"])


def test_a_map_is_read_in_pages() -> None:
    asked: list[tuple[int, int]] = []

    def read(at: int, to: int) -> Sequence[TaskOutcome]:
        asked.append((at, to))
        return [TaskOutcome(id=f"r{n}", status=S.DONE, result=n) for n in range(at, to)]

    rows = GroupOutcomes(2 * PAGE + 5, read)

    assert next(iter(rows)).result == 0
    assert asked == [(0, PAGE)]
    assert (len(rows), rows[-1].result, [each.result for each in rows[1:3]]) == (2 * PAGE + 5, 2 * PAGE + 4, [1, 2])
    assert [each.result for each in rows] == list(range(2 * PAGE + 5))
    with pytest.raises(IndexError):
        rows[2 * PAGE + 5]


def test_the_task_of_a_workflow_finds_its_parents_by_name_and_by_id(world: World) -> None:
    members = [f"{WORKFLOW[:16]}000{n}" for n in (1, 2, 3)]
    put_workflow(world, "failed")
    nodes = {
        "rows": '{"first":1,"size":2}',
        "alone": '{"first":3}',
        "sum": '{"first":4,"after":[["rows","any"],["alone","any"]]}',
    }
    world.redis.hset(keys.WORKFLOW + WORKFLOW + keys.WORKFLOW_NODES, mapping=nodes)
    for member, status in zip(members, (S.DONE, S.FAILED, S.DONE), strict=True):
        world.end(member, status)
    world.redis.hset("rq:job:sum", mapping={"workflow": WORKFLOW, "node": "sum"})
    edges = [Edge(members[2], "any"), Edge(f"{WORKFLOW}:rows", "any"), Edge(f"{WORKFLOW}:", "any")]

    found = outcomes_of("sum", edges, world.store.carry_out)

    assert list(found) == ["alone", "rows", WORKFLOW]
    assert found["alone"] == found[members[2]] == TaskOutcome(id=members[2], status=S.DONE, result=42)
    rows = found["rows"]
    assert isinstance(rows, GroupOutcomes)
    with pytest.raises(KeyError, match=r"doesn't depend on 'row', but on .*'rows'"):
        found["row"]
    assert [(each.id, each.ok) for each in rows] == [(members[0], True), (members[1], False)]
    assert found[WORKFLOW] == TaskOutcome(id=WORKFLOW, status=S.FAILED, error="the workflow is failed")


# --- submission -------------------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, str]] = [
    ({"id": "a", "on": "sometimes"}, "/depends_on/0/on"),
    ({"on": "any"}, "/depends_on/0"),
    ({"id": "a", "workflow": "w"}, "/depends_on/0"),
    ({"id": "a:b"}, "/depends_on/0/id"),
    ({"workflow": "w:"}, "/depends_on/0/workflow"),
    ({"workflow": "w", "node": "rows"}, "/depends_on/0/node"),
    ({"id": "a", "onn": "any"}, "/depends_on/0/onn"),
    ("a b", "/depends_on/0"),
    (5, "/depends_on/0"),
    ({"id": "ghost", "on": "any"}, "/depends_on"),
    ({"workflow": "ghost"}, "/depends_on"),
]


@pytest.mark.parametrize(("item", "pointer"), WRONG)
async def test_what_is_no_dependency_is_refused_with_its_place(
    world: World, redis_url: str, item: Any, pointer: str
) -> None:
    publish_types(redis_url)
    with (
        TaskPool(redis_url, registry=Registry(builtins=True)) as pool,
        pytest.raises(InvalidTask) as refused,
    ):
        pool.add_task("echo", {"message": 1}, depends_on=[item])
    assert {each.pointer for each in refused.value.errors} >= {pointer}

    async with api(redis_url) as client:
        answer = await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}, "depends_on": [item]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(
        pointer[: pointer.find("/", 12)] if "onn" in pointer else "/depends_on"
    )


@pytest.mark.parametrize("text", ["a:sometimes", "a:", "workflow:a:b:any"])
def test_a_wrong_dependency_on_the_command_line_is_a_fault_of_usage(redis_url: str, text: str) -> None:
    publish_types(redis_url)
    arguments = ["submit", "echo", "message=1", "--depends-on", text, "--redis-url", redis_url]

    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 2
    assert "depends" in result.output


def test_the_command_line_takes_and_shows_edges(pool: TaskPool, redis_url: str) -> None:
    publish_types(redis_url)
    parent = pool.add_task("one")
    arguments = ["submit", "echo", "message=1", "--depends-on", f"{parent.id}:any", "--redis-url", redis_url]

    submitted = CliRunner().invoke(main, arguments)
    shown = CliRunner().invoke(main, ["get", submitted.stdout.strip(), "--redis-url", redis_url])

    assert pool.get(submitted.stdout.strip()).depends_on == (Dependency(parent.id, "any"),)
    assert f"{parent.id}:any" in shown.output


def test_a_retry_of_a_task_that_is_not_needed_says_why_it_is_refused(pool: TaskPool) -> None:
    good = pool.add_task("one")
    child = pool.add_task("one", depends_on=[{"id": good.id, "on": "failure"}])
    run_next(pool, "1")
    assert pool.get(child.id).reason == "not_needed"

    with pytest.raises(TaskConflict, match=f"depends on the failure of task {good.id}, but that one is done"):
        pool.retry_task(child.id)


def test_a_retry_through_the_pool_revives_at_once(pool: TaskPool, redis: Redis) -> None:
    bad = pool.add_task("fail")
    child = pool.add_task("one", depends_on=[bad.id])
    run_next(pool, "1")
    assert pool.get(child.id).canceled_by == bad.id

    pool.retry_task(bad.id)

    assert pool.get(child.id).status is S.WAITING
    assert not redis.exists("taskpool:outbox")


def test_a_workflow_is_kept_until_a_task_outside_of_it_that_depends_on_it_has_ended(world: World) -> None:
    put_workflow(world, "failed", reserved=0)
    world.redis.zadd(keys.WORKFLOWS_ENDED, {WORKFLOW: 1})
    world.add("outside", depends_on=[{"workflow": WORKFLOW, "on": "any"}])
    assert world.redis.smembers(f"taskpool:needed:{WORKFLOW}:") == {b"outside"}

    assert world.run(workflow_scripts.purge(WORKFLOW, 100)) == "early"
    world.finish(world.claim())
    world.redis.zadd(keys.WORKFLOWS_ENDED, {WORKFLOW: 1})
    assert world.run(workflow_scripts.purge(WORKFLOW, 100)) == "end"

    assert not world.redis.keys(f"taskpool:*{WORKFLOW}*")


def test_the_tasks_of_a_workflow_keep_nothing_of_its_maps(world: World) -> None:
    member = f"{WORKFLOW[:16]}0003"
    put_workflow(world, "in_progress", **{"map:rows:total": 1})
    waiting = replace(new_task(member, tags=["x"]), edges=(Edge(f"{WORKFLOW}:rows", "any"),))
    world.run(scripts.add([waiting]))

    put_workflow(world, "in_progress", **{"map:rows:ended": 1, "map:rows:n:failed": 1})
    world.run(scripts.release(f"{WORKFLOW}:rows"))

    assert world.get(member).status is S.QUEUED
    assert not world.redis.keys("taskpool:needed:*")


async def test_one_call_looks_at_a_bounded_number_of_parents(pool: TaskPool, redis_url: str) -> None:
    publish_types(redis_url)
    parents = [record.id for record in pool.add_tasks([TaskSpec(type="one") for _ in range(20)])]
    many = [{"type": "echo", "payload": {"message": 1}, "depends_on": parents} for _ in range(MOST_EDGES // 20 + 1)]

    async with api(redis_url) as client:
        refused = await client.post("/tasks/batch", json={"tasks": many})
    records = pool.add_tasks([TaskSpec(type="one", depends_on=parents) for _ in many])

    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {
            "pointer": "/tasks",
            "detail": "the tasks of one call may have at most 10,000 dependencies in all: submit them in parts",
        }
    ]
    assert {record.status for record in records} == {S.WAITING}
