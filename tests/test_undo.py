"""An undo leaves all of Redis as it was before the operation: records, indexes, keys of every kind, their expiry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
from msgspec.structs import replace

from taskpool.operations.flow.workflows import remove_workflow
from taskpool.operations.status import release_dependents
from taskpool.redis import bulk_scripts, keys, people_scripts, scripts
from taskpool.redis.calls import Call
from taskpool.redis.scripts import Work
from taskpool.types import DEFAULT_LIMITS, TaskStatus
from tests.states import FAILURE, World, new_task
from tests.test_operations import operate, statuses, undo
from tests.test_workflows import fetch, node, submit

S = TaskStatus
UNIQUE: Final[dict[str, dict[str, Any]]] = {
    "until done": {},
    "until start": {"unique_until": "start"},
    "for a time": {"unique_for_s": 500},
}
OF_THE_OPERATION: Final = ("taskpool:operation", "taskpool:events", "taskpool:doorbell", "taskpool:unique:")
LOOKED_AT_LATER: Final = ("taskpool:held ", "taskpool:needed:")
"""What a release leaves with a parent that was canceled for a while, until housekeeping looks at that."""
NOTED: Final = ("by_call", "operations", "seq", "enqueued_at", "pending")
"""Fields of a record that tell of the operation and its undo, or don't count any more."""


def differs(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is another than before in Redis, besides what tells of the operation and its undo."""
    return {
        name: (before.get(name), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not name.startswith(OF_THE_OPERATION)
        and not (name.startswith("rq:job:") and name.split()[-1] in NOTED)
    }


def look(world: World) -> dict[str, Any]:
    """All of Redis, without what webhooks are to be told."""
    world.redis.delete(keys.WEBHOOKS_OUTBOX)
    return dict(world.snapshot())


def release_all(world: World) -> None:
    """What housekeeping does in between."""
    for id in world.redis.smembers(keys.OUTBOX):
        world.store.carry_out(release_dependents(id.decode()))
    while (cursor := world.run(scripts.sweep_unique("0", 1000))) != "0":
        assert cursor
    for index in world.redis.keys("taskpool:t*:*"):
        if world.redis.type(index) == b"zset":
            world.run(scripts.sweep_index(index.decode(), "", 1000))


# --- cancelations --------------------------------------------------------------------------------------------


def add_secret(world: World, id: str) -> None:
    task = new_task(id)
    fields = [*task.fields, "secret_ttl", 5000]
    world.run(scripts.add([replace(task, fields=fields, secrets=b"[]", secret_ttl_s=5000)]))


def add_family(world: World, id: str) -> None:
    for each, on in (("child", "success"), ("friend", "any"), ("heir", "failure")):
        parents = [{"id": id, "on": on}]
        if not world.redis.exists(f"rq:job:{id}"):
            world.add(id)
        world.add(f"{id}-{each}", depends_on=parents)
    world.add(f"{id}-grandchild", depends_on=[f"{id}-child"])


def add_failed_attempt(world: World, id: str) -> None:
    running = world.start(id, max_attempts=3, expires_in_s=900)
    world.run(scripts.log(id, running.attempt_id, [b'{"at_ms":1,"text":"line"}'], DEFAULT_LIMITS))
    world.run(people_scripts.checkpoint(running, b"1"))
    world.run(scripts.retry(running, delay_ms=60_000, error="no luck", failure=FAILURE))


def add_unique(how: dict[str, Any], world: World) -> None:
    world.add("a", unique_key="k", **how)


WAITING: Final[dict[str, Callable[[World], Any]]] = {
    "queued": lambda world: world.add("a", tags=["red", "blue"], project="shop"),
    "scheduled": lambda world: world.add("a", delay_s=500, expires_in_s=900, project="shop"),
    "to be confirmed": lambda world: world.add("a", confirm="Go?", tags=["red"]),
    "with a callback": lambda world: world.add("a", callback_url="http://127.0.0.1/", callback_events=["canceled"]),
    "with secrets": lambda world: add_secret(world, "a"),
    "after a failed attempt": lambda world: add_failed_attempt(world, "a"),
    "with a family": lambda world: add_family(world, "a"),
    **{f"unique {how}": partial(add_unique, more) for how, more in UNIQUE.items()},
}


@pytest.mark.parametrize("kind", WAITING)
def test_a_canceled_task_is_as_before(world: World, kind: str) -> None:
    WAITING[kind](world)
    before = look(world)

    canceled = operate(world, "cancel", since="1h")
    release_all(world)
    assert set(statuses(world).values()) == {"canceled"}
    restored = undo(world, canceled.id)
    release_all(world)

    assert restored.changed == canceled.changed
    assert {name for name in differs(before, look(world)) if not name.startswith(LOOKED_AT_LATER)} == set()


def test_tasks_that_were_canceled_because_of_another_wait_again_once_that_is_restored(world: World) -> None:
    add_family(world, "a")
    world.add("tagged", tags=["red"], depends_on=["a-grandchild"])
    before = statuses(world)

    canceled = operate(world, "cancel", text="a")
    release_all(world)
    assert statuses(world)["tagged"] == "canceled"
    undo(world, canceled.id)
    release_all(world)

    # Those that wait for an end, or a failure, are queued by the cancelation.
    assert statuses(world) == {**before, "a-friend": "queued", "a-heir": "queued"}


def test_a_unique_key_that_another_task_holds_meanwhile_stays_with_that(world: World) -> None:
    world.add("a", unique_key="k")
    canceled = operate(world, "cancel", type="work")
    world.add("b", unique_key="k")

    restored = undo(world, canceled.id)

    assert (restored.changed, dict(restored.skipped)) == (0, {"unique_key": 1})
    assert world.redis.hget("taskpool:unique", "k") == b"b"


# --- removals ------------------------------------------------------------------------------------------------


def end_with_everything(world: World, status: TaskStatus) -> None:
    running = world.start("a", tags=["red"], project="shop", callback_url="http://127.0.0.1/")
    world.run(people_scripts.checkpoint(running, b"1"))
    world.finish(running, status)


def cancel_because_of_a_parent(world: World) -> None:
    running = world.start("p", type="other")
    world.add("a", depends_on=["p"])
    world.finish(running, S.FAILED)
    release_all(world)


def fail_behind_a_done_parent(world: World) -> None:
    world.end("p", type="other")
    world.add("a", depends_on=["p"])
    world.finish(world.claim(attempt_id="2"), S.FAILED)


def hold_beyond_its_time(world: World) -> None:
    """A done task whose time is over, kept for one that failed and may be retried."""
    world.end("a")
    world.add("child", type="other", depends_on=["a"])
    world.finish(world.claim(attempt_id="2"), S.FAILED)
    world.redis.zadd("rq:finished:default", {"a": 1})
    assert world.run(scripts.purge("a", "rq:finished:default")) == "needed"


def fail_with_a_secret(world: World) -> None:
    add_secret(world, "a")
    world.finish(world.claim(), S.FAILED)


def end_unique(how: dict[str, Any], world: World) -> None:
    world.end("a", unique_key="k", **how)


ENDED: Final[dict[str, Callable[[World], Any]]] = {
    "done": lambda world: end_with_everything(world, S.DONE),
    "failed": lambda world: end_with_everything(world, S.FAILED),
    "stopped": lambda world: end_with_everything(world, S.STOPPED),
    "canceled because of a parent": cancel_because_of_a_parent,
    "failed behind a done parent": fail_behind_a_done_parent,
    "held beyond its time": hold_beyond_its_time,
    "with secrets": fail_with_a_secret,
    **{f"unique {how}": partial(end_unique, more) for how, more in UNIQUE.items()},
}


@pytest.mark.parametrize("kind", ENDED)
def test_a_removed_task_is_as_before(world: World, kind: str) -> None:
    ENDED[kind](world)
    release_all(world)
    before = look(world)

    removed = operate(world, "remove", type="work")
    release_all(world)
    assert removed.changed == 1
    assert "a" not in statuses(world)
    restored = undo(world, removed.id)
    release_all(world)

    assert restored.changed == 1
    assert differs(before, look(world)) == {}


def test_a_key_that_is_held_for_a_time_stays_with_who_took_it_after_the_removal(world: World) -> None:
    world.end("a", unique_key="k", unique_for_s=500)
    removed = operate(world, "remove", type="work")
    world.add("b", unique_key="k", unique_for_s=500)

    assert undo(world, removed.id).changed == 1

    assert world.redis.hget("taskpool:unique", "k").startswith(b"b ")


def test_a_removed_task_needs_its_done_parents_again(world: World) -> None:
    fail_behind_a_done_parent(world)
    removed = operate(world, "remove", type="work")
    world.redis.zadd("rq:finished:default", {"p": 1})
    world.redis.srem("taskpool:needed:p", "a")  # as a look at the parent's record does meanwhile

    undo(world, removed.id)

    assert world.run(scripts.purge("p", "rq:finished:default")) == "needed"
    assert world.run(scripts.revive("a")) == "ok"


def test_a_removed_task_whose_registry_rq_has_cleaned_up_is_kept_and_restored_for_a_while(world: World) -> None:
    world.end("a", S.FAILED)
    world.redis.zrem("rq:failed:default", "a")

    removed = operate(world, "remove", type="work")
    restored = undo(world, removed.id)

    assert (removed.changed, restored.changed) == (1, 1)
    assert world.redis.zscore("rq:failed:default", "a") < float("inf")


# --- workflows -----------------------------------------------------------------------------------------------


def test_members_of_a_workflow_are_canceled_restored_and_counted(world: World) -> None:
    workflow = submit(world, node("first"), node("second", "first"))
    before = fetch(world, workflow.id)

    canceled = operate(world, "cancel", workflow=workflow.id)
    release_all(world)
    assert fetch(world, workflow.id).status.is_terminal
    restored = undo(world, canceled.id)
    release_all(world)

    now = fetch(world, workflow.id)
    assert restored.changed == canceled.changed
    assert (now.status, now.counts, now.ended) == (before.status, before.counts, before.ended)
    assert [each.status for each in now.nodes] == [each.status for each in before.nodes]


@pytest.mark.parametrize("action", ["cancel", "remove"])
def test_members_of_a_workflow_that_was_removed_since_do_not_come_back(world: World, action: str) -> None:
    workflow = submit(world, node("first"), node("second", "first"))
    if action == "remove":
        operate(world, "cancel", workflow=workflow.id)
        release_all(world)
    changed = operate(world, action, workflow=workflow.id)
    release_all(world)
    world.store.carry_out(remove_workflow(workflow.id))

    restored = undo(world, changed.id)

    assert (restored.changed, dict(restored.skipped)) == (0, {"gone": changed.changed})
    assert set(statuses(world).values()) <= {"canceled"}  # those that housekeeping hasn't removed yet


# --- without an operation ------------------------------------------------------------------------------------


def test_a_mark_alone_hides_and_restores_without_counting(world: World) -> None:
    world.end("a")
    calls: list[Call[str]] = [scripts.purge("a", work=Work("m")), bulk_scripts.unpurge("a", "m", Work("n"))]

    assert [world.run(call) for call in calls] == ["ok", "ok"]

    assert not world.redis.keys("taskpool:operation*")
    assert world.get("a").operations == ()
