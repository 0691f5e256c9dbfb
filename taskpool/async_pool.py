"""The task pool for programs that await: `AsyncTaskPool`.

Each method runs one operation, which is a value: see `taskpool.operations` and `taskpool.runner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, Unpack

from taskpool import runner
from taskpool.access.audit import Actor
from taskpool.errors import RedisUnavailable, WorkflowTimeout
from taskpool.operations import catalog, listing, overview, queue, status, waiting
from taskpool.operations.control import bulk, pauses, stacks
from taskpool.operations.control.drive import drive
from taskpool.operations.control.pools import list_pools
from taskpool.operations.flow import occurrences, schedules, workflows
from taskpool.operations.flow.builder import AsyncWorkflow, batch_of
from taskpool.operations.flow.confirmations import answer_task, confirm_task
from taskpool.operations.flow.schedule_values import ScheduleRecord, spec_of
from taskpool.operations.flow.values import WorkflowRecord, WorkflowSpec, WorkflowStatus
from taskpool.operations.insight import failures, history, load, redrive, stats, storage, waits
from taskpool.operations.insight.check import check_tasks
from taskpool.operations.insight.failure_values import STEPS
from taskpool.operations.insight.findings import find
from taskpool.operations.insight.why import why_not_running
from taskpool.operations.overview import ServerInfo
from taskpool.operations.pool_base import AsyncConnectedPool
from taskpool.operations.queue import Submitted
from taskpool.operations.records import fetch
from taskpool.operations.specs import AddTask, check_spec, patience_s, spec_given
from taskpool.operations.waiting import FOLLOW_S, LOOK_AGAIN_S
from taskpool.redis.add_script import Once
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.log_lines import LogLine
from taskpool.tasks.schedule import Times
from taskpool.types import (
    Event,
    Page,
    QueuedTask,
    QueueInfo,
    Receipt,
    RunningTask,
    TaskRecord,
    TaskSpec,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)
from taskpool.types.control import Action, Criteria, Filter, Operation, OperationSpec, Past, Preview
from taskpool.types.fleet import Pause, PoolRecord, QueueLoad, Stack, TypeStorage, Why
from taskpool.types.insight import (
    CheckReport,
    Durations,
    FailureGroup,
    Finding,
    Redrive,
    Stats,
    StatsBy,
    StatsRange,
    Waits,
    WaitsBy,
)
from taskpool.validation import Duration


class AsyncTaskPool(AsyncConnectedPool):
    """Submit, watch and control tasks.

        async with AsyncTaskPool("redis://localhost:6379") as pool:
            task = await pool.add_task("resize", {"url": "https://example.org/a.png"}, queue="images")
            ended = await pool.wait(task.id, timeout_s=60)
            print(ended.result)

    The coroutines of an event loop share one connection, and what they send in the same turn of the loop goes out
    together; all waits share one subscription. One pool serves any number of event loops, one after the other or at the
    same time in several threads. Each loop has its own connections, opened by its first call and closed when the loop
    shuts down. Needs asyncio.

    Without a URL, the pool uses the Redis that the commands use: the one of TASKPOOL_REDIS_URL, or of a `taskpool up`
    in this directory. A pool with a `registry` also accepts the types registered there that no worker serves yet. Every
    method raises RedisUnavailable when Redis can't be reached."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    if TYPE_CHECKING:
        add_task: AddTask[Coroutine[Any, Any, TaskRecord]]
    else:

        async def add_task(self, *given: Any, **named: Any) -> TaskRecord:
            """Submit a task; returns its record as stored. See `AddTask` for what may be given."""
            return await self.add_spec(spec_given(given, named))

    async def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As `add_task`, for a `TaskSpec` only."""
        return await self.store.carry_out(self.adding(spec))

    async def add_tasks(self, specs: Sequence[TaskSpec]) -> list[TaskRecord]:
        """Submit many tasks; returns their records in order. All are checked first; then each 1,000 are stored as one.
        Raises: as `add_task`; pointers start with the task's index, ``/3/payload/width``."""
        return await self.store.carry_out(queue.add_tasks(specs, self.rules))

    async def submit(self, spec: TaskSpec, once: Once | None = None, *, by: Actor | None = None) -> Submitted:
        """Submit a task; returns only its id and status. With `once`, it is stored once for an idempotency key; with
        `by`, it is submitted for an API key. Plain tasks submitted in the same turn of the loop share one call.
        Raises: as `add_task`, and NotAllowed and KeyReused."""
        return await self._submit(spec, once, by)

    async def submit_many(
        self, specs: Sequence[TaskSpec], once: Once | None = None, *, by: Actor | None = None, start: str = ""
    ) -> Submitted:
        """As `submit`, for up to 1,000 tasks: all are stored or none. Pointers begin with `start` and the index."""
        plan = queue.submit_many(specs, self.rules, once, by=by, start=start)
        return await self.store.carry_out(plan)

    async def get(self, id: str) -> TaskRecord:
        """The task as it is now. Raises: TaskNotFound."""
        return await self.store.run(fetch(id))

    async def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, successfully or not: see `status`, `result`, `error`. None waits without limit.
        Once it has begun, it continues after an outage of Redis. Raises: TaskNotFound, WaitTimeout, InvalidTask."""
        async for record in self._follow(id, timeout_s, LOOK_AGAIN_S):
            latest = record
        return latest

    async def follow(self, id: str, *, timeout_s: float | None = None) -> AsyncIterator[TaskRecord]:
        """The task as it is now, again a few times a second, and a last time when it has ended.
        Continues after an outage of Redis, and raises, as `wait`."""
        async with aclosing(self._follow(id, timeout_s, FOLLOW_S)) as records:
            async for record in records:
                yield record

    async def add_and_wait(self, spec: TaskSpec, *, wait_s: float | None = None) -> TaskRecord:
        """Submit a task and wait for its end, successful or not. If it hasn't ended in `wait_s`, it goes on.
        Raises: as `add_task` and `wait`."""
        check_spec(spec)
        patience_s("wait_s", wait_s)
        return await self._add_and_wait(spec, wait_s)

    async def get_queue(
        self, name: str = "default", *, cursor: str | None = None, limit: int = 100
    ) -> Page[QueuedTask]:
        """A page of a queue at one moment, in dispatch order, with position and wait. Raises: InvalidTask."""
        return await self.store.carry_out(queue.get_queue(name, cursor=cursor, limit=limit))

    async def list_tasks(
        self, *, cursor: str | None = None, limit: int = 50, **criteria: Unpack[Criteria]
    ) -> Page[TaskRecord]:
        """Tasks that match all criteria (those of a `Filter`), newest first. A page looks at a bounded number of tasks,
        so it may be short: continue with `next_cursor` until it is None. Raises: InvalidTask."""
        return await self.store.carry_out(listing.list_tasks(Filter(**criteria), cursor=cursor, limit=limit))

    async def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (returns CANCELED), or delete one that has ended (returns None).
        Raises: TaskNotFound; TaskConflict, if it is running: use `kill_task`."""
        return await self.store.carry_out(queue.remove_task(id))

    async def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it if it hasn't started; else ask it to stop, and kill it after `grace_s`, at most a day
        (`force`: at once). Raises: TaskNotFound, InvalidTask."""
        return await self.store.carry_out(runner.kill_task(id, grace_s=grace_s, force=force))

    async def retry_task(self, id: str) -> TaskRecord:
        """Queue a failed, stopped or canceled task again.
        Raises: TaskNotFound; TaskConflict, for any other status, or if a task it depends on isn't done."""
        return await self.store.carry_out(runner.retry_task(id))

    async def confirm(self, id: str, *, comment: str | None = None) -> TaskRecord:
        """Let a task start that waits for a confirmation. The same decision again agrees. Raises: TaskNotFound;
        TaskConflict, if it doesn't wait for that or was rejected; NotAllowed; InvalidTask."""
        return await self.store.carry_out(confirm_task(id, "confirmed", comment=comment))

    async def reject(self, id: str, *, comment: str | None = None) -> TaskRecord:
        """Cancel a task that waits for a confirmation. Raises: as `confirm`."""
        return await self.store.carry_out(confirm_task(id, "rejected", comment=comment))

    async def answer(
        self, id: str, answer: Any, *, question: str | None = None, comment: str | None = None
    ) -> TaskRecord:
        """Answer what a task asks. `question` names the question that is meant; without it, it is the one that the task
        asks now. The same answer again agrees. Raises: TaskNotFound; TaskConflict, if it doesn't ask that or has
        another answer; InvalidTask, if the answer doesn't fit."""
        return await self.store.carry_out(answer_task(id, answer, question=question, comment=comment))

    async def set_schedule(self, name: str, times: Times, task: TaskSpec) -> ScheduleRecord:
        """Make the schedule `name`, or replace it: it submits `task` at these times. While its times stay the same, so
        does its next run, and while it is paused it stays so.
        Raises: InvalidSchedule; InvalidTask (pointers start with ``/task``); ScheduleConflict (declared in code)."""
        plan = schedules.set_schedule(name, spec_of(times, task), self.rules)
        record, _ = await self.store.carry_out(plan)
        return record

    async def get_schedule(self, name: str) -> ScheduleRecord:
        """A schedule with its next runs and the last 100. Raises: ScheduleNotFound."""
        return await self.store.carry_out(schedules.get_schedule(name))

    async def list_schedules(self, *, cursor: str | None = None, limit: int = 100) -> Page[ScheduleRecord]:
        """A page of the schedules, by name. Raises: InvalidTask."""
        return await self.store.carry_out(schedules.list_schedules(cursor=cursor, limit=limit))

    async def pause_schedule(self, name: str) -> ScheduleRecord:
        """Let a schedule submit nothing until it is resumed. Raises: ScheduleNotFound."""
        return await self.store.carry_out(schedules.pause_schedule(name))

    async def resume_schedule(self, name: str) -> ScheduleRecord:
        """Resume a schedule, with its next run from now on. Raises: ScheduleNotFound."""
        return await self.store.carry_out(schedules.resume_schedule(name))

    async def run_schedule(self, name: str) -> Receipt:
        """Submit the task of a schedule now, beside its runs. Raises: ScheduleNotFound, and as `add_task`."""
        return await self.store.carry_out(occurrences.run_schedule(name, self.rules))

    async def remove_schedule(self, name: str) -> None:
        """Remove a schedule. The tasks that it has submitted stay.
        Raises: ScheduleNotFound; ScheduleConflict (it is declared in code that a pool has loaded)."""
        await self.store.carry_out(schedules.remove_schedule(name))

    def workflow(self, name: str) -> AsyncWorkflow[WorkflowRecord]:
        """A workflow to be built in an `async with` block, and submitted at its end.

            async with pool.workflow("import") as w:
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
    ) -> WorkflowRecord:
        """Submit tasks as one workflow, with tasks that run at its end: `on_done` if all are done, `on_failure` if not,
        `on_end` in any case. Each finds the outcomes of the tasks in `ctx.outcomes["tasks"]`.
        Raises: as `add_workflow`."""
        return await self.add_workflow(
            batch_of(specs, name=name, on_done=on_done, on_failure=on_failure, on_end=on_end)
        )

    async def add_workflow(self, spec: WorkflowSpec) -> WorkflowRecord:
        """Submit a workflow: all of its tasks, or none. Raises: as `add_task`; InvalidTask for its graph."""
        return await self.store.carry_out(workflows.submit_workflow(spec, self.rules))

    async def get_workflow(self, id: str) -> WorkflowRecord:
        """The workflow as it is now, with its graph. Raises: WorkflowNotFound."""
        return await self.store.carry_out(workflows.fetch_workflow(id))

    async def workflows(
        self,
        *,
        status: WorkflowStatus | None = None,
        name: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[WorkflowRecord]:
        """Workflows without their nodes, newest first. A page may be short: continue with `next_cursor` until it is
        None. Raises: InvalidTask."""
        plan = workflows.list_workflows(status=status, name=name, cursor=cursor, limit=limit)
        return await self.store.carry_out(plan)

    async def wait_workflow(self, id: str, *, timeout_s: float | None = None) -> WorkflowRecord:
        """The workflow once it has ended, successfully or not: see `status`, `counts`. None waits without limit. Once
        it has begun, it continues after an outage of Redis. Raises: WorkflowNotFound, WorkflowTimeout, InvalidTask."""
        async for record in self.follow_workflow(id, timeout_s=timeout_s):
            latest = record
        return latest

    async def follow_workflow(self, id: str, *, timeout_s: float | None = None) -> AsyncIterator[WorkflowRecord]:
        """The workflow as it is now, again a few times a second, and a last time when it has ended.
        Continues after an outage of Redis, and raises, as `wait_workflow`."""
        end_mono = monotonic() + patience_s("timeout_s", timeout_s)
        record = None
        while True:
            began_mono = monotonic()
            try:
                record = await self.get_workflow(id)
            except RedisUnavailable:
                if record is None or began_mono >= end_mono:
                    raise
            else:
                yield record
                if record.status.is_terminal:
                    return
                if began_mono >= end_mono:
                    raise WorkflowTimeout(record, max(timeout_s or 0.0, 0.0))
            pause_s = max(FOLLOW_S, 4 * (monotonic() - began_mono))  # a large graph takes long to read
            await asyncio.sleep(max(0.0, min(pause_s, end_mono - monotonic())))

    async def stop_workflow(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> WorkflowRecord:
        """Stop a workflow: cancel its tasks that haven't started, ask the running ones to stop, and kill them after
        `grace_s`, at most a day (`force`: at once). One that has ended is left as it is.
        Raises: WorkflowNotFound, InvalidTask."""
        return await self.store.carry_out(workflows.stop_workflow(id, grace_s=grace_s, force=force))

    async def retry_workflow(self, id: str) -> WorkflowRecord:
        """Run again what failed in an ended workflow, what was canceled because of that, and what ran after it.
        Raises: WorkflowNotFound; WorkflowConflict, if it hasn't failed and wasn't stopped."""
        return await self.store.carry_out(workflows.retry_workflow(id))

    async def remove_workflow(self, id: str) -> None:
        """Remove an ended workflow with all of its tasks. Raises: WorkflowNotFound; WorkflowConflict, if it hasn't
        ended."""
        await self.store.carry_out(workflows.remove_workflow(id))

    async def failures(
        self, *, type: str | None = None, since: Past | None = None, limit: int = 100
    ) -> list[FailureGroup]:
        """The groups of failures, those first that failed last: of a task type, and only those that failed since a
        time, or within a duration before now such as "1h". Raises: InvalidTask."""
        return await self.store.carry_out(failures.list_failures(type=type, since=since, limit=limit))

    async def get_failure(self, fingerprint: str) -> FailureGroup:
        """A group of failures with the traceback of the last one, and its last redrive. Raises: FailureNotFound."""
        return await self.store.carry_out(failures.get_failure(fingerprint))

    async def redrive(
        self, fingerprint: str, *, steps: Sequence[int | str] = STEPS, include_nonretryable: bool = False
    ) -> Redrive:
        """Retry the failed tasks of a group in growing steps: 1, then 10, then all. The next step begins when those of
        the last are done; when they fail again, it stops by itself. A worker pool drives it: see `get_redrive`.
        Raises: FailureNotFound, InvalidTask, RedriveConflict (it runs already)."""
        plan = redrive.start_redrive(fingerprint, steps=steps, include_nonretryable=include_nonretryable)
        return await self.store.carry_out(plan)

    async def get_redrive(self, fingerprint: str) -> Redrive:
        """How far the last redrive of a group has come. Raises: FailureNotFound."""
        return await self.store.carry_out(redrive.get_redrive(fingerprint))

    async def stop_redrive(self, fingerprint: str) -> Redrive:
        """Retry no more tasks of a group; those that were retried run on. Raises: FailureNotFound, RedriveConflict."""
        return await self.store.carry_out(redrive.stop_redrive(fingerprint))

    async def findings(self, *, installation: bool = False) -> list[Finding]:
        """What is wrong now, the most urgent first; with `installation`, also how Redis and the pools are set up."""
        return list((await self.store.carry_out(find(installation=installation))).findings)

    async def preview_operation(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Preview:
        """What `operate` would do: how many tasks it would change, and the first five. Raises: InvalidOperation."""
        spec = OperationSpec(action=action, filter=filter, queue=queue, include_nonretryable=include_nonretryable)
        return await self.store.carry_out(bulk.preview_operation(spec))

    async def start_operation(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Operation:
        """Start to change all tasks that match: `retry`, `stop`, `cancel`, `remove`, `move` (to `queue`) or `run_now`.
        A worker pool carries it out, or the program that follows it. `retry` leaves out tasks that failed with
        NonRetryable. Raises: InvalidOperation."""
        spec = OperationSpec(action=action, filter=filter, queue=queue, include_nonretryable=include_nonretryable)
        return await self.store.carry_out(bulk.start_operation(spec))

    async def operate(
        self, action: Action, filter: Filter, *, queue: str | None = None, include_nonretryable: bool = False
    ) -> Operation:
        """Change all tasks that match, as `start_operation`, and return the operation when it has ended.
        Raises: InvalidOperation."""
        started = await self.start_operation(action, filter, queue=queue, include_nonretryable=include_nonretryable)
        async for operation in self.follow_operation(started.id):
            latest = operation
        return latest

    async def follow_operation(self, id: str) -> AsyncIterator[Operation]:
        """The operation as it is now, again a few times a second, and a last time when it has ended. If no other
        program goes on with it, this one does. Raises: OperationNotFound."""
        while True:
            operation = await self.get_operation(id)
            yield operation
            if operation.status.is_terminal:
                return
            if not await self.store.carry_out(drive(id, self.driver, FOLLOW_S)):
                await asyncio.sleep(FOLLOW_S)

    async def get_operation(self, id: str) -> Operation:
        """An operation as it is now. Raises: OperationNotFound."""
        return await self.store.carry_out(bulk.get_operation(id))

    async def list_operations(self, *, cursor: str | None = None, limit: int = 50) -> Page[Operation]:
        """A page of the operations, the newest first. Raises: InvalidTask."""
        return await self.store.carry_out(bulk.list_operations(cursor=cursor, limit=limit))

    async def cancel_operation(self, id: str) -> Operation:
        """Cancel an operation that runs. What it has changed stays changed. Raises: OperationNotFound;
        OperationConflict, if it has ended."""
        return await self.store.carry_out(bulk.cancel_operation(id))

    async def undo_operation(self, id: str) -> Operation:
        """Restore what an operation has canceled or removed, up to ten minutes after its end: the operation that does
        it. Raises: OperationNotFound; OperationConflict, if it can't be undone."""
        return await self.store.carry_out(bulk.undo_operation(id))

    async def check_tasks(self, *, queues: Sequence[str] | None = None) -> CheckReport:
        """Which stored tasks would break with the types of `registry`: of those that haven't started, and failed ones,
        in these queues or all. Raises: ConfigurationError (the pool has no registry)."""
        return await self.store.carry_out(check_tasks(self.known_types(), queues=queues))

    async def queues(self) -> list[QueueInfo]:
        """Every queue with its counts."""
        return await self.store.carry_out(overview.queues())

    async def storage(self) -> list[TypeStorage]:
        """What fills Redis: how many records each task type has and about how much memory they use, the most first."""
        return await self.store.carry_out(storage.storage())

    async def waits(self, by: WaitsBy = "queue") -> Waits:
        """Who waits longest for a worker, by "queue", "type", "key" (API keys) or "project". It looks at up to 1,000
        tasks: the first of the 20 queues that wait longest. Raises: InvalidTask."""
        return await self.store.carry_out(waits.waits(by))

    async def queue_load(self, name: str, *, target: Duration = 60.0) -> QueueLoad:
        """The load of a queue: what waits, how fast tasks come and go, and how many worker processes do what waits and
        arrives within `target`, a duration from a second to a day. Raises: InvalidTask."""
        return await self.store.carry_out(load.load(name, target=target))

    async def why(self, id: str) -> Why:
        """Why a task isn't running, and why the tasks that it waits for aren't. Without a reason it can start at once.
        Raises: TaskNotFound."""
        return await self.store.carry_out(why_not_running(id))

    async def stack(self, id: str) -> Stack:
        """Where a running task is: its frames, the innermost last, and the stacks of all threads of its process.
        Raises: TaskNotFound; TaskConflict, if it doesn't run, or its worker process doesn't answer."""
        asked = await self.store.carry_out(stacks.ask_for_stack(id))
        for _ in range(stacks.POLLS):
            if (found := await self.store.run(stacks.answer_of(asked))) is not None:
                return found
            await asyncio.sleep(stacks.POLL_S)
        raise stacks.unanswered(asked)

    async def pause_queue(self, name: str, *, why: str | None = None) -> Pause:
        """Let no task of a queue start until it is resumed; the pause that holds. What runs goes on. The first pause
        counts until it ends. Raises: InvalidTask."""
        return await self.store.carry_out(pauses.pause_queue(name, why=why))

    async def resume_queue(self, name: str) -> None:
        """Let the tasks of a queue start again, at once. Raises: InvalidTask."""
        await self.store.carry_out(pauses.resume_queue(name))

    async def pause_all(self, *, why: str | None = None) -> Pause:
        """Let no task of any queue start until everything is resumed. Raises: InvalidTask."""
        return await self.store.carry_out(pauses.pause_all(why=why))

    async def resume_all(self) -> None:
        """Let tasks start again. Queues and pools that are paused themselves stay so."""
        await self.store.carry_out(pauses.resume_all())

    async def pools(self) -> list[PoolRecord]:
        """The worker pools. One that went away without draining is listed as ``gone`` for a day."""
        return await self.store.carry_out(list_pools())

    async def pause_pool(self, name: str, *, why: str | None = None) -> Pause:
        """Let a worker pool start no task until it is resumed. Raises: PoolNotFound, InvalidTask."""
        return await self.store.carry_out(pauses.pause_pool(name, why=why))

    async def resume_pool(self, name: str) -> None:
        """Let a worker pool start tasks again. Raises: PoolNotFound; PoolConflict, if it drains."""
        await self.store.carry_out(pauses.resume_pool(name))

    async def drain_pool(self, name: str, *, why: str | None = None) -> Pause:
        """Let a worker pool start no more tasks, finish those that it runs within its grace period, and end.
        Raises: PoolNotFound, InvalidTask."""
        return await self.store.carry_out(pauses.drain_pool(name, why=why))

    async def types(self) -> list[TypeInfo]:
        """Every known task type, with the pools that serve it."""
        return await self.store.carry_out(catalog.types())

    async def workers(self) -> list[WorkerInfo]:
        """Every registered worker process."""
        return await self.store.carry_out(overview.workers())

    async def worker_warnings(self) -> list[str]:
        """Problems with the RQ programs that share queues with the workers, one sentence each."""
        return await self.store.carry_out(overview.worker_warnings())

    async def counters(self) -> dict[str, int]:
        """The running totals of the whole cluster (see `taskpool.redis.keys`)."""
        return await self.store.carry_out(history.counters())

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
        return await self.store.carry_out(stats.stats(range, type=type, queue=queue, by=by))

    async def durations(self, type: str) -> Durations:
        """How long the attempts of a task type ran in the last seven days."""
        return await self.store.carry_out(stats.durations(type))

    async def server(self) -> ServerInfo:
        """The Redis server: version, persistence, memory."""
        return await self.store.run(overview.server())

    async def run_task(
        self, queues: Sequence[str], *, worker: str, attempt_id: str, lease_s: float = 15.0
    ) -> RunningTask | None:
        """Claim the next ready task for one attempt; None when there is none. For programs that are workers."""
        call = runner.run_task(
            queues, worker=worker, attempt_id=attempt_id, lease_s=lease_s, foreign=self.settings.foreign
        )
        return await self.store.run(call)

    async def execute_task(self, running: RunningTask) -> TaskStatus:
        """Run a claimed task in a thread, with the types of `registry`, and store its outcome.
        Raises: AttemptLost, ConfigurationError (the pool has no registry)."""
        registry, most = self.known_types(), self.settings.max_result_bytes
        return await self._run_task_code(
            lambda store: runner.execute_here(store, registry, running, rules=self.rules, max_result_bytes=most)
        )

    async def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. Until the task has ended, there is always a next cursor.
        Raises: TaskNotFound, InvalidTask."""
        return await self.store.carry_out(waiting.logs(id, cursor=cursor, limit=limit))

    async def follow_log(self, id: str, *, cursor: str | None = None) -> AsyncIterator[LogLine]:
        """Every line of a task's log, once, including new ones, until the task has ended. Continues after an outage.
        Raises: TaskNotFound; InvalidTask, if the cursor isn't one of `logs`."""
        async with aclosing(self._log_steps(id, cursor)) as steps:
            async for step in steps:
                for line in step.lines:
                    yield line

    async def update_status(self, running: RunningTask, outcome: Outcome) -> str:
        """End an attempt: ``ok``, ``children``, ``stopping`` or ``lost`` (see `taskpool.status.update_status`)."""
        return await self.store.run(status.update_status(running, outcome))

    async def log_task(self, running: RunningTask, lines: Sequence[tuple[int, str]]) -> str:
        """Append lines ``(ms since 1970, text)`` to a running task's log: ``ok`` or ``lost``."""
        return await self.store.run(status.log_task(running, lines))

    async def notify_websocket(self, event: Event) -> int:
        """Publish an event on its task's channel; returns the number of listeners."""
        return await self.store.run(status.notify_websocket(event))
