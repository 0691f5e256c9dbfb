"""The public face for programs that block: `TaskPool`. (`async_pool` has the one for programs that await.)

Each method names an operation and runs it; what it does stands in `queue`, `runner`, `status`, `listing`, `overview`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from taskpool import runner
from taskpool.access.audit import Actor
from taskpool.errors import CapReached, InvalidTask, QueueFull, TaskConflict, TaskNotFound, WaitTimeout
from taskpool.operations import catalog, listing, overview, queue, status
from taskpool.operations import task_logs as logs
from taskpool.operations.listing import Filter
from taskpool.operations.overview import ServerInfo
from taskpool.operations.pool_base import Face
from taskpool.operations.queue import Submitted
from taskpool.operations.records import fetch
from taskpool.operations.specs import AddTask, spec_given
from taskpool.operations.task_logs import follow_log
from taskpool.operations.waiting import FOLLOW_S, LOOK_AGAIN_S, Listener
from taskpool.redis import scripts
from taskpool.redis.add_script import Once
from taskpool.redis.address import Address
from taskpool.redis.connection import MAX_CONNECTIONS, ConnectionPool, SharedWire
from taskpool.redis.store import Store
from taskpool.runner import execute_here
from taskpool.settings import Settings
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.log_lines import LogLine
from taskpool.tasks.registry import Registry
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

NO_FAULT: Final = (GeneratorExit, CapReached, InvalidTask, QueueFull, TaskConflict, TaskNotFound, WaitTimeout)
"""Exceptions that end a wait and say nothing about its connection."""


class TaskPool(Face):
    """Submit, watch and steer tasks.

        with TaskPool("redis://localhost:6379") as pool:
            task = pool.add_task("resize", {"url": "https://example.org/a.png"}, queue="images")
            print(pool.wait(task.id, timeout_s=60).result)

    Threads may share one: each call has a connection for itself, taken from up to `max_connections`, and each wait has
    one of up to as many others. Made before a fork, it works in parent and child, each with its own connections.

    Without a URL it uses the Redis that the commands use: that of TASKPOOL_REDIS_URL, or of a `taskpool up` in this
    directory. Given a `registry`, it also takes the types registered there, before any worker has announced them.
    Every method raises RedisUnavailable when Redis can't be reached.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        store: Store | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Raises: ConfigurationError, when the URL can't be one, or none is given and none is found."""
        super().__init__(redis_url, settings, registry)
        if store is None:
            store = Store(transport=SharedWire(Address.parse(self.redis_url), name="taskpool", most=max_connections))
        self.store = store
        self._listeners = ConnectionPool(self._listener, most=max_connections)

    def _listener(self) -> Listener:
        return Listener(Address.parse(self.redis_url))

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._listeners.close()
        self.store.close()

    if TYPE_CHECKING:
        add_task: AddTask[TaskRecord]
    else:

        def add_task(self, *given: Any, **named: Any) -> TaskRecord:
            """Submit a task; returns its record as stored. See `AddTask` for what may be given."""
            return self.add_spec(spec_given(given, named))

    def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As `add_task`, for a `TaskSpec` alone."""
        return self.store.carry_out(self.adding(spec))

    def add_tasks(self, specs: Sequence[TaskSpec]) -> list[TaskRecord]:
        """Submit many: all are checked first, then each thousand is stored whole or not. Records in order.

        Raises:
            InvalidTask: pointers start with the task's index, ``/3/payload/width``.
        """
        return self.store.carry_out(self.adding_many(specs))

    def submit(self, spec: TaskSpec, once: Once | None = None, *, by: Actor | None = None) -> Submitted:
        """Submit a task and learn its id and status, no more; with `once`, once for an idempotency key; in the name of
        `by`.

        Raises:
            InvalidTask: as `add_task`.
            NotAllowed: `by` may not use its type, its queue or one of its options.
            UniqueConflict: as `add_task`.
            KeyReused: the key stands for another submission.
        """
        return self.store.carry_out(self.submitting(spec, once, by))

    def submit_many(
        self, specs: Sequence[TaskSpec], once: Once | None = None, *, by: Actor | None = None, start: str = ""
    ) -> Submitted:
        """Submit a thousand tasks at most in the same way, all or none; pointers begin with `start` and the index."""
        return self.store.carry_out(self.submitting_many(specs, once, by, start))

    def get(self, id: str) -> TaskRecord:
        """The task as it is now.

        Raises:
            TaskNotFound
        """
        return self.store.run(fetch(id))

    def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, well or not: look at `status`, `result`, `error`. None waits for ever.

        A wait that has begun outlives an outage of Redis, if that ends in time.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is how it stands.
            InvalidTask: `timeout_s` is no number of seconds, or more than ten years of them.
        """
        with self._listeners.taken(*NO_FAULT) as listener:
            return _last(listener.follow(id, timeout_s, LOOK_AGAIN_S))

    def add_and_wait(self, spec: TaskSpec, *, wait_s: float | None = None) -> TaskRecord:
        """Submit a task and wait for its end, in one round trip and a message: the record once it has ended.

        Raises:
            InvalidTask: as `add_task`; or `wait_s` can't be, and nothing was stored.
            WaitTimeout: it hasn't ended in `wait_s`; it goes on, and `record` is how it stands.
        """
        self.check_wait(spec, wait_s)
        if spec.unique_key is not None:  # the one to wait for may be another
            return self.wait(self.store.carry_out(self.adding(spec)).id, timeout_s=wait_s)
        checked = self.store.carry_out(self.checking(spec))
        with self._listeners.taken(*NO_FAULT) as listener:
            added = listener.hear(checked.task.id, scripts.add([checked.task]))
            (record,) = queue.stored([checked], added)
            return _last(listener.follow(record.id, wait_s, LOOK_AGAIN_S, record))

    def follow(self, id: str, *, timeout_s: float | None = None) -> Iterator[TaskRecord]:
        """The task as it is now, again a few times a second, and last when it has ended.

        What has begun outlives an outage of Redis, if that ends in time.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`.
            InvalidTask: `timeout_s` is no number of seconds, or more than ten years of them.
        """
        with self._listeners.taken(*NO_FAULT) as listener:
            yield from listener.follow(id, timeout_s, FOLLOW_S)

    def get_queue(self, name: str = "default", *, cursor: str | None = None, limit: int = 100) -> Page[QueuedTask]:
        """A part of a queue as it is at one moment, in dispatch order, with position and wait. It changes nothing.
        Raises: InvalidTask, when the cursor or the limit can't be."""
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
        """Tasks that fit, newest first. A page may be short: go on with `next_cursor` until it is None.
        Raises: InvalidTask, when the status, the cursor or the limit can't be."""
        return self.store.carry_out(listing.list_tasks(Filter(status, queue, type, tag), cursor=cursor, limit=limit))

    def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (CANCELED), purge one that has ended (None).

        Raises:
            TaskNotFound
            TaskConflict: it is running; use `kill_task`.
        """
        return self.store.carry_out(queue.remove_task(id))

    def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it before it starts; else ask it to stop, and kill it after `grace_s` (`force`: at once).

        Raises:
            TaskNotFound
            InvalidTask: `grace_s` is no number of seconds from 0 to a day.
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
        """What is wrong with the RQ programs that share queues with the workers, each in a sentence."""
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
        """Claim the next ready task for one attempt; None when there is none. For whoever writes a worker."""
        call = runner.run_task(
            queues, worker=worker, attempt_id=attempt_id, lease_s=lease_s, foreign=self.settings.foreign
        )
        return self.store.run(call)

    def execute_task(self, running: RunningTask) -> TaskStatus:
        """Run a claimed task in this thread, with the types of `registry`, and write how it ended.

        Raises:
            AttemptLost: it lost its lease meanwhile; nothing was written.
            ConfigurationError: the pool has no registry.
        """
        most = self.settings.max_result_bytes
        return execute_here(self.store, self.known_types(), running, max_result_bytes=most)

    def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. While the task hasn't ended there is always a next cursor.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of this listing, or the limit can't be.
        """
        return self.store.carry_out(logs.logs(id, cursor=cursor, limit=limit))

    def follow_log(self, id: str, *, cursor: str | None = None) -> Iterator[LogLine]:
        """Every line of a task's log, those to come as well, each once, until the task has ended. Outlives an outage.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of `logs`.
        """
        for step in follow_log(self.store, id, cursor):
            yield from step.lines

    def update_status(self, running: RunningTask, outcome: Outcome) -> str:
        """End an attempt: ``ok``, ``children``, ``stopping`` or ``lost`` (see `taskpool.status.update_status`)."""
        return self.store.run(status.update_status(running, outcome))

    def log_task(self, running: RunningTask, lines: Sequence[tuple[int, str]]) -> str:
        """Append lines ``(ms since 1970, text)`` to a running task's log: ``ok`` or ``lost``."""
        return self.store.run(status.log_task(running, lines))

    def notify_websocket(self, event: Event) -> int:
        """Publish an event on its task's channel; how many listen."""
        return self.store.run(status.notify_websocket(event))


def _last(records: Iterator[TaskRecord]) -> TaskRecord:
    for record in records:
        latest = record
    return latest
