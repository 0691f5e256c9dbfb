"""Operations on many tasks: what they find, what they change and skip, and that they go on after a crash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace

from taskpool.access.api_key import Scope
from taskpool.access.audit import Actor, AuditFilter, read_audit
from taskpool.errors import InvalidOperation, NotAllowed, OperationConflict, OperationNotFound
from taskpool.operations.control import bulk
from taskpool.operations.control.drive import drive, look_after_operations
from taskpool.operations.listing import walk_of
from taskpool.redis import bulk_scripts, keys, scripts
from taskpool.redis.scripts import Work
from taskpool.types import TaskStatus
from taskpool.types.control import Filter, Operation, OperationSpec, OperationStatus, Preview
from taskpool.validation import new_id
from tests.states import SEED, World, new_task

S = TaskStatus
DONE = OperationStatus.DONE


def spec(
    action: Any, *, queue: str | None = None, include_nonretryable: bool = False, **criteria: Any
) -> OperationSpec:
    return OperationSpec(
        action=action, filter=Filter(**criteria), queue=queue, include_nonretryable=include_nonretryable
    )


def start(world: World, action: str, by: Actor | None = None, **given: Any) -> Operation:
    return world.store.carry_out(bulk.start_operation(spec(action, **given), by))


def go_on(world: World, id: str, driver: str = "me") -> Operation:
    """Go on with an operation to its end."""
    while world.store.carry_out(drive(id, driver, 10)):
        pass
    return world.store.carry_out(bulk.get_operation(id))


def operate(world: World, action: str, by: Actor | None = None, **given: Any) -> Operation:
    return go_on(world, start(world, action, by, **given).id)


def undo(world: World, id: str) -> Operation:
    return go_on(world, world.store.carry_out(bulk.undo_operation(id)).id)


def preview(world: World, action: str, by: Actor | None = None, **given: Any) -> Preview:
    return world.store.carry_out(bulk.preview_operation(spec(action, **given), by))


def statuses(world: World) -> dict[str, str]:
    """The status of each task."""
    found = [key.decode().removeprefix("rq:job:") for key in world.redis.keys("rq:job:*")]
    return {id: world.get(id).status.value for id in sorted(found)}


@pytest.fixture
def crowd(world: World) -> World:
    """A task in every status, all of one type."""
    for status, seed in SEED.items():
        seed(world, status.value)
    return world


# --- each action ---------------------------------------------------------------------------------------------

WAITS = {"queued", "scheduled", "waiting", "waiting_confirmation"}
RUNS = {"in_progress", "stopping"}
ENDED = {"done", "failed", "stopped", "canceled"}


@pytest.mark.parametrize(
    ("action", "given", "changed"),
    [
        ("retry", {}, {"failed", "stopped", "canceled"}),
        ("stop", {}, WAITS | RUNS),
        ("cancel", {}, WAITS),
        ("remove", {}, ENDED),
        ("move", {"queue": "other"}, WAITS),
        ("run_now", {}, {"scheduled"}),
    ],
)
def test_an_action_changes_what_its_status_allows_and_counts_the_rest(
    crowd: World, action: str, given: dict[str, Any], changed: set[str]
) -> None:
    before = statuses(crowd)
    seen = preview(crowd, action, type="work", **given)

    ended = operate(crowd, action, type="work", **given)

    # The task that is waited for is one more, and stays queued until it is canceled, stopped or moved.
    parents = {id for id in before if id.endswith("-parent")}
    concerned = changed | (parents if "queued" in changed else set())
    assert (ended.status, ended.progress, ended.error) == (DONE, 1.0, None)
    assert ended.changed == seen.count
    assert {id for id in before if before[id] in changed} == concerned
    assert ended.matched == len(before)
    assert ended.changed + sum(ended.skipped.values()) == ended.matched
    assert ended.skipped.keys() <= {status.value for status in S}
    assert dict(seen.left_out) == dict(ended.skipped)


def test_a_retry_keeps_the_order_of_the_tasks(world: World) -> None:
    for name in ("a", "b", "c"):
        world.end(name, S.FAILED)

    operate(world, "retry", status=S.FAILED)

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a", b"b", b"c"]


def test_moved_tasks_run_in_the_new_queue(world: World) -> None:
    world.run(scripts.add([new_task("a"), new_task("b"), new_task("later", delay_s=100)]))

    moved = operate(world, "move", queue="other", type="work")

    assert moved.changed == 3
    assert world.try_claim("default") is None
    assert [world.claim("other", attempt_id=n).id for n in "12"] == ["a", "b"]
    assert world.redis.zrange("rq:scheduled:other", 0, -1) == [b"later"]
    assert world.get("later").queue == "other"


@pytest.mark.parametrize("action", ["cancel", "move"])
def test_tasks_are_taken_out_of_the_middle_of_a_long_queue(world: World, action: str) -> None:
    more: dict[str, Any] = {"queue": "other"} if action == "move" else {}
    names = [f"t{n:04}" for n in range(2000)]
    chosen = [name for n, name in enumerate(names) if n % 37 == 0 or 900 <= n < 1000]
    for at in range(0, 2000, 500):
        world.run(scripts.add([new_task(n, tags=["red"] if n in chosen else []) for n in names[at : at + 500]]))
    world.redis.delete("rq:job:t0037")
    world.redis.rpush("rq:job:t0037", "not a record")

    ended = operate(world, action, tag="red", **more)

    assert ended.changed == len(chosen) - 1
    left = [name.decode() for name in world.redis.lrange("rq:queue:default", 0, -1)]
    assert left == [name for name in names if name not in chosen or name == "t0037"]
    if action == "move":
        moved = [name.decode() for name in world.redis.lrange("rq:queue:other", 0, -1)]
        assert moved == [name for name in chosen if name != "t0037"]


@pytest.mark.parametrize("action", ["cancel", "move"])
def test_a_long_queue_is_not_searched_for_each_task(world: World, action: str) -> None:
    more: dict[str, Any] = {"queue": "other"} if action == "move" else {}
    ids = [new_id() for _ in range(3000)]
    for at in range(0, 3000, 500):
        world.run(scripts.add([new_task(id, tags=["red"] if n % 3 else []) for n, id in enumerate(ids[at : at + 500])]))
    world.redis.config_resetstat()

    ended = operate(world, action, tag="red", **more)

    stats = world.redis.info("commandstats")
    assert ended.changed == ended.matched == 1998
    # A call takes about 2.5 ms: how many those are depends on the machine.
    assert stats["cmdstat_lrem"]["calls"] <= ended.changed / 2
    assert stats["cmdstat_lpos"]["calls"] <= 20


@pytest.mark.parametrize("action", ["cancel", "move"])
def test_a_damaged_record_keeps_the_others_from_nothing(world: World, action: str) -> None:
    world.run(scripts.add([new_task(name) for name in "abc"]))
    work = Work("m")
    call = bulk_scripts.cancel_many("cba", work) if action == "cancel" else bulk_scripts.move_many("cba", "other", work)
    world.redis.delete("rq:job:b")
    world.redis.set("rq:job:b", "no hash")

    done = world.run(call)

    assert done.words == ["ok", "unreadable", "ok"]
    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"b"]


def test_a_scheduled_task_that_runs_now_is_claimed(world: World) -> None:
    world.run(scripts.add([new_task("later", delay_s=100)]))

    operate(world, "run_now", type="work")

    assert world.claim().id == "later"
    assert world.redis.zcard("rq:scheduled:default") == 0


def test_tasks_that_failed_for_good_are_left_out_unless_asked_for(world: World) -> None:
    world.end("plain", S.FAILED)
    failure = {"reason": "non_retryable", "message": "no"}
    world.run(scripts.finish(world.start("final", attempt_id="2"), S.FAILED, error="no", failure=failure))

    seen = preview(world, "retry", status=S.FAILED)
    first = operate(world, "retry", status=S.FAILED)
    second = operate(world, "retry", status=S.FAILED, include_nonretryable=True)

    assert (seen.count, dict(seen.left_out)) == (1, {"nonretryable": 1})
    assert (first.changed, dict(first.skipped)) == (1, {"nonretryable": 1})
    assert second.changed == 1
    assert statuses(world) == {"final": "queued", "plain": "queued"}


# --- what may be asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        (spec("explode", type="work"), "/action"),
        (spec("retry"), "/filter"),
        (spec("retry", since="soon"), "/filter/since"),
        (spec("move", type="work"), "/queue"),
        (spec("move", type="work", queue="a b"), "/queue"),
        (spec("retry", type="work", queue="other"), "/queue"),
        (spec("cancel", type="work", include_nonretryable=True), "/include_nonretryable"),
    ],
)
def test_what_is_no_operation_is_refused_and_nothing_is_stored(
    world: World, wanted: OperationSpec, pointer: str
) -> None:
    before = world.snapshot()

    for plan in (bulk.start_operation, bulk.preview_operation):
        with pytest.raises(InvalidOperation) as caught:
            world.store.carry_out(plan(wanted))
        assert [fault.pointer for fault in caught.value.errors] == [pointer]
    assert world.since(before) == {}


def actor(**of: Any) -> Actor:
    return Actor(
        "k", "a key", of.get("project"), "here", of.get("types"), of.get("queues"), of.get("scopes", list(Scope))
    )


@pytest.mark.parametrize(
    ("action", "scope"),
    [("retry", Scope.WRITE), ("run_now", Scope.WRITE), ("cancel", Scope.STOP), ("stop", Scope.STOP)],
)
def test_a_key_needs_the_scope_of_the_single_change(world: World, action: str, scope: Scope) -> None:
    lacking = [each for each in (Scope.READ, Scope.WRITE, Scope.STOP) if each is not scope]
    with pytest.raises(NotAllowed):
        start(world, action, actor(scopes=lacking), type="work")
    start(world, action, actor(scopes=[scope]), type="work")


def test_a_key_changes_only_the_types_queues_and_projects_that_are_its(world: World) -> None:
    world.run(scripts.add([new_task("mine"), new_task("play", type="play"), new_task("there", queue="other")]))
    by = actor(types=["work"], queues=["default"])

    seen = preview(world, "cancel", by, since="1h")
    ended = operate(world, "cancel", by, since="1h")

    assert (seen.count, dict(seen.left_out)) == (1, {"not_allowed": 2})
    assert (ended.changed, dict(ended.skipped)) == (1, {"not_allowed": 2})
    with pytest.raises(NotAllowed):
        start(world, "move", by, queue="other", type="work")
    assert operate(world, "cancel", actor(project="shop"), since="1h").matched == 0


def test_an_operation_of_another_project_does_not_exist(world: World) -> None:
    id = start(world, "retry", actor(project="shop"), type="work").id

    with pytest.raises(OperationNotFound):
        world.store.carry_out(bulk.get_operation(id, actor(project="bank")))
    with pytest.raises(OperationNotFound):
        world.store.carry_out(bulk.cancel_operation(id, actor(project="bank")))
    assert world.store.carry_out(bulk.get_operation(id, actor(project="shop"))).project == "shop"
    listed = [world.store.carry_out(bulk.list_operations(project=each)).items for each in ("shop", "bank", None)]
    assert [[each.id for each in page] for page in listed] == [[id], [], [id]]


@pytest.mark.parametrize("action", ["cancel", "remove"])
@pytest.mark.parametrize(
    ("starter", "caller", "may"),
    [
        ({}, {}, True),
        ({"types": ["work"]}, {}, True),
        ({"types": ["work"]}, {"types": ["work", "play"]}, True),
        ({"types": ["work"], "queues": ["default"]}, {"types": ["work"]}, True),
        ({}, {"types": ["work"]}, False),
        ({}, {"queues": ["default"]}, False),
        ({"types": ["work", "play"]}, {"types": ["work"]}, False),
        ({"types": ["work"]}, {"types": ["work"], "queues": ["default"]}, False),
    ],
)
def test_a_key_undoes_and_cancels_only_what_it_may_change_itself(
    world: World, action: str, starter: dict[str, Any], caller: dict[str, Any], may: bool
) -> None:
    world.add("a")
    world.end("b")
    ended = operate(world, action, actor(**starter), since="1h")
    running = start(world, action, actor(**starter), tag="x")
    refusal = nullcontext() if may else pytest.raises(NotAllowed)

    with refusal:
        world.store.carry_out(bulk.cancel_operation(running.id, actor(**caller)))
    with refusal:
        world.store.carry_out(bulk.undo_operation(ended.id, actor(**caller)))


def test_undoing_a_cancelation_starts_tasks(world: World) -> None:
    world.add("a")
    canceled = operate(world, "cancel", type="work")
    stopper, writer = actor(scopes=[Scope.READ, Scope.STOP]), actor(scopes=[Scope.READ, Scope.WRITE])

    with pytest.raises(NotAllowed, match="tasks:write, which undoing cancel needs"):
        world.store.carry_out(bulk.undo_operation(canceled.id, stopper))
    undoing = world.store.carry_out(bulk.undo_operation(canceled.id, writer))
    with pytest.raises(NotAllowed, match="tasks:write, which canceling undo needs"):
        world.store.carry_out(bulk.cancel_operation(undoing.id, stopper))

    assert go_on(world, undoing.id).changed == 1


# --- the audit -----------------------------------------------------------------------------------------------


def audit(world: World, about: str) -> list[tuple[str, str, int, str | None]]:
    """The entries about an operation or a task, the oldest first."""
    entries = [each.entry for each in reversed(world.store.carry_out(read_audit(AuditFilter(about=about))).items)]
    assert {(entry.key, entry.name, entry.address) for entry in entries} <= {("k", "a key", "here")}
    return [(entry.what, entry.about, entry.count, entry.comment) for entry in entries]


def test_the_audit_tells_of_an_operation_from_its_start_to_its_undo(world: World) -> None:
    world.run(scripts.add([new_task("a"), new_task("b"), new_task("c", type="play")]))
    by = actor()

    canceled = operate(world, "cancel", by, type="work")
    restores = world.store.carry_out(bulk.undo_operation(canceled.id, by))
    go_on(world, restores.id)
    moving = start(world, "move", by, type="play", queue="other")
    world.store.carry_out(bulk.cancel_operation(moving.id, by))

    begun = ("operation.started", canceled.id, 0, 'cancel {"type":"work"}')
    ended = ("operation.ended", canceled.id, 2, 'done: cancel {"type":"work"}')
    undone = ("operation.undone", canceled.id, 2, f"by the operation {restores.id}")
    restored = ("operation.ended", restores.id, 2, f"done: undo the operation {canceled.id}")
    assert audit(world, canceled.id) == [begun, ended, undone]
    assert audit(world, restores.id) == [restored]
    assert audit(world, moving.id) == [
        ("operation.started", moving.id, 0, 'move {"type":"play"} to other'),
        ("operation.canceled", moving.id, 0, 'move {"type":"play"} to other'),
    ]
    assert world.get("a").operations == (canceled.id, restores.id)
    assert audit(world, "a") == audit(world, "b") == [begun, ended, undone, restored]
    assert audit(world, "c") == []


def test_the_audit_tells_who_removed_a_task_as_long_as_that_can_be_undone(world: World) -> None:
    world.end("a")

    removed = operate(world, "remove", actor(), type="work")

    assert [(what, about) for what, about, *_ in audit(world, "a")] == [
        ("operation.started", removed.id),
        ("operation.ended", removed.id),
    ]


def test_a_record_names_the_last_operations(world: World) -> None:
    world.add("a", delay_s=100)
    ids = [operate(world, "move", type="work", queue=f"q{n}").id for n in range(keys.OPERATIONS_NOTED + 2)]

    assert world.get("a").operations == tuple(ids[2:])


def test_an_operation_that_a_program_starts_has_no_entries(world: World) -> None:
    world.add("a")
    operate(world, "cancel", type="work")

    assert world.redis.exists(keys.AUDIT, keys.AUDIT_TASKS, keys.AUDIT_SUBMITTED) == 0


# --- undo ----------------------------------------------------------------------------------------------------


def seed_everything(world: World) -> None:
    """Tasks that wait in all ways, and ended ones with all that may go with a record."""
    world.run(scripts.add([new_task("queued"), new_task("later", delay_s=500, tags=["red"]), new_task("parent")]))
    world.run(scripts.add([new_task("child", depends_on=["parent"]), new_task("grandchild", depends_on=["child"])]))
    world.run(scripts.add([new_task("asks", confirm="Really?")]))
    world.run(scripts.add([new_task("expires", expires_in_s=500)]))
    world.run(scripts.retry(world.start("again", max_attempts=3), delay_ms=60_000, error="no luck", failure={}))


def test_canceled_tasks_wait_again_as_before(world: World) -> None:
    seed_everything(world)
    before, records = statuses(world), {id: world.get(id) for id in statuses(world)}

    canceled = operate(world, "cancel", since="1h")
    assert set(statuses(world).values()) == {"canceled"}
    restored = undo(world, canceled.id)

    assert (restored.status, restored.undoes, restored.changed) == (DONE, canceled.id, len(before)), restored
    assert statuses(world) == before
    for id, record in records.items():
        now = world.get(id)
        assert (now.run_at, now.expires_at, now.attempt, now.max_attempts) == (
            record.run_at, record.expires_at, record.attempt, record.max_attempts,
        ), id  # fmt: skip
    assert world.redis.zcard("taskpool:expiring") == 1
    assert world.claim("default").id in {"queued", "parent", "expires"}


def test_removed_records_come_back_with_all_that_is_theirs(world: World) -> None:
    world.end("done", tags=["red"])
    world.end("failed", S.FAILED)
    world.redis.xadd("taskpool:log:done", {"l": "{}"})
    world.redis.set("taskpool:checkpoint:failed", "{}")
    before, records = world.snapshot(), [world.get(id) for id in ("done", "failed")]

    removed = operate(world, "remove", type="work")
    assert statuses(world) == {}
    assert world.redis.exists("taskpool:log:done", "taskpool:checkpoint:failed", "taskpool:tag:red") == 0
    restored = undo(world, removed.id)

    assert (removed.changed, restored.changed) == (2, 2)
    assert [replace(world.get(id), operations=()) for id in ("done", "failed")] == records
    changed = {key: value for key, value in world.since(before).items() if not key.startswith("taskpool:operation")}
    assert set(changed) == {f"rq:job:{id} {field}" for id in ("done", "failed") for field in ("by_call", "operations")}
    assert world.get("done").operations == (removed.id, restored.id)


def test_what_can_not_be_undone_is_refused(world: World) -> None:
    world.end("a", S.FAILED)
    world.end("b", S.FAILED)
    running = start(world, "remove", type="work").id
    with pytest.raises(OperationConflict, match="hasn't ended"):
        undo(world, running)
    removed = go_on(world, running).id
    retried = operate(world, "retry", type="work").id

    with pytest.raises(OperationConflict, match="only cancel and remove"):
        undo(world, retried)
    with pytest.raises(OperationNotFound):
        undo(world, "nothing")
    undo(world, removed)
    with pytest.raises(OperationConflict, match="undone before"):
        undo(world, removed)
    world.redis.hdel(f"taskpool:operation:{removed}", "undone_by")
    world.redis.hset(f"taskpool:operation:{removed}", "undo_ms", 1)
    with pytest.raises(OperationConflict, match="no longer kept"):
        undo(world, removed)


def test_an_undo_skips_what_was_changed_since(world: World) -> None:
    world.run(scripts.add([new_task("a"), new_task("b")]))
    canceled = operate(world, "cancel", type="work")
    world.run(scripts.revive("a"))

    restored = undo(world, canceled.id)

    assert (restored.changed, dict(restored.skipped)) == (1, {"queued": 1})
    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a", b"b"]


# --- crashes, and others -------------------------------------------------------------------------------------


class Dies(Exception):
    """The program dies here."""


def die_after(world: World, id: str, calls: int) -> bool:
    """Go on with an operation until so many round trips were made, and die before the reply of the last one arrives;
    whether that came before the end."""
    plan = drive(id, "dying", 10)
    try:
        wanted = next(plan)
        for _ in range(calls):
            found = world.store.run_many(wanted) if wanted else []
            wanted = plan.send(found)
        world.store.run_many(wanted)
    except StopIteration:
        return False
    plan.close()
    return True


def end_lease(world: World, id: str) -> None:
    """Let the lease of the program that goes on with an operation end."""
    world.redis.hset(f"taskpool:operation:{id}", "driver_ms", 1)


ACTED_ON: dict[str, Callable[[World, str], Any]] = {
    "retry": lambda world, id: world.end(id, S.FAILED),
    "cancel": lambda world, id: world.add(id),
    "remove": lambda world, id: world.end(id),
    "move": lambda world, id: world.add(id),
    "run_now": lambda world, id: world.add(id, delay_s=100),
    "stop": lambda world, id: world.start(id, attempt_id=id),
}
"""By action: how to add a task that it changes."""


@pytest.mark.parametrize("action", ACTED_ON)
def test_an_operation_whose_program_dies_goes_on_and_counts_each_task_once(world: World, action: str) -> None:
    seed = ACTED_ON[action]
    more: dict[str, Any] = {"queue": "other"} if action == "move" else {}
    calls, is_killed = 0, True
    while is_killed:
        names = [f"{action}-{calls}-{n:02}" for n in range(30)]
        for name in names:
            seed(world, name)
        id = start(world, action, type="work", since="1h", **more).id

        is_killed = die_after(world, id, calls)
        end_lease(world, id)
        for name in names if action == "stop" else ():  # workers stop what they are asked to
            if world.get(name).status is S.STOPPING:
                world.finish(world.running[name], S.STOPPED)
        while world.store.carry_out(look_after_operations("pool", 10)):
            pass
        ended = world.store.carry_out(bulk.get_operation(id))

        assert (ended.status, ended.matched, ended.changed, dict(ended.skipped)) == (DONE, 30, 30, {}), calls
        world.redis.flushdb()
        calls += 1
    assert calls > 5


@pytest.mark.parametrize("action", ACTED_ON)
def test_a_program_that_wakes_up_after_another_took_over_changes_nothing(world: World, action: str) -> None:
    more: dict[str, Any] = {"queue": "other"} if action == "move" else {}
    names = [f"t{n:02}" for n in range(30)]
    slept = 0
    while True:
        for name in names:
            ACTED_ON[action](world, name)
        id = start(world, action, type="work", since="1h", **more).id
        plan = drive(id, "sleeper", 10)
        try:
            wanted = next(plan)
            for _ in range(slept):
                wanted = plan.send(world.store.run_many(wanted) if wanted else [])
        except StopIteration:
            break
        end_lease(world, id)
        go_on(world, id, "another")
        world.redis.delete(*[key for key in world.redis.keys("*") if not key.startswith(b"taskpool:operation")])
        for name in names:  # the sleeper could change them again
            ACTED_ON[action](world, name)
        before = world.snapshot()

        with suppress(StopIteration):
            while True:
                wanted = plan.send(world.store.run_many(wanted) if wanted else [])

        assert world.since(before) == {}, slept
        world.redis.flushdb()
        slept += 1
    assert slept > 5


def test_what_a_person_does_with_a_task_meanwhile_is_not_done_over(world: World) -> None:
    """The operation changes a task once, also if that could be changed again when its program has died."""
    world.end("a", S.FAILED)
    id = start(world, "retry", type="work").id
    plan = drive(id, "dying", 10)
    wanted = next(plan)
    while world.get("a").status is S.FAILED:
        wanted = plan.send(world.store.run_many(wanted))
    for attempt_id in "23":
        world.finish(world.claim(attempt_id=attempt_id), S.FAILED)
        if attempt_id == "2":
            world.run(scripts.revive("a"))
    end_lease(world, id)

    ended = go_on(world, id)

    assert (ended.changed, dict(ended.skipped)) == (1, {})
    assert (world.get("a").status, world.get("a").attempt) == (S.FAILED, 3)


def test_a_task_that_begins_just_when_it_is_to_be_canceled_is_stopped(world: World) -> None:
    world.add("a")
    id = start(world, "stop", type="work").id
    plan = drive(id, "me", 10)
    wanted = next(plan)
    with suppress(StopIteration):
        while True:
            if any(keys.NOT_STARTED in call.command for call in wanted):
                world.try_claim()
            wanted = plan.send(world.store.run_many(wanted) if wanted else [])

    ended = world.store.carry_out(bulk.get_operation(id))
    assert (ended.changed, dict(ended.skipped)) == (1, {})
    assert world.get("a").status is S.STOPPING


def test_while_one_program_has_an_operation_another_leaves_it(world: World) -> None:
    world.end("a", S.FAILED)
    id = start(world, "retry", type="work").id
    assert world.store.carry_out(drive(id, "one", 0))

    assert not world.store.carry_out(drive(id, "two", 10))

    assert statuses(world) == {"a": "failed"}
    assert go_on(world, id, "one").changed == 1


def test_a_canceled_operation_changes_nothing_more(world: World) -> None:
    for n in range(60):
        world.end(f"t{n:02}", S.FAILED)
    id = start(world, "remove", type="work").id
    die_after(world, id, 8)

    canceled = world.store.carry_out(bulk.cancel_operation(id, actor()))
    left = len(statuses(world))
    after = go_on(world, id, "dying")

    assert (canceled.status, after.status) == (OperationStatus.CANCELED, OperationStatus.CANCELED)
    assert 0 < left < 60
    assert len(statuses(world)) == left
    assert after.changed == canceled.changed == 60 - left
    assert undo(world, id).changed == 60 - left
    with pytest.raises(OperationConflict, match="has ended already"):
        world.store.carry_out(bulk.cancel_operation(operate(world, "retry", type="work").id))
    assert world.store.carry_out(bulk.cancel_operation(id)).status is OperationStatus.CANCELED


def test_a_preview_that_does_not_look_at_all_estimates(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST_PREVIEWED", 100)
    world.run(scripts.add([new_task(f"t{n:03}") for n in range(300)]))

    seen = preview(world, "cancel", type="work")

    assert (seen.count, seen.is_exact, len(seen.sample)) == (300, False, 5)
    assert statuses(world).keys() >= {record.id for record in seen.sample}


def test_an_operation_that_another_program_damaged_fails(world: World) -> None:
    id = start(world, "retry", type="work").id
    world.redis.hset(f"taskpool:operation:{id}", "filter", "[")

    ended = go_on(world, id)

    assert (ended.status, ended.error is not None) == (OperationStatus.FAILED, True)
    assert world.redis.scard("taskpool:operations:running") == 0


def test_what_is_damaged_ends_an_operation_and_keeps_no_other_back(world: World) -> None:
    world.add("parent")
    world.add("child", depends_on=["parent"])
    world.end("ended", type="play")
    world.redis.delete("rq:job:child")
    world.redis.set("rq:job:child", "another program's")
    canceled, lost = start(world, "cancel", type="work").id, start(world, "cancel", type="work").id
    unlisted, last = start(world, "remove", type="play").id, start(world, "cancel", type="work").id
    world.redis.set(f"taskpool:operation:{unlisted}:tasks", "another program's")
    world.redis.delete(f"taskpool:operation:{lost}")
    world.redis.set(f"taskpool:operation:{lost}", "another program's")

    while world.store.carry_out(look_after_operations("me", 10)):
        pass

    read = [world.store.carry_out(bulk.get_operation(id)) for id in (canceled, unlisted, last)]
    assert [each.status for each in read] == [DONE, OperationStatus.FAILED, DONE]
    assert world.get("parent").status is S.CANCELED
    assert world.redis.scard("taskpool:operations:running") == 0


def test_an_operation_misses_no_task_while_another_one_takes_tasks_out_of_the_queue(world: World) -> None:
    world.run(scripts.add([new_task(f"{n:04}", tags=["even"] if n % 2 else []) for n in range(900)]))
    walk = world.store.carry_out(walk_of(Filter(status=S.QUEUED, queue="default")))
    finder = bulk.Finder(walk, bulk.Chosen("cancel", None, include_nonretryable=False))
    found = list[str]()
    waiting = [f"{n:04}" for n in range(899, -1, -2)]

    while not finder.is_over:
        found += world.store.carry_out(finder.step()).ids
        world.run(bulk_scripts.cancel_many([waiting.pop(0) for _ in range(min(40, len(waiting)))], Work("mark")))

    assert len(found) == len(set(found))
    assert {*found} >= {f"{n:04}" for n in range(0, 900, 2)}


@pytest.mark.parametrize("action", ["retry", "stop", "cancel", "remove", "move", "run_now"])
@pytest.mark.parametrize("damage", [{}, {"status": "no such\nstatus"}, {"origin": "elsewhere"}, {"origin": None}])
def test_jobs_of_other_programs_are_counted_once_and_harm_nothing(
    world: World, action: str, damage: dict[str, Any]
) -> None:
    registries = ("queue", "failed", "scheduled", "finished", "canceled", "deferred")
    for registry, start_of_id in product(registries, ("plain", "with blank ", "a:b:", 'quo"te', "line\n", "é")):
        id = start_of_id + registry
        fields: dict[str, Any] = {"status": "queued" if registry == "queue" else registry}
        fields |= {"created_at": "2026-11-24T00:00:00Z", "data": b"\x80\x04pickle", "origin": "default"}
        fields |= damage
        world.redis.hset(f"rq:job:{id}", mapping={name: each for name, each in fields.items() if each is not None})
        if registry == "queue":
            world.redis.rpush("rq:queue:default", id)
        else:
            world.redis.zadd(f"rq:{registry}:default", {id: 2_000_000_000})
    world.add("mine")
    target: dict[str, Any] = {"queue": "other"} if action == "move" else {}

    for status in (S.QUEUED, S.FAILED, S.SCHEDULED, S.DONE, S.CANCELED, S.WAITING):
        ended = operate(world, action, status=status, **target)

        assert (ended.status, ended.changed + sum(ended.skipped.values())) == (DONE, ended.matched)
        if action in ("cancel", "remove"):
            assert undo(world, ended.id).status is DONE
    for queue in ("default", "other"):
        held = world.redis.lrange(f"rq:queue:{queue}", 0, -1)
        assert len(held) == len(set(held))
        assert b"taskpool:nothing" not in held
