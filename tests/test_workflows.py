"""Workflows: how they are submitted, stored in steps, counted, and how they end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from taskpool import Registry
from taskpool.access.audit import Actor
from taskpool.errors import (
    CapReached,
    InvalidTask,
    QueueFull,
    RedisUnavailable,
    UniqueConflict,
    UnknownDependency,
    WorkflowConflict,
    WorkflowNotFound,
)
from taskpool.operations.catalog import Catalogue
from taskpool.operations.flow.expansion import member_id
from taskpool.operations.flow.upkeep import look_after_workflows
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec, WorkflowStatus
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
from taskpool.redis import keys, scripts, workflow_scripts
from taskpool.redis.add_script import Caps
from taskpool.tasks.node import After
from taskpool.types import TaskSpec, TaskStatus
from taskpool.url_guard import Allowed
from taskpool.webhooks.delivery import outbox_page
from taskpool.webhooks.endpoint import NewWebhook, is_wanted, message_body
from taskpool.webhooks.store import create_webhook
from tests.states import World, new_task

S = TaskStatus
W = WorkflowStatus


def work(**options: Any) -> TaskSpec:
    return TaskSpec(type="echo", payload={"message": "hello"}, **options)


def node(name: str, *after: str | After, **options: Any) -> NodeSpec:
    return NodeSpec(name=name, task=work(**options), after=after)


def spread(name: str, size: int, *after: str | After) -> NodeSpec:
    return NodeSpec(name=name, map=tuple(work() for _ in range(size)), after=after)


def rules(**defaults: Any) -> Rules:
    return Rules(Catalogue(type_grace_s=60), Registry(builtins=True), Defaults(**defaults))


def submit(world: World, *nodes: NodeSpec, **defaults: Any) -> WorkflowRecord:
    return world.store.carry_out(submit_workflow(WorkflowSpec(name="import", nodes=nodes), rules(**defaults)))


def fetch(world: World, id: str) -> WorkflowRecord:
    return world.store.carry_out(fetch_workflow(id))


def end_next(world: World, status: TaskStatus = S.DONE) -> str:
    running = world.claim()
    word = world.finish(running, status)
    assert word in ("ok", "children")
    settle(world)
    return running.id


def settle(world: World) -> None:
    """What housekeeping does with the outbox."""
    while ids := world.redis.smembers("taskpool:outbox"):
        for id in ids:
            world.run(scripts.release(id.decode()))


def statuses(record: WorkflowRecord) -> dict[str, Any]:
    return {each.name: each.counts if each.id is None else each.status for each in record.nodes}


def test_a_workflow_is_stored_with_its_tasks_and_ends_with_them(world: World) -> None:
    record = submit(world, node("report", "import"), node("import"), spread("rows", 3))

    assert (record.status, record.total, record.ended, record.counts, record.seq) == (W.IN_PROGRESS, 5, 0, {}, 1)
    assert statuses(record) == {"import": S.QUEUED, "rows": {}, "report": S.WAITING}
    assert record.nodes[2].after == (After("import"),)
    for _ in range(5):
        end_next(world)

    record = fetch(world, record.id)
    assert (record.status, record.ended, record.counts) == (W.DONE, 5, {"done": 5})
    assert statuses(record) == {"import": S.DONE, "rows": {"done": 3}, "report": S.DONE}
    assert record.ended_at is not None
    assert world.events(record.id) == [
        (1, "workflow_started", "in_progress"),
        *[(2 + at, "workflow_progress", "in_progress") for at in range(4)],
        (6, "workflow_done", "done"),
    ]


def test_members_know_their_workflow_and_their_ids_follow_from_it(world: World) -> None:
    record = submit(world, node("import"), spread("rows", 2))

    ids = [member_id(record.id, number) for number in (1, 2, 3)]
    found = [world.redis.hmget(f"rq:job:{id}", "workflow", "node", "map") for id in ids]

    workflow = record.id.encode()
    assert found == [[workflow, b"import", None], [workflow, b"rows", b"1"], [workflow, b"rows", b"1"]]
    assert record.nodes[0].id == ids[0]


def test_a_failure_fails_the_workflow_and_what_was_canceled_because_of_it_counts_as_canceled(world: World) -> None:
    record = submit(world, node("import"), node("report", "import"), node("mail", "report"))

    end_next(world, S.FAILED)

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.FAILED, {"failed": 1, "canceled": 2})


def test_nothing_of_a_workflow_shows_before_its_commit(world: World) -> None:
    before = world.snapshot()
    plan = submit_workflow(WorkflowSpec(name="import", nodes=(spread("rows", 300),)), rules())

    calls = next(plan)
    while not any(b"is_new" in (call.script or b"") for call in calls):
        calls = plan.send(world.store.run_many(calls) if calls else [])
    staged = world.since(before)

    assert {name.split(" ")[0].rpartition(":")[0] for name in staged} <= {"taskpool:staged"} | {
        name.split(" ")[0].rpartition(":")[0] for name in staged if name.startswith("taskpool:staged:")
    }
    assert any(name.endswith(" expires") for name in staged)
    assert world.store.carry_out(list_workflows()).items == ()


def test_the_tasks_are_stored_after_a_caller_that_died_behind_the_commit(world: World) -> None:
    plan = submit_workflow(WorkflowSpec(name="import", nodes=(spread("rows", 600),)), rules())
    calls = next(plan)
    while not any(b"is_new" in (call.script or b"") for call in calls):
        calls = plan.send(world.store.run_many(calls) if calls else [])
    world.store.run_many(calls)
    plan.close()
    (record,) = world.store.carry_out(list_workflows()).items
    assert (record.total, world.redis.llen("rq:queue:default")) == (600, 0)

    world.redis.zadd("taskpool:workflows:expanding", {world.redis.zrange("taskpool:workflows:expanding", 0, 0)[0]: 1})
    world.store.carry_out(look_after_workflows())

    assert world.redis.llen("rq:queue:default") == 600
    assert not world.redis.exists("taskpool:workflows:expanding")
    assert not world.redis.keys("taskpool:staged:*")


def test_a_commit_that_is_sent_again_changes_nothing(world: World) -> None:
    plan = submit_workflow(WorkflowSpec(name="import", nodes=(spread("rows", 300), node("end", "rows"))), rules())
    calls = next(plan)
    while not any(b"is_new" in (call.script or b"") for call in calls):
        calls = plan.send(world.store.run_many(calls) if calls else [])
    first = world.store.run_many(calls)
    before = world.snapshot()

    again = world.store.run_many(calls)

    assert (first, again) == ([[b"ok"]], [[b"ok"]])
    assert world.since(before) == {}


@pytest.mark.parametrize(
    ("nodes", "defaults", "error"),
    [
        ([spread("rows", 3)], {"max_queue_depth": 2}, QueueFull),
        ([node("a", unique_key="held")], {}, UniqueConflict),
        ([node("a", depends_on=["nobody"])], {}, UnknownDependency),
        ([node("a", depends_on=[{"workflow": "nobody", "on": "any"}])], {}, UnknownDependency),
        ([node(f"n{n}", tags=[f"t{n}"]) for n in range(11)], {"caps": Caps(tags=1)}, CapReached),
    ],
)
def test_what_a_commit_refuses_stores_nothing(
    world: World, nodes: Sequence[NodeSpec], defaults: dict[str, Any], error: type[Exception]
) -> None:
    world.add("holder", unique_key="held", queue="other")
    before = world.snapshot()

    with pytest.raises(error):
        submit(world, *nodes, **defaults)

    assert {name for name in world.since(before) if not name.startswith("taskpool:staged:")} == set()


def test_unique_keys_are_held_from_the_commit_on(world: World) -> None:
    plan = submit_workflow(WorkflowSpec(name="import", nodes=(node("a", unique_key="mine"),)), rules())
    calls = next(plan)
    while not any(b"is_new" in (call.script or b"") for call in calls):
        calls = plan.send(world.store.run_many(calls) if calls else [])
    calls = plan.send(world.store.run_many(calls))

    world.run(scripts.sweep_unique("0", 100))
    refused = world.run(scripts.add([new_task("rival", unique_key="mine")]))
    while calls is not None:
        try:
            calls = plan.send(world.store.run_many(calls) if calls else [])
        except StopIteration:
            break

    assert refused.conflict is not None
    assert world.claim().id == member_id(refused.conflict[1], 1)


def test_faults_have_the_place_in_the_document(world: World) -> None:
    with pytest.raises(InvalidTask) as refused:
        submit(world, node("a"), NodeSpec(name="rows", map=(work(), TaskSpec(type="echo", payload={"no": 1}))))

    assert refused.value.errors[0].pointer == "/nodes/1/map/1/payload/no"


def test_workflows_are_listed_newest_first_in_pages(world: World) -> None:
    ids = [submit(world, node("a")).id for _ in range(5)]
    end_next(world)

    first = world.store.carry_out(list_workflows(limit=2))
    second = world.store.carry_out(list_workflows(limit=2, cursor=first.next_cursor))
    third = world.store.carry_out(list_workflows(limit=2, cursor=second.next_cursor))
    done = world.store.carry_out(list_workflows(status=W.DONE))

    pages = [[each.id for each in page.items] for page in (first, second, third)]
    newest = sorted(ids, reverse=True)  # ids of one millisecond have no order of their making
    assert pages == [newest[:2], newest[2:4], newest[4:]]
    assert third.next_cursor is None
    assert [each.id for each in done.items] == ids[:1]


def test_a_workflow_that_does_not_exist_is_not_found(world: World) -> None:
    with pytest.raises(WorkflowNotFound):
        fetch(world, "nothing")


def test_a_chunk_is_stored_once_whoever_asks_for_it(world: World) -> None:
    assert world.run(workflow_scripts.stage("t", 0, b"[]")) == "ok"
    assert world.run(workflow_scripts.stage("t", 0, b"[]")) == "ok"
    assert world.redis.lrange("taskpool:staged:t", 0, -1) == [b"[]"]
    assert world.run(workflow_scripts.stage("t", 2, b"[]")) == "lost"


def test_events_say_how_far_the_workflow_is_once_for_each_percent(world: World) -> None:
    record = submit(world, spread("rows", 250))

    for _ in range(250):
        end_next(world)

    entries = [json.loads(fields[b"e"]) for _, fields in world.redis.xrange("taskpool:events")]
    told = [each["ended"] for each in entries if each["event"] == "workflow_progress" and each["id"] == record.id]
    assert len(told) == 99
    assert told[:3] == [3, 5, 8]


def look_after(world: World) -> None:
    """A round of housekeeping."""
    world.store.carry_out(look_after_workflows())
    settle(world)


def ids_of(record: WorkflowRecord) -> list[str]:
    return [member_id(record.id, number + 1) for number in range(record.total)]


def test_a_stopped_workflow_cancels_what_waits_and_ends_with_what_runs(world: World) -> None:
    record = submit(world, node("first"), node("second"), node("third", "first"), node("late", delay_s=500))
    running = world.claim()

    record = world.store.carry_out(stop_workflow(record.id))

    assert (record.status, record.counts) == (W.STOPPING, {"canceled": 3})
    assert world.get(running.id).status is S.STOPPING
    world.finish(running, S.STOPPED)
    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.STOPPED, {"canceled": 3, "stopped": 1})
    assert [event for _, event, _ in world.events(record.id)][-2:] == ["workflow_progress", "workflow_stopped"]
    assert not world.redis.exists("taskpool:workflows:stopping")


def test_housekeeping_stops_a_workflow_whose_caller_died(world: World) -> None:
    record = submit(world, spread("rows", 700))
    assert world.run(workflow_scripts.stop(record.id, grace_s=5, force=False)) == "ok"
    assert world.run(workflow_scripts.stop(record.id, grace_s=5, force=False)) == "ok"
    assert fetch(world, record.id).ended == 0

    look_after(world)

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.STOPPED, {"canceled": 700})
    assert world.redis.llen("rq:queue:default") == 0


def test_a_member_of_a_stopping_workflow_is_canceled_at_its_claim(world: World) -> None:
    record = submit(world, node("a"), node("b"))
    world.run(workflow_scripts.stop(record.id, grace_s=5, force=False))

    assert world.try_claim() is None

    assert fetch(world, record.id).status is W.STOPPED
    assert {world.get(id).reason for id in ids_of(record)} == {"workflow_stopped"}


def test_tasks_that_are_stored_behind_a_stop_are_canceled_at_once(world: World) -> None:
    plan = submit_workflow(WorkflowSpec(name="import", nodes=(spread("rows", 300),)), rules())
    calls = next(plan)
    while not any(b"is_new" in (call.script or b"") for call in calls):
        calls = plan.send(world.store.run_many(calls) if calls else [])
    world.store.run_many(calls)
    (record,) = world.store.carry_out(list_workflows()).items

    world.run(workflow_scripts.stop(record.id, grace_s=5, force=False))
    world.redis.zadd("taskpool:workflows:expanding", {world.redis.zrange("taskpool:workflows:expanding", 0, 0)[0]: 1})
    look_after(world)

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.STOPPED, {"canceled": 300})
    assert world.redis.llen("rq:queue:default") == 0


def test_a_dashboard_that_requeues_a_failed_member_has_it_counted_anew(world: World) -> None:
    record = submit(world, node("a"), node("b"))
    id = end_next(world, S.FAILED)
    assert fetch(world, record.id).counts == {"failed": 1}

    world.redis.zrem("rq:failed:default", id)
    world.redis.hset(f"rq:job:{id}", "status", "queued")
    world.redis.lpush("rq:queue:default", id)
    running = world.claim()

    assert (running.id, fetch(world, record.id).counts) == (id, {})
    world.finish(running)
    end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_a_requeue_of_a_member_reopens_an_ended_workflow(world: World) -> None:
    record = submit(world, node("a"))
    id = end_next(world, S.FAILED)
    assert fetch(world, record.id).status is W.FAILED

    assert world.run(scripts.revive(id)) == "ok"

    assert (fetch(world, record.id).status, fetch(world, record.id).ended_at) == (W.IN_PROGRESS, None)
    end_next(world)
    assert fetch(world, record.id).status is W.DONE
    assert world.events(record.id)[-2:] == [(3, "workflow_retried", "in_progress"), (4, "workflow_done", "done")]


def test_a_dashboard_that_empties_the_registry_of_waiting_tasks_ends_the_workflow(world: World) -> None:
    record = submit(world, node("a"), node("b", "a"), node("c", "b"))
    for id in world.redis.zrange("rq:deferred:default", 0, -1):
        world.redis.delete(b"rq:job:" + id)
    world.redis.delete("rq:deferred:default")
    look_after(world)
    assert fetch(world, record.id).counts == {"removed": 2}

    end_next(world)

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.FAILED, {"done": 1, "removed": 2})


def test_the_sweep_counts_what_a_plain_rq_worker_has_ended(world: World) -> None:
    record = submit(world, node("a"), spread("rows", 2))
    for id, status in zip(ids_of(record), ("finished", "finished", "stopped"), strict=True):
        world.redis.lrem("rq:queue:default", 1, id)
        world.redis.hset(f"rq:job:{id}", "status", status)

    look_after(world)

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.FAILED, {"done": 2, "stopped": 1})
    assert record.nodes[1].counts == {"done": 1, "stopped": 1}


def test_a_done_member_that_is_deleted_stays_counted_as_done(world: World) -> None:
    record = submit(world, node("a"), node("b"))
    id = end_next(world)

    world.redis.delete(f"rq:job:{id}")
    look_after(world)

    assert fetch(world, record.id).counts == {"done": 1}


def test_members_are_kept_until_their_workflow_is_removed(world: World) -> None:
    record = submit(world, node("a"), node("b"))
    for _ in range(2):
        end_next(world)
    assert [world.redis.ttl(f"rq:job:{id}") for id in ids_of(record)] == [-1, -1]

    world.redis.zadd("taskpool:workflows:ended", {record.id: 1})
    look_after(world)
    for id in ids_of(record):
        assert world.run(scripts.purge(id, "rq:finished:default")) == "ok"

    assert world.store.carry_out(list_workflows()).items == ()
    assert [key for key in world.redis.keys("*") if record.id[:16].encode() in key] == []


def test_only_an_ended_workflow_can_be_removed(world: World) -> None:
    record = submit(world, node("a"))
    with pytest.raises(WorkflowConflict):
        world.store.carry_out(remove_workflow(record.id))
    end_next(world)

    world.store.carry_out(remove_workflow(record.id))

    with pytest.raises(WorkflowNotFound):
        fetch(world, record.id)
    with pytest.raises(WorkflowNotFound):
        world.store.carry_out(remove_workflow(record.id))


def retry(world: World, id: str) -> WorkflowRecord:
    return world.store.carry_out(retry_workflow(id))


def test_a_summary_runs_when_all_of_a_map_has_ended_and_a_bad_row_fails_alone(world: World) -> None:
    record = submit(world, spread("rows", 3), node("summary", After("rows", "any")))
    end_next(world)
    end_next(world, S.FAILED)
    assert statuses(fetch(world, record.id)) == {"rows": {"done": 1, "failed": 1}, "summary": S.WAITING}
    end_next(world)

    assert end_next(world) == member_id(record.id, 4)

    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.DONE, {"done": 3, "failed": 1})


@pytest.mark.parametrize(
    ("last", "status", "expected"),
    [
        (S.DONE, W.DONE, {"bad": S.CANCELED, "good": S.DONE}),
        (S.FAILED, W.DONE, {"bad": S.DONE, "good": S.CANCELED}),
    ],
)
def test_handlers_run_behind_the_outcome_that_they_ask_for(
    world: World, last: TaskStatus, status: WorkflowStatus, expected: dict[str, TaskStatus]
) -> None:
    record = submit(world, spread("rows", 2), node("good", "rows"), node("bad", After("rows", "failure")))
    end_next(world)
    end_next(world, last)
    end_next(world)

    record = fetch(world, record.id)
    assert record.status is status
    assert {name: each for name, each in statuses(record).items() if name != "rows"} == expected


def test_a_failed_handler_fails_the_workflow(world: World) -> None:
    record = submit(world, node("a"), node("handler", After("a", "failure")))
    end_next(world, S.FAILED)
    assert fetch(world, record.id).status is W.IN_PROGRESS

    end_next(world, S.FAILED)

    assert fetch(world, record.id).status is W.FAILED


def test_a_map_follows_a_map(world: World) -> None:
    record = submit(world, spread("first", 2), spread("second", 2, "first"), node("end", "second"))
    assert world.redis.zcard("rq:deferred:default") == 3

    ids = [end_next(world) for _ in range(5)]

    assert [*sorted(ids[:2]), *sorted(ids[2:4]), ids[4]] == ids_of(record)
    assert fetch(world, record.id).status is W.DONE


def test_a_task_outside_follows_a_whole_workflow(world: World) -> None:
    record = submit(world, node("a"), node("b"))
    world.add("outside", depends_on=[{"workflow": record.id, "on": "any"}])
    end_next(world)
    assert world.get("outside").status is S.WAITING

    end_next(world, S.FAILED)

    assert world.get("outside").status is S.QUEUED


def test_a_fan_in_over_a_map_is_one_reference(world: World) -> None:
    record = submit(world, spread("rows", 500), node("end", "rows"))

    end = member_id(record.id, 501)
    assert world.redis.hget(f"rq:job:{end}", "pending") == b"1"
    assert world.redis.smembers(f"taskpool:followers:{record.id}:rows") == {f"success:{end}".encode()}
    assert not world.redis.keys("taskpool:dependents:*")


def test_a_retry_runs_what_failed_and_all_that_follows_it_and_nothing_else(world: World) -> None:
    record = submit(
        world,
        node("fine"),
        spread("rows", 3, "fine"),
        node("summary", After("rows", "any")),
        node("report", "summary"),
        node("aside", "fine"),
        node("last", "rows"),
    )
    end_next(world)
    for _ in range(4):  # the rows and `aside`, in any order
        running = world.claim()
        world.finish(running, S.FAILED if running.id == member_id(record.id, 3) else S.DONE)
    settle(world)
    while world.redis.llen("rq:queue:default"):
        end_next(world)
    record = fetch(world, record.id)
    assert statuses(record) == {
        "fine": S.DONE,
        "rows": {"done": 2, "failed": 1},
        "aside": S.DONE,
        "summary": S.DONE,
        "last": S.CANCELED,
        "report": S.DONE,
    }
    assert record.status is W.DONE  # the summary handles the failure

    record = retry(world, record.id)

    assert statuses(record) == {
        "fine": S.DONE,
        "rows": {"done": 2},
        "aside": S.DONE,
        "summary": S.WAITING,
        "last": S.WAITING,
        "report": S.WAITING,
    }
    assert end_next(world) == member_id(record.id, 3)
    for _ in range(3):
        end_next(world)
    assert fetch(world, record.id).counts == {"done": 8}


def test_a_retried_workflow_runs_to_another_end(world: World) -> None:
    record = submit(world, node("a"), spread("rows", 3, "a"), node("after", "rows"), node("other", After("a", "any")))
    end_next(world)
    for _ in range(4):
        running = world.claim()
        world.finish(running, S.FAILED if running.id in ids_of(record)[2:4] else S.DONE)
        settle(world)
    before = fetch(world, record.id)
    assert (before.status, before.counts) == (W.FAILED, {"done": 3, "failed": 2, "canceled": 1})

    record = retry(world, record.id)

    assert (record.status, record.counts, record.ended_at) == (W.IN_PROGRESS, {"done": 3}, None)
    assert sorted(end_next(world) for _ in range(2)) == ids_of(record)[2:4]
    assert end_next(world) == member_id(record.id, 6)
    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.DONE, {"done": 6})
    assert [event for _, event, _ in world.events(record.id) if event != "workflow_progress"] == [
        "workflow_started",
        "workflow_failed",
        "workflow_retried",
        "workflow_done",
    ]


def test_a_retry_runs_handlers_again_although_they_were_done(world: World) -> None:
    record = submit(world, node("a"), node("handler", After("a", "any")), node("b"), node("then", "handler"))
    for status in (S.FAILED, S.FAILED, S.DONE, S.DONE):
        end_next(world, status)
    record = fetch(world, record.id)
    assert (record.status, record.counts) == (W.FAILED, {"done": 2, "failed": 2})

    record = retry(world, record.id)

    assert statuses(record) == {"a": S.QUEUED, "handler": S.WAITING, "then": S.WAITING, "b": S.QUEUED}
    for _ in range(4):
        end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_a_stopped_workflow_is_retried_as_a_whole(world: World) -> None:
    record = submit(world, node("a"), node("b", "a"), spread("rows", 2, "b"))
    world.store.carry_out(stop_workflow(record.id))
    assert fetch(world, record.id).status is W.STOPPED

    record = retry(world, record.id)

    assert (record.status, record.counts) == (W.IN_PROGRESS, {})
    for _ in range(4):
        end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_housekeeping_goes_on_with_a_retry_whose_caller_died(world: World) -> None:
    record = submit(world, node("a"), node("b", "a"))
    end_next(world, S.FAILED)
    record = fetch(world, record.id)
    call = workflow_scripts.retry(record.id, [1, 2], seq=record.seq)
    assert (world.run(call), world.run(call)) == ("ok", "ok")
    assert fetch(world, record.id).status is W.IN_PROGRESS

    look_after(world)

    assert statuses(fetch(world, record.id)) == {"a": S.QUEUED, "b": S.WAITING}


def test_a_workflow_that_has_not_failed_is_not_retried(world: World) -> None:
    record = submit(world, node("a"))
    with pytest.raises(WorkflowConflict):
        retry(world, record.id)
    end_next(world)
    with pytest.raises(WorkflowConflict):
        retry(world, record.id)


def test_a_retry_chosen_before_something_happened_is_refused(world: World) -> None:
    record = submit(world, node("a"))
    end_next(world, S.FAILED)
    before = world.snapshot()

    assert world.run(workflow_scripts.retry(record.id, [1], seq=1)) == "changed"

    assert world.since(before) == {}


def test_an_endpoint_hears_of_workflows_where_it_asks_for_that(world: World) -> None:
    for events in (["workflow_done", "workflow_progress"], ["done"]):
        new = NewWebhook(url="https://a.example", events=events)
        world.store.carry_out(create_webhook(new, Allowed(()), Actor(None, "", None, ""), most=9))
    record = submit(world, node("a"), node("b"))
    end_next(world)
    end_next(world)

    page = world.run(outbox_page("s", hold_ms=1000, limit=100))

    told = [
        (entry.task, [list(each.events) for each in page.webhooks if is_wanted(entry, each)]) for entry in page.entries
    ]
    asked = ["workflow_done", "workflow_progress"]
    assert [(id == record.id, events) for id, events in told] == [
        (False, [["done"]]),
        (True, [asked]),
        (False, [["done"]]),
        (True, [asked]),
    ]
    body = msgspec.json.decode(message_body(page.entries[3], None))
    assert (body["type"], body["subject"]) == ("taskpool.workflow.done", record.id)
    assert (body["data"]["status"], body["data"]["progress"]) == ("done", {"done": 2, "total": 2})
    assert body["data"]["created_at"] <= body["data"]["ended_at"]


def test_a_workflow_stays_while_a_task_outside_may_read_how_it_ended(world: World) -> None:
    record = submit(world, node("a"))
    world.add("outside", depends_on=[{"workflow": record.id}], delay_s=500)
    end_next(world)
    assert world.get("outside").status is S.SCHEDULED
    world.redis.zadd(keys.WORKFLOWS_ENDED, {record.id: 1})

    look_after(world)
    assert fetch(world, record.id).status is W.DONE
    world.make_due("outside")
    world.run(scripts.promote("outside", "default"))
    end_next(world)
    world.redis.zadd(keys.WORKFLOWS_ENDED, {record.id: 1})
    look_after(world)

    with pytest.raises(WorkflowNotFound):
        fetch(world, record.id)
    assert not world.redis.keys(f"*{record.id}*")


def test_a_member_that_the_release_before_has_ended_is_counted_and_kept(world: World) -> None:
    record = submit(world, node("a"))
    (id,) = ids_of(record)
    world.redis.lrem("rq:queue:default", 1, id)
    world.redis.hset(f"rq:job:{id}", mapping={"status": "finished", "result": "1"})
    world.redis.expire(f"rq:job:{id}", 500)
    world.redis.zadd("rq:finished:default", {id: 1})

    look_after(world)

    assert fetch(world, record.id).status is W.DONE
    assert world.redis.ttl(f"rq:job:{id}") == -1
    assert world.run(scripts.purge(id, "rq:finished:default")) == "early"


def test_what_follows_an_empty_map_waits_for_what_that_follows(world: World) -> None:
    record = submit(
        world, node("z"), spread("y", 0, "z"), spread("x", 0, "y"), node("a", "x"), node("b", After("x", "any"))
    )
    assert [(each.name, each.rank) for each in record.nodes] == [("z", 0), ("y", 1), ("x", 2), ("a", 3), ("b", 3)]
    assert statuses(record) == {"z": S.QUEUED, "y": {}, "x": {}, "a": S.WAITING, "b": S.WAITING}

    end_next(world, S.FAILED)

    record = fetch(world, record.id)
    assert statuses(record) == {"z": S.FAILED, "y": {}, "x": {}, "a": S.CANCELED, "b": S.QUEUED}
    end_next(world)
    assert statuses(retry(world, record.id)) == {"z": S.QUEUED, "y": {}, "x": {}, "a": S.WAITING, "b": S.WAITING}
    for _ in range(3):
        end_next(world)
    assert fetch(world, record.id).status is W.DONE


def test_a_redis_that_is_away_behind_the_commit_makes_no_error(world: World) -> None:
    plan = submit_workflow(WorkflowSpec(name="import", nodes=(spread("rows", 300),)), rules())
    calls = next(plan)
    while not any(b"is_new" in (call.script or b"") for call in calls):
        calls = plan.send(world.store.run_many(calls) if calls else [])
    calls = plan.send(world.store.run_many(calls))

    calls = plan.throw(RedisUnavailable("away"))
    with suppress(StopIteration):
        while True:
            calls = plan.send(world.store.run_many(calls) if calls else [])

    assert world.redis.llen("rq:queue:default") == 0
    world.redis.zadd("taskpool:workflows:expanding", {world.redis.zrange("taskpool:workflows:expanding", 0, 0)[0]: 1})
    look_after(world)
    assert world.redis.llen("rq:queue:default") == 300
