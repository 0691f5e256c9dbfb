"""POST /tasks and POST /tasks/batch: the way in."""

from __future__ import annotations

from starlette.requests import Request

from api.answers import Accepted, AcceptedBatch
from api.body import read_json
from api.operation import Answer, operation
from api.problems import Problem, invalid_task
from api.query import NoQuery, read_query
from api.responses import Json
from api.submission import MAX_SHOWN, Batch, read_batch, read_submission
from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import InvalidTask, UnknownDependency, UnknownType
from taskpool.types import TaskRecord, TaskSpec


class SubmitRoutes:
    """Handlers that add tasks."""

    def __init__(self, pool: AsyncTaskPool, max_body_bytes: int) -> None:
        self._pool = pool
        self._max_body_bytes = max_body_bytes

    @operation(
        "submit_task",
        tag="tasks",
        body=TaskSpec,
        answers={202: Answer(Accepted, headers=("Location",))},
        problems=["unknown-type", "invalid-payload", "unknown-dependency"],
    )
    async def add(self, request: Request) -> Json:
        """POST /tasks: submit a task; 202 with its id, and where to look for it."""
        read_query(request.scope["query_string"], NoQuery)
        document = await read_json(request.scope, request.receive, self._max_body_bytes)
        record = await self._pool.add_task(**read_submission(document))
        location = (b"location", b"/tasks/" + record.id.encode())
        return Json(_accepted(record), status=202, headers=(location,))

    @operation(
        "submit_batch",
        tag="tasks",
        body=Batch,
        answers={202: AcceptedBatch},
        problems=["unknown-type", "invalid-payload", "unknown-dependency"],
    )
    async def add_batch(self, request: Request) -> Json:
        """POST /tasks/batch: submit up to 1,000 tasks; 202 with their ids in order; all are stored or none."""
        read_query(request.scope["query_string"], NoQuery)
        document = await read_json(request.scope, request.receive, self._max_body_bytes)
        specs = read_batch(document)
        try:
            records = await self._pool.add_tasks(specs)
        except UnknownType as error:
            raise _in_batch(error, [spec.type == error.type for spec in specs]) from None
        except UnknownDependency as error:
            raise _in_batch(error, [error.id in spec.depends_on for spec in specs]) from None
        except InvalidTask as error:
            raise invalid_task(error, "/tasks") from None
        return Json(AcceptedBatch(tasks=[_accepted(record) for record in records]), status=202)


def _in_batch(error: InvalidTask, concerns: list[bool]) -> Problem:
    """The problem of a fault that the core tells once, with the pointer of every task it concerns."""
    problem = invalid_task(error)
    problem.errors = [
        {"pointer": f"/tasks/{index}{fault.pointer}", "detail": fault.detail}
        for index, concerned in enumerate(concerns)
        if concerned
        for fault in error.errors
    ][:MAX_SHOWN]
    return problem


def _accepted(record: TaskRecord) -> Accepted:
    return Accepted(id=record.id, status=record.status)
