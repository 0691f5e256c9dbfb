"""/tasks/{id}/confirm, reject and answer: what people decide."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request

from taskpool.access.api_key import Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.flow.confirmations import Decision, answer_task, confirm_task
from taskpool.types.people import LONGEST_TEXT, TEXT

from ..auth.caller import caller_of
from ..http.declarations import operation
from ..http.responses import Json
from .tasks import SHOWN, check_affected, shown, task_id

Comment = Annotated[
    str,
    Meta(
        max_length=LONGEST_TEXT,
        description="Why, for the record and the audit.",
        extra_json_schema={"pattern": f"^{TEXT.pattern}$"},
    ),
]


class Decide(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /tasks/{id}/confirm and /reject, if any."""

    comment: Comment | None = None


class Reply(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /tasks/{id}/answer."""

    answer: Annotated[Any, Meta(description="The answer. It must fit the question's schema.")]
    question: Annotated[
        str | None, Meta(description="The name of the question that is meant. Default: the one that is asked now.")
    ] = None
    comment: Comment | None = None


class ConfirmationRoutes:
    """The handlers."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation(
        "confirm_task",
        tag="tasks",
        body_optional=True,
        answers={200: SHOWN},
        problems=["task-not-found", "task-conflict"],
    )
    async def confirm(self, request: Request, body: Decide) -> Json:
        """POST /tasks/{id}/confirm: let a task start that waits for it. The first decision counts; the same one again
        agrees."""
        return await self._decide(request, "confirmed", body)

    @operation(
        "reject_task",
        tag="tasks",
        body_optional=True,
        answers={200: SHOWN},
        problems=["task-not-found", "task-conflict"],
    )
    async def reject(self, request: Request, body: Decide) -> Json:
        """POST /tasks/{id}/reject: cancel a task that waits for a confirmation. The first decision counts; the same one
        again agrees."""
        return await self._decide(request, "rejected", body)

    @operation("answer_task", tag="tasks", answers={200: SHOWN}, problems=["task-not-found", "task-conflict"])
    async def answer(self, request: Request, body: Reply) -> Json:
        """POST /tasks/{id}/answer: answer what a task asks. The first answer counts; the same one again agrees."""
        by = caller_of(request.scope)
        await check_affected(self._pool, request, Effect.CONFIRM)
        answering = answer_task(task_id(request), body.answer, question=body.question, comment=body.comment, by=by)
        return Json(shown(await self._pool.store.carry_out(answering), request))

    async def _decide(self, request: Request, decision: Decision, body: Decide) -> Json:
        by = caller_of(request.scope)
        await check_affected(self._pool, request, Effect.CONFIRM)
        deciding = confirm_task(task_id(request), decision, comment=body.comment, by=by)
        return Json(shown(await self._pool.store.carry_out(deciding), request))
