"""The public face for programs that await: `AsyncTaskPool`. (`pool` has the one for programs that block.)

Each method names an operation and runs it; what it does stands in `queue`, `runner`, `status`, `listing`, `overview`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskpool import runner
from taskpool.access.audit import Actor
from taskpool.lifecycle import PerLoop
from taskpool.operations import catalog, listing, overview, queue, status
from taskpool.operations import task_logs as logs
from taskpool.operations.listing import Filter
from taskpool.operations.overview import ServerInfo
from taskpool.operations.pool_base import Face
from taskpool.operations.queue import Submitted
from taskpool.operations.records import fetch
from taskpool.operations.specs import AddTask, spec_given
from taskpool.operations.task_logs import follow_log_async
from taskpool.operations.waiting import FOLLOW_S, LOOK_AGAIN_S, AsyncListener, Subscriptions
from taskpool.redis import add_script
from taskpool.redis.add_script import Once, Together
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.store import AsyncStore, Store
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


class _Parts:
    """What a pool has in one event loop: its connections, and those who wait for them."""

    def __init__(self, redis_url: str, store: AsyncStore) -> None:
        self.store = store
        self.together = Together(store)
        self.subscriptions = Subscriptions(redis_url)
        self.listener = AsyncListener(self.subscriptions)

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.subscriptions.close()
        await self.store.close()


class _LoopParts(_Parts):
    """The same for one of several loops. Once it is closed it stays so: the next call in the loop gets a new one."""

    def __init__(self, redis_url: str, address: Address) -> None:
        self._wire = AsyncWire(address, name="taskpool")
        super().__init__(redis_url, AsyncStore(transport=self._wire))

    async def close(self) -> None:
        """Close the connections. What is still to come, such as the end of a wait, must not open them again."""
        self.subscriptions.end()
        self._wire.end()
        await asyncio.sleep(0)  # an aborted transport lets go of its socket in the next turn of the loop

    def abandon(self) -> None:
        """Let go of the sockets without the loop."""
        self.subscriptions.abandon()
        self._wire.abandon()


class AsyncTaskPool(Face):
    """As `TaskPool`, awaited. All coroutines of an event loop share one connection: what they send in one turn of the
    loop goes out together. A call that waits for a task shares one subscription with all others.

        async with AsyncTaskPool("redis://localhost:6379") as pool:
            task = await pool.add_task("resize", {"url": "https://example.org/a.png"})
            print((await pool.wait(task.id, timeout_s=60)).result)

    One pool serves any number of event loops, one after the other or at once in several threads: each has its own
    connections, opened at its first call and closed when it shuts down. Needs asyncio.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        store: AsyncStore | None = None,
    ) -> None:
        """With a `store` of the caller's, the pool works in the one loop in which that store is used.

        Raises: ConfigurationError, when the URL can't be one, or none is given and none is found.
        """
        super().__init__(redis_url, settings, registry)
        self._only = None if store is None else _Parts(self.redis_url, store)
        self._address = Address.parse(self.redis_url)
        self._loops = PerLoop(self._new_parts, owner="AsyncTaskPool", blocking="TaskPool")
        self._here: Callable[[], _Parts] = self._loops.here if self._only is None else self._the_only

    async def __aenter__(self) -> AsyncTaskPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop; other loops keep theirs. The next call opens new ones."""
        if self._only is not None:
            await self._only.close()
        await self._loops.close()

    @property
    def store(self) -> AsyncStore:
        """What runs calls and plans in this event loop."""
        return self._here().store

    @property
    def subscriptions(self) -> Subscriptions:
        """The subscribed connection of this event loop, for all who wait or listen; opened by the first."""
        return self._here().subscriptions

    @property
    def listener(self) -> AsyncListener:
        """What hears of tasks' ends in this event loop."""
        return self._here().listener

    def _the_only(self) -> _Parts:
        assert self._only is not None
        return self._only

    def _new_parts(self) -> _LoopParts:
        return _LoopParts(self.redis_url, self._address)

    if TYPE_CHECKING:
        add_task: AddTask[Coroutine[Any, Any, TaskRecord]]
    else:

        async def add_task(self, *given: Any, **named: Any) -> TaskRecord:
            """Submit a task; returns its record as stored. See `AddTask` for what may be given."""
            return await self.add_spec(spec_given(given, named))

    async def add_spec(self, spec: TaskSpec) -> TaskRecord:
        """As `add_task`, for a `TaskSpec` alone."""
        return await self.store.carry_out(self.adding(spec))

    async def add_tasks(self, specs: Sequence[TaskSpec]) -> list[TaskRecord]:
        """Submit many: all are checked first, then each thousand is stored whole or not. Records in order.

        Raises:
            InvalidTask: pointers start with the task's index, ``/3/payload/width``.
        """
        return await self.store.carry_out(self.adding_many(specs))

    async def submit(self, spec: TaskSpec, once: Once | None = None, *, by: Actor | None = None) -> Submitted:
        """Submit a task and learn its id and status, no more; with `once`, once for an idempotency key; in the name of
        `by`. Plain ones of the same moment share one call.

        Raises:
            InvalidTask: as `add_task`.
            NotAllowed: `by` may not use its type, its queue or one of its options.
            UniqueConflict: as `add_task`.
            KeyReused: the key stands for another submission.
        """
        if once is not None:
            return await self.store.carry_out(self.submitting(spec, once, by))
        checked = await self.store.carry_out(self.checking(spec, by))
        audited = queue.audit_of(checked, by)
        if checked.task.is_plain:
            added = await self._here().together.add(checked.task, audited)
        else:
            added = await self.store.run(add_script.add((checked.task,), None, audited))
        return queue.submitted((checked,), added)

    async def submit_many(
        self, specs: Sequence[TaskSpec], once: Once | None = None, *, by: Actor | None = None, start: str = ""
    ) -> Submitted:
        """Submit a thousand tasks at most in the same way, all or none; pointers begin with `start` and the index."""
        return await self.store.carry_out(self.submitting_many(specs, once, by, start))

    async def get(self, id: str) -> TaskRecord:
        """The task as it is now.

        Raises:
            TaskNotFound
        """
        return await self.store.run(fetch(id))

    async def wait(self, id: str, *, timeout_s: float | None = None) -> TaskRecord:
        """The task once it has ended, well or not: look at `status`, `result`, `error`. None waits for ever.

        A wait that has begun outlives an outage of Redis, if that ends in time.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`; `record` is how it stands.
            InvalidTask: `timeout_s` is no number of seconds, or more than ten years of them.
        """
        async for record in self.listener.follow(id, partial(self.get, id), timeout_s, LOOK_AGAIN_S):
            latest = record
        return latest

    async def follow(self, id: str, *, timeout_s: float | None = None) -> AsyncIterator[TaskRecord]:
        """The task as it is now, again a few times a second, and last when it has ended.

        What has begun outlives an outage of Redis, if that ends in time.

        Raises:
            TaskNotFound
            WaitTimeout: it hasn't ended in `timeout_s`.
            InvalidTask: `timeout_s` is no number of seconds, or more than ten years of them.
        """
        async with aclosing(self.listener.follow(id, partial(self.get, id), timeout_s, FOLLOW_S)) as records:
            async for record in records:
                yield record

    async def add_and_wait(self, spec: TaskSpec, *, wait_s: float | None = None) -> TaskRecord:
        """Submit a task and wait for its end: the record once it has ended, well or not.

        Raises:
            InvalidTask: as `add_task`; or `wait_s` can't be, and nothing was stored.
            WaitTimeout: it hasn't ended in `wait_s`; it goes on, and `record` is how it stands.
        """
        self.check_wait(spec, wait_s)
        record = await self.store.carry_out(self.adding(spec))
        return record if record.status.is_terminal else await self.wait(record.id, timeout_s=wait_s)

    async def get_queue(
        self, name: str = "default", *, cursor: str | None = None, limit: int = 100
    ) -> Page[QueuedTask]:
        """A part of a queue as it is at one moment, in dispatch order, with position and wait. It changes nothing.
        Raises: InvalidTask, when the cursor or the limit can't be."""
        return await self.store.carry_out(queue.get_queue(name, cursor=cursor, limit=limit))

    async def list_tasks(
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
        return await self.store.carry_out(
            listing.list_tasks(Filter(status, queue, type, tag), cursor=cursor, limit=limit)
        )

    async def remove_task(self, id: str) -> TaskStatus | None:
        """Cancel a task that hasn't started (CANCELED), purge one that has ended (None).

        Raises:
            TaskNotFound
            TaskConflict: it is running; use `kill_task`.
        """
        return await self.store.carry_out(queue.remove_task(id))

    async def kill_task(self, id: str, *, grace_s: float = 10.0, force: bool = False) -> TaskRecord:
        """Stop a task: cancel it before it starts; else ask it to stop, and kill it after `grace_s` (`force`: at once).

        Raises:
            TaskNotFound
            InvalidTask: `grace_s` is no number of seconds from 0 to a day.
        """
        return await self.store.carry_out(runner.kill_task(id, grace_s=grace_s, force=force))

    async def retry_task(self, id: str) -> TaskRecord:
        """Queue a failed, stopped or canceled task again.

        Raises:
            TaskNotFound
            TaskConflict: any other status, or a task it depends on isn't done.
        """
        return await self.store.carry_out(runner.retry_task(id))

    async def queues(self) -> list[QueueInfo]:
        """Every queue with its counts."""
        return await self.store.carry_out(overview.queues())

    async def types(self) -> list[TypeInfo]:
        """Every known task type, with the pools that serve it."""
        return await self.store.carry_out(catalog.types())

    async def workers(self) -> list[WorkerInfo]:
        """Every registered worker process."""
        return await self.store.carry_out(overview.workers())

    async def worker_warnings(self) -> list[str]:
        """What is wrong with the RQ programs that share queues with the workers, each in a sentence."""
        return await self.store.carry_out(overview.worker_warnings())

    async def counters(self) -> dict[str, int]:
        """The running totals of the whole cluster (see `taskpool.redis.keys`)."""
        return await self.store.run(overview.counters())

    async def server(self) -> ServerInfo:
        """The Redis server: version, persistence, memory."""
        return await self.store.run(overview.server())

    async def run_task(
        self, queues: Sequence[str], *, worker: str, attempt_id: str, lease_s: float = 15.0
    ) -> RunningTask | None:
        """Claim the next ready task for one attempt; None when there is none. For whoever writes a worker."""
        call = runner.run_task(
            queues, worker=worker, attempt_id=attempt_id, lease_s=lease_s, foreign=self.settings.foreign
        )
        return await self.store.run(call)

    async def execute_task(self, running: RunningTask) -> TaskStatus:
        """Run a claimed task in a thread, with the types of `registry`, and write how it ended.

        Raises:
            AttemptLost: it lost its lease meanwhile; nothing was written.
            ConfigurationError: the pool has no registry.
        """
        return await asyncio.to_thread(self._execute, running)

    def _execute(self, running: RunningTask) -> TaskStatus:
        """A task may block, so it gets a thread and a connection of its own."""
        store = Store(self.redis_url)
        try:
            most = self.settings.max_result_bytes
            return execute_here(store, self.known_types(), running, max_result_bytes=most)
        finally:
            store.close()

    async def logs(self, id: str, *, cursor: str | None = None, limit: int = 100) -> Page[LogLine]:
        """A page of a task's log, the oldest line first. While the task hasn't ended there is always a next cursor.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of this listing, or the limit can't be.
        """
        return await self.store.carry_out(logs.logs(id, cursor=cursor, limit=limit))

    async def follow_log(self, id: str, *, cursor: str | None = None) -> AsyncIterator[LogLine]:
        """Every line of a task's log, those to come as well, each once, until the task has ended. Outlives an outage.

        Raises:
            TaskNotFound
            InvalidTask: the cursor isn't one of `logs`.
        """
        async with aclosing(follow_log_async(self.store, self.listener, id, cursor)) as steps:
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
        """Publish an event on its task's channel; how many listen."""
        return await self.store.run(status.notify_websocket(event))
