"""Unique keys: who holds one in every status, what a second task with it becomes, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rq.job import Job
from rq.registry import CanceledJobRegistry, FailedJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from taskpool.redis import scripts
from taskpool.redis.calls import Call
from taskpool.redis.scripts import Added
from taskpool.types import TaskStatus
from tests.states import ENDED, FAILURE, SEED, WAITS, World, new_task, race

S = TaskStatus


def seed(world: World, status: TaskStatus, **options: Any) -> None:
    """A task "a" in this status that has, or had, the key "k"."""
    how: dict[str, Any] = {"unique_key": "k", **options}
    match status:
        case S.QUEUED:
            world.add("a", **how)
        case S.SCHEDULED:
            world.add("a", delay_s=500, **how)
        case S.WAITING:
            world.add("parent", queue="parents")
            world.add("a", depends_on=["parent"], **how)
        case S.WAITING_CONFIRMATION:
            world.add("a", confirm=True, **how)
        case S.IN_PROGRESS:
            world.start("a", **how)
        case S.STOPPING:
            world.start("a", **how)
            world.run(scripts.stop("a", grace_s=5, force=False))
        case S.CANCELED:
            world.add("a", **how)
            world.cancel("a")
        case _:
            world.end("a", status, **how)


HOLDS = {
    "done": {*WAITS, S.IN_PROGRESS, S.STOPPING},
    "start": {*WAITS},
    "time": set(SEED) - {S.CANCELED},
}
SCOPES: dict[str, dict[str, Any]] = {"done": {}, "start": {"unique_until": "start"}, "time": {"unique_for_s": 500}}


def replacing(id: str, type: str, queue: str, allowed: str = "") -> Call[Added]:
    """A task that takes the place of the one that has the key "k", if that is of the `allowed` types and queues."""
    task = new_task(id, type=type, queue=queue, unique_key="k", on_conflict="replace")
    assert task.unique is not None
    return scripts.add([msgspec.structs.replace(task, unique=task.unique._replace(replaceable=allowed.encode()))])


@pytest.mark.parametrize(
    ("allowed", "may"),
    [
        ('{"types":{"work":1}}', True),
        ('{"queues":{"a":1,"b":1}}', True),
        ('{"types":{"work":1},"queues":{"a":1}}', True),
        ('{"types":{"other":1}}', False),
        ('{"queues":{"b":1}}', False),
        ('{"types":{"work":1},"queues":{"b":1}}', False),
        ('{"types":{}}', False),
    ],
)
def test_a_task_is_replaced_only_by_a_caller_who_may_use_its_type_and_queue(
    world: World, allowed: str, may: bool
) -> None:
    world.add("a", queue="a", unique_key="k")
    before = world.snapshot()

    added = world.run(replacing("b", "other", "b", allowed))

    assert (added.unreplaceable, world.get("a").status) == ((None, "canceled") if may else (0, "queued"))
    assert may or world.since(before) == {}


def test_the_right_to_replace_is_checked_when_the_task_is_stored(world: World) -> None:
    rounds = 100
    world.add("first", type="mine", unique_key="k")

    answers = race(
        world.url,
        rounds,
        lambda n: replacing(f"m{n}", "mine", "default", '{"types":{"mine":1}}'),
        lambda n: replacing(f"t{n}", "theirs" if n % 2 else "mine", "default"),
    )

    theirs = [world.get(f"t{n}") for n in range(1, rounds, 2)]
    assert [task.id for task in theirs if "the task m" in (task.error or "")] == []
    assert {theirs.unreplaceable for _, theirs in answers} == {None}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("status", SEED)
def test_a_key_is_held_as_long_as_its_scope_says(world: World, scope: str, status: TaskStatus) -> None:
    seed(world, status, **SCOPES[scope])
    before = world.snapshot()

    added = world.add("b", unique_key="k")

    if status in HOLDS[scope]:
        assert added.conflict is not None
        assert added.conflict[:2] == (0, "a")
        assert world.since(before) == {}
    else:
        assert added.statuses == ("queued",)
        assert world.snapshot()["taskpool:unique k"] == "b"


def test_a_key_held_for_a_time_is_free_after_it(world: World) -> None:
    seed(world, S.DONE, unique_for_s=500)
    world.redis.hset("taskpool:unique", "k", "a 1")

    assert world.add("b", unique_key="k").statuses == ("queued",)


def test_a_key_whose_task_was_deleted_elsewhere_is_free(world: World) -> None:
    seed(world, S.QUEUED)
    world.redis.delete("rq:job:a")

    assert world.add("b", unique_key="k").statuses == ("queued",)


def test_the_holder_is_the_answer_and_nothing_is_stored(world: World) -> None:
    seed(world, S.IN_PROGRESS)
    before = world.snapshot()

    added = world.add("b", unique_key="k", on_conflict="return")

    assert (added.statuses, added.existing) == (("started",), {0: "a"})
    assert world.since(before) == {}


@pytest.mark.parametrize("status", [S.QUEUED, S.SCHEDULED, S.WAITING])
def test_a_holder_that_waits_is_canceled_for_the_one_that_replaces_it(world: World, status: TaskStatus) -> None:
    seed(world, status, expires_in_s=900)

    added = world.add("b", unique_key="k", on_conflict="replace", delay_s=500)

    record, after = world.get("a"), world.snapshot()
    assert added.statuses == ("scheduled",)
    assert (record.status, record.reason) == (S.CANCELED, "replaced")
    assert record.error == "canceled: the task b with the same unique key replaced it"
    assert after["taskpool:unique k"] == "b"
    assert after["rq:canceled:default a"] == "now+2000 s"
    assert [
        name for name in after if name in ("rq:queue:default", "rq:scheduled:default a", "rq:deferred:default a")
    ] == []
    assert "taskpool:expiring a" not in after
    assert world.events("a")[-1] == (record.seq, "canceled", "canceled")


@pytest.mark.parametrize("status", [S.IN_PROGRESS, S.STOPPING])
def test_a_holder_that_runs_is_not_replaced(world: World, status: TaskStatus) -> None:
    seed(world, status)
    before = world.snapshot()

    added = world.add("b", unique_key="k", on_conflict="replace")

    assert added.conflict == (0, "a", "started")
    assert world.since(before) == {}


def test_what_waits_for_a_replaced_task_is_released(world: World) -> None:
    seed(world, S.QUEUED)
    world.add("child", depends_on=["a"])

    world.add("b", unique_key="k", on_conflict="replace")
    world.run(scripts.release("a"))

    assert world.get("child").status is S.CANCELED


def test_a_batch_is_stored_whole_or_not_at_all(world: World) -> None:
    seed(world, S.QUEUED)
    before = world.snapshot()

    added = world.run(scripts.add([new_task("b"), new_task("c", unique_key="k"), new_task("d", unique_key="l")]))

    assert added.conflict == (1, "a", "queued")
    assert world.since(before) == {}


def test_a_batch_may_have_tasks_that_were_there(world: World) -> None:
    seed(world, S.QUEUED)
    call = scripts.add([new_task("b"), new_task("c", unique_key="k", on_conflict="return"), new_task("d")])

    first, before = world.run(call), world.snapshot()
    second = world.run(call)

    assert first.statuses == ("queued", "queued", "queued")
    assert first.existing == {1: "a"}
    assert (second.statuses, second.existing) == (first.statuses, first.existing)
    assert world.since(before) == {}
    assert before["rq:queue:default"] == ["a", "b", "d"]


@pytest.mark.parametrize("on_conflict", ["reject", "return", "replace"])
def test_a_task_that_is_sent_twice_doesnt_meet_itself(world: World, on_conflict: str) -> None:
    seed(world, S.QUEUED, unique_until="start")
    call = scripts.add([new_task("b", unique_key="l", on_conflict=on_conflict, delay_s=500)])

    first, before = world.run(call), world.snapshot()

    assert world.run(call) == first
    assert world.since(before) == {}


def test_the_key_of_a_task_that_has_begun_stays_free_when_it_runs_again(world: World) -> None:
    running = world.start("a", unique_key="k", unique_until="start", max_attempts=3)

    world.run(scripts.retry(running, delay_ms=500_000, error="no luck", failure=FAILURE))

    assert world.add("b", unique_key="k").statuses == ("queued",)


def test_a_task_that_runs_again_holds_its_key_all_the_while(world: World) -> None:
    running = world.start("a", unique_key="k", max_attempts=3)

    world.run(scripts.retry(running, delay_ms=500_000, error="no luck", failure=FAILURE))

    assert world.add("b", unique_key="k").conflict == (0, "a", "scheduled")


@pytest.mark.parametrize("status", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_retry_by_hand_takes_the_key_again(world: World, status: TaskStatus) -> None:
    seed(world, status)
    world.redis.delete("taskpool:unique")

    assert world.run(scripts.revive("a")) == "ok"

    assert world.add("b", unique_key="k").conflict == (0, "a", "queued")


def test_a_retry_by_hand_is_refused_while_another_holds_the_key(world: World) -> None:
    seed(world, S.FAILED)
    world.add("b", unique_key="k")
    before = world.snapshot()

    assert world.run(scripts.revive("a")) == "unique b"
    assert world.since(before) == {}


@pytest.mark.parametrize("status", ENDED)
def test_a_purged_task_leaves_no_key(world: World, status: TaskStatus) -> None:
    seed(world, status)

    world.run(scripts.purge("a"))

    assert not world.redis.exists("taskpool:unique")


def test_a_purge_leaves_the_key_of_another(world: World) -> None:
    seed(world, S.DONE)
    world.add("b", unique_key="k")

    world.run(scripts.purge("a"))

    assert world.add("c", unique_key="k").conflict == (0, "b", "queued")


def test_the_sweep_drops_keys_that_no_task_holds_and_nothing_else(world: World) -> None:
    seed(world, S.DONE)
    world.add("held", unique_key="held")
    world.add("deleted", unique_key="deleted")
    world.redis.delete("rq:job:deleted")

    assert world.run(scripts.sweep_unique("0", 100)) == "0"

    assert world.redis.hgetall("taskpool:unique") == {b"held": b"held"}


def test_the_sweep_goes_round_in_steps(world: World) -> None:
    entries = {f"k{n}": f"gone{n}" for n in range(2000)}
    world.redis.hset("taskpool:unique", mapping=entries)
    cursor = world.run(scripts.sweep_unique("0", 100))

    assert cursor != "0"
    while cursor != "0":
        cursor = world.run(scripts.sweep_unique(cursor, 100))

    assert not world.redis.exists("taskpool:unique")


def test_of_many_that_come_at_once_one_is_stored(world: World) -> None:
    def move(who: int) -> Callable[[int], Call[Added]]:
        return lambda number: scripts.add([new_task(f"{who}-{number}", unique_key=f"k{number}")])

    for answers in race(world.url, 30, *[move(who) for who in range(4)]):
        assert sorted(answer.conflict is None for answer in answers) == [False, False, False, True]


def test_a_record_shows_its_key(world: World) -> None:
    world.add("a", unique_key="k")
    world.add("b", unique_key="l", unique_until="start")
    world.add("c", unique_key="m", unique_for_s=1.5)

    shown = [(r.unique_key, r.unique_until, r.unique_for_s) for r in map(world.get, "abc")]

    assert shown == [("k", "done", None), ("l", "start", None), ("m", None, 1.5)]


def test_the_record_of_the_task_that_holds_a_key_stays_for_that_time(world: World) -> None:
    world.add("a", unique_key="k", unique_for_s=5000.5, result_ttl_s=1)

    record = world.get("a")

    assert (record.result_ttl_s, record.failure_ttl_s) == (5001, 5001)


# --- tasks that RQ's own tools queue again ---------------------------------------------------------------------


def requeue(world: World, status: TaskStatus) -> None:
    """What `rq requeue` and the buttons of dashboards do; RQ has a registry for canceled jobs, too."""
    job = Job.fetch("a", connection=world.redis, serializer=JSONSerializer)
    registry = CanceledJobRegistry if status is S.CANCELED else FailedJobRegistry
    registry("default", connection=world.redis, serializer=JSONSerializer).requeue(job)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("status", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_task_that_rq_requeues_is_canceled_when_another_one_has_taken_its_key(
    world: World, scope: str, status: TaskStatus
) -> None:
    seed(world, status, **SCOPES[scope])
    world.redis.delete("taskpool:unique")  # a key for a time: let it be over
    world.add("b", unique_key="k", queue="other")
    requeue(world, status)

    assert world.try_claim(attempt_id="2") is None

    record = world.get("a")
    assert (record.status, record.reason) == (S.CANCELED, "unique_key_held")
    assert record.error == "canceled: the task b took its unique key before it was queued again"
    assert world.events("a")[-1][1:] == ("canceled", "canceled")
    assert world.snapshot()["taskpool:unique k"] == "b"
    assert world.redis.zscore("rq:canceled:default", "a") is not None
    assert not world.redis.exists("rq:queue:default")


@pytest.mark.parametrize("status", [S.FAILED, S.STOPPED, S.CANCELED])
def test_a_task_that_rq_requeues_takes_its_key_again_when_it_is_free(world: World, status: TaskStatus) -> None:
    seed(world, status)
    world.add("b", unique_key="k", queue="other")
    requeue(world, status)
    world.finish(world.claim("other", attempt_id="b"))

    running = world.claim(attempt_id="2")

    assert running.id == "a"
    assert world.snapshot()["taskpool:unique k"] == "a"
    record = world.get("a")
    assert (record.status, record.reason, record.error, record.ended_at) == (S.IN_PROGRESS, None, None, None)
    assert world.add("c", unique_key="k").conflict is not None


@pytest.mark.parametrize("how", [{"unique_until": "start"}, {"unique_for_s": 500}])
def test_the_next_attempt_of_a_task_runs_although_another_one_has_its_key_by_then(
    world: World, how: dict[str, Any]
) -> None:
    running = world.start("a", unique_key="k", max_attempts=2, **how)
    if "unique_for_s" in how:
        world.redis.hset("taskpool:unique", "k", "a 1")
    assert world.add("b", unique_key="k", queue="other").statuses == ("queued",)
    world.run(scripts.retry(running, delay_ms=0, error="no luck", failure={}))

    assert world.claim(attempt_id="2").id == "a"


def test_a_retry_that_rqs_scheduler_queues_runs_although_another_task_has_its_key_by_then(world: World) -> None:
    running = world.start("a", unique_key="k", unique_until="start", max_attempts=2)
    assert world.add("b", unique_key="k", queue="other").statuses == ("queued",)
    world.run(scripts.retry(running, delay_ms=60_000, error="no luck", failure={}))
    world.make_due("a")

    scheduler = RQScheduler(["default"], connection=world.redis, serializer=JSONSerializer)
    scheduler.acquire_locks()  # type: ignore[no-untyped-call]
    scheduler.prepare_registries()
    scheduler.enqueue_scheduled_jobs()  # type: ignore[no-untyped-call]
    scheduler.release_locks()  # type: ignore[no-untyped-call]

    assert world.redis.hget("rq:job:a", "ended_at") == b""
    assert world.claim(attempt_id="2").id == "a"


def test_a_task_that_failed_in_an_rq_worker_is_checked_too_when_it_is_requeued(world: World) -> None:
    world.add("a", unique_key="k")
    world.redis.lpop("rq:queue:default")
    world.redis.hset("rq:job:a", mapping={"status": "failed", "rq_failure": "1-0"})
    world.redis.zadd("rq:failed:default", {"a": 9e9})
    world.add("b", unique_key="k", queue="other")
    requeue(world, S.FAILED)

    assert world.try_claim(attempt_id="2") is None

    assert world.get("a").reason == "unique_key_held"


def test_of_a_task_that_rq_requeues_and_its_rival_exactly_one_runs_at_a_time(world: World) -> None:
    for n in range(30):
        world.redis.flushall()
        seed(world, S.FAILED)
        world.add("b", unique_key="k", queue="other")
        requeue(world, S.FAILED)

        (answers,) = race(
            world.url,
            1,
            lambda n: scripts.claim(["default"], worker="w1", attempt_id="1", lease_ms=1000),
            lambda n: scripts.claim(["other"], worker="w2", attempt_id="2", lease_ms=1000),
        )

        assert [running and running.id for running in answers] == [None, "b"], n
