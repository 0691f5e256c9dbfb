"""The worker processes of a pool: as many as wanted, each replaced when it ends, in step with a fork server.

A process that dies before it reached its loop is replaced ever more slowly, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Final

from .fork_client import Ending, ForkRefused, Nursery, NurseryLost, describe_status
from .process_group import boottime
from .process_handle import Child
from .shared_memory import SharedMemory

log = logging.getLogger("workers")

BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 30.0


class Crew:
    """The pool's processes. `on_start` is called for each one started, `on_end` when it ended;
    its block of the shared memory stays as it was until `on_end` returns."""

    def __init__(
        self,
        pool: str,
        size: int,
        memory: SharedMemory,
        *,
        on_start: Callable[[Child], None],
        on_end: Callable[[Child, Ending], None],
    ) -> None:
        self._pool, self._memory = pool, memory
        self._on_start, self._on_end = on_start, on_end
        self._free = list(range(memory.blocks))
        self._held: dict[Nursery, list[int]] = {}
        """Blocks that a silent fork server may still give to a process."""
        self._started = 0
        self._failures = 0
        self._refusals = 0
        self._is_starting = False
        self.changed = asyncio.Event()
        self._nursery: Nursery | None = None
        self.queues: tuple[str, ...] = ()
        self.size = size
        self.children: dict[int, Child] = {}
        """By process id."""
        self._ended_early: dict[int, Ending] = {}
        """By process id: the ends that were reported before `_start` had registered the process."""
        self.gone = asyncio.Event()
        """Set when no process is left and none is wanted."""

    def staff_from(self, nursery: Nursery, queues: tuple[str, ...]) -> None:
        """From now on starts processes from this nursery, and drains those of any other."""
        self._nursery, self.queues = nursery, queues
        for child in self.children.values():
            if child.nursery is not nursery:
                child.drain()
        self._failures = 0
        self.changed.set()

    def dismiss(self, child: Child) -> None:
        """Drains one process for good: the pool is smaller from now on."""
        if not child.is_draining:
            self.size -= 1
            child.drain()

    def drain(self) -> None:
        """Drains all of them for good."""
        self.size = 0
        for child in self.children.values():
            child.drain()
        self._look_whether_gone()

    def ended(self, pid: int, ending: Ending) -> None:
        """Handles the end of a process; its nursery may report it before `_start` knows the process."""
        if pid not in self.children:
            self._ended_early[pid] = ending
            return
        child = self.children[pid]
        if ending.cause and child.nursery.runs_at_loss is None:  # all its processes end now, one after the other
            siblings = [each for each in self.children.values() if each.nursery is child.nursery]
            child.nursery.runs_at_loss = sum(len(each.runs()) for each in siblings)
        del self.children[pid]
        child.ended.set()
        self._on_end(child, ending)
        if child.block.counters().ready or child.is_draining:
            self._failures = 0
        else:
            self._failures += 1
            log.error(
                "worker %s died at start-up (%s), %d times in a row",
                child.name,
                describe_status(ending.status),
                self._failures,
            )
        self._free.append(child.block.index)
        self.changed.set()
        self._look_whether_gone()

    def closed(self, nursery: Nursery) -> None:
        """Takes note that a fork server is gone: nothing uses the blocks any more that it was to use."""
        if held := self._held.pop(nursery, None):
            self._free += held
            self.changed.set()

    async def step(self) -> float:
        """One round of the duty that starts processes while some are missing; nothing more to do until `changed`."""
        if failures := self._failures:
            await asyncio.sleep(backoff_s(failures))
        while (
            self._failures == failures and (nursery := self._nursery) is not None and self._missing() > 0 and self._free
        ):
            try:
                await self._start(nursery)
                self._refusals = 0
            except NurseryLost:  # the supervisor puts another in its place
                if self._nursery is nursery:
                    self._nursery = None
            except ForkRefused as error:
                self._refusals += 1
                wait_s = backoff_s(self._refusals)
                log.error("a worker process can't be started: %s; tried again in %g s", error, wait_s)
                return wait_s
        self._look_whether_gone()
        return 0.0 if self._failures > failures else math.inf

    def _look_whether_gone(self) -> None:
        if self.size == 0 and not self.children and not self._is_starting:
            self.gone.set()

    def _missing(self) -> int:
        return self.size - sum(not child.is_draining for child in self.children.values())

    async def _start(self, nursery: Nursery) -> None:
        index = self._free.pop(0)
        self._started += 1
        name = f"{self._pool}.{self._started}"
        block = self._memory.block(index)
        block.clear()
        block.supervise(boottime())
        self._is_starting = True
        try:
            pid = await nursery.fork(index, name, self.queues)
        except NurseryLost:
            if nursery.is_silent:
                self._held.setdefault(nursery, []).append(index)
            else:
                self._free.append(index)
            raise
        except ForkRefused:
            self._free.append(index)
            raise
        finally:
            self._is_starting = False
        child = self.children[pid] = Child(name, pid, block, nursery, self.queues)
        if self.size == 0 or nursery is not self._nursery:  # it was told to drain while it was being forked
            child.drain()
        self._on_start(child)
        if ending := self._ended_early.pop(pid, None):
            self.ended(pid, ending)


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return min(BACKOFF_S * 2.0 ** min(failures - 1, 16), MAX_BACKOFF_S)
