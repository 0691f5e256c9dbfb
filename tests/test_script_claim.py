"""turn.lua: who gets which task, what a claim leaves in Redis, and what it passes over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from taskpool.redis import keys, scripts
from taskpool.redis.rq_job import waited_ms
from taskpool.redis.store import Store
from taskpool.types import ForeignJobs, RunningTask, TaskStatus
from tests.states import LEASE_MS, SEED, World, new_task

S = TaskStatus


def test_the_attempts_of_a_worker_that_is_never_heard_of_again_expire(world: World) -> None:
    world.start("a")

    assert 86_000 < world.redis.ttl("taskpool:attempts:w") <= 86_400


def test_a_claim_takes_the_head_and_records_worker_and_lease(world: World) -> None:
    world.add("a", payload={"n": 1}, max_attempts=3, timeout_s=2.5)
    world.add("b")
    before = world.snapshot()

    running = world.claim(worker="w7", attempt_id="x")

    assert running == RunningTask(
        id="a",
        type="work",
        payload={"n": 1},
        queue="default",
        attempt=1,
        attempt_id="x",
        worker="w7",
        max_attempts=3,
        timeout_s=2.5,
        result_ttl_s=1000,
        failure_ttl_s=2000,
        enqueued_at=running.enqueued_at,
        started_ms=running.started_ms,
    )
    assert 0 <= waited_ms(running) < 10_000
    assert world.since(before) == {
        "rq:queue:default": ["b"],
        "rq:job:a status": "started",
        "rq:job:a started_at": "now",
        "rq:job:a worker_name": "w7",
        "rq:job:a attempt": "1",
        "rq:job:a attempt_id": "x",
        "rq:job:a seq": "2",
        "rq:wip:default a:x": "now+3700 s",
        "taskpool:attempts:w7": {"a:x"},
        "taskpool:events a 2": {"event": "started", "status": "in_progress", "at_ms": "now", "attempt": 1},
    }


def test_the_first_queue_is_emptied_before_the_next_is_looked_at(world: World) -> None:
    for id, queue in (("low1", "low"), ("high1", "high"), ("low2", "low"), ("high2", "high")):
        world.add(id, queue=queue)

    claimed = [world.claim("high", "low") for _ in range(4)]

    assert [running.id for running in claimed] == ["high1", "high2", "low1", "low2"]
    assert [running.queue for running in claimed] == ["high", "high", "low", "low"]


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 24, 47, 48, 49])
def test_a_claim_on_many_queues_finds_the_first_one_with_a_task_in_few_commands(world: World, at: int) -> None:
    queues = [f"q{number}" for number in range(50)]
    world.add("later", queue="q49")
    if at < 49:
        world.add("sooner", queue=f"q{at}")
    world.redis.config_resetstat()

    running = world.claim(*queues)

    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in world.redis.info("commandstats").items()}
    assert (running.id, running.queue) == ("sooner" if at < 49 else "later", f"q{at}")
    assert calls["lpop"] <= 2
    assert calls["exists"] <= 9


def test_a_claim_on_many_queues_passes_over_paused_ones_and_ids_without_a_task(world: World) -> None:
    queues = [f"q{number}" for number in range(10)]
    world.redis.hset(keys.SWITCHES, "queue:q4", '{"by":"Ann"}')
    world.add("held", queue="q4")
    world.redis.rpush("rq:queue:q6", "gone")
    world.add("wanted", queue="q8")

    assert world.claim(*queues).id == "wanted"
    assert world.try_claim(*queues, attempt_id="2") is None


def test_a_task_of_a_queue_not_asked_for_stays(world: World) -> None:
    world.add("a", queue="other")
    before = world.snapshot()

    assert world.try_claim("default") is None

    assert world.since(before) == {}


def test_a_claim_that_finds_nothing_silences_the_stale_doorbells_of_its_queues(world: World) -> None:
    world.redis.rpush("taskpool:doorbell:a", "1", "1")
    world.redis.rpush("taskpool:doorbell:b", "1")
    world.redis.rpush("taskpool:doorbell:c", "1")

    assert world.try_claim("a", "b") is None

    assert world.snapshot() == {"taskpool:doorbell:c": ["1"]}


def test_doorbells_are_left_alone_while_there_is_work(world: World) -> None:
    world.add("a")
    world.add("b")

    world.claim()

    assert world.snapshot()["taskpool:doorbell:default"] == ["1", "1"]


def test_a_registered_worker_is_shown_busy_and_idle_again(world: World) -> None:
    world.redis.hset("rq:worker:w", "state", "idle")
    world.add("a")

    world.claim(was_idle=True)
    busy = world.redis.hget("rq:worker:w", "state")
    world.try_claim(was_idle=False)
    idle = world.redis.hget("rq:worker:w", "state")

    assert (busy, idle) == (b"busy", b"idle")


def test_a_worker_that_is_not_registered_is_not_half_registered_by_a_claim(world: World) -> None:
    world.add("a")

    world.claim(was_idle=True)
    world.try_claim(was_idle=False)

    assert not world.redis.exists("rq:worker:w")


def test_nothing_is_claimed_while_rq_suspend_holds(world: World) -> None:
    world.add("a")
    world.redis.set("rq:suspended", 1)
    before = world.snapshot()

    assert world.try_claim() is None

    assert world.since(before) == {}


@pytest.mark.parametrize("status", [status for status in SEED if status is not S.QUEUED])
def test_an_id_in_the_queue_whose_record_is_not_queued_is_passed_over(world: World, status: TaskStatus) -> None:
    SEED[status](world, "stale")
    world.redis.rpush("rq:queue:default", "stale", "gone")
    world.add("a")
    before = world.snapshot()

    assert world.claim(attempt_id="9").id == "a"

    changed = world.since(before)
    assert not [name for name in changed if "stale" in name]
    assert changed["rq:queue:default"] is None


def test_a_task_queued_twice_is_claimed_once(world: World) -> None:
    world.add("a")
    world.redis.rpush("rq:queue:default", "a")

    assert world.claim(attempt_id="1").id == "a"
    assert world.try_claim(attempt_id="2") is None

    assert world.get("a").attempt == 1
    assert list(world.redis.smembers("taskpool:attempts:w")) == [b"a:1"]


def test_a_claim_looks_at_a_bounded_number_of_ids_and_rings_for_the_rest(world: World) -> None:
    world.redis.rpush("rq:queue:default", *[f"gone{n}" for n in range(450)])
    world.add("a")
    world.redis.delete("taskpool:doorbell:default")

    found = [world.try_claim(), world.try_claim(), world.try_claim()]

    assert [running and running.id for running in found] == [None, None, "a"]
    assert world.snapshot()["taskpool:doorbell:default"] == ["1"]


def test_an_id_that_could_break_a_key_is_never_started(world: World) -> None:
    world.redis.hset("rq:job:a:b", mapping={"status": "queued", "data": "x"})
    world.redis.rpush("rq:queue:default", "a:b")

    assert world.try_claim() is None

    assert not world.redis.exists("rq:wip:default")


def test_a_task_that_has_expired_is_canceled_and_the_next_is_taken(world: World) -> None:
    world.add("late", expires_in_s=300)
    world.add("a")
    world.redis.hset("rq:job:late", "expires_ms", 1)
    before = world.snapshot()

    assert world.claim().id == "a"

    assert {name: value for name, value in world.since(before).items() if "late" in name} == {
        "rq:job:late status": "canceled",
        "rq:job:late ended_at": "now",
        "rq:job:late reason": "expired",
        "rq:job:late error": "canceled: it was not started before it expired",
        "rq:job:late seq": "2",
        "rq:job:late expires": "now+2060 s",
        "rq:canceled:default late": "now+2000 s",
        "taskpool:expiring late": None,
        "taskpool:events late 2": {"event": "canceled", "status": "canceled", "at_ms": "now", "reason": "expired"},
    }


def test_what_waits_for_a_task_that_expired_is_put_into_the_outbox(world: World) -> None:
    world.add("late", expires_in_s=300)
    world.add("child", depends_on=["late"])
    world.redis.hset("rq:job:late", "expires_ms", 1)

    assert world.try_claim() is None

    assert world.snapshot()["taskpool:outbox"] == {"late"}


def test_a_task_started_in_time_no_longer_expires(world: World) -> None:
    world.add("a", expires_in_s=300)

    world.claim()

    assert "taskpool:expiring a" not in world.snapshot()


def test_a_task_started_in_time_is_retried_after_the_moment_it_would_have_expired(world: World) -> None:
    running = world.start("a", expires_in_s=300, max_attempts=2)
    world.run(scripts.retry(running, delay_ms=0, error="no luck", failure={}))
    world.redis.hset("rq:job:a", "expires_ms", 1)

    assert world.claim(attempt_id="2").id == "a"

    assert world.get("a").status is S.IN_PROGRESS


def test_a_further_attempt_starts_without_the_traces_of_the_last(world: World) -> None:
    running = world.start("a", max_attempts=2)
    world.run(scripts.progress(running, {"done": 1}))
    world.run(scripts.retry(running, delay_ms=0, error="no luck", failure={"reason": "exception"}))
    world.redis.hset("rq:job:a", mapping={"ended_at": "2026-01-01T00:00:00.000000Z", "reason": "x", "stop_ms": 1})
    world.redis.expire("rq:job:a", 100)

    running = world.claim(attempt_id="2")

    after = world.snapshot()
    left = {"ended_at", "error", "failure", "reason", "progress", "stop_ms"}
    assert running.attempt == 2
    assert [name for name in left if f"rq:job:a {name}" in after] == []
    assert "rq:job:a expires" not in after


def test_a_task_of_a_plain_rq_producer_is_claimed_like_ours(world: World) -> None:
    queue = Queue(connection=world.redis, serializer=JSONSerializer)
    job = queue.enqueue(keys.ENTRY_POINT, "work", {"n": 1}, job_timeout=7, result_ttl=50, failure_ttl=60)

    running = world.claim()

    assert (running.id, running.type, running.payload) == (job.id, "work", {"n": 1})
    assert (running.timeout_s, running.result_ttl_s, running.failure_ttl_s) == (7, 50, 60)
    assert running.refusal is None


def test_a_plain_rq_job_without_a_time_limit_has_none(world: World) -> None:
    Queue(connection=world.redis, serializer=JSONSerializer).enqueue(keys.ENTRY_POINT, "work", {}, job_timeout=-1)

    assert world.claim().timeout_s is None


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("os.system", ("true",)), ("taskpool.runner.run_task", ("work",)), (keys.ENTRY_POINT, ()), ("print", ({},))],
)
def test_a_job_that_calls_anything_else_is_claimed_with_a_refusal_where_those_are_refused(
    world: World, function: str, arguments: tuple[Any, ...]
) -> None:
    Queue(connection=world.redis, serializer=JSONSerializer).enqueue(function, *arguments)

    running = world.run(
        scripts.claim(["default"], worker="w", attempt_id="1", lease_ms=LEASE_MS, foreign=ForeignJobs(are_refused=True))
    )

    assert running is not None
    assert running.refusal is not None
    assert running.payload is None


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"null", b"[]", b'["a"', b"\xff\xfe", b"x\x9cx"])
def test_data_that_cannot_be_read_is_a_refusal(world: World, data: bytes) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "data", data)

    assert world.claim().refusal is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", "soon"),
        ("timeout", ""),
        ("timeout_ms", "soon"),
        ("result_ttl", "None"),
        ("failure_ttl", "None"),
        ("max_attempts", "many"),
        ("enqueued_at", "yesterday"),
        ("dependency_ids", "{"),
        ("type", b"\xff"),
    ],
)
def test_a_damaged_field_stops_neither_the_claim_nor_the_end(world: World, field: str, value: str | bytes) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", field, value)

    running = world.claim()

    assert running.id == "a"
    assert world.finish(running, S.FAILED) == "ok"


def test_many_connections_claim_each_task_once(world: World) -> None:
    ids = [f"t{n}" for n in range(400)]
    world.run(scripts.add([new_task(id) for id in ids]))

    def drain(worker: int) -> list[str]:
        store = Store(world.url)
        claimed: list[str] = []
        while True:
            call = scripts.claim(
                ["default"],
                worker=f"w{worker}",
                attempt_id=f"{worker}-{len(claimed)}",
                lease_ms=LEASE_MS,
                was_idle=False,
            )
            running = store.run(call)
            if running is None:
                store.close()
                return claimed
            claimed.append(running.id)

    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(drain, range(8)))

    assert sorted(id for each in claimed for id in each) == sorted(ids)
    assert all(each == sorted(each, key=ids.index) for each in claimed)
    assert world.redis.zcard("rq:wip:default") == len(ids)


def test_a_further_attempt_has_its_own_start(world: World) -> None:
    world.start("a", max_attempts=2)
    world.run(scripts.retry(world.running["a"], delay_ms=0, error="no luck", failure={}))
    world.redis.hset("rq:job:a", "started_at", "2026-01-01T00:00:00.000Z")

    world.claim(attempt_id="2")

    assert world.snapshot()["rq:job:a started_at"] == "now"


def test_a_key_that_is_no_record_is_skipped_behind_another_programs_job_too(world: World) -> None:
    world.redis.hset("rq:job:foreign", mapping={"status": "queued", "data": b"\x80\x04garbage"})
    world.redis.set("rq:job:wrong", "not a hash")
    world.redis.rpush("rq:queue:default", "foreign", "wrong", "missing")
    world.add("a")

    assert world.claim().id == "a"
    assert world.redis.lrange("rq:queue:default", 0, -1) == [b"foreign"]


@pytest.mark.parametrize("value", ["abc", "", b"\xff", "-5", "nan", "9" * 40])
@pytest.mark.parametrize(
    "field", ["attempt", "seq", "expires_ms", "secret_ttl", "timeout", "result_ttl", "max_attempts"]
)
def test_a_damaged_field_loses_no_task(world: World, field: str, value: str | bytes) -> None:
    world.add("a")
    world.redis.set("taskpool:secrets:a", "[]")  # whose time to live is renewed by the claim
    world.redis.hset("rq:job:a", field, value)

    running = world.try_claim()

    assert world.get("a").status is (S.IN_PROGRESS if running else S.CANCELED)
    assert running or (field, value) == ("expires_ms", "-5")
    assert world.redis.llen("rq:queue:default") == 0
