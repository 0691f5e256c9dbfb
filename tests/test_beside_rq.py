"""What other RQ programs leave undone: tasks that were taken and never started, and secrets of deleted tasks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, requeue_job
from rq.serializers import JSONSerializer

from taskpool import Registry, Secret, TaskPool, TaskStatus, task
from taskpool.cli.__main__ import main
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.operations.listing import all_queues
from taskpool.operations.overview import worker_warnings
from taskpool.redis import scripts
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.keys import ENTRY_POINT, SECRETS, SECRETS_INDEX
from taskpool.settings import Settings
from tests.api_client import api
from tests.states import SEED, World
from workers.housekeeping import RqMaintenance

S = TaskStatus
PLACE = "rq:queue:default:intermediate"


@task("login")
def login(user: str, password: Secret[str]) -> str:
    raise RuntimeError("no")


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[AsyncStore]:
    store = AsyncStore(redis_url)
    yield store
    await store.close()


@pytest.fixture
async def beside(store: AsyncStore, redis: Redis) -> RqMaintenance:
    return RqMaintenance(store, Settings(), redis)


def take(redis: Redis) -> None:
    """What RQ's worker of one queue does first, and nothing more: it dies right behind it."""
    assert redis.lmove("rq:queue:default", PLACE)


def age(redis: Redis, id: str) -> None:
    """Let a minute pass since it was first seen there."""
    queued: Any = redis.hget(f"rq:job:{id}", "enqueued_at")
    redis.set(f"taskpool:stuck:{id}", f"{int(time.time() * 1000) - 60_000} {(queued or b'').decode()}")


# --- taken and never started -----------------------------------------------------------------------------------


async def test_a_task_that_an_rq_worker_took_and_never_started_is_queued_again_at_the_front(
    beside: RqMaintenance, world: World
) -> None:
    world.add("a")
    world.add("b")
    take(world.redis)

    await beside.step()
    assert world.redis.lrange(PLACE, 0, -1) == [b"a"]  # it may just have been taken
    age(world.redis, "a")
    await beside.step()

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a", b"b"]
    assert not world.redis.exists(PLACE, "taskpool:stuck:a")
    assert world.claim().id == "a"


async def test_a_plain_producers_task_is_adopted_and_a_foreign_job_is_left_to_rq(
    beside: RqMaintenance, world: World
) -> None:
    own = Queue(connection=world.redis, serializer=JSONSerializer).enqueue(ENTRY_POINT, "work", {})
    foreign = Queue(connection=world.redis).enqueue("os.getcwd")
    for job in (own, foreign):
        take(world.redis)
        age(world.redis, job.id)

    await beside.step()

    assert world.redis.lrange("rq:queue:default", 0, -1) == [own.id.encode()]
    assert world.redis.lrange(PLACE, 0, -1) == [foreign.id.encode()]


async def test_a_task_that_an_rq_worker_has_begun_is_not_adopted(beside: RqMaintenance, world: World) -> None:
    world.add("a")
    take(world.redis)
    job = Job.fetch("a", connection=world.redis, serializer=JSONSerializer)
    with world.redis.pipeline() as pipeline:
        Execution.create(job, 90, pipeline)
        pipeline.execute()
    age(world.redis, "a")

    await beside.step()

    assert world.redis.lrange(PLACE, 0, -1) == [b"a"]


async def test_a_task_that_was_taken_again_later_is_not_adopted_at_once(beside: RqMaintenance, world: World) -> None:
    world.add("a", type="echo", payload={"message": 1}, max_attempts=2)
    take(world.redis)
    await beside.step()
    age(world.redis, "a")
    world.redis.lmove(PLACE, "rq:queue:default", "RIGHT", "LEFT")
    running = world.claim()
    assert world.run(scripts.retry(running, delay_ms=1, error="no luck", failure={})) == "ok"
    world.make_due("a")
    assert world.run(scripts.promote("a", "default")) == "ok"
    take(world.redis)

    await beside.step()

    assert world.redis.lrange(PLACE, 0, -1) == [b"a"]
    assert world.redis.llen("rq:queue:default") == 0


async def test_rqs_own_maintenance_fails_nothing_that_was_adopted(beside: RqMaintenance, world: World) -> None:
    world.add("a")
    take(world.redis)
    queue = Queue(connection=world.redis, serializer=JSONSerializer)
    worker = SimpleWorker([queue], connection=world.redis, serializer=JSONSerializer)
    queue.intermediate_queue.cleanup(worker, queue)
    assert queue.intermediate_queue.get_first_seen("a") is not None
    age(world.redis, "a")

    await beside.step()
    queue.intermediate_queue.cleanup(worker, queue)

    assert world.get("a").status is S.QUEUED
    assert queue.intermediate_queue.get_first_seen("a") is None
    assert IntermediateQueue(queue.key, world.redis).get_job_ids() == []


@pytest.mark.parametrize("status", [S.DONE, S.FAILED, S.IN_PROGRESS, S.CANCELED])
async def test_only_the_id_is_dropped_of_a_task_that_went_on_meanwhile(
    beside: RqMaintenance, world: World, status: TaskStatus
) -> None:
    SEED[status](world, "a")
    world.redis.rpush(PLACE, "a", "gone")
    for id in ("a", "gone"):
        age(world.redis, id)

    await beside.step()

    assert not world.redis.exists(PLACE)
    assert not world.redis.exists("rq:queue:default")
    assert world.get("a").status is status


async def test_a_task_that_stands_in_its_queue_as_well_is_not_queued_twice(beside: RqMaintenance, world: World) -> None:
    world.add("a")
    world.redis.rpush(PLACE, "a")
    age(world.redis, "a")

    await beside.step()

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a"]


async def test_many_abandoned_tasks_are_adopted_in_bounded_steps(beside: RqMaintenance, world: World) -> None:
    foreign = Queue(connection=world.redis).enqueue("os.getcwd")
    world.redis.rpush(PLACE, *[foreign.id] * 300)
    for n in range(250):
        world.add(f"t{n}", queue="default")
        take(world.redis)
        age(world.redis, f"t{n}")
    world.redis.lrem("rq:queue:default", 0, foreign.id)

    for _ in range(4):
        await beside.step()

    adopted = [id for id in world.redis.lrange("rq:queue:default", 0, -1) if id.startswith(b"t")]
    assert sorted(adopted) == sorted(f"t{n}".encode() for n in range(250))


async def test_a_damaged_record_does_not_stop_tasks_from_being_adopted(beside: RqMaintenance, world: World) -> None:
    world.redis.set("rq:job:text", "not a hash")
    world.redis.rpush("rq:job:list", "not a hash")
    world.redis.rpush(PLACE, "text", "list", b"\xff", "a b:c\n", "x" * 65_536)
    world.add("a")
    take(world.redis)

    await beside.step()
    age(world.redis, "a")
    await beside.step()

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a"]


async def test_a_damaged_record_does_not_stop_tasks_from_being_taken_back(beside: RqMaintenance, world: World) -> None:
    world.redis.set("rq:job:text", "not a hash")
    world.redis.zadd("rq:failed:default", {"text": time.time() + 1e6})
    world.add("a")
    SimpleWorker(["default"], connection=world.redis).work(burst=True)
    assert world.get("a").status is S.FAILED

    await beside.step()

    assert world.get("a").status is S.SCHEDULED


async def test_two_pools_adopt_a_task_once(beside: RqMaintenance, store: AsyncStore, world: World) -> None:
    world.add("a")
    take(world.redis)
    age(world.redis, "a")

    await beside.step()
    await RqMaintenance(store, Settings(), world.redis).step()

    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"a"]


# --- deleted by other programs ---------------------------------------------------------------------------------


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    registry = Registry()
    registry.add(login)
    with TaskPool(redis_url, registry=registry) as pool:
        yield pool


def secrets(redis: Redis) -> list[bytes]:
    return sorted(redis.scan_iter(SECRETS + "*", count=1000))


async def test_the_secrets_of_deleted_tasks_are_deleted_too(
    beside: RqMaintenance, pool: TaskPool, redis: Redis
) -> None:
    queue = Queue(connection=redis, serializer=JSONSerializer)
    emptied = [pool.add_task("login", {"user": "ann", "password": f"x{n}"}).id for n in range(250)]
    queue.empty()  # type: ignore[no-untyped-call]
    deleted = pool.add_task("login", {"user": "ann", "password": "y"}).id
    Job.fetch(deleted, connection=redis, serializer=JSONSerializer).delete()
    kept = pool.add_task("login", {"user": "ann", "password": "z"})
    assert len(secrets(redis)) == len(emptied) + 2

    await beside.step()

    assert secrets(redis) == [f"{SECRETS}{kept.id}".encode()]
    assert redis.zrange(SECRETS_INDEX, 0, -1) == [kept.id.encode()]


async def test_the_index_of_secrets_follows_the_ends_of_tasks(
    beside: RqMaintenance, pool: TaskPool, redis: Redis
) -> None:
    for n in range(3):
        pool.add_task("login", {"user": "ann", "password": f"x{n}"})
    done, failed, lapsed = (pool.run_task(["default"], worker="w", attempt_id=str(n)) for n in range(3))
    assert done is not None
    assert failed is not None
    assert lapsed is not None
    pool.store.run(scripts.finish(done, S.DONE, result=b"1"))
    pool.execute_task(failed)
    redis.delete(SECRETS + lapsed.id)

    await beside.step()
    assert redis.zrange(SECRETS_INDEX, 0, -1) == [failed.id.encode()]
    pool.remove_task(failed.id)

    assert not redis.exists(SECRETS_INDEX)


async def test_secrets_that_an_older_release_stored_go_with_the_sweep_of_the_indexes(
    pool: TaskPool, redis: Redis
) -> None:
    record = pool.add_task("login", {"user": "ann", "password": "x"})
    redis.delete(SECRETS_INDEX, f"rq:job:{record.id}")

    pool.store.run(scripts.sweep_index("taskpool:type:login", "", 100))

    assert secrets(redis) == []


# --- requeued under an RQ worker --------------------------------------------------------------------------------


def test_a_plain_rq_worker_does_not_run_a_task_whose_unique_key_another_one_took(
    world: World,
) -> None:
    world.end("a", S.FAILED, unique_key="k", type="echo", payload={"message": 1})
    world.add("b", unique_key="k", queue="other")
    requeue_job("a", world.redis, serializer=JSONSerializer)

    queue = Queue(connection=world.redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=world.redis, serializer=JSONSerializer).work(burst=True)

    record = world.get("a")
    assert (record.status, record.reason, record.attempt) == (S.FAILED, "unique_key_held", 1)
    assert record.error == "the task b took its unique key before it was queued again"


def test_a_plain_rq_worker_takes_the_key_of_a_requeued_task_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPOOL_BUILTINS", "echo")
    world.end("a", S.FAILED, unique_key="k", type="echo", payload={"message": 1})
    requeue_job("a", world.redis, serializer=JSONSerializer)

    queue = Queue(connection=world.redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=world.redis, serializer=JSONSerializer).work(burst=True)

    assert (world.get("a").status, world.get("a").result) == (S.DONE, 1)


# --- failed by an RQ worker that couldn't read them -------------------------------------------------------------


def pickle_worker(redis: Redis) -> None:
    """What `rq worker` does without `-S json`, until the queue is empty."""
    SimpleWorker([Queue(connection=redis)], connection=redis).work(burst=True)


async def test_a_task_that_an_rq_worker_could_not_read_is_scheduled_again(beside: RqMaintenance, world: World) -> None:
    world.add("a", tags=["red"])
    pickle_worker(world.redis)
    assert world.get("a").status is S.FAILED

    await beside.step()

    record = world.get("a")
    assert (record.status, record.attempt) == (S.SCHEDULED, 0)
    assert not world.redis.exists("rq:failed:default")
    assert world.events("a")[-1] == (2, "scheduled", "scheduled")
    world.make_due("a")
    assert world.run(scripts.promote("a", "default")) == "ok"
    assert world.finish(world.claim()) == "ok"
    assert (world.get("a").status, world.get("a").error) == (S.DONE, None)


async def test_tasks_that_wait_for_such_a_task_keep_waiting(beside: RqMaintenance, world: World) -> None:
    world.add("a")
    world.add("child", depends_on=["a"], queue="other")
    pickle_worker(world.redis)

    world.run(scripts.sweep_waiting("other", 100))
    assert not world.redis.exists("taskpool:outbox")
    await beside.step()
    world.make_due("a")
    world.run(scripts.promote("a", "default"))
    world.finish(world.claim())
    world.run(scripts.release("a"))

    assert world.get("child").status is S.QUEUED


async def test_a_task_that_failed_in_an_rq_worker_stays_failed(beside: RqMaintenance, world: World) -> None:
    world.add("a", type="word_count", payload={"path": "/no/such/file"})
    world.add("b", type="nobody_knows")
    queue = Queue(connection=world.redis, serializer=JSONSerializer)
    SimpleWorker([queue], connection=world.redis, serializer=JSONSerializer).work(burst=True)
    world.end("c", S.FAILED)

    await beside.step()

    assert [world.get(id).status for id in ("a", "b", "c")] == [S.FAILED] * 3


async def test_a_task_that_such_workers_take_again_and_again_fails_in_the_end_and_says_why(
    beside: RqMaintenance, world: World
) -> None:
    world.add("a")

    waits = []
    for _ in range(20):
        pickle_worker(world.redis)
        await beside.step()
        seconds, micros = world.redis.time()
        waits.append(round(world.redis.zscore("rq:scheduled:default", "a") - seconds - micros / 1e6))
        world.make_due("a")
        world.run(scripts.promote("a", "default"))
    pickle_worker(world.redis)
    await beside.step()

    record = world.get("a")
    assert (record.status, record.reason) == (S.FAILED, "rq_worker")
    assert record.error is not None
    assert "could not read it: start them with `-S json`" in record.error
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_foreign_job_that_failed_is_left_as_it_is(beside: RqMaintenance, world: World) -> None:
    job = Queue(connection=world.redis, serializer=JSONSerializer).enqueue("os.getcwd")
    pickle_worker(world.redis)
    before = world.redis.hgetall(job.key)

    await beside.step()

    assert world.redis.hgetall(job.key) == before


async def test_a_misread_task_whose_unique_key_was_taken_meanwhile_is_canceled(
    beside: RqMaintenance, world: World
) -> None:
    world.add("a", unique_key="k")
    pickle_worker(world.redis)
    world.add("b", unique_key="k", queue="other")
    await beside.step()
    world.make_due("a")
    world.run(scripts.promote("a", "default"))

    assert world.try_claim() is None

    assert world.get("a").reason == "unique_key_held"


# --- warnings ---------------------------------------------------------------------------------------------------


def announce(world: World, *queues: str) -> None:
    """A pool of ours on these queues."""
    info = PoolInfo(id="p", host="h", pid=1, queues=queues, types=(), workers=("ours",))
    world.run(publish(info, [], ttl_s=60))
    world.redis.sadd("rq:workers", "rq:worker:ours")
    world.redis.hset("rq:worker:ours", mapping={"birth": "now", "queues": ",".join(queues), "pool": "p"})


async def test_rq_workers_and_foreign_jobs_on_our_queues_are_warned_of_once(
    store: AsyncStore, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    beside = RqMaintenance(store, Settings(), world.redis, warn_after_s=0)
    announce(world, "default", "mail")
    SimpleWorker([Queue("other", connection=world.redis)], connection=world.redis, name="apart").register_birth()  # type: ignore[no-untyped-call]
    assert await store.carry_out(worker_warnings()) == []

    Queue("mail", connection=world.redis).enqueue("os.getcwd")
    Queue("other", connection=world.redis).enqueue("os.getcwd")
    assert world.try_claim("default", "mail", "other") is None
    (unserved,) = await store.carry_out(worker_warnings())
    queues = [Queue("mail", connection=world.redis), Queue("x", connection=world.redis)]
    SimpleWorker(queues, connection=world.redis, name="plain").register_birth()  # type: ignore[no-untyped-call]
    sharing, served = await store.carry_out(worker_warnings())

    assert unserved == (
        "The queue 'mail' holds RQ jobs that aren't Taskpool tasks. They are left to RQ workers, but none serves that "
        "queue: start one, name the jobs' functions in TASKPOOL_RQ_FUNCTIONS, or set TASKPOOL_FOREIGN_JOBS=refuse"
    )
    assert sharing.startswith("RQ workers serve Taskpool's queues: plain (mail). Start them with `-S json`")
    assert served == "The queue 'mail' holds RQ jobs that aren't Taskpool tasks. They are left to RQ workers"
    for _ in range(2):
        await beside.step()
    assert [record.message for record in caplog.records if "RQ" in record.message] == [sharing, served]


async def test_the_api_and_the_command_show_the_warnings(world: World) -> None:
    announce(world, "default")
    Queue(connection=world.redis).enqueue("os.getcwd")
    assert world.try_claim() is None

    async with api(world.url) as client:
        ready, workers = (await client.get("/readyz")).json(), (await client.get("/workers")).json()
    shown = CliRunner().invoke(main, ["workers", "--redis-url", world.url])

    assert len(workers["warnings"]) == 1
    assert workers["warnings"][0] in ready["warnings"]
    assert f"Warning: {workers['warnings'][0]}." in shown.stderr


async def test_names_and_ids_that_are_not_text_break_no_list_and_no_duty(world: World, pool: TaskPool) -> None:
    world.add("a")
    world.redis.sadd("rq:queues", b"rq:queue:\xff", "no queue")
    world.redis.lpush("rq:queue:default", b"\xff")
    world.redis.rpush("rq:queue:default", b"\xfe", "line\n")
    for id in (b"line\n", b"\xfe"):
        world.redis.hset(b"rq:job:" + id, mapping={"status": "queued", "data": b"\x80\x04pickle", "origin": "default"})

    async with api(world.url) as client:
        answers = [(await client.get(path)).status_code for path in ("/queues", "/workers", "/readyz", "/metrics")]
        queued = (await client.get("/tasks", params={"status": "queued"})).json()
        page = await client.get("/queues/default")

    assert answers[0] == 200
    assert 500 not in answers
    assert [task["id"] for task in page.json()["tasks"]] == ["a", "\ufffd", "line\n"]
    assert "a" in [task["id"] for task in queued["tasks"]]
    assert [queue.name for queue in pool.queues()] == ["default"]
    assert world.run(all_queues()) == ["default"]
