"""/schedules and below: make, list, read, remove, pause, resume, and run now."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.requests import Request

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import ScheduleDocument
from taskpool.operations.flow import schedules
from taskpool.operations.flow.occurrences import run_schedule
from taskpool.operations.flow.schedule_values import ScheduleRecord, ScheduleSpec
from taskpool.redis.calls import Plan

from ..answers import Accepted, AcceptedSchedule, SchedulePage
from ..auth.caller import caller_of
from ..http.declarations import Answer, operation
from ..http.query import PageQuery
from ..http.responses import Json, location, page

SHOWN: Final = (ScheduleDocument, AcceptedSchedule)
OF_A_TASK: Final = ("invalid-task", "unknown-type", "invalid-payload")
OF_ONE: Final = ("schedule-not-found", "schedule-conflict")


class ScheduleRoutes:
    """Handlers of schedules. For a caller with a project, the schedules of others don't exist; a caller without one
    calls them `project:name`."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation("list_schedules", tag="schedules", answers={200: SchedulePage})
    async def list(self, request: Request, query: PageQuery) -> Json:
        """GET /schedules: list the schedules by name."""
        plan = schedules.list_schedules(
            cursor=query.cursor, limit=query.limit, project=caller_of(request.scope).project
        )
        found = await self._pool.store.carry_out(plan)
        shown = [ScheduleDocument.of(each) for each in found.items]
        return page(SchedulePage(schedules=shown, next_cursor=found.next_cursor), request.scope, query)

    @operation("get_schedule", tag="schedules", answers={200: ScheduleDocument}, problems=["schedule-not-found"])
    async def get(self, request: Request) -> Json:
        """GET /schedules/{schedule}: read a schedule, with its next ten runs and what became of the last 100."""
        plan = schedules.get_schedule(_name(request), caller_of(request.scope))
        return Json(ScheduleDocument.of(await self._pool.store.carry_out(plan)))

    @operation(
        "set_schedule",
        tag="schedules",
        body_fault="invalid-schedule",
        answers={200: Answer(SHOWN), 201: Answer(SHOWN, headers=("Location",))},
        problems=(*OF_A_TASK, *OF_ONE, "cap-reached"),
    )
    async def set(self, request: Request, body: ScheduleSpec) -> Json:
        """PUT /schedules/{schedule}: make a schedule (201), or replace it (200).

        One that is paused stays paused. As long as the times of its runs stay the same, so does its next run. A
        schedule that is declared in code can't be replaced."""
        plan = schedules.set_schedule(_name(request), body, self._pool.rules, caller_of(request.scope))
        record, is_new = await self._pool.store.carry_out(plan)
        headers = [location(request.scope, f"/schedules/{quote(record.name)}")] if is_new else []
        return Json(_shown(record, request), status=201 if is_new else 200, headers=headers)

    @operation("remove_schedule", tag="schedules", answers={204: None}, problems=OF_ONE)
    async def remove(self, request: Request) -> Json:
        """DELETE /schedules/{schedule}: remove a schedule; 204. The tasks that it has submitted stay."""
        await self._pool.store.carry_out(schedules.remove_schedule(_name(request), caller_of(request.scope)))
        return Json(status=204)

    @operation("pause_schedule", tag="schedules", answers={200: Answer(SHOWN)}, problems=OF_ONE)
    async def pause(self, request: Request) -> Json:
        """POST /schedules/{schedule}/pause: submit nothing until the schedule is resumed, also after a deployment."""
        return await self._changed(schedules.pause_schedule(_name(request), caller_of(request.scope)), request)

    @operation("resume_schedule", tag="schedules", answers={200: Answer(SHOWN)}, problems=OF_ONE)
    async def resume(self, request: Request) -> Json:
        """POST /schedules/{schedule}/resume: go on with the next run from now on."""
        return await self._changed(schedules.resume_schedule(_name(request), caller_of(request.scope)), request)

    @operation(
        "run_schedule",
        tag="schedules",
        answers={202: Answer(Accepted, headers=("Location",), made="/tasks")},
        problems=(*OF_A_TASK, "schedule-not-found", "unique-conflict", "queue-full", "cap-reached"),
    )
    async def run(self, request: Request) -> Json:
        """POST /schedules/{schedule}/run: submit its task now, beside its runs; 202 with the task."""
        receipt = await self._pool.store.carry_out(
            run_schedule(_name(request), self._pool.rules, caller_of(request.scope))
        )
        headers = [location(request.scope, f"/tasks/{receipt.id}")]
        return Json(Accepted(id=receipt.id, status=receipt.status), status=202, headers=headers)

    async def _changed(self, plan: Plan[ScheduleRecord], request: Request) -> Json:
        return Json(_shown(await self._pool.store.carry_out(plan), request))


def _name(request: Request) -> str:
    name: str = request.path_params["schedule"]
    return name


def _shown(record: ScheduleRecord, request: Request) -> ScheduleDocument | AcceptedSchedule:
    """A schedule after a change: a caller without tasks:read sees only its name and status."""
    if caller_of(request.scope).may_read:
        return ScheduleDocument.of(record)
    return AcceptedSchedule(name=record.name, status=record.status)
