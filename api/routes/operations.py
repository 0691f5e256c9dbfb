"""/operations: change many tasks at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.requests import Request

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import TaskpoolError
from taskpool.operations.control import bulk
from taskpool.operations.control.drive import drive, new_driver
from taskpool.operations.documents import OperationDocument, PreviewDocument
from taskpool.types.control import Operation, OperationSpec

from ..answers import OperationPage
from ..auth.caller import caller_of
from ..http.declarations import Answer, operation
from ..http.query import PageQuery
from ..http.responses import Json, location, page

log = logging.getLogger("taskpool.api")

DRIVEN_S: Final = 0.25
"""How long this process goes on with an operation before others may see that it still has it."""
STARTED: Final = Answer(OperationDocument, headers=("Location",), made="/operations")


class Drivers:
    """Goes on with the operations that were started in this process. If it ends, or Redis is away, a pool's
    housekeeping does."""

    def __init__(self, pool: AsyncTaskPool) -> None:
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()
        self.name = new_driver()

    def begin(self, id: str) -> None:
        """Go on with this operation until it has ended."""
        task = asyncio.create_task(self._drive(id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Leave the operations to others."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drive(self, id: str) -> None:
        try:
            while await self._pool.store.carry_out(drive(id, self.name, DRIVEN_S)):
                pass
        except TaskpoolError as error:
            log.warning("the operation %s is left to worker pools: %s", id, error)


class OperationRoutes:
    """Handlers of operations. What a caller needs depends on the action: the scope that the same change of one task
    needs. For a caller with a project, the operations of others don't exist."""

    def __init__(self, pool: AsyncTaskPool, drivers: Drivers) -> None:
        self._pool, self._drivers = pool, drivers

    @operation(
        "start_operation",
        tag="operations",
        body_fault="invalid-operation",
        answers={200: PreviewDocument, 202: STARTED},
        problems=["cap-reached"],
    )
    async def start(self, request: Request, body: OperationSpec) -> Json:
        """POST /operations: change all tasks that match a filter; 202 with the operation, or 200 with a preview.

        The operation goes on in the background. It finds its tasks first, and then changes those that it has found."""
        caller = caller_of(request.scope)
        if body.preview:
            plan = bulk.preview_operation(body, caller)
            return Json(PreviewDocument.of_preview(await self._pool.store.carry_out(plan)))
        most_queues = self._pool.rules.defaults.caps.queues
        started = bulk.start_operation(body, caller, driver=self._drivers.name, most_queues=most_queues)
        return self._begun(await self._pool.store.carry_out(started), request)

    @operation("list_operations", tag="operations", answers={200: OperationPage})
    async def list(self, request: Request, query: PageQuery) -> Json:
        """GET /operations: list the operations, the newest first. They are kept for a week after their end."""
        project = caller_of(request.scope).project
        plan = bulk.list_operations(cursor=query.cursor, limit=query.limit, project=project)
        found = await self._pool.store.carry_out(plan)
        shown = [OperationDocument.of(each) for each in found.items]
        return page(OperationPage(operations=shown, next_cursor=found.next_cursor), request.scope, query)

    @operation("get_operation", tag="operations", answers={200: OperationDocument}, problems=["operation-not-found"])
    async def get(self, request: Request) -> Json:
        """GET /operations/{operation}: read an operation and its progress."""
        plan = bulk.get_operation(_id(request), caller_of(request.scope))
        return Json(OperationDocument.of(await self._pool.store.carry_out(plan)))

    @operation(
        "cancel_operation",
        tag="operations",
        answers={200: OperationDocument},
        problems=["operation-not-found", "operation-conflict"],
    )
    async def cancel(self, request: Request) -> Json:
        """POST /operations/{operation}/cancel: cancel an operation that runs. What it has changed stays changed."""
        plan = bulk.cancel_operation(_id(request), caller_of(request.scope))
        return Json(OperationDocument.of(await self._pool.store.carry_out(plan)))

    @operation(
        "undo_operation",
        tag="operations",
        answers={202: STARTED},
        problems=["operation-not-found", "operation-conflict"],
    )
    async def undo(self, request: Request) -> Json:
        """POST /operations/{operation}/undo: restore what an operation has canceled or removed, up to ten minutes after
        its end; 202 with the operation that does it."""
        plan = bulk.undo_operation(_id(request), caller_of(request.scope), driver=self._drivers.name)
        return self._begun(await self._pool.store.carry_out(plan), request)

    def _begun(self, started: Operation, request: Request) -> Json:
        self._drivers.begin(started.id)
        headers = [location(request.scope, f"/operations/{started.id}")]
        return Json(OperationDocument.of(started), status=202, headers=headers)


def _id(request: Request) -> str:
    id: str = request.path_params["operation"]
    return id
