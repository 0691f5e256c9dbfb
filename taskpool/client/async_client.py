"""The HTTP API for programs that await: `AsyncClient`.

Methods have the names of the methods of `AsyncTaskPool` that do the same, and return the same values. Each runs one
operation, which is a value: see `operations`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from urllib.parse import quote

import httpx

from taskpool.client import operations, values
from taskpool.client.http import FAILURES, AsyncConnections, AsyncLink, Server
from taskpool.client.operations import WAITING, WATCHING, fetch
from taskpool.client.request import About, Answer, Emit, Lost, Plan, Read, Request, Retrying, Send, Sleep, sending
from taskpool.lifecycle import HoldsConnections
from taskpool.operations.flow.builder import AsyncWorkflow, batch_of
from taskpool.operations.flow.schedule_values import ScheduleRecord, spec_of
from taskpool.operations.flow.values import WorkflowReceipt, WorkflowRecord, WorkflowSpec, WorkflowStatus
from taskpool.operations.insight.failure_values import STEPS
from taskpool.operations.specs import AddTask, spec_given
from taskpool.tasks import hooks
from taskpool.tasks.log_lines import LogLine
from taskpool.tasks.schedule import Times
from taskpool.types import (
    Event,
    Page,
    QueuedTask,
    QueueInfo,
    Receipt,
    TaskRecord,
    TaskSpec,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)
from taskpool.types.control import Action, Criteria, Filter, Operation, OperationSpec, Past, Preview
from taskpool.types.fleet import Pause, PoolRecord, QueueLoad, Stack, TypeStorage, Why
from taskpool.types.insight import Durations, FailureGroup, Finding, Redrive, Stats, StatsBy, StatsRange, Waits, WaitsBy
from taskpool.validation import Duration

T = TypeVar("T")


class AsyncClient(HoldsConnections):
    """Submit, watch and control tasks through the HTTP API at `url`.

        async with AsyncClient("http://localhost:8080", api_key) as client:
            task = await client.add_task("resize", {"url": "https://example.org/a.png"}, queue="images")
            ended = await client.wait(task.id, timeout_s=60)
            print(ended.result)

    Any number of coroutines can use one client at once. One client serves any number of event loops, one after the
    other or at the same time in several threads. Each loop has its own connections, opened by its first call and closed
    when the loop shuts down. To leave `follow`, `events` or `follow_log` early, close them with `contextlib.aclosing`.
    Needs asyncio.

    `timeout_s` is how long each answer may take. When no answer comes, or one that says "later", a request that can be
    repeated safely is sent again, up to `retries` times within 30 s. A submission has its own idempotency key, so it is
    stored once.

    Besides the exceptions listed at each method, every method raises ApiUnavailable when no answer comes,
    RedisUnavailable when the API can't reach its Redis, Unauthorized and NotAllowed for the API key, and ApiError for
    any other answer."""

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = 10.0, retries: int = 6) -> None:
        """Raises: ConfigurationError, when the URL or the key is invalid."""
        self._connections = AsyncConnections(Server(url, api_key, timeout_s))
        self._retrying = Retrying(retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop; other loops keep theirs. The next call opens new ones."""
        await self._connections.close()

    if TYPE_CHECKING:
        add_task: AddTask[Coroutine[Any, Any, Receipt]]
    else:

        async def add_task(self, *given: Any, **named: Any) -> Receipt:
            """Submit a task; returns its id and status. See `AddTask` for what may be given."""
            with hooks.sending((spec_given(given, named),)) as sent:
                return await self.send(operations.add_task(sent.specs[0]))

    async def add_tasks(self, specs: Sequence[TaskSpec]) -> list[Receipt]:
        """Submit up to 1,000 tasks in one request: all are stored or none. Ids and statuses in order.
        Raises: as `add_task`; pointers start with the task's index, ``/3/payload/width``."""
        if not specs:
            return []
        with hooks.sending(specs) as sent:
            return await self.send(operations.add_tasks(sent.specs))

    async def get(self, id: str) -> TaskRecord:
        """The task as it is now. Raises: TaskNotFound."""
        return await self.send(operations.get(id))

    async def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, successfully or not: see `status`, `result`, `error`. None waits without limit.
        Once it has begun, it continues after an outage of the API. Raises: TaskNotFound, WaitTimeout, InvalidTask."""
        return await self._run(operations.follow(id, timeout_s, WAITING, self._retrying))

    def follow(self, id: str, *, timeout_s: float | None = None) -> AsyncGenerator[TaskRecord]:
        """The task as it is now, again twice a second, and a last time when it has ended.
        Continues after an outage of the API, and raises, as `wait`."""
        return self._values(operations.follow(id, timeout_s, WATCHING, self._retrying))

    def events(self, id: str, *, after: str | None = None) -> AsyncGenerator[Event]:
        """Every event of a task until it has ended, once each. It continues after an outage of the API.

        Without `after`, the first one is called `snapshot`, and its data is the task's document. With `after` (the
        `stream` of an event), the first one is the event after that. A snapshot also comes in the place of events that
        the API no longer has. Raises: TaskNotFound."""
        return self._values(operations.events(id, after, self._retrying))

    async def get_queue(
        self, name: str = "default", *, cursor: str | None = None, limit: int = 100
    ) -> Page[QueuedTask]:
        """A page of a queue at one moment, in dispatch order, with position and wait."""
        path = f"/queues/{quote(name, safe='')}"
        return await self.send(fetch(path, values.queued, cursor=cursor, limit=limit))

    async def list_tasks(
        self, *, cursor: str | None = None, limit: int = 50, **criteria: Unpack[Criteria]
    ) -> Page[TaskRecord]:
        """Tasks that match all criteria (those of a `Filter`), newest first. A page looks at a bounded number of tasks,
        so it may be short: continue with `next_cursor` until it is None. Raises: InvalidTask."""
        return await self.send(operations.list_tasks(Filter(**criteria), cursor, limit))

    async def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (returns CANCELED), or delete one that has ended (returns None).
        Raises: TaskNotFound; TaskConflict, if it is running: use `kill_task`."""
        return await self.send(operations.remove_task(id))

    async def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it if it hasn't started; else ask it to stop, and kill it after `grace_s`, at most a day
        (`force`: at once). Raises: TaskNotFound, InvalidTask."""
        return await self._run(operations.kill_task(id, grace_s=grace_s, force=force, retrying=self._retrying))

    async def retry_task(self, id: str) -> TaskRecord:
        """Queue a failed, stopped or canceled task again.
        Raises: TaskNotFound; TaskConflict, for any other status, or if a task it depends on isn't done."""
        return await self.send(operations.retry_task(id))

    async def confirm(self, id: str, *, comment: str | None = None) -> TaskRecord:
        """Let a task start that waits for a confirmation. The same decision again agrees. Raises: TaskNotFound;
        TaskConflict, if it doesn't wait for that or was rejected; NotAllowed; InvalidTask."""
        return await self.send(operations.decide(id, "confirm", comment))

    async def reject(self, id: str, *, comment: str | None = None) -> TaskRecord:
        """Cancel a task that waits for a confirmation. Raises: as `confirm`."""
        return await self.send(operations.decide(id, "reject", comment))

    async def answer(
        self, id: str, answer: Any, *, question: str | None = None, comment: str | None = None
    ) -> TaskRecord:
        """Answer what a task asks. `question` names the question that is meant; without it, it is the one that the task
        asks now. The same answer again agrees. Raises: TaskNotFound; TaskConflict, if it doesn't ask that or has
        another answer; InvalidTask, if the answer doesn't fit."""
        return await self.send(operations.answer(id, answer, question, comment))

    def workflow(self, name: str) -> AsyncWorkflow[WorkflowReceipt]:
        """A workflow to be built in an `async with` block, and submitted at its end.

            async with client.workflow("import") as w:
                rows = w.map("rows", [import_row.spec(row=row) for row in rows])
                w.add("summary", import_summary.spec(), after=rows.any())
            print(w.id)

        The end of the block raises what `add_workflow` raises; an exception in the block submits nothing."""
        return AsyncWorkflow(name, self.add_workflow)

    async def batch(
        self,
        specs: Iterable[TaskSpec],
        *,
        name: str = "batch",
        on_done: TaskSpec | None = None,
        on_failure: TaskSpec | None = None,
        on_end: TaskSpec | None = None,
    ) -> WorkflowReceipt:
        """Submit tasks as one workflow, with tasks that run at its end: `on_done` if all are done, `on_failure` if not,
        `on_end` in any case. Each finds the outcomes of the tasks in `ctx.outcomes["tasks"]`.
        Raises: as `add_workflow`."""
        return await self.add_workflow(
            batch_of(specs, name=name, on_done=on_done, on_failure=on_failure, on_end=on_end)
        )

    async def add_workflow(self, spec: WorkflowSpec) -> WorkflowReceipt:
        """Submit a workflow: all of its tasks, or none. Its id and status. Raises: as `add_task`; InvalidTask for its
        graph."""
        with hooks.sending(()) as sent:
            return await self.send(operations.add_workflow(spec, sent.headers))

    async def get_workflow(self, id: str) -> WorkflowRecord:
        """The workflow as it is now, with its graph. Raises: WorkflowNotFound."""
        return await self.send(operations.get_workflow(id))

    async def workflows(
        self,
        *,
        status: WorkflowStatus | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[WorkflowRecord]:
        """Workflows without their nodes, newest first. A page may be short: continue with `next_cursor` until it is
        None."""
        request = fetch("/workflows", values.workflows, status=status, name=name, cursor=cursor, limit=limit)
        return await self.send(request)

    async def wait_workflow(self, id: str, *, timeout_s: float | None = None) -> WorkflowRecord:
        """The workflow once it has ended, successfully or not: see `status`, `counts`. None waits without limit. Once
        it has begun, it continues after an outage of the API. Raises: WorkflowNotFound, WorkflowTimeout, InvalidTask.
        """
        return await self._run(operations.follow_workflow(id, timeout_s, self._retrying))

    def follow_workflow(self, id: str, *, timeout_s: float | None = None) -> AsyncGenerator[WorkflowRecord]:
        """The workflow as it is now, again twice a second, and a last time when it has ended.
        Continues after an outage of the API, and raises, as `wait_workflow`."""
        return self._values(operations.follow_workflow(id, timeout_s, self._retrying))

    async def stop_workflow(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> WorkflowRecord:
        """Stop a workflow: cancel its tasks that haven't started, ask the running ones to stop, and kill them after
        `grace_s`, at most a day (`force`: at once). One that has ended is left as it is.
        Raises: WorkflowNotFound, InvalidTask."""
        plan = operations.stop_workflow(id, grace_s=grace_s, force=force, retrying=self._retrying)
        return await self._run(plan)

    async def retry_workflow(self, id: str) -> WorkflowRecord:
        """Run again what failed in an ended workflow, what was canceled because of that, and what ran after it.
        Raises: WorkflowNotFound; WorkflowConflict, if it hasn't failed and wasn't stopped."""
        return await self.send(operations.retry_workflow(id))

    async def remove_workflow(self, id: str) -> None:
        """Remove an ended workflow with all of its tasks. Raises: WorkflowNotFound; WorkflowConflict, if it hasn't
        ended."""
        await self.send(operations.remove_workflow(id))

    async def set_schedule(self, name: str, times: Times, task: TaskSpec) -> ScheduleRecord:
        """Make the schedule `name`, or replace it: it submits `task` at these times. While its times stay the same, so
        does its next run, and while it is paused it stays so.
        Raises: InvalidSchedule; InvalidTask (pointers start with ``/task``); ScheduleConflict (declared in code)."""
        return await self.send(operations.set_schedule(name, spec_of(times, task)))

    async def get_schedule(self, name: str) -> ScheduleRecord:
        """A schedule with its next runs and the last 100. Raises: ScheduleNotFound."""
        return await self.send(fetch(operations.schedule_path(name), values.schedule))

    async def list_schedules(self, *, cursor: str | None = None, limit: int = 100) -> Page[ScheduleRecord]:
        """A page of the schedules, by name. Raises: InvalidTask."""
        return await self.send(fetch("/schedules", values.schedules, cursor=cursor, limit=limit))

    async def pause_schedule(self, name: str) -> ScheduleRecord:
        """Let a schedule submit nothing until it is resumed. Raises: ScheduleNotFound."""
        return await self.send(operations.change_schedule(name, "pause"))

    async def resume_schedule(self, name: str) -> ScheduleRecord:
        """Resume a schedule, with its next run from now on. Raises: ScheduleNotFound."""
        return await self.send(operations.change_schedule(name, "resume"))

    async def run_schedule(self, name: str) -> Receipt:
        """Submit the task of a schedule now, beside its runs. Raises: ScheduleNotFound, and as `add_task`."""
        return await self.send(operations.run_schedule(name))

    async def remove_schedule(self, name: str) -> None:
        """Remove a schedule. The tasks that it has submitted stay.
        Raises: ScheduleNotFound; ScheduleConflict (it is declared in code that a pool has loaded)."""
        return await self.send(operations.remove_schedule(name))

    async def failures(
        self, *, type: str | None = None, since: Past | None = None, limit: int = 100
    ) -> list[FailureGroup]:
        """The groups of failures, those first that failed last: of a task type, and only those that failed since a
        time, or within a duration before now such as "1h". Raises: InvalidTask."""
        return await self.send(operations.failures(type, since, limit))

    async def get_failure(self, fingerprint: str) -> FailureGroup:
        """A group of failures with the traceback of the last one, and its last redrive. Raises: FailureNotFound."""
        return await self.send(fetch(operations.failure_path(fingerprint), values.failure))

    async def redrive(
        self, fingerprint: str, *, steps: Sequence[int | str] = STEPS, include_nonretryable: bool = False
    ) -> Redrive:
        """Retry the failed tasks of a group in growing steps: 1, then 10, then all. The next step begins when those of
        the last are done; when they fail again, it stops by itself. A worker pool drives it: see `get_redrive`.
        Raises: FailureNotFound, InvalidTask, RedriveConflict (it runs already)."""
        return await self.send(operations.redrive(fingerprint, steps, include_nonretryable))

    async def get_redrive(self, fingerprint: str) -> Redrive:
        """How far the last redrive of a group has come. Raises: FailureNotFound."""
        return await self.send(fetch(f"{operations.failure_path(fingerprint)}/redrive", values.redrive))

    async def stop_redrive(self, fingerprint: str) -> Redrive:
        """Retry no more tasks of a group; those that were retried run on. Raises: FailureNotFound, RedriveConflict."""
        return await self.send(operations.stop_redrive(fingerprint))

    async def findings(self, *, installation: bool = False) -> list[Finding]:
        """What is wrong now, the most urgent first; with `installation`, also how Redis and the pools are set up."""
        return await self.send(fetch("/findings", values.findings, installation="true" if installation else None))

    async def preview_operation(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Preview:
        """What `operate` would do: how many tasks it would change, and the first five. Raises: InvalidOperation."""
        spec = OperationSpec(action=action, filter=filter, queue=queue, include_nonretryable=include_nonretryable)
        return await self.send(operations.preview_operation(spec))

    async def start_operation(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Operation:
        """Start to change all tasks that match: `retry`, `stop`, `cancel`, `remove`, `move` (to `queue`) or `run_now`.
        The API carries it out. `retry` leaves out tasks that failed with NonRetryable. Raises: InvalidOperation."""
        spec = OperationSpec(action=action, filter=filter, queue=queue, include_nonretryable=include_nonretryable)
        return await self.send(operations.start_operation(spec))

    async def operate(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Operation:
        """Change all tasks that match, as `start_operation`, and return the operation when it has ended.
        Raises: InvalidOperation."""
        started = await self.start_operation(action, filter, queue=queue, include_nonretryable=include_nonretryable)
        async for operation in self.follow_operation(started.id):
            latest = operation
        return latest

    def follow_operation(self, id: str) -> AsyncGenerator[Operation]:
        """The operation as it is now, again twice a second, and a last time when it has ended.
        Raises: OperationNotFound."""
        return self._values(operations.follow_operation(id, self._retrying))

    async def get_operation(self, id: str) -> Operation:
        """An operation as it is now. Raises: OperationNotFound."""
        return await self.send(fetch(operations.operation_path(id), values.operation))

    async def list_operations(self, *, cursor: str | None = None, limit: int = 50) -> Page[Operation]:
        """A page of the operations, the newest first. Raises: InvalidTask."""
        return await self.send(fetch("/operations", values.operations, cursor=cursor, limit=limit))

    async def cancel_operation(self, id: str) -> Operation:
        """Cancel an operation that runs. What it has changed stays changed. Raises: OperationNotFound;
        OperationConflict, if it has ended."""
        return await self.send(operations.change_operation(id, "cancel"))

    async def undo_operation(self, id: str) -> Operation:
        """Restore what an operation has canceled or removed, up to ten minutes after its end: the operation that does
        it. Raises: OperationNotFound; OperationConflict, if it can't be undone."""
        return await self.send(operations.change_operation(id, "undo"))

    async def queues(self) -> list[QueueInfo]:
        """Every queue with its counts."""
        return await self._run(operations.queues(self._retrying))

    async def storage(self) -> list[TypeStorage]:
        """What fills Redis: how many records each task type has and about how much memory they use, the most first."""
        return await self.send(fetch("/storage", values.storage))

    async def waits(self, by: WaitsBy = "queue") -> Waits:
        """Who waits longest for a worker, by "queue", "type", "key" (API keys) or "project". It looks at up to 1,000
        tasks: the first of the 20 queues that wait longest. The answer may be some seconds old. Raises: InvalidTask."""
        return await self.send(operations.waits(by))

    async def queue_load(self, name: str, *, target: Duration = 60.0) -> QueueLoad:
        """The load of a queue: what waits, how fast tasks come and go, and how many worker processes do what waits and
        arrives within `target`, a duration from a second to a day. Raises: InvalidTask."""
        return await self.send(operations.queue_load(name, target))

    async def why(self, id: str) -> Why:
        """Why a task isn't running, and why the tasks that it waits for aren't. Without a reason it can start at once.
        Raises: TaskNotFound."""
        return await self.send(fetch(f"{operations.task_path(id)}/why", values.why, about=About(id)))

    async def stack(self, id: str) -> Stack:
        """Where a running task is: its frames, the innermost last, and the stacks of all threads of its process.
        Raises: TaskNotFound; TaskConflict, if it doesn't run, or its worker process doesn't answer."""
        return await self.send(operations.stack(id))

    async def pause_queue(self, name: str, *, why: str | None = None) -> Pause:
        """Let no task of a queue start until it is resumed; the pause that holds. What runs goes on. The first pause
        counts until it ends. Raises: InvalidTask."""
        return await self.send(operations.pause(operations.queue_path(name), "pause", why))

    async def resume_queue(self, name: str) -> None:
        """Let the tasks of a queue start again, at once. Raises: InvalidTask."""
        await self.send(operations.resume(operations.queue_path(name)))

    async def pause_all(self, *, why: str | None = None) -> Pause:
        """Let no task of any queue start until everything is resumed. Raises: InvalidTask."""
        return await self.send(operations.pause("", "pause", why))

    async def resume_all(self) -> None:
        """Let tasks start again. Queues and pools that are paused themselves stay so."""
        await self.send(operations.resume(""))

    async def pools(self) -> list[PoolRecord]:
        """The worker pools. One that went away without draining is listed as ``gone`` for a day."""
        return await self.send(fetch("/pools", values.pools))

    async def pause_pool(self, name: str, *, why: str | None = None) -> Pause:
        """Let a worker pool start no task until it is resumed. Raises: PoolNotFound, InvalidTask."""
        return await self.send(operations.pause(operations.pool_path(name), "pause", why))

    async def resume_pool(self, name: str) -> None:
        """Let a worker pool start tasks again. Raises: PoolNotFound; PoolConflict, if it drains."""
        await self.send(operations.resume(operations.pool_path(name)))

    async def drain_pool(self, name: str, *, why: str | None = None) -> Pause:
        """Let a worker pool start no more tasks, finish those that it runs within its grace period, and end.
        Raises: PoolNotFound, InvalidTask."""
        return await self.send(operations.pause(operations.pool_path(name), "drain", why))

    async def types(self) -> list[TypeInfo]:
        """Every known task type, with the pools that serve it."""
        return await self.send(fetch("/types", values.types))

    async def workers(self) -> list[WorkerInfo]:
        """Every registered worker process."""
        return await self.send(fetch("/workers", values.workers))

    async def stats(
        self,
        range: StatsRange = "1h",
        *,
        type: str | None = None,
        queue: str | None = None,
        by: StatsBy | None = None,
    ) -> Stats:
        """Counts and durations of the last hour or day by minute, week by hour, or 90 days by day: of a task type, of a
        queue, or of all. `by`: a series for each type, queue or build. Raises: InvalidTask."""
        return await self.send(fetch("/stats", values.stats, range=range, type=type, queue=queue, by=by))

    async def durations(self, type: str) -> Durations:
        """How long the attempts of a task type ran in the last seven days."""
        return await self.send(fetch(f"/types/{quote(type, safe='')}/durations", values.durations))

    async def worker_warnings(self) -> list[str]:
        """Problems with the RQ programs that share queues with the workers, one sentence each."""
        return await self.send(fetch("/workers", values.worker_warnings))

    async def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. Until the task has ended, there is always a next cursor.
        Raises: TaskNotFound, InvalidTask."""
        path = f"{operations.task_path(id)}/logs"
        return await self.send(fetch(path, values.lines, about=About(id), cursor=cursor, limit=limit))

    def follow_log(self, id: str, *, cursor: str | None = None) -> AsyncGenerator[LogLine]:
        """Every line of a task's log, once, including new ones, until the task has ended. Continues after an outage.
        Raises: TaskNotFound; InvalidTask, if the cursor isn't one of `logs`."""
        return self._values(operations.follow_log(id, cursor, self._retrying))

    async def send(self, request: Request[T]) -> T:
        """The value of a request of `taskpool.client.operations`, which is sent again where that is safe."""
        return await self._run(sending(request, self._retrying))

    async def _run(self, plan: Plan[T]) -> T:
        result: T
        async for value in self._values(_emitting(plan)):
            result = value
        return result

    def _values(self, plan: Plan[object]) -> AsyncGenerator[Any]:
        """The values that a plan emits."""
        return _AsyncRunner(self._connections).run(plan)


def _emitting(plan: Plan[object]) -> Plan[None]:
    """The same plan, which also emits what it returns, last."""
    yield Emit((yield from plan))


class _AsyncRunner:
    """Carries out one plan."""

    def __init__(self, connections: AsyncConnections) -> None:
        self._connections = connections
        self._link: AsyncLink | None = None
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes]

    async def run(self, plan: Plan[object]) -> AsyncGenerator[Any]:
        """The values that the plan emits."""
        reply: Any = None
        try:
            while True:
                step = plan.send(reply)
                reply = None
                match step:
                    case Emit():
                        yield step.value
                    case Sleep():
                        await asyncio.sleep(step.seconds)
                    case Read():
                        with suppress(*FAILURES):
                            reply = await anext(self._pieces, None)
                    case Send():
                        reply = await self._send(step.request)
        except StopIteration:
            return
        finally:
            await self._close()

    async def _send(self, request: Request[Any]) -> Answer | Lost:
        await self._close()
        connections, server = self._connections, self._connections.server
        link = connections.take()
        try:
            response = await link.client.send(server.request(link.client, request), stream=True)
            link.note(response)
            if request.streams and response.status_code == httpx.codes.OK:
                self._link, self._stream, self._pieces = link, response, response.aiter_bytes()
                return Answer(response.status_code, response.headers)
            try:
                answer = Answer(response.status_code, response.headers, await response.aread())
            finally:
                await response.aclose()
        except BaseException as error:
            connections.drop(link)
            if isinstance(error, FAILURES):
                return server.lost(error)
            raise
        connections.give_back(link)
        return answer

    async def _close(self) -> None:
        """Close the stream, unless it belongs to the parent of this process."""
        link, stream = self._link, self._stream
        self._link = self._stream = None
        if link is not None and stream is not None and link.pid == os.getpid():
            await stream.aclose()
            self._connections.give_back(link)
