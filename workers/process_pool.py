"""The worker processes of a pool and the fork servers they come from.

The pool keeps as many processes as wanted: each is replaced when it ends, more and more slowly while they die at
start-up. A fork server that dies or falls silent is replaced too, and a reload starts one that loads the task modules
again. The processes of the previous fork server finish their tasks.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from watchfiles import PythonFilter, awatch

from taskpool.errors import ConfigurationError
from taskpool.settings import Settings

from . import process_group
from .duties import BackgroundTasks, log
from .fork_client import (
    Ending,
    ForkClient,
    ForkRefused,
    ForkServerLost,
    LoadedTasks,
    ProcessHandle,
    Verdict,
    describe_status,
)
from .process_group import boottime
from .registration import Registration
from .shared_memory import SharedMemory

BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0
LOAD_RETRY_S: Final = 1.0
LOOK_S: Final = 0.5


class ProcessPool:
    """The processes of one pool. `registration` gets each start and each end."""

    def __init__(self, name: str, settings: Settings, registration: Registration) -> None:
        self._name, self._settings, self._registration = name, settings, registration
        # Twice as many blocks as processes: a reload starts the new ones while the old ones finish.
        self._memory = SharedMemory.create(2 * settings.workers, settings.slots)
        self._free = list(range(self._memory.blocks))
        self._fork_client: ForkClient | None = None  # the one that new processes come from
        self._fork_clients: set[ForkClient] = set()
        self._fork_servers_starting = 0
        self._count = 0  # of all processes that were ever started
        self._failures = self._refusals = 0  # in a row: deaths at start-up, and refused forks
        self._is_starting = False
        self._tasks = BackgroundTasks()
        self._grace_until_mono: float | None = None  # None while the pool isn't drained
        self.size = settings.workers
        self.queues: tuple[str, ...] = ()
        self.processes: dict[str, ProcessHandle] = {}
        """By name."""
        self.changed = asyncio.Event()
        self.all_ended = asyncio.Event()
        """Set when no process is left and none is wanted."""

    @property
    def loaded(self) -> LoadedTasks:
        """What the task modules define."""
        return self._fork_client.loaded if self._fork_client is not None else LoadedTasks()

    # --- worker processes ---------------------------------------------------------------------------------------------

    async def start_missing(self) -> float:
        """One round of the duty: starts processes while some are missing."""
        if failures := self._failures:
            await asyncio.sleep(backoff_s(failures))
        while self._failures == failures and (client := self._fork_client) and client.is_usable and self._must_start():
            try:
                await self._start(client)
                self._refusals = 0
            except ForkServerLost:  # it is replaced
                pass
            except ForkRefused as error:
                self._refusals += 1
                wait_s = backoff_s(self._refusals)
                log.error("a worker process can't be started: %s; tried again in %g s", error, wait_s)
                return wait_s
        self._look_whether_all_ended()
        return math.inf

    def _must_start(self) -> bool:
        wanted = self.size - sum(process.is_dismissed or not process.is_draining for process in self.processes.values())
        return wanted > 0 and bool(self._free)

    async def _start(self, client: ForkClient) -> None:
        index = self._free.pop(0)
        self._count += 1
        name = f"{self._name}.{self._count}"
        block = self._memory.block(index)
        block.clear()
        block.head.supervised_ms = int(boottime() * 1000)
        block.head.supervisor_pid = os.getpid()
        self._is_starting = True
        try:
            pid, end = await client.fork(index, name, self.queues)
        except (ForkServerLost, ForkRefused):
            (client.withheld_blocks if client.is_silent else self._free).append(index)
            raise
        finally:
            self._is_starting = False
        process = self.processes[name] = ProcessHandle(name, pid, block, client, self.queues)
        if self.size == 0 or client is not self._fork_client:  # the pool was drained or reloaded meanwhile
            process.drain()
        self._registration.add(process)
        self._tasks.spawn(self._await_end(process, end))

    async def _await_end(self, process: ProcessHandle, end: asyncio.Future[Ending]) -> None:
        ending = await end
        del self.processes[process.name]
        if process.is_dismissed and self.size:
            self.size -= 1
        process.ended.set()
        self._registration.remove(process, ending)  # reads the block before another process gets it
        if process.block.head.ready or process.is_draining:
            self._failures = 0
        else:
            self._failures += 1
            status = describe_status(ending.status)
            log.error("worker %s died at start-up (%s), %d times in a row", process.name, status, self._failures)
        self._free.append(process.block.index)
        self.changed.set()
        self._close_unused_fork_servers()
        self._look_whether_all_ended()

    def _look_whether_all_ended(self) -> None:
        if self.size == 0 and not self.processes and not self._is_starting:
            self.all_ended.set()

    # --- fork servers -------------------------------------------------------------------------------------------------

    async def load_tasks(self) -> None:
        """Starts a fork server that loads the task modules, and processes from it. Earlier processes are drained.
        Raises: as `ForkClient.start`."""
        client = ForkClient(self._memory, on_failure=self._on_fork_server_failure)
        self._fork_servers_starting += 1
        try:
            await client.start(self._settings, checks=self._fork_client is None)
        finally:
            self._fork_servers_starting -= 1
        self._fork_clients.add(client)
        self._fork_client = client
        if self._grace_until_mono is None:
            self.queues = self._settings.queues or tuple(dict.fromkeys(("default", *client.loaded.queues)))
            for process in self.processes.values():
                process.drain()
            self._failures = 0
            self.changed.set()
            size = "1 worker" if self.size == 1 else f"{self.size} workers"
            log.info("pool %s: %s, queues: %s", self._name, size, ", ".join(self.queues))
        self._close_unused_fork_servers()

    async def look_after_fork_servers(self) -> float:
        """One round of the duty that notices frozen fork servers."""
        for client in tuple(self._fork_clients):
            client.look()
        return LOOK_S

    def _on_fork_server_failure(self, client: ForkClient) -> None:
        """Replaces a fork server that died, with all its processes, or that is silent: then its workers finish."""
        if client.is_lost:
            lost = [process for process in self.processes.values() if process.fork_client is client]
            client.runs_at_loss = sum(len(process.runs()) for process in lost)
            self._forget(client, has_orphans=True)
        if client is self._fork_client and self._grace_until_mono is None:
            why = "the last one died" if client.is_lost else "the workers of the silent one finish their tasks and end"
            log.error("another fork server is started: %s", why)
            self._tasks.spawn(self._replace_fork_server())

    async def _replace_fork_server(self) -> None:
        failures = 0
        while True:
            try:
                await self.load_tasks()
                return
            except ConfigurationError as error:  # the code changed since it was loaded
                log.error("the task modules can't be loaded any more: %s", error)
                await asyncio.sleep(LOAD_RETRY_S)
            except OSError as error:
                failures += 1
                log.error("a fork server can't be started: %s", process_group.explain(error))
                await asyncio.sleep(backoff_s(failures))

    def _close_unused_fork_servers(self) -> None:
        used = {process.fork_client for process in self.processes.values()} | {self._fork_client}
        for client in self._fork_clients - used:
            self._fork_clients.discard(client)
            self._tasks.spawn(self._close_fork_server(client))

    async def _close_fork_server(self, client: ForkClient) -> None:
        await client.close()
        self._forget(client, has_orphans=client.is_silent)  # a silent one was killed before it could end its children

    def _forget(self, client: ForkClient, *, has_orphans: bool) -> None:
        """After the end of a fork server: its blocks are free, and this process has adopted what it left."""
        self._fork_clients.discard(client)
        if has_orphans and not self._fork_servers_starting:  # one that starts looks like an orphan
            process_group.end_children(spare={each.pid for each in self._fork_clients})
        self._free += client.withheld_blocks
        client.withheld_blocks = []
        self.changed.set()

    # --- reload -------------------------------------------------------------------------------------------------------

    async def reload_on_changes(self) -> None:
        """Loads the task modules again after each change of a Python file in their folders; never returns. After an
        error the old workers stay."""
        while True:
            folders = self._folders()
            async for _ in awatch(*folders, watch_filter=PythonFilter(), recursive=False, debounce=200):
                old = tuple(self.processes.values())
                try:
                    await self.load_tasks()
                except (ConfigurationError, OSError) as error:
                    log.error("not reloaded: %s", error)
                    continue
                log.info("reloaded")
                self._tasks.spawn(self._kill_after_grace(old))
                if self._folders() != folders:
                    break

    def _folders(self) -> set[Path]:
        return {folder for file in self.loaded.files if (folder := Path(file).parent).is_dir()}

    # --- the end ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Drains all processes for good. What runs after the grace, or at a second call, goes back to its queue."""
        if self._grace_until_mono is not None:
            log.warning("a second signal: what runs is put back at once")
            self._grace_until_mono = time.monotonic()
            _give_back(self.processes.values())
            return
        log.info("draining: no more claims; what runs gets %g s", self._settings.grace_s)
        self._grace_until_mono = time.monotonic() + self._settings.grace_s
        self.size = 0
        for process in self.processes.values():
            process.drain()
        self._tasks.spawn(self._kill_after_grace(tuple(self.processes.values())))
        self._look_whether_all_ended()

    @property
    def is_draining(self) -> bool:
        """Whether the pool claims no more tasks, and ends."""
        return self._grace_until_mono is not None

    def grace_left_s(self) -> float:
        """How much of the grace is left."""
        until_mono = self._grace_until_mono
        return self._settings.grace_s if until_mono is None else max(0.0, until_mono - time.monotonic())

    async def _kill_after_grace(self, processes: Sequence[ProcessHandle]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace_s):
                for process in processes:
                    await process.ended.wait()
        _give_back(processes)

    async def close(self) -> None:
        """Ends the fork servers, and with them all processes."""
        self._tasks.cancel()
        for client in tuple(self._fork_clients):
            await client.close()
        self._memory.close()


def _give_back(processes: Iterable[ProcessHandle]) -> None:
    for process in processes:
        if not process.ended.is_set():
            process.kill(Verdict.GIVEN_BACK)


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return min(BACKOFF_S * 2.0 ** min(failures - 1, 16), MAX_BACKOFF_S)
