"""/workflows and below: submit, list, read, stop, retry, remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from taskpool.access.api_key import RIGHTS, Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import (
    NotAllowed,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
    WorkflowConflict,
    WorkflowNotFound,
)
from taskpool.operations.documents import WorkflowDocument
from taskpool.operations.flow.graph import Member, check_graph, members
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec, WorkflowStatus
from taskpool.operations.flow.workflows import (
    fetch_workflow,
    list_workflows,
    member_kinds,
    remove_workflow,
    retry_workflow,
    stop_workflow,
    submit_once,
)
from taskpool.operations.reading import read_workflow
from taskpool.redis.calls import Plan
from taskpool.types.dependency import names

from ..answers import AcceptedWorkflow, WorkflowPage
from ..auth.caller import caller_of
from ..auth.gate import Gate
from ..http.body import read_json
from ..http.declarations import Answer, operation
from ..http.prefix import prefix_of
from ..http.problems import unique_conflict
from ..http.query import Preferences, WorkflowsQuery, preferences_of
from ..http.responses import Json, location, page, tagged
from ..http.submission import Retry, Stop
from .tasks import PROBLEMS, REPLAYED, canonical, is_id, named_in, once_of, traced

SHOWN: Final = Answer((WorkflowDocument, AcceptedWorkflow))


class WorkflowRoutes:
    """Handlers of workflows."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate, max_workflow_bytes: int) -> None:
        self._pool = pool
        self._gate = gate
        self._max_bytes = max_workflow_bytes

    @operation(
        "submit_workflow",
        tag="workflows",
        body=WorkflowSpec,
        headers=["Idempotency-Key", "traceparent", "tracestate"],
        answers={202: Answer(AcceptedWorkflow, headers=("Location", "Idempotency-Replayed"))},
        problems=PROBLEMS,
    )
    async def add(self, request: Request) -> Json:
        """POST /workflows: submit named tasks and what they wait for, all or none; 202 with the workflow's id.

        A node is one task, or a `map` of tasks under one name; `after` names the nodes that must have ended before."""
        scope = request.scope
        preferences, caller = preferences_of(scope["headers"]), caller_of(scope)

        def read(document: Any) -> tuple[WorkflowSpec, Sequence[NodeSpec], bytes]:
            spec = _traced(read_workflow(document), preferences)
            return spec, check_graph(spec), b"" if preferences.idempotency_key is None else canonical(document)

        spec, order, asked = await read_json(scope, request.receive, self._max_bytes, read)
        await self._gate.charge(scope, sum(1 if node.map is None else len(node.map) for node in spec.nodes))
        once = once_of(preferences.idempotency_key, caller, b"/workflows", asked)
        try:
            plan = submit_once(spec, self._pool.rules, once, by=caller, order=order)
            id, is_replayed = await self._pool.store.carry_out(plan)
        except UnknownType as error:
            raise named_in(error, [each.pointer for each in members(spec) if each.spec.type == error.type]) from None
        except UnknownDependency as error:
            places = [each.pointer for each in members(spec) if names(each.spec.depends_on, error.id)]
            raise named_in(error, places) from None
        except UniqueConflict as error:
            place = _in_order(spec, order)[error.index].pointer
            raise unique_conflict(error, place, prefix_of(scope), may_read=caller.may_read) from None
        headers = [location(scope, f"/workflows/{id}"), *([REPLAYED] if is_replayed else [])]
        return Json(AcceptedWorkflow(id=id, status=WorkflowStatus.IN_PROGRESS), status=202, headers=headers)

    @operation("list_workflows", tag="workflows", answers={200: WorkflowPage})
    async def list(self, request: Request, query: WorkflowsQuery) -> Json:
        """GET /workflows: list the workflows, the newest first, without their nodes."""
        project = caller_of(request.scope).project
        plan = list_workflows(
            cursor=query.cursor, limit=query.limit, status=query.status, name=query.name, project=project
        )
        found = await self._pool.store.carry_out(plan)
        workflows = [WorkflowDocument.of(record) for record in found.items]
        return page(WorkflowPage(workflows=workflows, next_cursor=found.next_cursor), request.scope, query)

    @operation(
        "get_workflow",
        tag="workflows",
        headers=["If-None-Match"],
        answers={200: Answer(WorkflowDocument, headers=("ETag",)), 304: Answer(None, headers=("ETag",))},
        problems=["workflow-not-found"],
    )
    async def get(self, request: Request) -> Response:
        """GET /workflows/{workflow}: read a workflow: status, counts and graph; 304 by ETag.

        A map is one node with the number of its tasks. `GET /tasks?workflow=...&node=...` lists them."""
        record = await self._fetch(request)
        return tagged(WorkflowDocument.of(record), request.scope["headers"])

    @operation(
        "stop_workflow",
        tag="workflows",
        body_optional=True,
        body_fault="invalid-body",
        answers={202: SHOWN},
        problems=["workflow-not-found", "workflow-conflict"],
    )
    async def stop(self, request: Request, body: Stop) -> Json:
        """POST /workflows/{workflow}/stop: stop a workflow; 202 with the workflow.

        Tasks that haven't started are canceled, running ones are stopped, and none is added any more."""
        before = await self._affected(request, Effect.STOP)
        if before.status.is_terminal:
            text = f"workflow {before.id} has ended already: it is {before.status}"
            raise WorkflowConflict(before.id, before.status, text)
        by = caller_of(request.scope)
        plan = stop_workflow(before.id, grace_s=body.grace_s, force=body.force, by=by)
        return Json(_shown(await self._pool.store.carry_out(plan), request), status=202)

    @operation(
        "retry_workflow",
        tag="workflows",
        body_optional=True,
        body_fault="invalid-body",
        answers={202: SHOWN},
        problems=["workflow-not-found", "workflow-conflict"],
    )
    async def retry(self, request: Request, body: Retry) -> Json:
        """POST /workflows/{workflow}/retry: run again what failed in an ended workflow, and what depends on it; 202
        with the workflow.

        Tasks that were canceled because of a failure run again, too, and so do those that ran after it (`any`,
        `failure`)."""
        record = await self._affected(request, Effect.START)
        plan = retry_workflow(record.id, by=caller_of(request.scope))
        return Json(_shown(await self._pool.store.carry_out(plan), request), status=202)

    @operation(
        "remove_workflow",
        tag="workflows",
        answers={204: None},
        problems=["workflow-not-found", "workflow-conflict"],
    )
    async def remove(self, request: Request) -> Json:
        """DELETE /workflows/{workflow}: remove an ended workflow with all of its tasks; 204."""
        record = await self._affected(request, Effect.STOP)
        await self._pool.store.carry_out(remove_workflow(record.id, caller_of(request.scope)))
        return Json(status=204)

    async def _affected(self, request: Request, effect: Effect) -> WorkflowRecord:
        """The workflow in the path, if the caller may do this to each of its tasks.
        Raises: WorkflowNotFound: it doesn't exist, or not for this caller; NotAllowed."""
        record, caller = await self._fetch(request, with_nodes=False), caller_of(request.scope)
        if RIGHTS[effect].is_bound and caller.is_bound:
            for type, queue in await self._pool.store.carry_out(member_kinds(record.id)):
                try:
                    caller.check_task(type, queue)
                except NotAllowed:
                    if caller.may_read:
                        raise
                    raise WorkflowNotFound(record.id) from None
        return record

    async def _fetch(self, request: Request, *, with_nodes: bool = True) -> WorkflowRecord:
        return await self._pool.store.carry_out(seen_workflow(request, with_nodes=with_nodes))


def seen_workflow(request: Request, *, with_nodes: bool = True) -> Plan[WorkflowRecord]:
    """The workflow in the path. Raises: WorkflowNotFound: it doesn't exist, or not for this caller."""
    id, caller = workflow_id(request), caller_of(request.scope)
    record = yield from fetch_workflow(id, with_nodes=with_nodes)
    if caller.project is not None and caller.project != record.project:
        raise WorkflowNotFound(id)
    return record


def workflow_id(request: Request) -> str:
    """The workflow's id in the path. An invalid one must never reach Redis: it could name other keys."""
    id: str = request.path_params["workflow"]
    if not is_id(id):
        raise WorkflowNotFound(id[:200])
    return id


def _shown(record: WorkflowRecord, request: Request) -> WorkflowDocument | AcceptedWorkflow:
    """A workflow after a change: a caller without tasks:read sees only the id and the status."""
    if caller_of(request.scope).may_read:
        return WorkflowDocument.of(record)
    return AcceptedWorkflow(id=record.id, status=record.status)


def _traced(spec: WorkflowSpec, preferences: Preferences) -> WorkflowSpec:
    """The submission; tasks without a trace context get that of the request."""
    if preferences.traceparent is None:
        return spec

    def of(node: NodeSpec) -> NodeSpec:
        task = None if node.task is None else traced(node.task, preferences)
        mapped = None if node.map is None else [traced(each, preferences) for each in node.map]
        return replace(node, task=task, map=mapped)

    return replace(spec, nodes=[of(node) for node in spec.nodes])


def _in_order(spec: WorkflowSpec, order: Sequence[NodeSpec]) -> list[Member]:
    """The tasks in the order of their nodes, in which they are stored."""
    of_node: dict[str, list[Member]] = {}
    for member in members(spec):
        of_node.setdefault(member.node, []).append(member)
    return [member for node in order for member in of_node.get(node.name, ())]
