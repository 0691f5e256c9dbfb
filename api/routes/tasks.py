"""/tasks and below: submit, list, read, wait, remove, stop, retry."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from taskpool.access.api_key import Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import (
    InvalidTask,
    TaskConflict,
    TaskNotFound,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
    WaitTimeout,
)
from taskpool.operations.control.criteria import within
from taskpool.operations.documents import TaskDocument
from taskpool.operations.listing import list_tasks
from taskpool.operations.queue import remove_task
from taskpool.operations.records import fetch
from taskpool.redis.add_script import Once
from taskpool.runner import kill_task, retry_task
from taskpool.types import Receipt, TaskRecord, TaskSpec, TaskStatus
from taskpool.types.dependency import names

from ..answers import Accepted, AcceptedBatch, DeliveryPage, TaskPage
from ..auth.caller import Caller, caller_of
from ..auth.gate import Gate
from ..http.body import read_json
from ..http.declarations import Answer, operation
from ..http.prefix import prefix_of, public_path
from ..http.problems import MAX_SHOWN, Problem, problem_of, unique_conflict
from ..http.query import (
    MAX_WAIT_S,
    DeliveriesQuery,
    ListQuery,
    Preferences,
    TaskQuery,
    preferences_of,
    waited,
)
from ..http.responses import Headers, Json, location, page, tagged
from ..http.submission import Batch, Retry, Stop, read_as, read_batch
from .webhooks import list_deliveries


class LongPolls:
    """The waiting requests of this process. `end` ends them, and later ones at once."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool
        self._waits: set[asyncio.Task[TaskRecord]] = set()
        self._ended = False

    async def wait(self, id: str, timeout_s: float, receive: Receive) -> TaskRecord:
        """The task after its end, or as it is when the wait is over.
        Raises: TaskNotFound: there is no such task; ClientDisconnect: the client left."""
        if self._ended:
            return await self._pool.get(id)
        waiting = asyncio.create_task(self._pool.wait(id, timeout_s=timeout_s))
        leaving = asyncio.create_task(_disconnect(receive))
        self._waits.add(waiting)
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientDisconnect
        finally:
            self._waits.discard(waiting)
            waiting.cancel()
            leaving.cancel()
        if waiting.cancelled():  # by `end`
            return await self._pool.get(id)
        try:
            return waiting.result()
        except WaitTimeout as timeout:
            return timeout.record

    def end(self) -> None:
        """Answer all waiting requests with the present state."""
        self._ended = True
        for waiting in self._waits:
            waiting.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


REPLAYED: Final = (b"idempotency-replayed", b"true")
ASKS: Final = ("Idempotency-Key", "Prefer", "traceparent", "tracestate")
TELLS: Final = ("Idempotency-Replayed", "Preference-Applied")
PROBLEMS: Final = (
    *("invalid-header", "unknown-type", "invalid-payload", "unknown-dependency", "queue-full", "cap-reached"),
    *("unique-conflict", "idempotency-key-reused"),
)
SHOWN: Final = Answer((TaskDocument, Accepted))
"""The answer with `shown`."""

is_id: Final = re.compile(r"[A-Za-z0-9_-]{1,200}").fullmatch


class TaskRoutes:
    """Handlers of tasks."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate, long_polls: LongPolls, max_body_bytes: int) -> None:
        self._pool = pool
        self._gate = gate
        self._long_polls = long_polls
        self._max_body_bytes = max_body_bytes

    @operation(
        "submit_task",
        tag="tasks",
        body=TaskSpec,
        headers=ASKS,
        answers={
            200: Answer((TaskDocument, Accepted), headers=("Location", *TELLS)),
            202: Answer(Accepted, headers=("Location", *TELLS)),
        },
        problems=PROBLEMS,
    )
    async def add(self, request: Request) -> Json:
        """POST /tasks: submit a task; 202 with its id and location.

        200 if another task holds its unique key and `on_conflict` asks for that one; also 200, with the whole task, if
        it ends while the client prefers to wait. `Prefer` needs the scope tasks:read; otherwise it is ignored."""
        scope = request.scope
        preferences = preferences_of(scope["headers"])
        document = await read_json(scope, request.receive, self._max_body_bytes)
        spec = traced(read_as(document, TaskSpec), preferences)
        caller = caller_of(scope)
        once = _once(preferences.idempotency_key, caller, b"/tasks", document)
        submitted = await self._pool.submit(spec, once, by=caller)
        receipt = submitted.receipts[0]
        headers = [location(scope, f"/tasks/{receipt.id}")]
        if submitted.is_replayed:
            headers.append(REPLAYED)
        # Without tasks:read the preference is ignored, as RFC 7240 allows.
        if preferences.wait_s is not None and caller.may_read:
            return await self._after(receipt, preferences.wait_s, request, headers)
        return Json(_accepted(receipt), status=200 if receipt.is_existing else 202, headers=headers)

    @operation(
        "submit_batch",
        tag="tasks",
        body=Batch,
        headers=[name for name in ASKS if name != "Prefer"],
        answers={202: Answer(AcceptedBatch, headers=("Idempotency-Replayed",), made="/tasks", made_id="/tasks/0/id")},
        problems=PROBLEMS,
    )
    async def add_batch(self, request: Request) -> Json:
        """POST /tasks/batch: submit up to 1,000 tasks, all or none; 202 with their ids in order."""
        scope = request.scope
        preferences = preferences_of(scope["headers"])
        document = await read_json(scope, request.receive, self._max_body_bytes)
        specs = [traced(spec, preferences) for spec in read_batch(document)]
        await self._gate.charge(scope, len(specs))
        once = _once(preferences.idempotency_key, caller_of(scope), b"/tasks/batch", document)
        try:
            submitted = await self._pool.submit_many(specs, once, by=caller_of(scope), start="/tasks")
        except UnknownType as error:
            raise named_in(error, _places([spec.type == error.type for spec in specs])) from None
        except UnknownDependency as error:
            raise named_in(error, _places([names(spec.depends_on, error.id) for spec in specs])) from None
        except UniqueConflict as error:
            at, may_read = f"/tasks/{error.index}", caller_of(scope).may_read
            raise unique_conflict(error, at, prefix_of(scope), may_read=may_read) from None
        answers = [Accepted(id=id, status=status, existing=existing) for id, status, existing in submitted.receipts]
        headers = (REPLAYED,) if submitted.is_replayed else ()
        return Json(AcceptedBatch(tasks=answers), status=202, headers=headers)

    @operation(
        "get_task",
        tag="tasks",
        headers=["If-None-Match"],
        answers={
            200: Answer(TaskDocument, headers=("ETag", "Preference-Applied")),
            304: Answer(None, headers=("ETag", "Preference-Applied")),
        },
        problems=["task-not-found"],
    )
    async def get(self, request: Request, query: TaskQuery) -> Response:
        """GET /tasks/{id}: read a task; with ?wait=S after its end, or as it is after S seconds; 304 by ETag.

        The server waits 50 seconds at most, because proxies give up after 60: repeat the request if the task hasn't
        ended by then. `Preference-Applied` is the time that the server was ready to wait.
        """
        if not query.wait:
            record = await affected(self._pool, request, Effect.READ)
            return tagged(TaskDocument.of(record), request.scope["headers"])
        wait_s = min(query.wait, MAX_WAIT_S)
        await check_affected(self._pool, request, Effect.READ)  # a wait must not reveal whether it exists
        record = await self._long_polls.wait(task_id(request), wait_s, request.receive)
        answer = tagged(TaskDocument.of(record), request.scope["headers"])
        answer.raw_headers.append(waited(wait_s))
        return answer

    @operation("list_task_deliveries", tag="webhooks", answers={200: DeliveryPage}, problems=["task-not-found"])
    async def deliveries(self, request: Request, query: DeliveriesQuery) -> Json:
        """GET /tasks/{id}/deliveries: list the webhook deliveries about a task, the newest first."""
        record = await affected(self._pool, request, Effect.READ)
        return await list_deliveries(self._pool.store, request.scope, query, task=record.id)

    @operation("list_tasks", tag="tasks", answers={200: TaskPage})
    async def list(self, request: Request, query: ListQuery) -> Json:
        """GET /tasks: list the tasks that match all filters, the newest first."""
        wanted = within(caller_of(request.scope).project, query)
        found = await self._pool.store.carry_out(list_tasks(wanted, cursor=query.cursor, limit=query.limit))
        document = TaskPage(tasks=[TaskDocument.of(record) for record in found.items], next_cursor=found.next_cursor)
        if found.looked_at is not None:
            document = replace(document, looked_at=found.looked_at, complete=found.complete)
        return page(document, request.scope, query)

    @operation(
        "remove_task", tag="tasks", answers={200: SHOWN, 204: None}, problems=["task-not-found", "task-conflict"]
    )
    async def remove(self, request: Request) -> Response:
        """DELETE /tasks/{id}: cancel a task; 200 with the task, or 204 if it had ended and was deleted."""
        id = task_id(request)
        by = caller_of(request.scope)
        await check_affected(self._pool, request, Effect.STOP)
        try:
            outcome = await self._pool.store.carry_out(remove_task(id, by))
        except TaskConflict as error:
            raise problem_of(error, stop=public_path(request.scope, f"/tasks/{quote(id)}/stop")) from None
        if outcome is None:
            return Json(status=204)
        return Json(shown(await self._pool.get(id), request))

    @operation(
        "stop_task",
        tag="tasks",
        body_optional=True,
        body_fault="invalid-body",
        answers={202: SHOWN},
        problems=["task-not-found", "task-conflict"],
    )
    async def stop(self, request: Request, body: Stop) -> Json:
        """POST /tasks/{id}/stop: stop a task; 202 with the task, stopping or canceled."""
        record = await affected(self._pool, request, Effect.STOP)
        if not record.status.is_terminal:
            by = caller_of(request.scope)
            killing = kill_task(record.id, grace_s=body.grace_s, force=body.force, by=by)
            record = await self._pool.store.carry_out(killing)
            if record.status not in (TaskStatus.DONE, TaskStatus.FAILED):  # otherwise it ended just before
                return Json(shown(record, request), status=202)
        raise TaskConflict(record.id, record.status, f"task {record.id} has ended already: it is {record.status}")

    @operation(
        "retry_task",
        tag="tasks",
        body_optional=True,
        body_fault="invalid-body",
        answers={202: SHOWN},
        problems=["task-not-found", "task-conflict"],
    )
    async def retry(self, request: Request, body: Retry) -> Json:
        """POST /tasks/{id}/retry: queue a task again that failed, or was stopped or canceled; 202 with the task."""
        id, by = task_id(request), caller_of(request.scope)
        await check_affected(self._pool, request, Effect.START)
        try:
            record = await self._pool.store.carry_out(retry_task(id, by))
        except TaskConflict as error:
            if by.may_read:
                raise
            detail = f"task {id} is {error.status}; its status, or another task, doesn't allow a retry now"
            raise TaskConflict(id, error.status, detail) from None  # the first may name tasks of other callers
        return Json(shown(record, request), status=202)

    async def _after(self, receipt: Receipt, wait_s: int, request: Request, headers: Headers) -> Json:
        """The answer to a client that prefers to wait (RFC 7240)."""
        record = await self._long_polls.wait(receipt.id, wait_s, request.receive)
        headers = [*headers, waited(wait_s)]
        if record.status.is_terminal:
            return Json(TaskDocument.of(record), headers=headers)
        return Json(_accepted(record), status=200 if receipt.is_existing else 202, headers=headers)


def _once(key: str | None, caller: Caller, path: bytes, document: Any) -> Once | None:
    return None if key is None else once_of(key, caller, path, canonical(document))


def canonical(document: Any) -> bytes:
    """A document in one spelling."""
    return msgspec.json.encode(document, order="deterministic")


def once_of(key: str | None, caller: Caller, path: bytes, asked: bytes) -> Once | None:
    """The idempotency key, for all keys of a project or for one key, of a submission with this `canonical` document."""
    if key is None:
        return None
    whose = f"project {caller.project}" if caller.project is not None else f"key {caller.key or ''}"
    return Once.of(whose, key, path + b" " + asked)


def traced(spec: TaskSpec, preferences: Preferences) -> TaskSpec:
    """The submission; without a trace context, it gets that of the request."""
    if spec.traceparent is not None or preferences.traceparent is None:
        return spec
    return replace(spec, traceparent=preferences.traceparent, tracestate=preferences.tracestate)


def _places(concerned: Sequence[bool]) -> list[str]:
    """The pointers to the tasks of a batch that are concerned."""
    return [f"/tasks/{index}" for index, each in enumerate(concerned) if each]


def named_in(error: InvalidTask, places: Sequence[str]) -> Problem:
    """The problem of a fault that several tasks may share, with a pointer for each of the tasks at these places."""
    problem = problem_of(error)
    problem.errors = [
        {"pointer": place + fault.pointer, "detail": fault.detail} for place in places for fault in error.errors
    ][:MAX_SHOWN]
    return problem


def _accepted(task: Receipt | TaskRecord) -> Accepted:
    return Accepted(id=task.id, status=task.status)


async def affected(pool: AsyncTaskPool, request: Request, effect: Effect) -> TaskRecord:
    """The task in the path, if the caller may do this to it.
    Raises: TaskNotFound: it doesn't exist, or not for this caller; NotAllowed."""
    record = await pool.store.run(fetch(task_id(request)))
    caller_of(request.scope).check(effect, record)
    return record


async def check_affected(pool: AsyncTaskPool, request: Request, effect: Effect) -> None:
    """As `affected`, but only for callers that may not do this to every task. The next step must fail if the task
    doesn't exist."""
    if caller_of(request.scope).is_limited(effect):
        await affected(pool, request, effect)


def shown(record: TaskRecord, request: Request) -> TaskDocument | Accepted:
    """A task after a change: a caller without tasks:read sees only the id and the status."""
    return TaskDocument.of(record) if caller_of(request.scope).may_read else _accepted(record)


def task_id(request: Request) -> str:
    """The task's id in the path. An invalid one must never reach Redis: it could name other keys."""
    id: str = request.path_params["id"]
    if not is_id(id):
        raise TaskNotFound(id[:200])
    return id
