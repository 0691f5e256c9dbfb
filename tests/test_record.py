"""From a task's hash to its record, and to RQ's job: for every status, and for what others left in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from taskpool import TaskPool
from taskpool.errors import TaskNotFound
from taskpool.operations.documents import TaskDocument
from taskpool.operations.records import OUTSIDE, fetch, fetch_if_there
from taskpool.redis import scripts
from taskpool.types import RQ_STATUS, TaskRecord, TaskStatus
from tests.states import ENDED, FAILURE, SEED, World

S = TaskStatus
TIMES = ("created_at", "enqueued_at", "run_at", "started_at", "ended_at", "expires_at")

HAS = {
    S.QUEUED: {"created_at", "enqueued_at"},
    S.SCHEDULED: {"created_at", "run_at"},
    S.WAITING: {"created_at"},
    S.WAITING_CONFIRMATION: {"created_at"},
    S.IN_PROGRESS: {"created_at", "enqueued_at", "started_at"},
    S.STOPPING: {"created_at", "enqueued_at", "started_at"},
    S.DONE: {"created_at", "enqueued_at", "started_at", "ended_at"},
    S.FAILED: {"created_at", "enqueued_at", "started_at", "ended_at"},
    S.STOPPED: {"created_at", "enqueued_at", "started_at", "ended_at"},
    S.CANCELED: {"created_at", "enqueued_at", "ended_at"},
}


@pytest.mark.parametrize("status", SEED)
def test_a_record_has_the_times_of_its_status_aware_and_by_redis(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")

    record = world.get("a")

    times = {name: getattr(record, name) for name in TIMES}
    assert record.status is status
    assert {name for name, time in times.items() if time is not None} == HAS[status]
    now = datetime.fromtimestamp(world.redis.time()[0], UTC)
    for name in HAS[status]:
        ahead_s = 500 if name == "run_at" else 0
        assert times[name].tzinfo is not None
        assert abs((times[name] - now).total_seconds() - ahead_s) < 10


def test_a_record_says_all_that_was_submitted(world: World) -> None:
    world.end("p")
    world.add(
        "a",
        payload={"text": "é\u2028", "n": [1, None, 2.5]},
        queue="q",
        tags=["x", "y"],
        timeout_s=1.25,
        result_ttl_s=7,
        failure_ttl_s=8,
        max_attempts=3,
        depends_on=["p"],
        expires_in_s=300,
    )

    record = world.get("a")

    assert record == TaskRecord(
        id="a",
        type="work",
        status=S.QUEUED,
        queue="q",
        payload={"text": "é\u2028", "n": [1, None, 2.5]},
        created_at=record.created_at,
        enqueued_at=record.created_at,
        expires_at=record.expires_at,
        max_attempts=3,
        timeout_s=1.25,
        result_ttl_s=7,
        failure_ttl_s=8,
        tags=("x", "y"),
        depends_on=("p",),
        seq=1,
    )
    assert record.created_at is not None
    assert record.expires_at is not None
    assert (record.expires_at - record.created_at).total_seconds() == 300


def test_a_done_task_has_its_result(world: World) -> None:
    running = world.start("a")
    world.run(scripts.progress(running, {"done": 1}))
    world.run(scripts.finish(running, S.DONE, result=b'{"n":[1]}'))

    record = world.get("a")

    assert (record.result, record.error, record.failure, record.reason) == ({"n": [1]}, None, None, None)
    assert (record.progress, record.worker, record.attempt, record.seq) == ({"done": 1}, "w", 1, 4)


def test_a_failed_task_says_why(world: World) -> None:
    world.end("a", S.FAILED)

    record = world.get("a")

    assert (record.result, record.error, record.failure, record.reason) == (None, "no luck", FAILURE, "exception")


def test_a_task_that_failed_outside_our_workers_says_where_to_look(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "status", "failed")

    assert world.get("a").error == OUTSIDE


def test_a_result_is_read_only_of_a_task_that_is_done(world: World) -> None:
    world.end("a")
    world.redis.hset("rq:job:a", "status", "failed")

    assert world.get("a").result is None


@pytest.mark.parametrize(
    "field",
    [
        "created_at",
        "enqueued_at",
        "started_at",
        "ended_at",
        "run_ms",
        "expires_ms",
        "attempt",
        "max_attempts",
        "crashes",
        "seq",
        "timeout",
        "timeout_ms",
        "result_ttl",
        "failure_ttl",
        "result",
        "error",
        "failure",
        "reason",
        "progress",
        "dependency_ids",
        "tags",
        "type",
        "origin",
        "worker_name",
        "data",
        "status",
    ],
)
def test_a_damaged_field_never_keeps_a_record_from_being_read_and_shown(world: World, field: str) -> None:
    world.end("a")
    damaged = (b"", b"nonsense", b"\xff\xfe", b"{", b"9" * 400, b"9" * 15, b"-" + b"9" * 14, b"-", b"1.5", b"[1]")
    far = (b"0001-01-01T00:00:00+05:00", b"9999-12-31T23:59:59-05:00", b"2026-01-02T03:04:05.678+02:00")
    deep = (b"[" * 980 + b"]" * 980, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 100_000)

    for value in (*damaged, *far, *deep, b'{"a":1}', b'"\\ud800"', b"NaN", b"1e999"):
        world.redis.hset("rq:job:a", field, value)
        record = world.get("a")
        assert record.id == "a", value
        assert json.loads(msgspec.json.encode(TaskDocument.of(record)))["id"] == "a", value


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (b"[" * 980 + b"]" * 980, "it is nested more than 128 levels deep"),
        (b"[" * 5000 + b"]" * 5000, "it is nested more than 128 levels deep"),
        (b"\x80\x04pickle", "it isn't JSON"),
    ],
)
def test_a_result_that_cannot_be_shown_is_marked(world: World, stored: bytes, why: str) -> None:
    world.end("a")
    world.redis.hset("rq:job:a", "result", stored)

    record = world.get("a")

    assert (record.status, record.result) == (S.DONE, None)
    assert record.error == f"its stored result can't be shown: {why}"


def test_one_damaged_record_breaks_no_list(world: World) -> None:
    for id in ("a", "b", "c"):
        world.end(id)
    world.redis.hset("rq:job:b", mapping={"result": b"[" * 980 + b"]" * 980, "ended_at": "9999-12-31T23:59:59-05:00"})

    with TaskPool(world.url) as pool:
        found = pool.list_tasks().items

    assert {record.id for record in found} == {"a", "b", "c"}
    assert len(json.loads(msgspec.json.encode([TaskDocument.of(record) for record in found]))) == 3


@pytest.mark.parametrize("depth", [1, 63, 127, 128])
def test_a_result_as_deep_as_readers_can_take_is_shown(world: World, depth: int) -> None:
    world.end("a")
    world.redis.hset("rq:job:a", "result", b"[" * depth + b'"]]{{\\"["' + b"]" * depth)

    record = world.get("a")

    assert (record.result is not None, record.error) == (True, None)


def test_a_time_without_a_zone_is_taken_as_utc(world: World) -> None:
    world.add("a")
    world.redis.hset("rq:job:a", "created_at", "2026-01-02T03:04:05")

    assert world.get("a").created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("left", [{}, {"status": "finished"}, {"last_heartbeat": "x", "status": "failed"}])
def test_what_is_no_task_is_not_found(world: World, left: dict[str, Any]) -> None:
    if left:
        world.redis.hset("rq:job:a", mapping=left)

    with pytest.raises(TaskNotFound) as missing:
        world.run(fetch("a"))

    assert missing.value.id == "a"
    assert world.run(fetch_if_there("a")) is None


@pytest.mark.parametrize("status", SEED)
def test_rq_fetches_a_task_in_every_status(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    record = world.get("a")

    job = Job.fetch("a", connection=world.redis, serializer=JSONSerializer)

    assert job.get_status() == RQ_STATUS[status]
    assert (job.origin, job.args, job.timeout) == ("default", ["work", {}], 600)
    assert (job.result_ttl, job.failure_ttl, job.worker_name) == (1000, 2000, record.worker)
    assert (job.created_at, job.enqueued_at, job.started_at) == (
        record.created_at,
        record.enqueued_at,
        record.started_at,
    )
    assert job.ended_at == record.ended_at


@pytest.mark.parametrize("status", ENDED)
def test_rq_keeps_what_it_does_not_know_when_it_saves_a_job(world: World, status: TaskStatus) -> None:
    SEED[status](world, "a")
    before = world.get("a")

    Job.fetch("a", connection=world.redis, serializer=JSONSerializer).save()

    assert world.get("a") == before
