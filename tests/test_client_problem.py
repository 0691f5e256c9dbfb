"""Each kind of problem becomes its exception, with its fields; and of every kind there is one."""

from __future__ import annotations

from typing import Any

import pytest

from api.http.problems import Problem, problem_of, unique_conflict
from taskpool import (
    ApiError,
    CapReached,
    FieldError,
    InvalidOperation,
    InvalidPayload,
    InvalidTask,
    NotAllowed,
    QueueFull,
    RedisUnavailable,
    TaskConflict,
    TaskNotFound,
    TaskpoolError,
    TaskSpec,
    Unauthorized,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
)
from taskpool.client.request import About, Answer, error_of
from taskpool.errors import (
    PROBLEMS,
    DeliveryBusy,
    DeliveryNotFound,
    FailureNotFound,
    InvalidKey,
    InvalidSchedule,
    InvalidWebhook,
    KeyNotFound,
    KeyReused,
    OperationConflict,
    OperationNotFound,
    PoolConflict,
    PoolNotFound,
    RedriveConflict,
    ScheduleConflict,
    ScheduleNotFound,
    WebhookConflict,
    WebhookNotFound,
    WorkflowConflict,
    WorkflowNotFound,
)

OWN: dict[str, type[TaskpoolError]] = {
    "unauthorized": Unauthorized,
    "forbidden": NotAllowed,
    "task-not-found": TaskNotFound,
    "task-conflict": TaskConflict,
    "unique-conflict": UniqueConflict,
    "invalid-query": InvalidTask,
    "invalid-task": InvalidTask,
    "invalid-body": InvalidTask,
    "invalid-payload": InvalidPayload,
    "unknown-type": UnknownType,
    "unknown-dependency": UnknownDependency,
    "idempotency-key-reused": KeyReused,
    "invalid-key": InvalidKey,
    "key-not-found": KeyNotFound,
    "queue-full": QueueFull,
    "cap-reached": CapReached,
    "redis-unavailable": RedisUnavailable,
    "invalid-schedule": InvalidSchedule,
    "schedule-not-found": ScheduleNotFound,
    "schedule-conflict": ScheduleConflict,
    "pool-not-found": PoolNotFound,
    "pool-conflict": PoolConflict,
    "failure-not-found": FailureNotFound,
    "redrive-conflict": RedriveConflict,
    "invalid-operation": InvalidOperation,
    "operation-not-found": OperationNotFound,
    "operation-conflict": OperationConflict,
    "invalid-webhook": InvalidWebhook,
    "webhook-not-found": WebhookNotFound,
    "webhook-conflict": WebhookConflict,
    "delivery-not-found": DeliveryNotFound,
    "delivery-busy": DeliveryBusy,
    "workflow-not-found": WorkflowNotFound,
    "workflow-conflict": WorkflowConflict,
}


def raised(problem: Problem, about: About | None = None) -> Any:
    """What a client makes of a problem as the API renders it."""
    response = problem.response()
    headers = {name.decode(): value.decode() for name, value in response.raw_headers}
    return error_of(Answer(response.status_code, headers, bytes(response.body)), about or About())


@pytest.mark.parametrize("kind", PROBLEMS)
def test_each_kind_has_its_exception(kind: str) -> None:
    error = raised(Problem(kind, "some detail"))

    assert type(error) is OWN.get(kind, ApiError)
    assert "some detail" in str(error)
    if isinstance(error, ApiError):
        assert (error.kind, error.status, error.title, error.detail) == (kind, *PROBLEMS[kind][1:3], "some detail")


def test_an_unknown_kind_of_problem_keeps_all_its_members() -> None:
    body = b'{"type":"urn:taskpool:problem:new","title":"T","status":418,"detail":"D","errors":[{"detail":"E"}]}'
    error = error_of(Answer(418, {"content-type": "application/problem+json", "retry-after": "5"}, body), About())

    assert isinstance(error, ApiError)
    assert (error.status, error.kind, error.title, error.detail) == (418, "new", "T", "D")
    assert (error.errors, error.retry_after_s) == ((FieldError("", "E"),), 5)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"errors": 1}', b"\xff", b"<html>"])
def test_what_calls_itself_a_problem_and_is_none_is_an_error_all_the_same(body: bytes) -> None:
    error = error_of(Answer(500, {"content-type": "application/problem+json"}, body), About())

    assert isinstance(error, ApiError)
    assert (error.status, error.kind) == (500, "")


def test_an_invalid_task_has_its_faults() -> None:
    faults = [FieldError("/payload/width", "too wide"), FieldError("/payload/height", "too high")]

    error = raised(problem_of(InvalidPayload("it doesn't fit", faults)))

    assert (error.errors, str(error)) == (tuple(faults), "it doesn't fit")


def test_pointers_of_a_batch_start_with_the_index() -> None:
    batch = About(specs=(TaskSpec(type="a"), TaskSpec(type="b")), prefix="/tasks")

    refusal = InvalidPayload("it doesn't fit: /tasks/1/payload/x: no", [FieldError("/tasks/1/payload/x", "no")])

    error = raised(problem_of(refusal), batch)

    assert error.errors == (FieldError("/1/payload/x", "no"),)
    assert str(error) == "it doesn't fit: /1/payload/x: no"


def test_an_unknown_type_has_its_name_and_those_near() -> None:
    batch = About(specs=(TaskSpec(type="a"), TaskSpec(type="eco")), prefix="/tasks")
    alone = raised(problem_of(UnknownType("eco", ["echo"])), About(specs=(TaskSpec(type="eco"),)))
    problem = problem_of(UnknownType("eco", ["echo"]))
    problem.errors = [{"pointer": "/tasks/1/type", "detail": "unknown"}]

    assert (alone.type, alone.near) == ("eco", ("echo",))
    assert raised(problem, batch).type == "eco"


def test_a_wrong_parameter_is_a_fault_with_a_pointer() -> None:
    error = raised(Problem("invalid-query", "wrong", errors=[{"parameter": "cursor", "detail": "wrong"}]))

    assert error.errors == (FieldError("/cursor", "wrong"),)


def test_conflicts_name_the_task_and_its_status() -> None:
    batch = About(specs=(TaskSpec(type="a"), TaskSpec(type="a", unique_key="k")), prefix="/tasks")

    running = raised(problem_of(TaskConflict("t1", "in_progress", "it runs"), stop="/tasks/t1/stop"), About("t1"))
    held = raised(unique_conflict(UniqueConflict("k", "t2", "queued"), "/tasks/1"), batch)

    assert (running.id, running.status, str(running)) == ("t1", "in_progress", "it runs")
    assert (held.id, held.status, held.key, held.index) == ("t2", "queued", "k", 1)


def test_a_missing_dependency_and_a_missing_task_are_named() -> None:
    assert raised(problem_of(UnknownDependency("t9"))).id == "t9"
    assert raised(Problem("task-not-found", "no"), About("t1")).id == "t1"
