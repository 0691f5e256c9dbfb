"""`--reload`: loads the task files anew when they change. A broken file is told of, and the old workers stay.

The supervisor of a worker pool: puts the parts together, keeps their duties going, ends them in order.

It runs none of the user's code. What it does with Redis waits while Redis is away; what it does with processes
(timeouts, stops, replacements, shutdown) doesn't.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from watchfiles import PythonFilter, awatch

from taskpool.errors import ConfigurationError, RedisUnavailable
from taskpool.operations import catalog
from taskpool.operations.catalog import PoolInfo
from taskpool.redis.async_store import AsyncStore
from taskpool.redis.replies import ReplyFault
from taskpool.settings import Settings, resolve_redis_url
from taskpool.text import own_version
from taskpool.url_guard import Allowed

from . import process_group, stops
from .duties import Outage, repeat
from .fork_client import Ending, Nursery
from .heartbeats import Heartbeats
from .housekeeping import BesideRq, Housekeeping
from .process.reports import limits_of
from .process_handle import Child, Verdict
from .process_pool import Crew, backoff_s
from .registration import Registrar, Roster, connect
from .shared_memory import SharedMemory
from .stops import Stops
from .webhook_dispatcher import Dispatcher

log = logging.getLogger("workers")


async def watch(files: Callable[[], Sequence[str]], reload: Callable[[], Awaitable[None]]) -> None:
    """Calls `reload` after each change of a Python file in the folder of one of the files; never returns."""
    while True:
        folders = _folders(files())
        async for _ in awatch(*folders, watch_filter=PythonFilter(), recursive=False, debounce=200):
            try:
                await reload()
            except ConfigurationError as error:
                log.error("not reloaded: %s", error)
            if _folders(files()) != folders:
                break  # the code now lies elsewhere as well


def _folders(files: Sequence[str]) -> set[Path]:
    return {folder for file in files if (folder := Path(file).parent).is_dir()}


HARD_TIMEOUT_S: Final = 5.0
"""What a task gets after its soft timeout, before its process is killed."""
SOFT_TIMEOUT_S: Final = 0.2
"""When its process should have told a task of its timeout by itself."""
LOOK_S: Final = 1.0
FORGET_S: Final = 60.0
SETTLE_S: Final = 5.0
"""How long a pool that ends waits for Redis to hear the last of it. After that, the ends of its leases tell."""


class Supervisor:
    """One worker pool, from its start to its end."""

    def __init__(self, settings: Settings, *, reloads: bool = False) -> None:
        redis_url = resolve_redis_url(settings)
        self._settings, self._reloads = settings, reloads
        self._host = socket.gethostname()
        self._id = f"{self._host}.{os.getpid()}.{secrets.token_hex(2)}"
        # Twice as many blocks as processes: a reload starts the new ones while the old ones finish.
        self._memory = SharedMemory.create(2 * settings.workers, settings.slots)
        self._store = AsyncStore(redis_url, name=self._id)
        self._registrar = Registrar(connect(redis_url))
        self._outage = Outage()
        self._stops = Stops()
        self._heartbeats = Heartbeats(self._store, self._registrar, self._stops, lease_s=settings.lease_s)
        self._changed = asyncio.Event()
        self._housekeeping = Housekeeping(self._store, self._outage, settings, on_step=self._changed.set)
        self._dispatcher = Dispatcher(self._store, self._id, Allowed(settings.webhook_allow))
        self._crew = Crew(self._id, settings.workers, self._memory, on_start=self._on_start, on_end=self._on_end)
        self._roster = Roster(
            self._id,
            redis_url,
            self._store,
            self._registrar,
            stops=self._stops,
            outage=self._outage,
            max_crashes=settings.max_crashes,
            limits=limits_of(settings),
            on_change=self._changed.set,
            on_dismiss=self._crew.dismiss,
            on_soon=self._housekeeping.look_in,
        )
        self._nursery: Nursery | None = None
        self._nurseries: set[Nursery] = set()
        self._starting = 0
        """Nurseries on their way."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._stopping_at: float | None = None
        self._hurrying = asyncio.Event()

    async def run(self) -> int:
        """Runs the pool until a signal, or RQ's shutdown of its last worker, ends it; returns the exit status.

        Raises:
            ConfigurationError: a task module is wrong; nothing was started.
        """
        loop = asyncio.get_running_loop()
        process_group.adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            try:
                self._use(await self._new_nursery())
            except OSError as error:
                raise ConfigurationError(f"the fork server can't be started: {process_group.explain(error)}") from error
            commands, outage = self._roster.commands, self._outage
            self._spawn(repeat("starting processes", self._crew.step, wake=self._crew.changed))
            self._spawn(repeat("timeouts", self._enforce_timeouts))
            self._spawn(repeat("leases that end", self._enforce_leases))
            self._spawn(repeat("fork server", self._look_after_nursery))
            announcing = self._spawn(repeat("heartbeats", self._heartbeat, outage=outage, wake=self._changed))
            self._spawn(repeat("commands", commands.step, outage=outage, wake=commands.changed))
            housekeeping, webhooks = self._housekeeping, self._dispatcher
            self._spawn(repeat("housekeeping", housekeeping.step, outage=outage, wake=housekeeping.wake))
            self._spawn(repeat("webhooks", webhooks.step, outage=outage, wake=webhooks.wake))
            beside_rq = BesideRq(self._store, self._settings, self._registrar.connection)
            self._spawn(repeat("looking after RQ's neighbours", beside_rq.step, outage=outage))
            self._spawn(repeat("forgetting dead workers", self._forget_dead, outage=outage))
            if self._reloads:
                self._spawn(watch(self._files, self._reload))
            await self._crew.gone.wait()
            await self._dispatcher.close(self._grace_left_s())
            await self._say_goodbye(announcing)
        finally:
            await self._close()
        return 0

    # --- processes and the code they run --------------------------------------------------------------------------

    async def _new_nursery(self) -> Nursery:
        self._starting += 1
        try:
            nursery = await Nursery.start(
                self._settings,
                self._memory,
                on_end=self._crew.ended,
                on_lost=self._on_lost,
                on_silent=self._on_silent,
            )
        finally:
            self._starting -= 1
        self._nurseries.add(nursery)
        return nursery

    def _use(self, nursery: Nursery) -> None:
        """Runs tasks with the code of this nursery from now on."""
        self._nursery = nursery
        queues = self._settings.queues or tuple(dict.fromkeys(("default", *nursery.loaded.queues)))
        if not self._stopping.is_set():
            self._crew.staff_from(nursery, queues)
            log.info("pool %s: %d workers on the queues %s", self._id, self._crew.size, ", ".join(queues))
        self._close_unused()

    def _on_lost(self, nursery: Nursery) -> None:
        """The fork server died, and with it every process it had forked; what those left behind has fallen to us."""
        if not self._starting:  # one that starts couldn't be told from an orphan
            process_group.end_children(spare={each.pid for each in self._nurseries})
        self._nurseries.discard(nursery)
        self._crew.closed(nursery)
        if nursery is self._nursery and not self._stopping.is_set():
            log.error("the fork server died; another one is started")
            self._spawn(self._replace_nursery())

    def _on_silent(self, nursery: Nursery) -> None:
        """The fork server doesn't answer. Its workers finish their tasks; it is killed when the last one has ended."""
        if nursery is self._nursery and not self._stopping.is_set():
            log.error("another fork server is started; the workers of the silent one finish their tasks and end")
            self._spawn(self._replace_nursery())

    def _close_unused(self) -> None:
        """Ends the fork servers that have no workers any more and are to get none."""
        used = {child.nursery for child in self._crew.children.values()}
        for nursery in self._nurseries - used - {self._nursery}:
            self._nurseries.discard(nursery)
            self._spawn(self._close_nursery(nursery))

    async def _close_nursery(self, nursery: Nursery) -> None:
        await nursery.close()
        self._crew.closed(nursery)
        if nursery.is_silent and not self._starting:  # it was killed, and couldn't take along what it had forked
            process_group.end_children(spare={each.pid for each in self._nurseries})

    async def _replace_nursery(self) -> None:
        failures = 0
        while True:
            try:
                self._use(await self._new_nursery())
                return
            except ConfigurationError as error:  # the code changed since it was loaded
                log.error("the task modules can't be loaded any more: %s", error)
                await asyncio.sleep(LOOK_S)
            except OSError as error:
                failures += 1
                log.error("a fork server can't be started: %s", process_group.explain(error))
                await asyncio.sleep(backoff_s(failures))

    def _on_start(self, child: Child) -> None:
        self._roster.add(child)

    def _on_end(self, child: Child, ending: Ending) -> None:
        self._roster.bury(child, ending)
        self._close_unused()

    def _files(self) -> Sequence[str]:
        return self._nursery.loaded.files if self._nursery is not None else ()

    async def _reload(self) -> None:
        old = list(self._crew.children.values())
        self._use(await self._new_nursery())
        log.info("reloaded")
        self._spawn(self._kill_after_grace(old))

    # --- duties ---------------------------------------------------------------------------------------------------

    async def _heartbeat(self) -> float:
        """Every third of a lease, and when a worker came or went."""
        await self._heartbeats.renew_leases(self._crew.children.values())
        if self._nursery is not None:
            await self._heartbeats.announce(self._info(), self._nursery.loaded.types, self._roster.entered())
        return self._settings.lease_s / 3

    async def _enforce_timeouts(self) -> float:
        """Kills what outlives its timeout although its process was to end it."""
        now = time.monotonic()
        overdue = [
            (child, run)
            for child in self._crew.children.values()
            for run in child.runs()
            if run.timeout_s and child.is_running(run) and now - run.started_mono - run.timeout_s > HARD_TIMEOUT_S
        ]
        for each in self._crew.children.values():
            if any(run.timeout_s and now - run.started_mono - run.timeout_s > SOFT_TIMEOUT_S for run in each.runs()):
                each.nudge()  # a task that uses SIGALRM for itself hears of its timeout in this way
        for child, run in overdue:
            log.warning("task %s ignores its timeout of %g s: SIGKILL", run.id, run.timeout_s)
            child.ask_for_stacks(run)
        await asyncio.sleep(process_group.WRITE_S if overdue else 0)
        for child, run in overdue:
            if child.is_running(run):
                child.kill(Verdict.TIMEOUT, run)
        return LOOK_S

    async def _look_after_nursery(self) -> float:
        """Notices a fork server that is frozen."""
        for nursery in tuple(self._nurseries):
            nursery.look()
        return LOOK_S

    async def _enforce_leases(self) -> float:
        """Kills attempts that must not outlive their leases, when those can't be renewed."""
        return await stops.enforce(tuple(self._crew.children.values()), lease_s=self._settings.lease_s)

    async def _forget_dead(self) -> float:
        """Removes workers from RQ's registry whose entries have expired: their supervisors renew them no more."""
        await asyncio.to_thread(self._registrar.clean, self._crew.queues)
        return FORGET_S

    def _info(self) -> PoolInfo:
        assert self._nursery is not None
        children = self._crew.children.values()
        return PoolInfo(
            id=self._id,
            host=self._host,
            pid=os.getpid(),
            queues=self._crew.queues,
            types=tuple(info.name for info in self._nursery.loaded.types),
            workers=tuple(child.name for child in children),
            slots=self._settings.slots,
            version=own_version(),
        )

    # --- the end --------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        """The first SIGTERM or SIGINT drains, the second one ends at once."""
        if self._stopping.is_set():
            log.warning("a second signal: what runs is put back at once")
            self._hurrying.set()
            return
        log.info("draining: no more claims; what runs gets %g s", self._settings.grace_s)
        self._stopping.set()
        self._stopping_at = time.monotonic()
        self._dispatcher.drain()
        self._crew.drain()
        self._spawn(self._kill_after_grace(list(self._crew.children.values())))

    async def _kill_after_grace(self, children: Sequence[Child]) -> None:
        """Gives draining processes their time; what they still run then goes back to its queue."""
        ends = asyncio.create_task(_await_ends(children))
        hurry = asyncio.create_task(self._hurrying.wait())
        waits: list[asyncio.Task[Any]] = [ends, hurry]
        await asyncio.wait(waits, timeout=self._settings.grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        ends.cancel()
        for child in children:
            if not child.ended.is_set():
                child.kill(Verdict.GIVEN_BACK)

    def _grace_left_s(self) -> float:
        """What is left of the grace for webhooks that are being sent; none of them takes longer than that by itself."""
        if self._hurrying.is_set():
            return 0.0
        begun = time.monotonic() if self._stopping_at is None else self._stopping_at
        return max(0.0, begun + self._settings.grace_s - time.monotonic())

    async def _say_goodbye(self, announcing: asyncio.Task[Any]) -> None:
        if not await self._roster.settled(SETTLE_S):
            log.error("Redis is away: what this pool ran is queued again when its leases end")
            return
        announcing.cancel()  # one more announcement would bring the pool back
        try:
            await self._store.carry_out(catalog.retire(self._id))
        except (RedisUnavailable, ReplyFault):  # it counts as gone when its announcement expires
            pass

    async def _close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        for nursery in tuple(self._nurseries):
            await nursery.close()
        self._roster.commands.close()
        await self._store.close()
        self._registrar.connection.close()
        self._memory.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _await_ends(children: Sequence[Child]) -> None:
    """Not `gather`: cancelled at the end of the grace, it would complain that nobody fetched its result."""
    for child in children:
        await child.ended.wait()
