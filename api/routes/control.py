"""/pause, /resume, /pools, and below /queues and /tasks: what operators pause, drain and look at."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request

from taskpool.access.api_key import Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.control import pauses, stacks
from taskpool.operations.control.pools import list_pools
from taskpool.operations.documents import PauseDocument, PoolDocument, StackDocument, WhyDocument
from taskpool.operations.insight.why import for_tenants, why_not_running
from taskpool.redis.calls import Plan
from taskpool.redis.pause_scripts import ALL
from taskpool.types.fleet import Pause
from taskpool.types.people import LONGEST_TEXT, TEXT

from ..answers import Pools
from ..auth.caller import caller_of
from ..http.declarations import operation
from ..http.responses import Json
from .tasks import check_affected, task_id


class Pausing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that pauses or drains, if any."""

    why: (
        Annotated[
            str,
            Meta(
                max_length=LONGEST_TEXT,
                description="Why, for people and the audit.",
                extra_json_schema={"pattern": f"^{TEXT.pattern}$"},
            ),
        ]
        | None
    ) = None


class ControlRoutes:
    """The handlers."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool

    @operation(
        "pause_queue",
        tag="fleet",
        body_optional=True,
        answers={200: PauseDocument},
        problems=["invalid-task"],
    )
    async def pause_queue(self, request: Request, body: Pausing) -> Json:
        """POST /queues/{queue}/pause: let no task of the queue start until it is resumed. What runs goes on. The first
        pause counts until it ends."""
        name = request.path_params["queue"]
        return await self._paused(pauses.pause_queue(name, why=body.why, by=caller_of(request.scope)))

    @operation("resume_queue", tag="fleet", answers={204: None}, problems=["invalid-task"])
    async def resume_queue(self, request: Request) -> Json:
        """POST /queues/{queue}/resume: let the tasks of the queue start again, at once; 204."""
        name = request.path_params["queue"]
        return await self._resumed(pauses.resume_queue(name, by=caller_of(request.scope)))

    @operation("pause_all", tag="fleet", body_optional=True, answers={200: PauseDocument})
    async def pause_all(self, request: Request, body: Pausing) -> Json:
        """POST /pause: let no task of any queue start until everything is resumed. What runs goes on."""
        return await self._paused(pauses.pause_all(why=body.why, by=caller_of(request.scope)))

    @operation("resume_all", tag="fleet", answers={204: None})
    async def resume_all(self, request: Request) -> Json:
        """POST /resume: let tasks start again; 204. Queues and pools that are paused themselves stay so."""
        return await self._resumed(pauses.resume_all(by=caller_of(request.scope)))

    @operation("list_pools", tag="fleet", answers={200: Pools})
    async def pools(self, request: Request) -> Json:
        """GET /pools: list the worker pools. One that went away without draining is listed as `gone` for a day."""
        store = self._pool.store
        paused = await store.carry_out(pauses.paused())
        shown = [PoolDocument.of(pool) for pool in await store.carry_out(list_pools())]
        everything = paused.get(ALL)
        return Json(Pools(pools=shown, paused=None if everything is None else PauseDocument.of(everything)))

    @operation("pause_pool", tag="fleet", body_optional=True, answers={200: PauseDocument}, problems=["pool-not-found"])
    async def pause_pool(self, request: Request, body: Pausing) -> Json:
        """POST /pools/{pool}/pause: let the pool start no task until it is resumed. What it runs goes on."""
        name = request.path_params["pool"]
        return await self._paused(pauses.pause_pool(name, why=body.why, by=caller_of(request.scope)))

    @operation("resume_pool", tag="fleet", answers={204: None}, problems=["pool-not-found", "pool-conflict"])
    async def resume_pool(self, request: Request) -> Json:
        """POST /pools/{pool}/resume: let the pool start tasks again; 204. A pool that drains can't be resumed."""
        name = request.path_params["pool"]
        return await self._resumed(pauses.resume_pool(name, by=caller_of(request.scope)))

    @operation("drain_pool", tag="fleet", body_optional=True, answers={202: PauseDocument}, problems=["pool-not-found"])
    async def drain_pool(self, request: Request, body: Pausing) -> Json:
        """POST /pools/{pool}/drain: let the pool start no more tasks, finish those that it runs within its grace
        period, and end, as after a SIGTERM; 202."""
        name = request.path_params["pool"]
        return await self._paused(pauses.drain_pool(name, why=body.why, by=caller_of(request.scope)), status=202)

    @operation("explain_task", tag="tasks", answers={200: WhyDocument}, problems=["task-not-found"])
    async def why(self, request: Request) -> Json:
        """GET /tasks/{id}/why: tell why a task isn't running, and why the tasks that it waits for aren't. Without a
        reason it can start at once."""
        id = task_id(request)
        await check_affected(self._pool, request, Effect.READ)
        found = await self._pool.store.carry_out(why_not_running(id))
        return Json(WhyDocument.of(found if caller_of(request.scope).project is None else for_tenants(found)))

    @operation("take_stack", tag="tasks", answers={200: StackDocument}, problems=["task-not-found", "task-conflict"])
    async def stack(self, request: Request) -> Json:
        """POST /tasks/{id}/stack: ask the worker process of a running task where it is: its frames, the innermost last,
        and the stacks of all threads of the process."""
        id = task_id(request)
        await check_affected(self._pool, request, Effect.READ)
        found = await self._pool.stack(id)
        return Json(StackDocument.of(found if caller_of(request.scope).project is None else stacks.for_tenants(found)))

    async def _paused(self, plan: Plan[Pause], *, status: int = 200) -> Json:
        return Json(PauseDocument.of(await self._pool.store.carry_out(plan)), status=status)

    async def _resumed(self, plan: Plan[None]) -> Json:
        await self._pool.store.carry_out(plan)
        return Json(status=204)
