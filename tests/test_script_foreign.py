"""Jobs of other programs in a queue of ours: the claim passes over them and leaves them where they stand."""

from __future__ import annotations

import json
import pickle
import random
import time
import zlib
from datetime import timedelta
from typing import Any

import pytest
from rq import Callback, Queue, Repeat, Retry
from rq.job import JobStatus, requeue_job
from rq.serializers import JSONSerializer

from taskpool.redis import keys, scripts
from taskpool.redis.keys import RQ_SCHEDULER_S
from taskpool.types import ForeignJobs, RunningTask, TaskStatus
from tests.states import LEASE_MS, World
from workers import housekeeping

S = TaskStatus
PLACE = "rq:queue:default"
REFUSE = ForeignJobs(are_refused=True)


def pickles(world: World) -> Queue:
    return Queue(connection=world.redis)


def plain(world: World) -> Queue:
    return Queue(connection=world.redis, serializer=JSONSerializer)


def claim(world: World, foreign: ForeignJobs, attempt_id: str = "1") -> RunningTask | None:
    return world.run(scripts.claim(["default"], worker="w", attempt_id=attempt_id, lease_ms=LEASE_MS, foreign=foreign))


def queued(world: World) -> list[str]:
    return [id.decode() for id in world.redis.lrange(PLACE, 0, -1)]


def jobs(world: World) -> dict[bytes, dict[bytes, bytes]]:
    """Every record that isn't a task's."""
    names = [key for key in world.redis.scan_iter("rq:job:*", count=1000) if world.redis.type(key) == b"hash"]
    return {key: h for key in names if not (h := world.redis.hgetall(key)).get(b"type")}


def test_foreign_jobs_stay_where_they_are_and_tasks_between_them_are_claimed_in_order(world: World) -> None:
    foreign = [pickles(world).enqueue("os.getcwd").id, plain(world).enqueue("os.getcwd").id]
    world.add("a")
    foreign.append(pickles(world).enqueue("os.getcwd").id)
    world.add("b")
    own = plain(world).enqueue(keys.ENTRY_POINT, "work", {"n": 1}).id
    before = jobs(world)

    claimed = [world.claim(attempt_id=str(n)).id for n in range(3)]

    assert claimed == ["a", "b", own]
    assert world.try_claim(attempt_id="9") is None
    assert queued(world) == foreign
    after = jobs(world)
    assert {key: after[key] for key in before if key != f"rq:job:{own}".encode()} == {
        key: h for key, h in before.items() if key != f"rq:job:{own}".encode()
    }


def test_ten_thousand_foreign_jobs_at_the_head_do_not_keep_a_task_back(world: World) -> None:
    job = pickles(world).enqueue("os.getcwd")
    data = world.redis.hget(job.key, "data")
    with world.redis.pipeline(transaction=False) as pipeline:
        for n in range(10_000):
            pipeline.hset(f"rq:job:f{n}", mapping={"data": data, "status": "queued"})
        pipeline.rpush(PLACE, *[f"f{n}" for n in range(10_000)])
        pipeline.execute()
    before = queued(world)
    world.add("a")

    looks = 0
    while world.try_claim() is None:
        looks += 1
        assert world.redis.llen("taskpool:doorbell:default") >= 1  # the worker comes back at once
    world.add("b")

    assert looks <= 51
    assert world.claim(attempt_id="2").id == "b"  # what was looked at isn't looked at again
    assert world.try_claim(attempt_id="3") is None
    assert not world.redis.exists("taskpool:doorbell:default")
    assert queued(world) == before


def test_an_rq_worker_that_takes_jobs_from_the_head_hides_no_task(world: World) -> None:
    for _ in range(300):
        pickles(world).enqueue("os.getcwd")
    world.add("a")
    assert world.try_claim() is None
    assert world.claim().id == "a"

    for n in range(299):
        world.redis.lpop(PLACE)
        if n % 60 == 0:
            world.add(f"t{n}")
            assert world.claim(attempt_id=str(n)).id == f"t{n}"
    world.redis.lpop(PLACE)
    pickles(world).enqueue("os.getcwd")
    world.add("last")

    assert world.claim(attempt_id="last").id == "last"


@pytest.mark.parametrize("id", ["user 7 {n}", "a:b:{n}", "line\n{n}", "ü{n}", "{n}", "x" * 65_536 + "{n}"])
def test_foreign_jobs_with_any_id_do_not_keep_a_task_back(world: World, id: str) -> None:
    """RQ 3 checks the ids of new jobs. Older releases of RQ take any text."""
    data = world.redis.hget(pickles(world).enqueue("os.getcwd").key, "data")
    ids = [id.format(n=n) for n in range(450)]
    with world.redis.pipeline(transaction=False) as pipeline:
        for foreign in ids:
            pipeline.hset(f"rq:job:{foreign}", mapping={"data": data, "status": "queued"})
            pipeline.rpush(PLACE, foreign)
        pipeline.execute()
    before = queued(world)
    world.add("a")

    looks = [world.try_claim() for _ in range(3)]

    assert [running and running.id for running in looks] == [None, None, "a"]
    assert queued(world) == before


@pytest.mark.parametrize("foreign", [REFUSE, ForeignJobs(["app.jobs.send"])])
@pytest.mark.parametrize("function", ["app.jobs.send", keys.ENTRY_POINT])
def test_a_call_under_an_id_that_no_task_can_have_is_left_to_rq(
    world: World, foreign: ForeignJobs, function: str
) -> None:
    data = zlib.compress(json.dumps((function, None, ["work"], {})).encode())
    world.redis.hset("rq:job:order 7", mapping={"data": data, "status": "queued"})
    world.redis.rpush(PLACE, "order 7")
    world.add("a")

    assert (running := claim(world, foreign)) is not None
    assert running.id == "a"
    assert claim(world, foreign, "2") is None
    assert queued(world) == ["order 7"]


def test_jobs_that_take_long_to_read_are_looked_at_in_smaller_steps(world: World) -> None:
    megabyte = b'["os.getcwd", null, ["' + b"x" * 1_000_000 + b'"], {}]'
    with world.redis.pipeline(transaction=False) as pipeline:
        for n in range(30):
            pipeline.hset(f"rq:job:f{n}", mapping={"data": megabyte, "status": "queued"})
            pipeline.rpush(PLACE, f"f{n}")
        pipeline.execute()
    world.add("a")

    looks = [world.try_claim() for _ in range(3)]

    assert [running and running.id for running in looks] == [None, None, "a"]


def test_what_is_put_in_front_of_foreign_jobs_is_found(world: World) -> None:
    for _ in range(10):
        pickles(world).enqueue("os.getcwd")
    assert world.try_claim() is None

    world.add("a", front=True)
    pickles(world).enqueue("os.getcwd", at_front=True)
    world.add("b")

    assert [world.claim(attempt_id=str(n)).id for n in range(2)] == ["a", "b"]
    assert world.try_claim(attempt_id="9") is None
    assert world.redis.llen(PLACE) == 11


def test_the_search_starts_at_the_head_again_after_a_while(world: World) -> None:
    pickles(world).enqueue("os.getcwd")
    assert world.try_claim() is None

    assert 0 < world.redis.ttl("taskpool:foreign:default") <= 3600
    assert world.try_claim() is None
    assert world.snapshot()["taskpool:foreign default"] == "now"


def test_a_task_that_was_hidden_among_foreign_jobs_is_found_by_the_recheck(world: World) -> None:
    for _ in range(31):
        pickles(world).enqueue("os.getcwd")
    assert world.try_claim() is None
    # All of this between two claims: an RQ worker takes two jobs; a task and a job are put to the front.
    world.redis.lpop(PLACE, 2)
    world.add("a", front=True)
    pickles(world).enqueue("os.getcwd", at_front=True)
    assert world.try_claim() is None

    offsets = [0]
    while world.redis.exists("taskpool:foreign:default"):
        offsets.append(world.run(scripts.recheck("default", offsets[-1], 1)))

    assert world.claim().id == "a"
    assert world.try_claim(attempt_id="9") is None
    assert [world.run(scripts.recheck("default", offset, 10)) for offset in (0, 20, 30)] == [10, 0, 0]


@pytest.mark.parametrize("function", [keys.ENTRY_POINT, "app.jobs.send", None])
def test_what_is_hidden_near_the_head_is_found_by_the_next_recheck(world: World, function: str | None) -> None:
    chosen = ForeignJobs(["app.jobs.send"])
    for _ in range(31):
        pickles(world).enqueue("os.getcwd")
    assert claim(world, chosen) is None
    # All of this between two claims: an RQ worker takes two jobs; a task and a job are put to the front.
    world.redis.lpop(PLACE, 2)
    if function is None:
        world.add("a", front=True)
    else:
        plain(world).enqueue(function, "work", {}, job_id="a", at_front=True)
    pickles(world).enqueue("os.getcwd", at_front=True)
    assert claim(world, chosen) is None

    assert world.run(scripts.recheck("default", 20, 1, foreign=chosen)) == 0

    running = claim(world, chosen)
    assert running is not None
    assert running.id == "a"


def test_a_job_that_is_left_to_rq_ends_no_recheck(world: World) -> None:
    chosen = ForeignJobs(["app.jobs.send"])
    plain(world).enqueue("app.jobs.send", on_success=Callback("app.jobs.told"))
    plain(world).enqueue("os.getcwd")
    assert claim(world, chosen) is None

    world.run(scripts.recheck("default", 0, 10, foreign=chosen))

    assert world.redis.exists("taskpool:foreign:default")


def test_leftovers_behind_foreign_jobs_are_dropped(world: World) -> None:
    job = pickles(world).enqueue("os.getcwd")
    world.end("ended")
    world.redis.rpush(PLACE, "gone", "ended")
    world.add("a")

    assert world.claim(attempt_id="2").id == "a"

    assert queued(world) == [job.id]


def test_an_expired_task_behind_foreign_jobs_is_canceled(world: World) -> None:
    job = pickles(world).enqueue("os.getcwd")
    world.add("late", expires_in_s=300)
    world.redis.hset("rq:job:late", "expires_ms", 1)

    assert world.try_claim() is None

    assert (world.get("late").status, world.get("late").reason) == (S.CANCELED, "expired")
    assert queued(world) == [job.id]


def test_a_tasks_own_damaged_data_is_not_taken_for_a_foreign_job(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "data", pickle.dumps(("os.getcwd", None, (), {})))

    assert world.claim().refusal is not None


def test_a_foreign_job_that_was_refused_before_is_left_alone_when_it_is_requeued(world: World) -> None:
    job = pickles(world).enqueue("os.getcwd")
    running = claim(world, REFUSE)
    assert running is not None
    assert running.refusal is not None
    world.finish(running, S.FAILED)
    assert world.redis.hget(job.key, "type") == b"unknown"

    requeue_job(job.id, world.redis, serializer=job.serializer)

    assert world.try_claim(attempt_id="2") is None
    assert queued(world) == [job.id]


@pytest.mark.parametrize("serializer", [JSONSerializer, None])
def test_refusal_is_a_setting(world: World, serializer: Any) -> None:
    Queue(connection=world.redis, serializer=serializer).enqueue("os.getcwd")

    running = claim(world, REFUSE)

    assert running is not None
    assert running.refusal is not None


# --- RQ functions that we are set to run -------------------------------------------------------------------

CHOSEN = ForeignJobs(["app.jobs.send", "app.jobs.other"])


def test_a_job_that_calls_a_chosen_function_is_claimed_with_its_arguments(world: World) -> None:
    left = [plain(world).enqueue("app.jobs.sen").id, plain(world).enqueue("app.jobs.send.more").id]
    job = plain(world).enqueue("app.jobs.send", 1, [None], retry=Retry(max=3, interval=[7, 30]), to="ann")

    running = claim(world, CHOSEN)

    assert running is not None
    assert (running.id, running.type, running.of_rq) == (job.id, "app.jobs.send", True)
    assert running.payload == {"args": [1, [None]], "kwargs": {"to": "ann"}}
    assert (running.max_attempts, running.retry_in_s) == (4, 7)
    assert (running.timeout_s, running.result_ttl_s, running.failure_ttl_s) == (180, 500, 31_536_000)
    assert queued(world) == left
    assert world.redis.zscore("taskpool:type:app.jobs.send", job.id) == 0


def test_a_pool_without_the_function_leaves_a_job_alone_that_another_one_ran(world: World) -> None:
    job = plain(world).enqueue("app.jobs.send")
    running = claim(world, CHOSEN)
    assert running is not None
    world.finish(running, S.FAILED)
    requeue_job(job.id, world.redis, serializer=job.serializer)

    assert world.try_claim(attempt_id="2") is None
    again = claim(world, CHOSEN, "3")
    assert again is not None
    assert (again.id, again.attempt) == (job.id, 2)


def test_retries_are_counted_as_rq_counts_them(world: World) -> None:
    job = plain(world).enqueue("app.jobs.send", retry=Retry(max=3, interval=[7, 30]))

    waits = []
    for n in range(4):
        running = claim(world, CHOSEN, str(n))
        assert running is not None
        waits.append((running.attempt, running.max_attempts, running.retry_in_s))
        world.run(scripts.retry(running, delay_ms=0, error="no", failure={}))

    assert waits == [(1, 4, 7), (2, 4, 7), (3, 4, 30), (4, 4, None)]
    assert world.redis.hget(job.key, "retries_left") == b"0"


@pytest.mark.parametrize(
    "options",
    [
        {"on_success": Callback("app.jobs.other")},
        {"on_failure": Callback("app.jobs.other")},
        {"on_stopped": Callback("app.jobs.other")},
        {"repeat": Repeat(times=2)},
    ],
)
def test_a_job_that_needs_what_only_rq_does_is_left_to_rq(world: World, options: dict[str, Any]) -> None:
    job = plain(world).enqueue("app.jobs.send", **options)

    assert claim(world, CHOSEN) is None

    assert queued(world) == [job.id]


def test_a_pickled_call_of_a_chosen_function_is_left_alone(world: World) -> None:
    job = pickles(world).enqueue("app.jobs.send", 1)

    assert claim(world, CHOSEN) is None

    assert queued(world) == [job.id]


def test_the_name_of_the_function_is_read_whatever_rq_compressed(world: World) -> None:
    dice = random.Random(7)
    chosen = ForeignJobs(["app.jobs.send"])
    with world.redis.pipeline() as pipeline:
        for n in range(150):
            arguments = [dice.choice([1, "a" * dice.randint(0, 900), {"x": [dice.random()] * 9}]) for _ in range(n % 4)]
            text = json.dumps(("app.jobs.send" if n % 2 else "app.jobs.sent", None, arguments, {}))
            data = zlib.compress(text.encode(), dice.choice([0, 1, 6, 9]))
            pipeline.hset(f"rq:job:j{n}", mapping={"data": data, "status": "queued"})
            pipeline.rpush(PLACE, f"j{n}")
            pipeline.hset(f"rq:job:b{n}", mapping={"data": data[: dice.randrange(len(data))], "status": "queued"})
            pipeline.rpush(PLACE, f"b{n}")
        pipeline.execute()

    claimed = []
    for n in range(120):
        running = claim(world, chosen, str(n))
        if running is not None:
            claimed.append(running.id)

    assert [id for id in claimed if id.startswith("j")] == [f"j{n}" for n in range(1, 150, 2)]
    assert {f"j{n}" for n in range(0, 150, 2)} <= set(queued(world))


def test_the_name_is_read_at_every_level_and_strategy_of_zlib(world: World) -> None:
    dice = random.Random(11)
    strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED)
    for level in range(-1, 10):
        for strategy in strategies:
            text = json.dumps(("app.jobs.send", None, ["a" * dice.randint(0, 99), dice.random()], {})).encode()
            packer = zlib.compressobj(level, zlib.DEFLATED, dice.choice([9, 15]), dice.randint(1, 9), strategy)
            halves = [packer.compress(text[:20]), packer.flush(zlib.Z_SYNC_FLUSH), packer.compress(text[20:])]
            data = b"".join([*halves, packer.flush()])
            world.redis.hset(f"rq:job:{level}_{strategy}", mapping={"data": data, "status": "queued"})
            world.redis.rpush(PLACE, f"{level}_{strategy}")
    expected = queued(world)

    claimed = [claim(world, ForeignJobs(["app.jobs.send"]), str(n)) for n in range(len(expected))]

    assert [running and running.id for running in claimed] == expected


# --- what RQ's scheduler and registries hold -------------------------------------------------------------------


def events(world: World) -> int:
    return int(world.redis.xlen("taskpool:events"))


@pytest.mark.parametrize("source", [pickles, plain])
def test_a_scheduled_job_of_another_program_is_left_to_rqs_scheduler(world: World, source: Any) -> None:
    job = source(world).enqueue_in(timedelta(hours=1), "os.getcwd")
    world.redis.zadd("rq:scheduled:default", {job.id: time.time() - 1})
    before = world.redis.hgetall(job.key)

    world.store.carry_out(housekeeping.promote("default"))

    assert world.redis.zrange("rq:scheduled:default", 0, -1) == [job.id.encode()]
    assert world.redis.hgetall(job.key) == before
    assert queued(world) == []


def test_without_a_scheduler_of_rq_it_is_queued_a_little_later_without_an_event(world: World) -> None:
    job = pickles(world).enqueue_in(timedelta(hours=1), "os.getcwd")
    world.redis.zadd("rq:scheduled:default", {job.id: time.time() - RQ_SCHEDULER_S - 1})

    world.store.carry_out(housekeeping.promote("default"))

    assert queued(world) == [job.id]
    assert job.get_status() is JobStatus.QUEUED
    assert not world.redis.exists("rq:scheduled:default")
    assert not world.redis.hexists(job.key, "seq")
    assert events(world) == 0


def test_a_scheduled_job_of_a_chosen_function_is_queued_at_its_time(world: World) -> None:
    job = plain(world).enqueue_in(timedelta(hours=1), "app.jobs.send")
    world.redis.zadd("rq:scheduled:default", {job.id: time.time() - 1})

    world.store.carry_out(housekeeping.promote("default", ForeignJobs(["app.jobs.send"])))

    assert queued(world) == [job.id]


def test_many_scheduled_jobs_of_other_programs_keep_no_task_back(world: World) -> None:
    data = world.redis.hget(pickles(world).enqueue_in(timedelta(hours=1), "os.getcwd").key, "data")
    world.redis.delete("rq:scheduled:default")
    now = time.time()
    for n in range(housekeeping.BATCH + 50):
        world.redis.hset(f"rq:job:f{n}", mapping={"data": data, "status": "scheduled"})
        world.redis.zadd("rq:scheduled:default", {f"f{n}": now - 2})
    world.redis.set("rq:job:text", "not a hash")
    world.add("a", delay_s=500)
    world.redis.zadd("rq:scheduled:default", {"a": now - 1, "text": now - 3})

    world.store.carry_out(housekeeping.promote("default"))

    assert queued(world) == ["a"]


def test_a_canceled_job_of_another_program_stays_as_rq_left_it(world: World) -> None:
    job = pickles(world).enqueue("os.getcwd")
    job.cancel()
    before = world.redis.hgetall(job.key)

    for _ in range(2):
        world.store.carry_out(housekeeping.purge_ended("default"))

    assert world.redis.hgetall(job.key) == before
    assert world.redis.ttl(job.key) == -1
    assert pickles(world).canceled_job_registry.get_job_ids() == [job.id]
    assert world.run(scripts.due("rq:canceled:default", limit=10)).members == ()
    assert events(world) == 0


def test_the_record_of_a_failed_job_of_another_program_is_not_deleted(world: World) -> None:
    job = pickles(world).enqueue("os.getcwd")
    world.redis.hset(job.key, "status", "failed")
    world.redis.zadd("rq:failed:default", {job.id: 1})

    world.store.carry_out(housekeeping.purge_ended("default"))

    assert world.redis.exists(job.key)
    assert not world.redis.exists("rq:failed:default")


@pytest.mark.parametrize("status", ["finished", "failed", "canceled"])
def test_what_waits_for_such_a_job_is_released_before_its_entry_is_dropped(world: World, status: str) -> None:
    job = pickles(world).enqueue("os.getcwd")
    world.add("a", depends_on=[job.id])
    world.redis.hset(job.key, "status", status)
    world.redis.zadd(f"rq:{status}:default", {job.id: 1})

    world.store.carry_out(housekeeping.purge_ended("default"))

    assert world.get("a").status is (S.QUEUED if status == "finished" else S.CANCELED)
    assert world.redis.exists(job.key)
