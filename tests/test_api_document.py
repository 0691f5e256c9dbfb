"""The JSON form of records: names, times, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from taskpool.operations.documents import (
    EventDocument,
    QueuedDocument,
    QueueDocument,
    TaskDocument,
    TypeDocument,
    WorkerDocument,
)
from taskpool.types import (
    Answer,
    Confirm,
    Confirmation,
    Event,
    PastAttempt,
    Question,
    QueuedTask,
    QueueInfo,
    TaskRecord,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)
from taskpool.types.dependency import Dependency


def shown(function: Callable[[Any], msgspec.Struct], what: Any) -> dict[str, Any]:
    """What a reader sees of it."""
    seen: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(function(what)))
    return seen


AT = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def record(**fields: Any) -> TaskRecord:
    defaults: dict[str, Any] = {
        "id": "1",
        "type": "echo",
        "status": TaskStatus.QUEUED,
        "queue": "default",
        "payload": {},
    }
    return TaskRecord(**{**defaults, **fields})


def test_a_new_task_shows_no_more_than_there_is() -> None:
    assert shown(TaskDocument.of, record()) == {
        "id": "1",
        "type": "echo",
        "status": "queued",
        "queue": "default",
        "payload": {},
        "attempt": 0,
        "max_attempts": 1,
        "seq": 0,
    }


def test_a_task_with_everything_shows_everything() -> None:
    full = record(
        status=TaskStatus.FAILED, payload={"a": 1}, created_at=AT, enqueued_at=AT, run_at=AT, started_at=AT,
        ended_at=AT, expires_at=AT, result=None, error="it broke", failure={"reason": "exception"}, reason="timeout",
        fingerprint="3f9c02d51ab7",
        progress={"done": 1}, attempt=2, max_attempts=3, backoff_s=1, backoff_max_s=2, on_lost_lease="kill",
        crashes=1, snoozes=1, timeout_s=1.5, result_ttl_s=10, failure_ttl_s=20,
        tags=("a",), depends_on=("0", Dependency("1", "any")), canceled_by="0", added_by="1", submitted_by="a service",
            operations=("o",),
            worker="w", seq=9, callback_url="https://a.example", callback_events=("done",),
        history=(PastAttempt(attempt=1, worker="w", started_at=AT, ended_at=AT, outcome="failed"),),
        unique_key="k", unique_until="start", unique_for_s=1.0, traceparent="00-1", tracestate="a=b", project="shop",
        workflow="d217r8m2n3aolstf0000", node="rows",
        confirm=Confirm("Go?"), confirmation=Confirmation(decision="confirmed", at=AT, by="Ann", key="k"), asked_at=AT,
        answer_by=AT, question=Question(name="n", text="t", timeout=1),
        answers=(Answer(question="n", text="t", at=AT),),
        schedule="nightly", occurrence=AT,
    )  # fmt: skip

    document = shown(TaskDocument.of, full)

    assert document.keys() == set(TaskRecord.__struct_fields__) - {"result"}
    assert document["tags"] == ["a"]
    assert document["crashes"] == 1
    assert document["confirm"] == {"text": "Go?", "timeout": 604_800, "default": "reject"}
    when = "2026-11-23T12:00:00.123Z"
    assert document["history"] == [
        {"attempt": 1, "worker": "w", "started_at": when, "ended_at": when, "outcome": "failed"}
    ]
    assert document["confirmation"] == {"decision": "confirmed", "at": when, "by": "Ann", "key": "k"}
    assert document["answers"] == [{"question": "n", "text": "t", "at": when}]


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (AT, "2026-11-23T12:00:00.123Z"),
        (AT.replace(microsecond=0), "2026-11-23T12:00:00.000Z"),
        (datetime(2026, 11, 23, 1, tzinfo=timezone(timedelta(hours=2))), "2026-11-22T23:00:00.000Z"),
    ],
)
def test_times_are_rfc_3339_in_utc_with_milliseconds(moment: datetime, text: str) -> None:
    assert shown(TaskDocument.of, record(created_at=moment))["created_at"] == text


def test_a_task_that_is_done_has_a_result_even_if_it_is_null() -> None:
    assert shown(TaskDocument.of, record(status=TaskStatus.DONE))["result"] is None
    assert shown(TaskDocument.of, record(status=TaskStatus.DONE, result=[0]))["result"] == [0]
    assert "result" not in shown(TaskDocument.of, record(status=TaskStatus.FAILED))


def test_a_queued_task_has_its_place() -> None:
    document = shown(QueuedDocument.of, QueuedTask(record(), position=3, wait_s=1.23456))

    assert (document["position"], document["wait_s"], document["id"]) == (3, 1.235, "1")


def test_queues_types_workers_and_events_have_a_form() -> None:
    queue = QueueInfo(
        name="q", queued=0, in_progress=0, scheduled=0, waiting=0, done=0, failed=0, canceled=0, oldest_s=None
    )
    type_ = TypeInfo(name="echo", queue="default", schema={"type": "object"}, last_seen_ms=0)
    worker = WorkerInfo(
        name="w", host="h", pid=1, state="idle", queues=("q",), pool=None, current=(), done=0, failed=0, working_s=0.0,
        started_at=AT, last_heartbeat=None,
    )  # fmt: skip
    event = Event("1", 2, "progress", TaskStatus.IN_PROGRESS, 0, {"done": 1})

    assert shown(QueueDocument.of, queue).keys() == set(QueueInfo.__dataclass_fields__) - {"oldest_s", "paused"}
    assert shown(TypeDocument.of, type_)["last_seen_at"] == "1970-01-01T00:00:00.000Z"
    assert shown(WorkerDocument.of, worker)["started_at"] == "2026-11-23T12:00:00.123Z"
    assert shown(EventDocument.of, event) == {
        "id": "1", "seq": 2, "event": "progress", "status": "in_progress", "at": "1970-01-01T00:00:00.000Z",
        "data": {"done": 1},
    }  # fmt: skip
    assert EventDocument.of(replace(event, stream="5-1", aside={"x": 1})).stream == "5-1"
