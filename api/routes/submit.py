"""POST /tasks and POST /tasks/batch: the way in."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace
from starlette.requests import Request

from api.access.caller import Caller, caller_of
from api.access.gate import Gate
from api.answers import Accepted, AcceptedBatch
from api.body import read_json
from api.longpoll import LongPolls
from api.openapi.operation import Answer, operation
from api.prefix import prefix_of, public_path
from api.problems import MAX_SHOWN, Problem, invalid_task, unique_conflict
from api.query import NoQuery, read_query
from api.responses import Json
from api.submission import Batch, read_batch, read_submission
from api.wishes import Wishes, waited, wishes_of
from taskpool.async_pool import AsyncTaskPool
from taskpool.document import task_document
from taskpool.document_types import TaskDocument
from taskpool.errors import InvalidTask, UniqueConflict, UnknownDependency, UnknownType
from taskpool.receipt import Receipt
from taskpool.submission.addition import Once
from taskpool.types import TaskSpec

REPLAYED: Final = (b"idempotency-replayed", b"true")
ASKS: Final = ("Idempotency-Key", "Prefer", "traceparent", "tracestate")
TELLS: Final = ("Idempotency-Replayed", "Preference-Applied")
PROBLEMS: Final = (
    *("invalid-header", "unknown-type", "invalid-payload", "unknown-dependency", "queue-full", "cap-reached"),
    *("unique-conflict", "idempotency-key-reused"),
)


class SubmitRoutes:
    """Handlers that add tasks."""

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
        """POST /tasks: submit a task; 202 with its id, and where to look for it.

        200 when another task holds its unique key and it asked for that one, or with the whole task when it ends while
        the client prefers to wait. With a key that has no scope tasks:read, `Prefer` is ignored."""
        scope = request.scope
        read_query(scope["query_string"], NoQuery)
        wishes = wishes_of(scope["headers"])
        document = await read_json(scope, request.receive, self._max_body_bytes)
        spec = read_submission(document)
        if wishes.traceparent is not None:
            (spec,) = _traced([spec], wishes)
        once = None if wishes.key is None else _once(wishes.key, caller_of(scope), b"/tasks", document)
        submitted = await self._pool.submit(spec, once, by=caller_of(scope).actor())
        receipt = submitted.receipts[0]
        headers = [(b"location", public_path(scope, f"/tasks/{receipt.id}").encode())]
        if submitted.is_replayed:
            headers.append(REPLAYED)
        # Without tasks:read the preference is ignored, as RFC 7240 allows.
        if wishes.wait_s is not None and caller_of(scope).may_read:
            return await self._after(receipt, wishes.wait_s, request, headers)
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
        """POST /tasks/batch: submit up to 1,000 tasks; 202 with their ids in order; all are stored or none."""
        scope = request.scope
        read_query(scope["query_string"], NoQuery)
        wishes = wishes_of(scope["headers"])
        document = await read_json(scope, request.receive, self._max_body_bytes)
        specs = read_batch(document)
        await self._gate.charge(scope, len(specs))
        if wishes.traceparent is not None:
            specs = _traced(specs, wishes)
        once = None if wishes.key is None else _once(wishes.key, caller_of(scope), b"/tasks/batch", document)
        try:
            submitted = await self._pool.submit_many(specs, once, by=caller_of(scope).actor(), start="/tasks")
        except UnknownType as error:
            raise _in_batch(error, [spec.type == error.type for spec in specs]) from None
        except UnknownDependency as error:
            raise _in_batch(error, [error.id in spec.depends_on for spec in specs]) from None
        except UniqueConflict as error:
            at, may_read = f"/tasks/{error.index}", caller_of(scope).may_read
            raise unique_conflict(error, at, prefix_of(scope), may_read=may_read) from None
        answers = [
            replace(_accepted(receipt), existing=True) if receipt.is_existing else _accepted(receipt)
            for receipt in submitted.receipts
        ]
        headers = (REPLAYED,) if submitted.is_replayed else ()
        return Json(AcceptedBatch(tasks=answers), status=202, headers=headers)

    async def _after(self, receipt: Receipt, wait_s: int, request: Request, headers: list[tuple[bytes, bytes]]) -> Json:
        """The answer for who prefers to wait (RFC 7240)."""
        record = await self._long_polls.wait(receipt.id, wait_s, request.receive)
        headers.append(waited(wait_s))
        if record.status.is_terminal:
            return Json(task_document(record), headers=headers)
        latest = receipt._replace(status=record.status)
        return Json(_accepted(latest), status=200 if receipt.is_existing else 202, headers=headers)


def _once(key: str, caller: Caller, path: bytes, document: Any) -> Once:
    """The idempotency key of a caller: its project's, else its own. What is asked for counts, not how it is written."""
    whose = f"project {caller.project}" if caller.project is not None else f"key {caller.key_id or ''}"
    return Once.of(whose, key, path + b" " + msgspec.json.encode(document, order="deterministic"))


def _traced(specs: list[TaskSpec], wishes: Wishes) -> list[TaskSpec]:
    """With the trace context of the request, where a submission names none."""
    return [
        spec
        if spec.traceparent is not None
        else replace(spec, traceparent=wishes.traceparent, tracestate=wishes.tracestate)
        for spec in specs
    ]


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


def _accepted(receipt: Receipt) -> Accepted:
    return Accepted(id=receipt.id, status=receipt.status)
