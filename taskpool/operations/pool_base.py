"""The parts of a task pool that differ between blocking and awaiting, and what both share.

`PoolBase` has the configuration and the plans. `ConnectedPool` and `AsyncConnectedPool` have the connections, and the
operations that need more than a store. The other operations are written once, in `async_pool`.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Final, TypeVar

from taskpool.access.audit import Actor, entry
from taskpool.errors import (
    CapReached,
    ConfigurationError,
    InvalidTask,
    QueueFull,
    TaskConflict,
    TaskNotFound,
    WaitTimeout,
)
from taskpool.lifecycle import MAX_CONNECTIONS, ConnectionPool, HoldsConnections, PerLoop
from taskpool.operations import queue
from taskpool.operations.control.drive import new_driver
from taskpool.operations.queue import Rules, Submitted
from taskpool.operations.records import fetch
from taskpool.operations.submit import check_task
from taskpool.operations.waiting import (
    LOOK_AGAIN_S,
    AsyncListener,
    Listener,
    LogStep,
    Subscriptions,
    follow_log,
    follow_log_async,
)
from taskpool.redis import add_script, scripts
from taskpool.redis.add_script import BatchedAdds, NewTask, Once
from taskpool.redis.address import Address
from taskpool.redis.async_connection import AsyncWire
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Plan
from taskpool.redis.connection import SharedWire
from taskpool.redis.store import Store
from taskpool.settings import Settings, resolve_redis_url
from taskpool.tasks.hooks import sending
from taskpool.tasks.registry import Registry
from taskpool.types import TaskRecord, TaskSpec

T = TypeVar("T")


class PoolBase(HoldsConnections):
    """The configuration of a pool, and its submissions as plans."""

    def __init__(self, redis_url: str | None, settings: Settings | None, registry: Registry | None) -> None:
        """Without a URL, the pool uses the Redis that the commands use: the one in the settings or, without settings,
        in the TASKPOOL_* variables, else the one of a running `taskpool up`.

        Raises:
            ConfigurationError: there is none, or a variable is wrong.
        """
        if redis_url is None:
            settings = settings or Settings.load(os.environ)
            redis_url = resolve_redis_url(settings)
        settings = settings or Settings()
        self.settings = settings
        self.redis_url = redis_url
        self.registry = registry
        self.rules = Rules.of(settings, registry)
        self.driver = new_driver()  # of the operations that this pool carries out

    def adding(self, spec: TaskSpec) -> Plan[TaskRecord]:
        """The plan of `add_spec`."""
        return queue.add_task(spec, self.rules)

    def submitting(self, spec: TaskSpec, once: Once | None = None, by: Actor | None = None) -> Plan[Submitted]:
        """The plan of `submit`."""
        return queue.submit(spec, self.rules, once, by=by)

    def checking(self, spec: TaskSpec, by: Actor | None = None) -> Plan[NewTask]:
        """The plan that checks a task as `submit` does, without storing it."""
        return check_task(spec, *self.rules, by=by)

    def known_types(self) -> Registry:
        """The registry given to this pool: the types that it can run.

        Raises:
            ConfigurationError: none was given.
        """
        if self.registry is None:
            raise ConfigurationError("to run tasks, give the pool a registry of their types")
        return self.registry


HARMLESS: Final = (GeneratorExit, CapReached, InvalidTask, QueueFull, TaskConflict, TaskNotFound, WaitTimeout)
"""Exceptions that end a wait and leave its connection in order."""


class ConnectedPool(PoolBase):
    """A pool whose connections are shared by threads."""

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        store: Store | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Raises: ConfigurationError, when the URL is invalid, or none is given and none is found."""
        super().__init__(redis_url, settings, registry)
        if store is None:
            store = Store(transport=SharedWire(Address.parse(self.redis_url), name="taskpool", most=max_connections))
        self.store = store
        self._listeners = ConnectionPool(lambda: Listener(Address.parse(self.redis_url)), most=max_connections)

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._listeners.close()
        self.store.close()

    def _submit(self, spec: TaskSpec, once: Once | None, by: Actor | None) -> Submitted:
        return self.store.carry_out(self.submitting(spec, once, by))

    def _follow(self, id: str, timeout_s: float | None, every_s: float) -> Generator[TaskRecord]:
        with self._listeners.taken(*HARMLESS) as listener:
            yield from listener.follow(id, timeout_s, every_s)

    def _add_and_wait(self, spec: TaskSpec, wait_s: float | None) -> TaskRecord:
        """Listen and submit in one round trip, when the id to listen to is known before."""
        if spec.unique_key is not None:  # the task to wait for may be another one
            id = self.store.carry_out(self.adding(spec)).id
            return _last(self._follow(id, wait_s, LOOK_AGAIN_S))
        with self._listeners.taken(*HARMLESS) as listener:
            with sending((spec,)) as sent:
                task = self.store.carry_out(self.checking(sent.specs[0]))
                sent.note((task,))
                added = listener.hear(task.id, scripts.add([task]))
                (record,) = queue.stored([task], added)
            return _last(listener.follow(record.id, wait_s, LOOK_AGAIN_S, record))

    def _log_steps(self, id: str, cursor: str | None) -> Generator[LogStep]:
        yield from follow_log(self.store, id, cursor)

    def _run_task_code(self, work: Callable[[Store], T]) -> T:
        return work(self.store)


def _last(records: Iterator[TaskRecord]) -> TaskRecord:
    return deque(records, maxlen=1).pop()


class _LoopConnections:
    """What a pool has in one event loop. Made with a `store`, it can be used again after `close`; else it can't,
    because the pool makes new parts."""

    def __init__(self, redis_url: str, store: AsyncStore | None) -> None:
        self._wire = AsyncWire(Address.parse(redis_url), name="taskpool") if store is None else None
        self.store = store or AsyncStore(transport=self._wire)
        self.batched = BatchedAdds(self.store)
        self.subscriptions = Subscriptions(redis_url)
        self.listener = AsyncListener(self.subscriptions)

    async def close(self) -> None:
        """Close the connections. What is still to come in this loop, such as the end of a wait, must not open those of
        a `_wire` again."""
        if self._wire is None:
            self.subscriptions.close()
            await self.store.close()
            return
        self.subscriptions.end()
        self._wire.end()
        await asyncio.sleep(0)  # an aborted transport lets go of its socket in the next turn of the loop

    def abandon(self) -> None:
        """Let go of the sockets without the loop."""
        self.subscriptions.abandon()
        if self._wire is not None:
            self._wire.abandon()


class AsyncConnectedPool(PoolBase):
    """A pool with one set of connections for each event loop."""

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        store: AsyncStore | None = None,
    ) -> None:
        """With a `store` of the caller's, the pool works in the one loop in which that store is used.

        Raises: ConfigurationError, when the URL is invalid, or none is given and none is found.
        """
        super().__init__(redis_url, settings, registry)
        Address.parse(self.redis_url)
        new_parts = partial(_LoopConnections, self.redis_url, None)
        self._loops = PerLoop(new_parts, owner="AsyncTaskPool", blocking="TaskPool")
        self._here: Callable[[], _LoopConnections] = self._loops.here
        self._only: _LoopConnections | None = None
        if store is not None:
            self._only = only = _LoopConnections(self.redis_url, store)
            self._here = lambda: only

    async def close(self) -> None:
        """Close the connections of this event loop; other loops keep theirs. The next call opens new ones."""
        if self._only is not None:
            await self._only.close()
        await self._loops.close()

    @property
    def store(self) -> AsyncStore:
        """Runs calls and plans in this event loop."""
        return self._here().store

    @property
    def subscriptions(self) -> Subscriptions:
        """The subscribed connection of this event loop, which all its waits share. The first of them opens it."""
        return self._here().subscriptions

    @property
    def listener(self) -> AsyncListener:
        """Receives the ends of tasks in this event loop."""
        return self._here().listener

    async def _submit(self, spec: TaskSpec, once: Once | None, by: Actor | None) -> Submitted:
        if once is not None:
            return await self.store.carry_out(self.submitting(spec, once, by))
        with sending((spec,)) as sent:
            task = await self.store.carry_out(self.checking(sent.specs[0], by))
            sent.note((task,))
            audited = entry(by, "task.submitted", task.id)
            if task.is_plain:
                added = await self._here().batched.add(task, audited)
            else:
                added = await self.store.run(add_script.add((task,), None, audited))
            return queue.submitted((task,), added)

    def _follow(self, id: str, timeout_s: float | None, every_s: float) -> AsyncGenerator[TaskRecord]:
        return self.listener.follow(id, partial(self.store.run, fetch(id)), timeout_s, every_s)

    async def _add_and_wait(self, spec: TaskSpec, wait_s: float | None) -> TaskRecord:
        record = await self.store.carry_out(self.adding(spec))
        if not record.status.is_terminal:
            async for latest in self._follow(record.id, wait_s, LOOK_AGAIN_S):
                record = latest
        return record

    def _log_steps(self, id: str, cursor: str | None) -> AsyncGenerator[LogStep]:
        return follow_log_async(self.store, self.listener, id, cursor)

    async def _run_task_code(self, work: Callable[[Store], T]) -> T:
        """A task may block, so it gets a thread and a connection of its own."""

        def run() -> T:
            with closing(Store(self.redis_url)) as store:
                return work(store)

        return await asyncio.to_thread(run)
