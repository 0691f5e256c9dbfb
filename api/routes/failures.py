"""/failures and below, and /findings: what goes wrong, and the redrive of a group of failures."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import FailureDocument, FindingDocument, RedriveDocument
from taskpool.operations.insight import failures, redrive
from taskpool.operations.insight.findings import Findings as Found
from taskpool.operations.insight.findings import find
from taskpool.operations.insight.fresh import Fresh

from ..answers import Failures, Findings
from ..auth.caller import caller_of
from ..http.declarations import operation
from ..http.query import FailuresQuery, FindingsQuery
from ..http.responses import Json
from ..http.submission import RedriveBody


class FailureRoutes:
    """Handlers of failures and findings. They show all projects, so callers with a project are refused."""

    def __init__(self, pool: AsyncTaskPool, findings: Fresh[Found]) -> None:
        self._pool, self._findings = pool, findings
        # Those of the installation are read anew for everyone, but once for all who ask at the same time.
        self._with_installation = Fresh(pool.store, partial(find, installation=True), fresh_s=0)

    @operation("list_failures", tag="failures", answers={200: Failures})
    async def list(self, request: Request, query: FailuresQuery) -> Json:
        """GET /failures: list the groups of failures, those first that failed last."""
        plan = failures.list_failures(type=query.type, since=query.since, limit=query.limit)
        return Json(Failures(groups=[FailureDocument.of(each) for each in await self._pool.store.carry_out(plan)]))

    @operation("get_failure", tag="failures", answers={200: FailureDocument}, problems=["failure-not-found"])
    async def get(self, request: Request) -> Json:
        """GET /failures/{fingerprint}: read a group of failures, with the traceback of the last one."""
        found = await self._pool.store.carry_out(failures.get_failure(_fingerprint(request)))
        return Json(FailureDocument.of(found))

    @operation("get_redrive", tag="failures", answers={200: RedriveDocument}, problems=["failure-not-found"])
    async def redrive(self, request: Request) -> Json:
        """GET /failures/{fingerprint}/redrive: read how far the last redrive of a group has come."""
        return Json(RedriveDocument.of(await self._pool.store.carry_out(redrive.get_redrive(_fingerprint(request)))))

    @operation(
        "start_redrive",
        tag="failures",
        body_optional=True,
        answers={202: RedriveDocument},
        problems=["failure-not-found", "redrive-conflict"],
    )
    async def start_redrive(self, request: Request, body: RedriveBody) -> Json:
        """POST /failures/{fingerprint}/redrive: retry a group of failures in growing steps; 202.

        The next step begins when all tasks of the last one are done. When they fail again, it stops by itself. The
        pools' housekeeping drives it, so it goes on when this API ends."""
        plan = redrive.start_redrive(
            _fingerprint(request),
            steps=body.steps,
            include_nonretryable=body.include_nonretryable,
            by=caller_of(request.scope),
        )
        return Json(RedriveDocument.of(await self._pool.store.carry_out(plan)), status=202)

    @operation(
        "stop_redrive",
        tag="failures",
        answers={200: RedriveDocument},
        problems=["failure-not-found", "redrive-conflict"],
    )
    async def stop_redrive(self, request: Request) -> Json:
        """POST /failures/{fingerprint}/redrive/stop: retry no more tasks; those that were retried run on."""
        plan = redrive.stop_redrive(_fingerprint(request), caller_of(request.scope))
        return Json(RedriveDocument.of(await self._pool.store.carry_out(plan)))

    @operation("list_findings", tag="findings", answers={200: Findings})
    async def findings(self, request: Request, query: FindingsQuery) -> Json:
        """GET /findings: list what is wrong, the most urgent first. The answer may be some seconds old."""
        found = await (self._with_installation if query.installation else self._findings).get()
        shown = [FindingDocument.of(each) for each in found.findings]
        return Json(Findings(findings=shown, checked=found.checked))


def _fingerprint(request: Request) -> str:
    fingerprint: str = request.path_params["fingerprint"]
    return fingerprint
