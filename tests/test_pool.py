"""The public faces: the same operations under the same names, from submission to result, and waiting for the end."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis

from taskpool import (
    AsyncTaskPool,
    AttemptLost,
    ConfigurationError,
    InvalidTask,
    Registry,
    Task,
    TaskConflict,
    TaskContext,
    TaskNotFound,
    TaskPool,
    TaskSpec,
    TaskStatus,
    TaskStopped,
    WaitTimeout,
    task,
)
from taskpool.operations import status
from taskpool.operations.pool_base import PoolBase
from taskpool.redis import scripts
from taskpool.redis.connection import Wire
from taskpool.settings import Settings
from taskpool.tasks.attempt import Outcome
from taskpool.types import Event, RunningTask, TaskRecord
from tests.states import World
from tests.support import PATIENCE_S, eventually

S = TaskStatus


@task("double", queue="sums", max_attempts=2)
def double(ctx: TaskContext, n: int) -> int:
    ctx.progress(1, 2, note="half")
    ctx.log("doubling")
    return 2 * n


@task("fail")
async def fail() -> None:
    raise ValueError("no luck")


@task("sum_up")
def sum_up(ctx: TaskContext) -> int:
    return sum(ctx.parents.values())


class Looks(Task):
    """Ends when the test sets an event."""

    type = "looks"

    def run(self, ctx: TaskContext) -> str:
        if ctx.cancelled:
            raise TaskStopped
        return "not asked"


REGISTRY = Registry()
for each in (double, fail, sum_up, Looks):
    REGISTRY.add(each)


class Awaited:
    """An AsyncTaskPool that blocks, so that one test can call both kinds of pool."""

    def __init__(self, url: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.pool = AsyncTaskPool(url, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.pool, name)
        return lambda *arguments, **options: self.runner.run(method(*arguments, **options))

    def close(self) -> None:
        self.runner.run(self.pool.close())
        self.runner.close()


@pytest.fixture(params=["blocking", "awaiting"])
def pool(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Any]:
    """A pool of either kind that knows the types above."""
    pool = (TaskPool if request.param == "blocking" else Awaited)(redis_url, registry=REGISTRY)
    yield pool
    pool.close()


def run_next(pool: Any, *queues: str) -> TaskStatus:
    running = pool.run_task(queues or ("sums", "default"), worker="w", attempt_id="1")
    found: TaskStatus = pool.execute_task(running)
    return found


# --- the two kinds of pool -----------------------------------------------------------------------------------


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if callable(member) and not name.startswith("_")}


def test_both_pools_have_the_same_operations_with_the_same_arguments() -> None:
    blocking, awaiting = public(TaskPool), public(AsyncTaskPool)

    assert blocking.keys() - {"listener"} == awaiting.keys() - {"listener"}
    for name in blocking.keys() & awaiting.keys():
        mine, others = inspect.signature(blocking[name]), inspect.signature(awaiting[name])
        assert mine.parameters == others.parameters, name
        assert str(mine.return_annotation) == str(others.return_annotation).removeprefix("Async"), name


def test_one_pool_blocks_and_the_other_awaits() -> None:
    blocking, awaiting = public(TaskPool), public(AsyncTaskPool)

    assert [name for name in blocking if inspect.iscoroutinefunction(blocking[name])] == []
    awaits = {name for name in awaiting if inspect.iscoroutinefunction(awaiting[name])}
    yields = {name for name in awaiting if inspect.isasyncgenfunction(awaiting[name])}
    begins = {"workflow"}  # the beginning of a block that awaits at its end
    assert awaiting.keys() - awaits - yields - begins == public(PoolBase).keys()


def test_each_operation_says_what_it_does() -> None:
    for kind in (TaskPool, AsyncTaskPool):
        assert [name for name, member in public(kind).items() if not member.__doc__] == []


# --- from submission to result -------------------------------------------------------------------------------


def test_a_task_is_added_run_and_waited_for(pool: Any) -> None:
    added = pool.add_task("double", {"n": 21}, tags=["x"])

    ended_as = run_next(pool)

    record = pool.wait(added.id, timeout_s=PATIENCE_S)
    assert (added.status, ended_as, record.status) == (S.QUEUED, S.DONE, S.DONE)
    assert (record.result, record.progress, record.attempt) == (42, {"done": 1, "total": 2, "note": "half"}, 1)
    assert record == pool.get(added.id)


def test_many_are_added_at_once(pool: Any) -> None:
    records = pool.add_tasks([TaskSpec(type="double", payload={"n": n}) for n in range(3)])

    assert [each.record.id for each in pool.get_queue("sums").items] == [record.id for record in records]
    assert [pool.get(record.id).payload for record in records] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_task_that_fails_is_scheduled_again_or_ends(pool: Any) -> None:
    again = pool.add_task("fail", max_attempts=2)
    assert run_next(pool) is S.SCHEDULED
    once = pool.add_task("fail")
    assert run_next(pool) is S.FAILED

    assert pool.get(again.id).status is S.SCHEDULED
    assert (pool.get(again.id).error, pool.wait(once.id).error) == ("ValueError: no luck", "ValueError: no luck")


def test_a_task_reads_its_parents_results_and_is_released_by_them(pool: Any) -> None:
    parents = pool.add_tasks([TaskSpec(type="double", payload={"n": n}) for n in (1, 2)])
    child = pool.add_task("sum_up", depends_on=[record.id for record in parents])

    statuses = [run_next(pool) for _ in range(3)]

    assert statuses == [S.DONE] * 3
    assert pool.get(child.id).result == 6


def test_a_running_task_sees_that_it_is_asked_to_stop(pool: Any) -> None:
    added = pool.add_task("looks")
    running = pool.run_task(["default"], worker="w", attempt_id="1", lease_s=500)

    assert pool.kill_task(added.id, grace_s=3).status is S.STOPPING
    assert pool.execute_task(running) is S.STOPPED

    assert pool.get(added.id).reason == "stopped"


def test_a_look_for_a_stop_does_not_shorten_a_long_lease(pool: Any, world: World) -> None:
    added = pool.add_task("looks")
    running = pool.run_task(["default"], worker="w", attempt_id="1", lease_s=500)
    lease = world.snapshot()[f"rq:wip:default {added.id}:1"]

    @task("looks")
    def look(ctx: TaskContext) -> bool:
        assert not ctx.cancelled
        return bool(world.snapshot()[f"rq:wip:default {added.id}:1"] == lease)

    other = Registry()
    other.add(look)
    with TaskPool(world.url, registry=other) as runs:
        runs.execute_task(running)

    assert pool.get(added.id).result is True


def test_a_retry_that_meets_a_stop_ends_the_task_as_stopped(pool: Any) -> None:
    added = pool.add_task("fail", max_attempts=2)
    running = pool.run_task(["default"], worker="w", attempt_id="1")
    pool.kill_task(added.id)

    assert pool.execute_task(running) is S.STOPPED

    assert pool.get(added.id).status is S.STOPPED


def test_executing_an_attempt_that_lost_its_task_raises(pool: Any, world: World) -> None:
    for type, payload in (("double", {"n": 1}), ("fail", {})):
        added = pool.add_task(type, payload, queue="default")
        running = pool.run_task(["default"], worker="w", attempt_id="1")
        crash = scripts.crash(added.id, "1", "default", error="died", failure={}, max_crashes=1)
        assert world.run(crash) == "failed"

        with pytest.raises(AttemptLost):
            pool.execute_task(running)


def test_a_pool_without_a_registry_runs_nothing(redis_url: str, world: World) -> None:
    with TaskPool(redis_url) as pool, pytest.raises(ConfigurationError, match="registry"):
        pool.execute_task(world.start("a"))


def test_a_users_own_worker_may_end_attempts_and_log_by_hand(pool: Any) -> None:
    added = pool.add_task("double", {"n": 1})
    running = pool.run_task(["sums"], worker="w", attempt_id="1")

    assert pool.log_task(running, [(5, "one")]) == "ok"
    assert pool.update_status(running, Outcome(S.DONE, result=b"7")) == "ok"
    assert pool.update_status(running, Outcome(S.DONE, result=b"8")) == "lost"
    assert pool.notify_websocket(Event(added.id, 9, "done", S.DONE, 0)) == 0

    assert pool.get(added.id).result == 7


def test_the_settings_fill_in_what_types_leave_open(redis_url: str) -> None:
    settings = Settings(max_attempts=4, timeout_s=7, result_ttl_s=70, failure_ttl_s=80)
    with TaskPool(redis_url, registry=REGISTRY, settings=settings) as pool:
        open, received = pool.add_task("fail"), pool.add_task("double", {"n": 1})

    assert (open.max_attempts, open.timeout_s, open.result_ttl_s, open.failure_ttl_s) == (4, 7, 70, 80)
    assert received.max_attempts == 2


# --- steering ------------------------------------------------------------------------------------------------


def test_a_program_that_submits_to_redis_itself_says_which_callbacks_may_lead_inside(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPOOL_WEBHOOK_ALLOW", "10.0.0.0/8")
    url = "http://10.1.2.3:25/in"

    with (
        TaskPool(redis_url, registry=REGISTRY) as pool,
        pytest.raises(InvalidTask, match="TASKPOOL_WEBHOOK_ALLOW names exceptions"),
    ):
        pool.add_task("double", {"n": 1}, callback_url=url)
    with TaskPool(redis_url, registry=REGISTRY, settings=Settings.load(os.environ)) as pool:
        added = pool.add_task("double", {"n": 1}, callback_url=url)

    assert added.callback_url == url


def test_a_task_is_canceled_retried_and_removed(pool: Any) -> None:
    added = pool.add_task("double", {"n": 1})

    assert pool.kill_task(added.id).status is S.CANCELED
    assert pool.retry_task(added.id).status is S.QUEUED
    assert pool.remove_task(added.id) is S.CANCELED
    assert pool.remove_task(added.id) is None
    with pytest.raises(TaskNotFound):
        pool.get(added.id)


def test_what_a_status_does_not_allow_is_a_conflict(pool: Any) -> None:
    added = pool.add_task("double", {"n": 1})
    pool.run_task(["sums"], worker="w", attempt_id="1")

    for move in (pool.retry_task, pool.remove_task):
        with pytest.raises(TaskConflict):
            move(added.id)


def test_the_whole_can_be_looked_at(pool: Any, world: World) -> None:
    added = pool.add_task("double", {"n": 1}, tags=["x"])
    pool.add_task("fail", delay_s=500)
    world.run(scripts.count({"n|": 3}))

    sums, default = sorted(pool.queues(), key=lambda info: info.name, reverse=True)
    assert (sums.name, sums.queued, default.scheduled, default.oldest_s) == ("sums", 1, 1, None)
    assert 0 <= sums.oldest_s < 10
    assert [record.id for record in pool.list_tasks(tag="x").items] == [added.id]
    assert len(pool.list_tasks(limit=1).items) == 1
    submitted = {"submitted|double|sums": 1, "submitted|fail|default": 1}
    assert (pool.types(), pool.workers(), pool.counters()) == ([], [], {"n": 3, **submitted})
    assert pool.server().used_memory_bytes > 0


# --- waiting -------------------------------------------------------------------------------------------------


class Later(threading.Thread):
    """Does something once somebody waits for a task, in a thread of its own."""

    def __init__(self, redis: Redis, id: str, act: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._redis: Any = redis
        self._channel = f"taskpool:task:{id}".encode()
        self._act = act
        self.start()

    def run(self) -> None:
        eventually(lambda: dict(self._redis.pubsub_numsub(self._channel))[self._channel])
        self._act()


def a_running(pool: Any, **options: Any) -> RunningTask:
    pool.add_task("double", {"n": 1}, **options)
    running: RunningTask = pool.run_task(["sums"], worker="w", attempt_id="1")
    return running


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(S.DONE, result=b'{"n":[1,null,"\xc3\xa9"]}'), S.DONE),
        (Outcome(S.DONE, result=b'"' + b"x" * 5000 + b'"'), S.DONE),
        (Outcome(S.FAILED, error="no luck", failure={"reason": "exception"}), S.FAILED),
    ],
)
def test_a_wait_ends_with_the_task_and_gives_its_record(
    pool: Any, world: World, outcome: Outcome, expected: TaskStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskpool.pool.LOOK_AGAIN_S", 300)  # only a message can end the wait in time
    monkeypatch.setattr("taskpool.async_pool.LOOK_AGAIN_S", 300)
    running = a_running(pool)
    ending = Later(world.redis, running.id, lambda: world.run(status.update_status(running, outcome)))

    record = pool.wait(running.id, timeout_s=PATIENCE_S)

    ending.join()
    assert record.status is expected
    assert record == pool.get(running.id)


def test_a_wait_for_a_queued_task_hears_of_its_whole_life(
    pool: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskpool.pool.LOOK_AGAIN_S", 300)
    monkeypatch.setattr("taskpool.async_pool.LOOK_AGAIN_S", 300)

    def live(quietly: bool) -> None:
        running = world.claim("sums", attempt_id="2")
        if not quietly:
            world.run(scripts.progress(running, {"done": 1}))
        world.finish(running)

    for quietly in (True, False):
        retried = a_running(pool)
        world.run(scripts.progress(retried, {"done": 9}))
        world.run(scripts.retry(retried, delay_ms=0, error="no luck", failure={"reason": "exception"}))
        living = Later(world.redis, retried.id, lambda quietly=quietly: live(quietly))  # type: ignore[misc]

        record = pool.wait(retried.id, timeout_s=PATIENCE_S)

        living.join()
        assert record == pool.get(retried.id)


def test_a_wait_ends_when_the_task_is_canceled(pool: Any, world: World) -> None:
    added = pool.add_task("double", {"n": 1})
    canceling = Later(world.redis, added.id, lambda: world.cancel(added.id))

    record = pool.wait(added.id, timeout_s=PATIENCE_S)

    canceling.join()
    assert record.status is S.CANCELED


def test_a_wait_for_an_ended_task_is_over_at_once(pool: Any) -> None:
    added = pool.add_task("double", {"n": 1})
    run_next(pool)

    assert [pool.wait(added.id, timeout_s=timeout_s).result for timeout_s in (0, 5, None)] == [2, 2, 2]


@pytest.mark.parametrize("timeout_s", [-1, 0, 0.05])
def test_a_wait_that_takes_too_long_gives_the_record_as_it_stands(pool: Any, timeout_s: float) -> None:
    running = a_running(pool)

    with pytest.raises(WaitTimeout, match="in_progress") as late:
        pool.wait(running.id, timeout_s=timeout_s)

    assert late.value.record == pool.get(running.id)


def test_a_task_that_reports_all_the_time_does_not_keep_a_wait_from_ending(pool: Any, world: World) -> None:
    running = a_running(pool)
    enough = threading.Event()

    def report() -> None:
        while not enough.wait(0.01):
            world.run(scripts.progress(running, {"done": 1}))

    reporting = Later(world.redis, running.id, report)
    fuse = threading.Timer(20, enough.set)
    fuse.start()

    with pytest.raises(WaitTimeout):
        pool.wait(running.id, timeout_s=0.3)

    was_reporting = not enough.is_set()
    fuse.cancel()
    enough.set()
    reporting.join()
    assert was_reporting


def test_a_wait_for_a_task_that_does_not_exist_is_refused(pool: Any) -> None:
    with pytest.raises(TaskNotFound):
        pool.wait("ghost", timeout_s=30)


def test_a_wait_for_a_task_that_is_deleted_meanwhile_raises(
    pool: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskpool.pool.LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr("taskpool.async_pool.LOOK_AGAIN_S", 0.05)
    running = a_running(pool)

    deleting = Later(world.redis, running.id, lambda: world.redis.delete(f"rq:job:{running.id}"))

    with pytest.raises(TaskNotFound):
        pool.wait(running.id, timeout_s=30)

    deleting.join()


def looks(pool: Any, id: str, **options: Any) -> Iterator[TaskRecord]:
    """What following a task shows, one look after the other, from either face."""
    if not isinstance(pool, Awaited):
        yield from pool.follow(id, **options)
        return
    records: Any = pool.pool.follow(id, **options)
    with suppress(StopAsyncIteration):
        while True:
            yield pool.runner.run(anext(records))


def test_a_task_is_followed_to_its_end(pool: Any) -> None:
    task = pool.add_task("double", {"n": 21})
    following = looks(pool, task.id)

    assert next(following).status is S.QUEUED
    running = pool.run_task(["sums"], worker="w", attempt_id="1")
    assert S.IN_PROGRESS in {next(following).status, next(following).status}
    pool.execute_task(running)

    shown = list(following)
    assert [record.status.is_terminal for record in shown].index(True) == len(shown) - 1
    assert shown[-1] == pool.get(task.id)


def test_following_ends_with_its_time(pool: Any) -> None:
    task = pool.add_task("double", {"n": 21})

    with pytest.raises(WaitTimeout) as raised:
        for _ in looks(pool, task.id, timeout_s=0.3):
            pass

    assert raised.value.record.status is S.QUEUED


def test_what_is_not_there_is_not_followed(pool: Any) -> None:
    with pytest.raises(TaskNotFound):
        next(looks(pool, "nowhere"))


def test_waits_follow_one_another_on_one_connection(pool: Any, redis: Redis) -> None:
    records = pool.add_tasks([TaskSpec(type="double", payload={"n": n}) for n in range(5)])
    for record in records:
        with pytest.raises(WaitTimeout):
            pool.wait(record.id, timeout_s=0)
        run_next(pool)

    results = [pool.wait(record.id, timeout_s=PATIENCE_S).result for record in records]

    assert results == [0, 2, 4, 6, 8]
    assert [client["name"] for client in redis.client_list()].count("taskpool-wait") <= 1


def test_an_interrupted_wait_leaves_nothing_for_the_next(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with TaskPool(redis_url, registry=REGISTRY) as pool:
        one, other = pool.add_task("double", {"n": 1}), pool.add_task("double", {"n": 2})
        run_next(pool)
        run_next(pool)
        pool.wait(other.id)
        monkeypatch.setattr(Wire, "next_reply", _interrupted)

        with pytest.raises(KeyboardInterrupt):
            pool.wait(one.id)
        monkeypatch.undo()

        assert pool.wait(other.id).result == 4


def _interrupted(wire: Wire, timeout_s: float) -> Any:
    raise KeyboardInterrupt


def test_a_wait_outlives_a_lost_connection(redis_url: str, world: World) -> None:
    async def wait_for(id: str) -> TaskRecord:
        async with AsyncTaskPool(redis_url) as pool:
            return await pool.wait(id, timeout_s=PATIENCE_S)

    world.add("a")
    running = world.claim()

    def lose_and_end() -> None:
        world.redis.client_kill_filter(_type="pubsub")
        world.finish(running)

    losing = Later(world.redis, "a", lose_and_end)

    record = asyncio.run(wait_for("a"))

    losing.join()
    assert record.status is S.DONE


async def test_all_waits_share_one_subscription(redis_url: str, world: World) -> None:
    running = [world.start(f"t{n}") for n in range(3)]
    async with AsyncTaskPool(redis_url) as pool:
        waiting = [asyncio.create_task(pool.wait(f"t{n % 3}", timeout_s=PATIENCE_S)) for n in range(9)]
        channels = [f"taskpool:task:t{n}".encode() for n in range(3)]
        while dict(world.redis.pubsub_numsub(*channels)) != dict.fromkeys(channels, 1):
            await asyncio.sleep(0.01)

        for each in running:
            world.finish(each)

        assert [record.status for record in await asyncio.gather(*waiting)] == [S.DONE] * 9
        connections = [client["name"] for client in world.redis.client_list()]
        assert connections.count("taskpool-wait") == 1
        while any(dict(world.redis.pubsub_numsub(*channels)).values()):
            await asyncio.sleep(0.01)


async def test_a_cancelled_wait_leaves_the_others_their_subscription(redis_url: str, world: World) -> None:
    running = world.start("a")
    async with AsyncTaskPool(redis_url) as pool:
        waits, gives_up = (asyncio.create_task(pool.wait("a", timeout_s=PATIENCE_S)) for _ in range(2))
        while not dict(world.redis.pubsub_numsub(b"taskpool:task:a"))[b"taskpool:task:a"]:
            await asyncio.sleep(0.01)

        gives_up.cancel()
        await asyncio.wait([gives_up])
        world.finish(running)

        assert (await waits).status is S.DONE
        assert gives_up.cancelled()


async def test_a_wait_whose_connection_is_lost_does_not_ask_without_pause(redis_url: str, world: World) -> None:
    world.start("a")
    async with AsyncTaskPool(redis_url) as pool:
        waiting = asyncio.create_task(pool.wait("a", timeout_s=2))
        while not dict(world.redis.pubsub_numsub(b"taskpool:task:a"))[b"taskpool:task:a"]:
            await asyncio.sleep(0.01)
        world.redis.config_resetstat()
        world.redis.client_kill_filter(_type="pubsub")

        with pytest.raises(WaitTimeout):
            await waiting

    looks = world.redis.info("commandstats")["cmdstat_hgetall"]["calls"]
    assert looks <= 8


def test_tasks_that_are_added_together_are_listed_in_their_order(pool: Any) -> None:
    added = [record.id for record in pool.add_tasks([TaskSpec(type="double", payload={"n": n}) for n in range(150)])]

    assert added == sorted(added)
    assert [record.id for record in pool.list_tasks(limit=200).items] == added[::-1]
