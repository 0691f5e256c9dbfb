"""The supervisor of a worker pool: puts the parts together, keeps their duties going, and ends them in order.

It runs none of the user's code. While Redis is away, the duties that need it wait; those that concern processes
(timeouts, stops, replacements, shutdown) go on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.operations import catalog
from taskpool.operations.catalog import PoolInfo
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.settings import Settings, resolve_redis_url
from taskpool.text import own_version
from taskpool.url_guard import Allowed

from . import process_group, stops
from .duties import BackgroundTasks, Outage, log, repeat
from .heartbeats import Heartbeats
from .housekeeping import Housekeeping, RqMaintenance
from .process_pool import ProcessPool
from .registration import Registration, WorkerRegistry, connect
from .stops import Stops
from .webhook_dispatcher import Dispatcher

CLEAN_S: Final = 60.0
SIGN_OFF_S: Final = 5.0
"""How long a pool that ends waits for Redis to receive the last outcomes. After that, its leases end instead."""


class Supervisor:
    """One worker pool, from its start to its end."""

    def __init__(self, settings: Settings, *, reloads: bool = False) -> None:
        redis_url = resolve_redis_url(settings)
        self._settings, self._reloads = settings, reloads
        self._host = socket.gethostname()
        self._id = f"{self._host}.{os.getpid()}.{secrets.token_hex(2)}"
        self._tasks = BackgroundTasks()
        self._outage = Outage()
        self._store = AsyncStore(redis_url, name=self._id)
        self._registry = WorkerRegistry(connect(redis_url))
        self._wake_heartbeats = wake = asyncio.Event()
        self._housekeeping = Housekeeping(self._store, self._outage, settings, on_clock_step=wake.set)
        self._rq_maintenance = RqMaintenance(self._store, settings, self._registry.connection)
        self._webhooks = Dispatcher(self._store, self._id, Allowed(settings.webhook_allow))
        running_stops = Stops()
        self._heartbeats = Heartbeats(self._store, self._registry, running_stops, lease_s=settings.lease_s)
        self._registration = Registration(
            self._id, settings, self._store, self._registry, stops=running_stops, outage=self._outage,
            on_change=wake.set, on_soon=self._housekeeping.wake_in,
        )  # fmt: skip
        self._pool = ProcessPool(self._id, settings, self._registration)

    async def run(self) -> int:
        """Runs the pool until a signal, or RQ's shutdown of its last worker, ends it; returns the exit status.

        Raises:
            ConfigurationError: a task module is wrong; nothing was started.
        """
        try:
            self._handle_signals()
            await self._load_tasks()
            self._start_process_duties()
            heartbeats = self._start_redis_duties()
            await self._pool.all_ended.wait()
            await self._webhooks.close(self._pool.grace_left_s())
            await self._sign_off(heartbeats)
        finally:
            await self._close()
        return 0

    def _handle_signals(self) -> None:
        """The first SIGTERM or SIGINT drains the pool, the second one ends it at once."""

        def drain() -> None:
            self._webhooks.drain()
            self._pool.drain()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, drain)

    async def _load_tasks(self) -> None:
        process_group.adopt_orphans()
        try:
            await self._pool.load_tasks()
        except OSError as error:
            raise ConfigurationError(f"the fork server can't be started: {process_group.explain(error)}") from error

    def _start_process_duties(self) -> None:
        processes = self._pool.processes.values()
        enforce_leases = partial(stops.enforce_leases, processes, lease_s=self._settings.lease_s)
        self._tasks.spawn(repeat("starting processes", self._pool.start_missing, wake=self._pool.changed))
        self._tasks.spawn(repeat("fork servers", self._pool.look_after_fork_servers))
        self._tasks.spawn(repeat("timeouts", partial(stops.enforce_timeouts, processes)))
        self._tasks.spawn(repeat("leases that end", enforce_leases))
        if self._reloads:
            self._tasks.spawn(self._pool.reload_on_changes())

    def _start_redis_duties(self) -> asyncio.Task[Any]:
        """Returns the one that sends heartbeats."""

        def start(
            name: str, step: Callable[[], Awaitable[float]], wake: asyncio.Event | None = None
        ) -> asyncio.Task[Any]:
            return self._tasks.spawn(repeat(name, step, outage=self._outage, wake=wake))

        commands = self._registration.commands
        start("commands", commands.step, commands.changed)
        start("housekeeping", self._housekeeping.step, self._housekeeping.wake)
        start("webhooks", self._webhooks.step, self._webhooks.wake)
        start("RQ maintenance", self._rq_maintenance.step)
        start("removing dead workers", self._clean_registry)
        return start("heartbeats", self._send_heartbeats, self._wake_heartbeats)

    async def _send_heartbeats(self) -> float:
        """Every third of a lease, and when a worker came or went."""
        await self._heartbeats.renew_leases(self._pool.processes.values())
        await self._heartbeats.announce(self._info(), self._pool.loaded.types, self._registration.workers())
        return self._settings.lease_s / 3

    def _info(self) -> PoolInfo:
        return PoolInfo(
            id=self._id,
            host=self._host,
            pid=os.getpid(),
            queues=self._pool.queues,
            types=tuple(info.name for info in self._pool.loaded.types),
            workers=tuple(process.name for process in self._pool.processes.values()),
            slots=self._settings.slots,
            version=own_version(),
        )

    async def _clean_registry(self) -> float:
        await asyncio.to_thread(self._registry.clean, self._pool.queues)
        return CLEAN_S

    async def _sign_off(self, heartbeats: asyncio.Task[Any]) -> None:
        """Removes the pool from Redis once all its attempts are recovered."""
        if not await self._registration.is_finished(SIGN_OFF_S):
            log.error("Redis is away: what this pool ran is queued again when its leases end")
            return
        heartbeats.cancel()  # one more would bring the pool back
        try:
            await self._store.carry_out(catalog.retire(self._id))
        except (RedisUnavailable, ReplyFault):  # it counts as gone when its announcement expires
            pass

    async def _close(self) -> None:
        self._tasks.cancel()
        await self._pool.close()
        self._registration.commands.close()
        await self._store.close()
        self._registry.connection.close()
