"""Every error through the HTTP API, the client and the command line: all follow what its class declares."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from api.answers import ProblemDocument
from api.auth.caller import SCOPE_KEY, anonymous
from api.http.declarations import PUBLIC
from api.routing import Resource
from taskpool import errors
from taskpool.cli.__main__ import Commands
from taskpool.client.request import About, Answer, Problem, error_of
from taskpool.errors import PROBLEM_PREFIX, PROBLEMS, ApiError, FieldError, TaskpoolError, attributes_of
from taskpool.operations.flow.values import WorkflowRecord, WorkflowStatus
from taskpool.settings import Settings
from taskpool.types import Exit, TaskRecord, TaskSpec, TaskStatus

FAULTS = [FieldError("/a", "is wrong"), FieldError("/b/c", "is wrong, too")]
RECORD = TaskRecord(
    id="t1", type="work", status=TaskStatus.QUEUED, queue="default", payload={}, created_at=datetime.now(UTC)
)
WORKFLOW = WorkflowRecord(
    id="w1", name="import", status=WorkflowStatus.IN_PROGRESS, created_at=RECORD.created_at, total=1, ended=0, counts={}
)
ABOUT = About(id="t1", specs=(TaskSpec(type="work", unique_key="k"),))
"""What the client knows about its request."""

ERRORS: list[TaskpoolError] = [
    errors.InvalidTask("/a: is wrong", FAULTS),
    errors.UnknownType("work", ["walk"]),
    errors.InvalidPayload("it doesn't fit", FAULTS),
    errors.UnknownDependency("t2"),
    errors.InvalidWebhook(FAULTS),
    errors.InvalidSchedule(FAULTS),
    errors.ScheduleNotFound("s1"),
    errors.UnreadableSchedule("s1"),
    errors.ScheduleConflict("it is declared"),
    errors.PoolNotFound("p1"),
    errors.PoolConflict("it drains"),
    errors.FailureNotFound("3f9c02d51ab7"),
    errors.RedriveConflict("it runs already"),
    errors.InvalidOperation(FAULTS),
    errors.OperationNotFound("t1"),
    errors.OperationConflict("it has ended"),
    errors.WebhookNotFound("w1"),
    errors.WebhookConflict("it is disabled"),
    errors.DeliveryNotFound("d1"),
    errors.DeliveryBusy("d1"),
    errors.NotAllowed(FAULTS),
    errors.TaskNotFound("t1"),
    errors.UnreadableTask("t1"),
    errors.TaskConflict("t1", "done", "it is done"),
    errors.WorkflowNotFound("t1"),
    errors.WorkflowConflict("t1", "done", "it is done"),
    errors.UniqueConflict("k", "t2", "queued"),
    errors.KeyReused(),
    errors.InvalidKey(FAULTS),
    errors.KeyNotFound("t1"),
    errors.QueueFull("default", 7, 7, 3.0),
    errors.CapReached("tags", "shop", 7),
    errors.WaitTimeout(RECORD, 1),
    errors.WorkflowTimeout(WORKFLOW, 1),
    errors.AttemptLost("it is lost"),
    errors.ConfigurationError("it is wrong"),
    errors.DuplicateType("there are two"),
    errors.NoEventLoop("there is none"),
    errors.RedisUnavailable("secret-host doesn't answer", 2.0),
    errors.RedisFull("secret-host is full"),
    errors.RedisRefused("secret-host refuses"),
    errors.ApiUnavailable("it is away", was_sent=True),
    errors.ApiError(418, "teapot", "Teapot", "it is short"),
    errors.Unauthorized(401, "unauthorized", "Authentication required", "an API key is needed"),
    errors.ParentResultGone("t2", "it has expired"),
    errors.ParentNotDone("t2", "it has none, its status is failed"),
]
EXITS: dict[type[TaskpoolError], Exit] = {
    errors.InvalidTask: Exit.USAGE,
    errors.NotAllowed: Exit.USAGE,
    errors.TaskNotFound: Exit.NOT_FOUND,
    errors.TaskConflict: Exit.CONFLICT,
    errors.WorkflowNotFound: Exit.NOT_FOUND,
    errors.WorkflowConflict: Exit.CONFLICT,
    errors.InvalidSchedule: Exit.USAGE,
    errors.ScheduleNotFound: Exit.NOT_FOUND,
    errors.ScheduleConflict: Exit.CONFLICT,
    errors.PoolNotFound: Exit.NOT_FOUND,
    errors.PoolConflict: Exit.CONFLICT,
    errors.FailureNotFound: Exit.NOT_FOUND,
    errors.RedriveConflict: Exit.CONFLICT,
    errors.InvalidOperation: Exit.USAGE,
    errors.OperationNotFound: Exit.NOT_FOUND,
    errors.OperationConflict: Exit.CONFLICT,
    errors.InvalidKey: Exit.USAGE,
    errors.KeyNotFound: Exit.NOT_FOUND,
    errors.WaitTimeout: Exit.TIMED_OUT,
    errors.WorkflowTimeout: Exit.TIMED_OUT,
    errors.ConfigurationError: Exit.USAGE,
    errors.RedisUnavailable: Exit.NO_REDIS,
    errors.ApiUnavailable: Exit.NO_REDIS,
    errors.Unauthorized: Exit.USAGE,
}
"""What scripts of users rely on: these and what derives from them. All other errors exit with 1."""

ANSWERED = [error for error in ERRORS if error.problem is not None and not isinstance(error, ApiError)]


def below(cls: type[TaskpoolError]) -> Iterator[type[TaskpoolError]]:
    for each in cls.__subclasses__():
        yield each
        yield from below(each)


def name_of(error: TaskpoolError) -> str:
    return type(error).__name__


def answer_of(error: TaskpoolError, method: str = "GET") -> httpx.Response:
    """The response of an API in which a route raises this."""

    async def fail(request: Request) -> None:
        request.scope[SCOPE_KEY] = anonymous("127.0.0.1")
        raise error

    async def ask() -> httpx.Response:
        gate: Any = None
        app = Starlette(routes=[Route("/", Resource(gate, Settings(), **{method: PUBLIC(fail)}))])
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, "/")

    return asyncio.run(ask())


def test_there_is_an_example_of_every_error() -> None:
    declared = {cls for cls in below(TaskpoolError) if cls.__module__ == "taskpool.errors"}

    assert {type(error) for error in ERRORS} == declared - {errors.FieldErrors}


@pytest.mark.parametrize("kind", PROBLEMS.values(), ids=lambda kind: kind.name)
def test_every_problem_is_declared_in_plain_english(kind: errors.ProblemKind) -> None:
    assert re.fullmatch("[a-z]+(-[a-z]+)*", kind.name)
    assert 400 <= kind.status < 600
    assert re.fullmatch(r"[A-Z][A-Za-z ]+", kind.title), "a title is a noun phrase"
    assert re.fullmatch(r"[A-Z`].*\.", kind.meaning), "a meaning is a sentence"


@pytest.mark.parametrize("error", ANSWERED, ids=name_of)
def test_the_api_answers_an_error_as_its_class_declares_it(error: TaskpoolError) -> None:
    kind = error.problem
    assert kind is not None

    response = answer_of(error)

    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"]) == (kind.status, kind.status)
    assert (problem["type"], problem["title"]) == (PROBLEM_PREFIX + kind.name, kind.title)
    assert problem["detail"] == (error.public_text if isinstance(error, errors.RedisUnavailable) else str(error))
    assert {member: problem[member] for member in kind.members} == {
        member: list(value) if isinstance(value := getattr(error, attribute), tuple) else value
        for member, attribute in kind.members.items()
    }
    assert all(name in response.headers for name, is_always_there in kind.headers.items() if is_always_there)
    if isinstance(error, errors.FieldErrors):
        assert problem["errors"] == [{"pointer": each.pointer, "detail": each.detail} for each in error.errors]


@pytest.mark.parametrize("error", ANSWERED, ids=name_of)
def test_the_client_raises_what_the_api_answered(error: TaskpoolError) -> None:
    response = answer_of(error)

    raised = error_of(Answer(response.status_code, dict(response.headers), response.content), ABOUT)

    assert type(raised) is PROBLEMS[error.problem.name].error if error.problem else None
    assert isinstance(error, type(raised))
    assert str(raised) == response.json()["detail"]
    for name in attributes_of(type(raised)):
        if name != "errors" or not isinstance(error, errors.UniqueConflict):
            assert getattr(raised, name) == getattr(error, name)
    assert raised.exit_status == error.exit_status


@pytest.mark.parametrize("error", [each for each in ERRORS if each.problem is None], ids=name_of)
def test_the_api_shows_nothing_of_an_error_that_isnt_for_its_callers(error: TaskpoolError) -> None:
    response = answer_of(error)

    assert (response.status_code, response.json()["type"]) == (500, PROBLEM_PREFIX + "internal-error")
    assert str(error) not in response.text


def test_an_answer_names_no_host_of_redis_and_says_what_is_unknown() -> None:
    details = {
        (name_of(error), method): answer_of(error, method).json()["detail"]
        for error in ERRORS
        if isinstance(error, errors.RedisUnavailable)
        for method in ("GET", "POST")
    }

    assert not [detail for detail in details.values() if "secret-host" in detail]
    is_unknown = {each for each, detail in details.items() if detail.endswith("whether the change was made is unknown")}
    assert is_unknown == {("RedisUnavailable", "POST"), ("RedisRefused", "POST")}


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_the_command_line_prints_one_line_and_exits_with_the_errors_status(error: TaskpoolError) -> None:
    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(group, ["fail"])

    expected = [status for cls, status in EXITS.items() if isinstance(error, cls)]
    assert [result.exit_code] == (expected or [Exit.FAILED])
    assert result.exit_code == error.exit_status
    assert result.stderr.startswith(f"Error: {error}")
    assert result.stdout == ""


def test_every_member_of_a_problem_is_in_the_schema_and_known_to_the_client() -> None:
    members = {member for kind in PROBLEMS.values() for member in kind.members}

    assert members <= set(ProblemDocument.__struct_fields__)
    assert members <= set(Problem.__struct_fields__)
