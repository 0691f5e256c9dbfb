# Generated from taskpool/async_pool.py by scripts/generate. Don't edit this file.
"""The task pool for programs that block: `TaskPool`.

Each method runs one operation, which is a value: see `taskpool.operations` and `taskpool.runner`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskpool import runner
from taskpool.access.audit import Actor
from taskpool.operations import catalog, listing, overview, queue, status, task_logs
from taskpool.operations.listing import Filter
from taskpool.operations.overview import ServerInfo
from taskpool.operations.pool_base import ConnectedPool
from taskpool.operations.queue import Submitted
from taskpool.operations.records import fetch
from taskpool.operations.specs import AddTask, check_spec, patience_s, spec_given
from taskpool.operations.waiting import FOLLOW_S, LOOK_AGAIN_S
from taskpool.redis.add_script import Once
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.log_lines import LogLine
from taskpool.types import (
    Event,
    Page,
    QueuedTask,
    QueueInfo,
    RunningTask,
    TaskRecord,
    TaskSpec,
    TaskStatus,
    TypeInfo,
    WorkerInfo,
)


class TaskPool(ConnectedPool):
    """Submit, watch and control tasks.

        with TaskPool("redis://localhost:6379") as pool:
            task = pool.add_task("resize", {"url": "https://example.org/a.png"}, queue="images")
            ended = pool.wait(task.id, timeout_s=60)
            print(ended.result)

    Threads can share one pool: each call uses a connection of its own, out of at most `max_connections`, and each wait
    uses one out of as many others. A pool made before a fork works in parent and child, each with its own connections.

    Without a URL, the pool uses the Redis that the commands use: the one of TASKPOOL_REDIS_URL, or of a `taskpool up`
    in this directory. A pool with a `registry` also accepts the types registered there that no worker serves yet. Every
    method raises RedisUnavailable when Redis can't be reached.
    """

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    if TYPE_CHECKING:
        add_task: AddTask[TaskRecord]
    else:

        def add_task(self, *given: Any, **named: Any) -> TaskRecord:
            """Submit a task; returns its record as stored. See `AddTask` for what may be given."""
            return self.add_spec(spec_given(given, named))

    def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As `add_task`, for a `TaskSpec` only."""
        return self.store.carry_out(self.adding(spec))

    def add_tasks(self, specs: Sequence[TaskSpec]) -> list[TaskRecord]:
        """Submit many tasks; returns their records in order. All are checked first; then each 1,000 are stored as one.

        Raises:
            InvalidTask: pointers start with the task's index, ``/3/payload/width``.
        """
        return self.store.carry_out(queue.add_tasks(specs, self.catalogue, self.registry, self.defaults))

    def submit(self, spec: TaskSpec, once: Once | None = None, *, by: Actor | None = None) -> Submitted:
        """Submit a task; returns only its id and status. With `once`, it is stored once for an idempotency key; with
        `by`, it is submitted for an API key.

        Raises:
            InvalidTask: as `add_task`.
            NotAllowed: `by` may not use its type, its queue or one of its options.
            UniqueConflict: as `add_task`.
            KeyReused: the idempotency key was used for another submission.
        """
        return self._submit(spec, once, by)

    def submit_many(
        self, specs: Sequence[TaskSpec], once: Once | None = None, *, by: Actor | None = None, start: str = ""
    ) -> Submitted:
        """As `submit`, for up to 1,000 tasks: all are stored or none. Pointers begin with `start` and the index."""
        plan = queue.submit_many(specs, self.catalogue, self.registry, self.defaults, once, by=by, start=start)
        return self.store.carry_out(plan)

    def get(self, id: str) -> TaskRecord:
        """The task as it is now.

        Raises:
            TaskNotFound
        """
        return self.store.run(fetch(id))

    def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, successfully or not: see `status`, `result`, `error`. None waits without limit.

        Once the wait has begun, it continues after an outage of Redis.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is its current state.
            InvalidTask: `timeout_s` isn't a number of seconds up to ten years.
        """
        for record in self._follow(id, timeout_s, LOOK_AGAIN_S):
            latest = record
        return latest

    def follow(self, id: str, *, timeout_s: float | None = None) -> Iterator[TaskRecord]:
        """The task as it is now, again a few times a second, and a last time when it has ended.

        Once it has begun, it continues after an outage of Redis.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`.
            InvalidTask: `timeout_s` isn't a number of seconds up to ten years.
        """
        with closing(self._follow(id, timeout_s, FOLLOW_S)) as records:
            yield from records

    def add_and_wait(self, spec: TaskSpec, *, wait_s: float | None = None) -> TaskRecord:
        """Submit a task and wait for its end; returns the record once it has ended, successfully or not.

        Raises:
            InvalidTask: as `add_task`; or `wait_s` is invalid, and nothing was stored.
            WaitTimeout: it hasn't ended in `wait_s`; it continues, and `record` is its current state.
        """
        check_spec(spec)
        patience_s("wait_s", wait_s)
        return self._add_and_wait(spec, wait_s)

    def get_queue(self, name: str = "default", *, cursor: str | None = None, limit: int = 100) -> Page[QueuedTask]:
        """A page of a queue at one moment, in dispatch order, with position and wait. It changes nothing.
        Raises: InvalidTask, when the cursor or the limit is invalid."""
        return self.store.carry_out(queue.get_queue(name, cursor=cursor, limit=limit))

    def list_tasks(
        self,
        *,
        status: TaskStatus | None = None,
        queue: str | None = None,
        type: str | None = None,
        tag: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[TaskRecord]:
        """Tasks that match, newest first. A page may be short: continue with `next_cursor` until it is None.
        Raises: InvalidTask, when the status, the cursor or the limit is invalid."""
        return self.store.carry_out(listing.list_tasks(Filter(status, queue, type, tag), cursor=cursor, limit=limit))

    def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (returns CANCELED), or delete one that has ended (returns None).

        Raises:
            TaskNotFound
            TaskConflict: it is running; use `kill_task`.
        """
        return self.store.carry_out(queue.remove_task(id))

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it if it hasn't started; else ask it to stop, and kill it after `grace_s` (`force`: at
        once).

        Raises:
            TaskNotFound
            InvalidTask: `grace_s` isn't a number of seconds from 0 to a day.
        """
        return self.store.carry_out(runner.kill_task(id, grace_s=grace_s, force=force))

    def retry_task(self, id: str) -> TaskRecord:
        """Queue a failed, stopped or canceled task again.

        Raises:
            TaskNotFound
            TaskConflict: any other status, or a task it depends on isn't done.
        """
        return self.store.carry_out(runner.retry_task(id))

    def queues(self) -> list[QueueInfo]:
        """Every queue with its counts."""
        return self.store.carry_out(overview.queues())

    def types(self) -> list[TypeInfo]:
        """Every known task type, with the pools that serve it."""
        return self.store.carry_out(catalog.types())

    def workers(self) -> list[WorkerInfo]:
        """Every registered worker process."""
        return self.store.carry_out(overview.workers())

    def worker_warnings(self) -> list[str]:
        """Problems with the RQ programs that share queues with the workers, one sentence each."""
        return self.store.carry_out(overview.worker_warnings())

    def counters(self) -> dict[str, int]:
        """The running totals of the whole cluster (see `taskpool.redis.keys`)."""
        return self.store.run(overview.counters())

    def server(self) -> ServerInfo:
        """The Redis server: version, persistence, memory."""
        return self.store.run(overview.server())

    def run_task(
        self, queues: Sequence[str], *, worker: str, attempt_id: str, lease_s: float = 15.0
    ) -> RunningTask | None:
        """Claim the next ready task for one attempt; None when there is none. For programs that are workers."""
        call = runner.run_task(
            queues, worker=worker, attempt_id=attempt_id, lease_s=lease_s, foreign=self.settings.foreign
        )
        return self.store.run(call)

    def execute_task(self, running: RunningTask) -> TaskStatus:
        """Run a claimed task in this thread, with the types of `registry`, and store its outcome.

        Raises:
            AttemptLost: it lost its lease meanwhile; nothing was stored.
            ConfigurationError: the pool has no registry.
        """
        registry, most = self.known_types(), self.settings.max_result_bytes
        return self._run_task_code(lambda store: runner.execute_here(store, registry, running, max_result_bytes=most))

    def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. Until the task has ended, there is always a next cursor.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of this listing, or the limit is invalid.
        """
        return self.store.carry_out(task_logs.logs(id, cursor=cursor, limit=limit))

    def follow_log(self, id: str, *, cursor: str | None = None) -> Iterator[LogLine]:
        """Every line of a task's log, once, including new ones, until the task has ended. Continues after an outage.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of `logs`.
        """
        with closing(self._log_steps(id, cursor)) as steps:
            for step in steps:
                yield from step.lines

    def update_status(self, running: RunningTask, outcome: Outcome) -> str:
        """End an attempt: ``ok``, ``children``, ``stopping`` or ``lost`` (see `taskpool.status.update_status`)."""
        return self.store.run(status.update_status(running, outcome))

    def log_task(self, running: RunningTask, lines: Sequence[tuple[int, str]]) -> str:
        """Append lines ``(ms since 1970, text)`` to a running task's log: ``ok`` or ``lost``."""
        return self.store.run(status.log_task(running, lines))

    def notify_websocket(self, event: Event) -> int:
        """Publish an event on its task's channel; returns the number of listeners."""
        return self.store.run(status.notify_websocket(event))
