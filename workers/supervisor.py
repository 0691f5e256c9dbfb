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
import time
from functools import partial
from typing import Any, Final

from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.operations import catalog
from taskpool.operations.catalog import PoolInfo
from taskpool.operations.flow.declared import declares
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.settings import Settings, resolve_redis_url
from taskpool.text import own_version
from taskpool.url_guard import Allowed

from . import process_group
from .attempts import Heartbeats, Stops, enforce_leases, enforce_timeouts
from .batches import Relief
from .duties import BackgroundTasks, Outage, Step, log, repeat
from .housekeeping import Housekeeping, RqMaintenance
from .process_pool import ProcessPool
from .registration import KEEP_S, Registration, WorkerRegistry, connect
from .schedules import Schedules
from .webhook_dispatcher import Dispatcher

CLEAN_S: Final = 60.0
SIGN_OFF_S: Final = 5.0
"""How long a pool that ends waits for Redis to receive the last outcomes. After that, its leases end instead."""


def heartbeat_s(lease_s: float) -> float:
    """How often a pool sends heartbeats: two may be lost before a lease ends, and before RQ forgets its workers."""
    return min(lease_s, KEEP_S) / 3


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
        self._started_ms = round(time.time() * 1000)
        self._wake_heartbeats = wake = asyncio.Event()
        self._housekeeping = Housekeeping(self._store, self._outage, settings, pool_id=self._id, on_clock_step=wake.set)
        is_mine = self._housekeeping.is_mine
        self._rq_maintenance = RqMaintenance(self._store, settings, self._registry.connection, is_mine=is_mine)
        self._schedules = Schedules(self._store, settings, lambda: self._pool.loaded.schedules, is_mine=is_mine)
        allowed = Allowed(settings.webhook_allow)
        self._webhooks = Dispatcher(self._store, self._id, allowed, outage=self._outage, is_mine=is_mine)
        stops = Stops()
        self._heartbeats = Heartbeats(self._store, stops, lease_s=settings.lease_s)
        self._registration = Registration(
            self._id, settings, self._store, self._registry, stops=stops, outage=self._outage,
            on_change=wake.set, on_soon=self._housekeeping.wake_in, on_drain=self._drain,
        )  # fmt: skip
        self._pool = ProcessPool(self._id, settings, self._registration)
        self._relief = Relief(self._store, self._pool.processes.values())

    async def run(self) -> int:
        """Runs the pool until a signal, or RQ's shutdown of its last worker, ends it; returns the exit status. Raises:
        ConfigurationError; nothing was started then."""
        try:
            self._handle_signals()
            await self._load_tasks()
            heartbeats = self._start_duties()
            await self._pool.all_ended.wait()
            await self._webhooks.close(self._pool.grace_left_s())
            await self._sign_off(heartbeats)
        finally:
            self._tasks.cancel()
            await self._pool.close()
            self._registration.commands.close()
            await self._store.close()
            self._registry.connection.close()
        return 0

    def _handle_signals(self) -> None:
        """The first SIGTERM or SIGINT drains the pool, the second one ends it at once."""

        def drain() -> None:
            self._webhooks.drain()
            self._pool.drain()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, drain)
        # A worker process has claimed several tasks at once.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._relief.wake.set)

    def _drain(self) -> None:
        """Drains the pool as an operator asks for it: once, however often it is asked."""
        if not self._pool.is_draining:
            self._webhooks.drain()
            self._pool.drain()

    async def _load_tasks(self) -> None:
        process_group.adopt_orphans()
        try:
            await self._pool.load_tasks()
        except OSError as error:
            raise ConfigurationError(f"the fork server can't be started: {process_group.explain(error)}") from error

    def _start_duties(self) -> asyncio.Task[Any]:
        """Returns the one that sends heartbeats."""

        def start(name: str, step: Step, wake: asyncio.Event | None = None) -> asyncio.Task[Any]:
            return self._tasks.spawn(repeat(name, step, outage=self._outage, wake=wake))

        pool, lease_s, commands = self._pool, self._settings.lease_s, self._registration.commands
        processes = pool.processes.values()
        self._tasks.spawn(repeat("starting processes", pool.start_missing, wake=pool.changed))
        self._tasks.spawn(repeat("fork servers", pool.look_after_fork_servers))
        self._tasks.spawn(repeat("timeouts", partial(enforce_timeouts, processes)))
        self._tasks.spawn(repeat("leases that end", partial(enforce_leases, processes, lease_s=lease_s)))
        if self._reloads:
            self._tasks.spawn(pool.reload_on_changes())
        self._tasks.spawn(commands.add(self._id))
        start("batches", self._relief.step, self._relief.wake)
        start("attempts that run long", partial(self._heartbeats.show_long, processes))
        start("commands", commands.step, commands.lost)
        start("housekeeping", self._housekeeping.step, self._housekeeping.wake)
        start("schedules", self._schedules.step)
        start("webhooks", self._webhooks.step, self._webhooks.wake)
        start("RQ maintenance", self._rq_maintenance.step)
        start("removing dead workers", self._clean_registry)
        return start("heartbeats", self._send_heartbeats, self._wake_heartbeats)

    async def _send_heartbeats(self) -> float:
        """Every `heartbeat_s`, and when a worker came or went: renews leases, and announces the pool, its task types
        and its workers."""
        pool, lease_s = self._pool, self._settings.lease_s
        await self._heartbeats.renew_leases(pool.processes.values())
        info = PoolInfo(
            id=self._id,
            host=self._host,
            pid=os.getpid(),
            queues=pool.queues,
            types=tuple(info.name for info in pool.loaded.types),
            workers=tuple(pool.processes),
            slots=self._settings.slots,
            version=own_version(),
            build=pool.loaded.build,
            declares=declares(pool.loaded.schedules),
            started_ms=self._started_ms,
            memory_bytes=sum(process.memory_bytes() for process in pool.processes.values()),
            is_draining=pool.is_draining,
        )
        if await self._store.run(catalog.publish(info, pool.loaded.types, ttl_s=round(lease_s) + 1)):
            self._drain()
        try:
            await asyncio.to_thread(self._registry.renew, self._registration.workers())
        except ReplyFault as fault:  # it affects only what RQ's tools show
            log.error("the workers can't be entered in RQ's registry: %s", fault)
        return heartbeat_s(lease_s)

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
            await self._housekeeping.leave()
        except (RedisUnavailable, ReplyFault):  # it counts as gone when its announcement expires
            pass
