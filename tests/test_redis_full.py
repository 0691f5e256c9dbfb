"""Redis's memory is full (`maxmemory`): no new tasks are taken, and what was taken runs, ends and is cleaned up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import TaskStatus
from taskpool.errors import RedisFull
from taskpool.operations import catalog
from taskpool.operations.catalog import PoolInfo
from taskpool.redis import pause_scripts, schedule_scripts, scripts
from taskpool.redis.add_script import attempt_guard
from taskpool.redis.calls import Call
from taskpool.redis.embedded import RedisServer
from taskpool.redis.schedule_scripts import Occurrence, schedule_guard
from taskpool.types import DEFAULT_LIMITS, TypeInfo
from tests.api_client import api_process
from tests.states import FAILURE, World, new_task
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, started

S = TaskStatus
POOL = PoolInfo(id="p", host="h", pid=1, queues=("default",), types=("work",), workers=("w",))
ECHO = {"type": "echo", "payload": {"message": "hi"}}

Move = Callable[[World], Any]


def fill(redis: Any) -> None:
    """Leaves Redis no memory."""
    redis.config_set("maxmemory", 1)


def empty(redis: Any) -> None:
    """Lets Redis have all memory again."""
    redis.config_set("maxmemory", 0)


@pytest.fixture(autouse=True)
def _memory_afterwards(redis: Any) -> Iterator[None]:
    yield
    empty(redis)


def call(make: Callable[[World], Call[Any]]) -> Move:
    return lambda world: world.run(make(world))


def ended(world: World, status: TaskStatus) -> str:
    return world.finish(world.running["a"], status)


def crash(max_crashes: int) -> Move:
    return call(lambda _: scripts.crash("a", "1", "default", error="died", failure=FAILURE, max_crashes=max_crashes))


def retry(delay_ms: int) -> Move:
    return call(lambda world: scripts.retry(world.running["a"], delay_ms=delay_ms, error="no luck", failure=FAILURE))


def scheduled(world: World) -> None:
    world.add("a", delay_s=500)
    world.make_due("a")


def parent_done(world: World) -> None:
    world.start("a")
    world.add("b", depends_on=["a"])
    assert world.finish(world.running["a"]) == "children"


def lost_parent(world: World) -> None:
    world.add("a")
    world.add("b", depends_on=["a"])
    world.redis.delete("rq:job:a")


OCCURRENCE = Occurrence("s", "i", 1, 1000, 1000, 2000, 2000)


def save_schedule(id: str, revision: int | None) -> Call[str]:
    fields = {"next_ms": 1000}
    next_ms = None if revision is None else 1000
    return schedule_scripts.save(id, fields, revision=revision, next_ms=next_ms, incarnation="i", due_ms=1000)


PASSES: dict[str, tuple[Callable[[World], Any], Move]] = {
    "claim": (lambda world: world.add("a"), lambda world: world.claim().id),
    "claim, as the last one before an idle time": (
        lambda world: world.redis.hset("rq:worker:w", "state", "busy"),
        lambda world: world.try_claim(),
    ),
    "done": (lambda world: world.start("a"), lambda world: ended(world, S.DONE)),
    "failed": (lambda world: world.start("a"), lambda world: ended(world, S.FAILED)),
    "stopped": (lambda world: world.start("a"), lambda world: ended(world, S.STOPPED)),
    "retry at once": (lambda world: world.start("a", max_attempts=2), retry(0)),
    "retry later": (lambda world: world.start("a", max_attempts=2), retry(500_000)),
    "give back": (
        lambda world: world.start("a"),
        call(lambda world: scripts.give_back(world.running["a"])),
    ),
    "crash, runs again": (lambda world: world.start("a"), crash(3)),
    "crash, fails": (lambda world: world.start("a"), crash(1)),
    "pause, until it is resumed": (
        lambda world: None,
        lambda world: (
            world.run(pause_scripts.pause("all", "Ann", None)) is not None,
            world.run(pause_scripts.resume("all", [])),
        ),
    ),
    "resume": (
        lambda world: world.run(pause_scripts.pause("all", "Ann", None)),
        call(lambda _: pause_scripts.resume("all", ["default"])),
    ),
    "heartbeat": (
        lambda world: world.start("a"),
        call(lambda _: scripts.heartbeat([("a", "1", "default")], 500_000)),
    ),
    "a claim whose answer was lost": (
        lambda world: world.start("a"),
        call(lambda _: scripts.mark_unseen("w", [], listed=1, least_ms=0)),
    ),
    "stop": (lambda world: world.start("a"), call(lambda _: scripts.stop("a", grace_s=5, force=False))),
    "cancel": (lambda world: world.add("a"), lambda world: world.cancel("a")),
    "promote": (scheduled, call(lambda _: scripts.promote("a", "default"))),
    "release": (parent_done, call(lambda _: scripts.release("a"))),
    "sweep": (lost_parent, call(lambda _: scripts.sweep_waiting("default", 100))),
    "purge": (lambda world: world.end("a"), call(lambda _: scripts.purge("a"))),
    "removal of a schedule": (
        lambda world: world.run(save_schedule("s", None)),
        call(lambda _: schedule_scripts.remove("s", "i", 1)),
    ),
    "count": (lambda world: None, call(lambda _: scripts.count({"n": 1}))),
    "publish": (
        lambda world: None,
        call(lambda _: catalog.publish(POOL, [TypeInfo(name="work", queue="default", schema={})], ttl_s=60)),
    ),
}
"""What needs no memory to speak of or makes room in the end: how the task comes there, and the step."""


@pytest.mark.parametrize("name", PASSES)
def test_what_was_taken_goes_on_as_if_there_were_memory(world: World, name: str) -> None:
    seed, move = PASSES[name]
    seed(world)
    expected = move(world), world.snapshot()
    world.redis.flushall()
    seed(world)

    fill(world.redis)
    answer = move(world)

    assert (answer, world.snapshot()) == expected


REFUSED: dict[str, Move] = {
    "one task": call(lambda _: scripts.add([new_task("b")])),
    "many": call(lambda _: scripts.add([new_task("b"), new_task("c", delay_s=5)])),
    "one that waits": call(lambda _: scripts.add([new_task("b", depends_on=["a"])])),
    "one at the front": call(lambda _: scripts.add([new_task("b", front=True, tags=["t"])])),
    "one by an attempt": call(lambda world: scripts.add([new_task("b")], guard=attempt_guard(world.running["a"]))),
    "one of a schedule": call(lambda _: scripts.add([new_task("b")], guard=schedule_guard(OCCURRENCE, True))),
    "an occurrence": call(lambda _: schedule_scripts.settle(OCCURRENCE, "refused")),
    "a schedule": call(lambda _: save_schedule("t", None)),
    "a changed schedule": call(lambda _: save_schedule("s", 1)),
    "progress": call(lambda world: scripts.progress(world.running["a"], {"done": 1})),
    "log": call(lambda world: scripts.log("a", world.running["a"].attempt_id, [b'{"text": "x"}'], DEFAULT_LIMITS)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_add_to_it_is_refused_whole(world: World, name: str) -> None:
    world.start("a")
    world.run(save_schedule("s", None))
    before = world.snapshot()

    fill(world.redis)
    with pytest.raises(RedisFull):
        REFUSED[name](world)

    assert world.since(before) == {}


@pytest.fixture
def server(tmp_path: Path, redis_binary: str | None) -> Iterator[RedisServer]:
    """A Redis of the test's own, to fill."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", binary=redis_binary)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("slots", [1, 4])
def test_workers_finish_what_they_have_and_the_api_takes_nothing_more(
    server: RedisServer, tmp_path: Path, slots: int
) -> None:
    go = tmp_path / "go"
    with (
        Redis.from_url(server.url) as redis,
        WorkerPool(server.url, tmp_path / "log", lease_s=1.5, slots=slots) as workers,
        api_process(server.url, tmp_path / "api") as (_, url),
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        running = workers.submit("report_until", note=tmp_path / "note", until=go)
        started(tmp_path / "note")
        others = [workers.submit("hang", note=tmp_path / "other", until=go) for _ in range(slots)]  # the last one waits

        fill(redis)
        refused = client.post("/tasks", json=ECHO)
        batch = client.post("/tasks/batch", json={"tasks": [ECHO, ECHO]})
        before = last_heartbeat(redis, running.id)
        eventually(lambda: last_heartbeat(redis, running.id) != before)
        go.touch()
        records = [workers.pool.wait(task.id, timeout_s=PATIENCE_S) for task in (running, *others)]

        assert (refused.status_code, batch.status_code) == (503, 503)
        assert "nothing was changed" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert [(record.status, record.attempt, record.crashes) for record in records] == [(S.DONE, 1, 0)] * len(
            records
        )
        assert records[0].result == "reported"
        assert len(workers.pool.list_tasks().items) == len(records)

        empty(redis)
        assert client.post("/tasks", json=ECHO).status_code == 202
        assert workers.result("ok").status is S.DONE
        assert "Traceback" not in workers.log.read_text()


def last_heartbeat(redis: Any, id: str) -> Any:
    return redis.hget(f"rq:job:{id}", "last_heartbeat")
