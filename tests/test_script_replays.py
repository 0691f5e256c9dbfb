"""Every call that changes a status may be sent twice, as it is after a lost reply: once carried out, answered alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from redis import Redis

from taskpool import TaskContext, TaskPool, task
from taskpool.errors import RedisUnavailable, TaskConflict, TaskNotFound
from taskpool.redis import bulk_scripts, insight_scripts, people_scripts, scripts
from taskpool.redis.address import Address
from taskpool.redis.calls import Call, Part
from taskpool.redis.connection import Wire
from taskpool.redis.keys import LEAST_TTL_S
from taskpool.redis.people_scripts import By
from taskpool.redis.scripts import Work
from taskpool.redis.store import Store
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.registry import Registry
from taskpool.types import TaskStatus
from tests.states import FAILURE, FINGERPRINT, SEED, World, new_task

S = TaskStatus
TTL_S = 500


def finish(world: World, status: TaskStatus) -> Call[str]:
    running = world.start("a")
    if status is S.DONE:
        return scripts.finish(running, status, result=b"42")
    return scripts.finish(running, status, error="no luck", failure=FAILURE, traceback="Trace")


def finish_with_children(world: World) -> Call[str]:
    running = world.start("a")
    world.add("child", depends_on=["a"])
    return scripts.finish(running, S.DONE, result=b"42")


def release(world: World) -> Call[list[str]]:
    world.start("a")
    world.add("child", depends_on=["a"])
    world.finish(world.running["a"])
    return scripts.release("a")


QUESTION = b'{"name":"n","text":"Go?","timeout":60}'


def answer(world: World) -> Call[str]:
    world.run(people_scripts.ask(world.start("a"), QUESTION))
    return people_scripts.answer("a", int(world.redis.hget("rq:job:a", "seq")), b"[1]", By("Ann"))


def reject_with_children(world: World) -> Call[str]:
    world.add("a", confirm=True)
    world.add("child", depends_on=["a"])
    return people_scripts.confirm("a", "rejected", By("Ann"))


def unanswered(world: World) -> Call[str]:
    world.add("a", confirm=True)
    world.redis.hset("rq:job:a", "answer_by_ms", 1000)
    return people_scripts.unanswered("a")


def failed_family(world: World, *, retried: bool) -> None:
    """Tasks that depend on the end of "a", which has failed: one of each kind."""
    world.start("a")
    for on in ("success", "failure", "any"):
        world.add(on, depends_on=[{"id": "a", "on": on}])
    world.finish(world.running["a"], S.FAILED)
    if retried:
        world.run(scripts.release("a"))
        world.run(scripts.revive("a"))


def release_family(world: World) -> Call[list[str]]:
    failed_family(world, retried=False)
    return scripts.release("a")


def revive_family(world: World) -> Call[str]:
    failed_family(world, retried=False)
    world.run(scripts.release("a"))
    return scripts.revive("a")


def release_retried(world: World) -> Call[list[str]]:
    failed_family(world, retried=True)
    return scripts.release("a")


def seeded(status: TaskStatus, call: Callable[[], Call[Any]]) -> Callable[[World], Call[Any]]:
    def make(world: World) -> Call[Any]:
        SEED[status](world, "a")
        return call()

    return make


def promote(world: World) -> Call[str]:
    world.add("a", delay_s=500)
    world.make_due("a")
    return scripts.promote("a", "default")


def crash(max_crashes: int) -> Call[str]:
    return scripts.crash("a", "1", "default", error="died", failure=FAILURE, max_crashes=max_crashes)


def redrive_start(world: World) -> Call[str]:
    finish(world, S.FAILED)
    world.run(scripts.finish(world.running["a"], S.FAILED, error="no luck", failure=FAILURE))
    return insight_scripts.redrive_start(FINGERPRINT, "r1", {"steps": "[1]", "step": 1}, b"{}")


def redrive_note(world: World) -> Call[str]:
    world.run(redrive_start(world))
    world.run(bulk_scripts.take_redrive(FINGERPRINT, "d"))
    world.run(insight_scripts.redrive_note(FINGERPRINT, "r1", driver="d", waiting={"b": "3"}))
    return insight_scripts.redrive_note(
        FINGERPRINT, "r1", driver="d", steps=1, waiting={"a": "3"}, ended={"b": "succeeded"}, passed=2
    )


def words_of(call: Call[bulk_scripts.Many]) -> Call[list[str]]:
    """The same call without the hints for the next one."""
    return Call(call.command, lambda reply: call.read(reply).words, call.script, again=call.again)


def cancel_many(world: World) -> Call[Any]:
    for status in (S.QUEUED, S.SCHEDULED, S.WAITING, S.DONE):
        SEED[status](world, status.value)
    return words_of(bulk_scripts.cancel_many(["queued", "scheduled", "waiting", "done"], Work("m")))


def move_many(world: World) -> Call[Any]:
    for status in (S.QUEUED, S.SCHEDULED, S.WAITING, S.DONE):
        SEED[status](world, status.value)
    return words_of(bulk_scripts.move_many(["queued", "scheduled", "waiting", "done"], "other", Work("m")))


def uncancel(world: World, *, has_child: bool = False) -> Call[str]:
    world.add("a", delay_s=500, expires_in_s=1000)
    if has_child:
        world.add("child", depends_on=["a"])
    world.run(bulk_scripts.cancel_many(["a"], Work("m")))
    world.run(scripts.release("a"))
    return bulk_scripts.uncancel("a", "m", Work("n"))


def unpurge(world: World) -> Call[str]:
    world.end("a", tags=["x"])
    world.run(scripts.purge("a", work=Work("m")))
    return bulk_scripts.unpurge("a", "m", Work("n"))


def start_operation() -> Call[str]:
    return bulk_scripts.start("o", {"action": "cancel", "filter": "{}"}, project="shop", driver="d")


def note_operation(world: World) -> Call[str]:
    world.run(start_operation())
    return bulk_scripts.note("o", "d", 0, set={"phase": "act"}, add={"matched": 2}, found=["a", "b"])


CALLS: dict[str, Callable[[World], Call[Any]]] = {
    "redrive": redrive_start,
    "progress of a redrive": redrive_note,
    "count": lambda world: scripts.count({"tasks|done|work|default|b": 1}, ("w", 1)),
    "done": lambda world: finish(world, S.DONE),
    "failed": lambda world: finish(world, S.FAILED),
    "stopped": lambda world: finish(world, S.STOPPED),
    "done with children": finish_with_children,
    "retry": lambda world: scripts.retry(world.start("a"), delay_ms=0, error="no luck", failure=FAILURE),
    "retry later": lambda world: scripts.retry(world.start("a"), delay_ms=500_000, error="no luck", failure=FAILURE),
    "give back": lambda world: scripts.give_back(world.start("a")),
    "stop": seeded(S.IN_PROGRESS, lambda: scripts.stop("a", grace_s=5, force=False)),
    "force": seeded(S.STOPPING, lambda: scripts.stop("a", grace_s=5, force=True)),
    "cancel": seeded(S.QUEUED, lambda: scripts.cancel("a", reason="canceled", error="by hand")),
    "revive": seeded(S.FAILED, lambda: scripts.revive("a")),
    "release": release,
    "release of each kind": release_family,
    "revive with a child": revive_family,
    "release after a retry": release_retried,
    "ask": lambda world: people_scripts.ask(world.start("a"), QUESTION),
    "answer": answer,
    "confirm": seeded(S.WAITING_CONFIRMATION, lambda: people_scripts.confirm("a", "confirmed", By("Ann"))),
    "reject": seeded(S.WAITING_CONFIRMATION, lambda: people_scripts.confirm("a", "rejected", By("Ann"))),
    "reject with children": reject_with_children,
    "cancel many": cancel_many,
    "move many": move_many,
    "run now": seeded(S.SCHEDULED, lambda: bulk_scripts.run_now("a", Work("m"))),
    "uncancel": uncancel,
    "uncancel with a child": lambda world: uncancel(world, has_child=True),
    "hide": seeded(S.DONE, lambda: scripts.purge("a", work=Work("m"))),
    "unpurge": unpurge,
    "start of an operation": lambda world: start_operation(),
    "note of an operation": note_operation,
    "checkpoint": lambda world: people_scripts.checkpoint(world.start("a"), b"[1]"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_second_time_changes_nothing_and_is_answered_as_the_first(world: World, name: str) -> None:
    call = CALLS[name](world)
    first = world.run(call)
    before, counted = world.snapshot(), world.counted()

    second = world.run(call)

    assert call.again
    assert second == first
    assert (world.since(before), world.counted()) == ({}, counted)


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (seeded(S.IN_PROGRESS, lambda: crash(max_crashes=3)), "lost"),
        (seeded(S.IN_PROGRESS, lambda: crash(max_crashes=1)), "lost"),
        (seeded(S.DONE, lambda: scripts.purge("a")), "gone"),
        (promote, "gone"),
        (unanswered, "gone"),
    ],
    ids=["crash and queued", "crash and failed", "purge", "promote", "unanswered"],
)
def test_the_second_time_changes_nothing_though_the_answer_may_differ(
    world: World, make: Callable[[World], Call[str]], answer: str
) -> None:
    call = make(world)
    world.run(call)
    before, counted = world.snapshot(), world.counted()

    assert call.again
    assert world.run(call) == answer
    assert (world.since(before), world.counted()) == ({}, counted)


def test_a_task_retried_by_hand_that_ran_again_is_not_retried_once_more(world: World) -> None:
    world.end("a", S.FAILED)
    call = scripts.revive("a")
    world.run(call)
    world.finish(world.claim(attempt_id="2"), S.FAILED)
    before = world.snapshot()

    assert world.run(call) == "ok"
    assert world.since(before) == {}


def test_a_batch_is_not_added_again_when_its_first_task_has_gone_meanwhile(world: World) -> None:
    call = scripts.add([new_task("a"), new_task("b")])
    world.run(call)
    world.finish(world.claim())
    world.claim(attempt_id="2")
    world.run(scripts.purge("a"))
    before = world.snapshot()

    assert world.run(call).statuses == ("gone", "started")
    assert world.since(before) == {}


# --- the same as a program sees it --------------------------------------------------------------------------------


class LosesReplies:
    """A connection that is cut once, after the commands were carried out and before the answer arrives."""

    def __init__(self, url: str) -> None:
        self._wire = Wire(Address.parse(url), name="cut")
        self.loses_next = False

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        replies = self._wire.exchange(commands, timeout_s)
        if self.loses_next:
            self.loses_next = False
            self._wire.close()
            raise RedisUnavailable("cut")
        return replies

    def close(self) -> None:
        self._wire.close()


@pytest.fixture
def cut(redis_url: str) -> LosesReplies:
    return LosesReplies(redis_url)


@pytest.fixture
def pool(redis_url: str, cut: LosesReplies) -> Iterator[TaskPool]:
    """A pool whose next answer is lost whenever a test says so. It knows every script already."""
    with TaskPool(redis_url, registry=Registry([], builtins=True), store=Store(transport=cut)) as pool:
        for _ in range(2):
            id = pool.add_task("echo", {"message": 1}).id
            pool.remove_task(id)
            pool.retry_task(id)
            pool.remove_task(id)
            pool.remove_task(id)
        yield pool


def test_a_canceled_task_is_not_purged_by_the_same_call(pool: TaskPool, cut: LosesReplies) -> None:
    id = pool.add_task("echo", {"message": 1}).id
    cut.loses_next = True

    assert pool.remove_task(id) is S.CANCELED
    assert pool.get(id).status is S.CANCELED


def test_a_task_is_retried_once(pool: TaskPool, cut: LosesReplies) -> None:
    id = pool.add_task("echo", {"message": 1}).id
    pool.remove_task(id)
    cut.loses_next = True

    assert pool.retry_task(id).status is S.QUEUED
    with pytest.raises(TaskConflict):
        pool.retry_task(id)


def test_a_stopped_task_that_had_not_started_is_canceled(pool: TaskPool, cut: LosesReplies) -> None:
    id = pool.add_task("echo", {"message": 1}).id
    cut.loses_next = True

    assert pool.kill_task(id).status is S.CANCELED


def test_a_purged_task_is_not_reported_as_unknown(pool: TaskPool, cut: LosesReplies) -> None:
    id = pool.add_task("echo", {"message": 1}).id
    pool.remove_task(id)
    calls = iter((False, True))
    exchange = cut.exchange

    def lose_the_second(commands: Sequence[Sequence[Part]], timeout_s: float, *, sent: int = 0) -> list[Any]:
        cut.loses_next = next(calls, False)
        return exchange(commands, timeout_s)

    cut.exchange = lose_the_second  # type: ignore[method-assign]

    assert pool.remove_task(id) is None
    with pytest.raises(TaskNotFound):
        pool.get(id)


def test_a_task_of_a_short_memory_is_still_known_when_its_submission_is_repeated(pool: TaskPool, redis: Redis) -> None:
    id = pool.add_task("echo", {"message": 1}, queue="other", result_ttl_s=1).id
    running = pool.run_task(["other"], worker="w", attempt_id="1")
    assert running is not None
    pool.update_status(running, Outcome(S.DONE, result=b"1"))

    expires_at = redis.zscore("rq:finished:other", id)
    assert expires_at is not None
    assert expires_at - redis.time()[0] >= LEAST_TTL_S - 10
    assert redis.ttl(f"rq:job:{id}") > LEAST_TTL_S


def test_a_task_is_added_once(pool: TaskPool, cut: LosesReplies) -> None:
    cut.loses_next = True

    record = pool.add_task("echo", {"message": 1}, queue="other")

    assert [item.record.id for item in pool.get_queue("other").items] == [record.id]


@pytest.mark.parametrize("lost", [0, 1])
def test_an_attempt_adds_a_task_once(pool: TaskPool, cut: LosesReplies, lost: int) -> None:
    """The first answer says the project of the running task, the second that the task is added."""

    @task("adds")
    def adds(ctx: TaskContext) -> list[str]:
        answers = iter(number == lost for number in range(2))
        exchange = cut.exchange

        def lose_one(commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
            cut.loses_next = next(answers, False)
            return exchange(commands, timeout_s)

        cut.exchange = lose_one  # type: ignore[method-assign]
        return [ctx.add_task("echo", {"message": 1}, queue="other").id for _ in range(2)]

    pool.known_types().add(adds)
    id = pool.add_task("adds", front=True).id
    running = pool.run_task(["default"], worker="w", attempt_id="1")
    assert running is not None
    pool.execute_task(running)

    assert [item.record.id for item in pool.get_queue("other").items] == pool.get(id).result


@pytest.mark.parametrize("status", [S.DONE, S.FAILED, S.SCHEDULED])
def test_the_end_of_an_attempt_is_not_reported_as_lost(pool: TaskPool, cut: LosesReplies, status: TaskStatus) -> None:
    pool.add_task("echo", {"message": 1}, queue="other")
    running = pool.run_task(["other"], worker="w", attempt_id="1")
    assert running is not None
    failure = {} if status is S.DONE else FAILURE
    cut.loses_next = True

    word = pool.update_status(running, Outcome(status, result=b"1", error="no luck", failure=failure, delay_s=9))

    assert word == "ok"
    assert pool.get(running.id).status is status


def test_a_claimed_task_is_answered_once_more(pool: TaskPool, cut: LosesReplies) -> None:
    ids = [pool.add_task("echo", {"message": n}, queue="other", max_attempts=3).id for n in range(2)]
    cut.loses_next = True

    running = pool.run_task(["other"], worker="w", attempt_id="1")

    assert running is not None
    assert (running.id, running.payload, running.queue) == (ids[0], {"message": 0}, "other")
    assert (running.attempt, running.max_attempts, running.attempt_id) == (1, 3, "1")
    assert [item.record.id for item in pool.get_queue("other").items] == ids[1:]
    assert pool.update_status(running, Outcome(S.DONE, result=b"1")) == "ok"


def test_an_attempt_that_holds_nothing_any_more_claims_the_next_task(pool: TaskPool) -> None:
    ids = [pool.add_task("echo", {"message": n}, queue="other").id for n in range(2)]
    first = pool.run_task(["other"], worker="w", attempt_id="1")
    assert first is not None
    pool.update_status(first, Outcome(S.DONE, result=b"1"))

    second = pool.run_task(["other"], worker="w", attempt_id="1")

    assert second is not None
    assert [first.id, second.id] == ids
