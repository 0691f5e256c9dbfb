"""The pool's workers as Redis knows them: entered when a process starts, settled and removed when it has ended."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from taskpool import scripts
from taskpool.errors import RedisFull
from taskpool.handover import seconds_of
from taskpool.logs.line import LogLimits
from taskpool.store import AsyncStore, ReplyFault
from workers.child import Child
from workers.commands import CommandChannel
from workers.duties import Outage, insist
from workers.held import attempts_of
from workers.lastwords import LastWords
from workers.nursery import Ending
from workers.rqworker import PoolWorker, Registrar
from workers.settlement import Remains, await_end, settle
from workers.stops import Stops

log = logging.getLogger("workers")


class Roster:
    """`on_change` is called when a process was entered, `on_dismiss` when RQ tells one to shut down, `on_soon` with the
    seconds until a task is due that was just scheduled."""

    def __init__(
        self,
        pool: str,
        redis_url: str,
        store: AsyncStore,
        registrar: Registrar,
        *,
        stops: Stops,
        outage: Outage,
        max_crashes: int,
        limits: LogLimits,
        on_change: Callable[[], None],
        on_dismiss: Callable[[Child], None],
        on_soon: Callable[[float], None],
    ) -> None:
        self._pool, self._store, self._registrar = pool, store, registrar
        self._stops, self._outage = stops, outage
        self._max_crashes, self._limits = max_crashes, limits
        self._on_change, self._on_dismiss = on_change, on_dismiss
        self._members: dict[str, tuple[Child, PoolWorker]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self.commands = CommandChannel(redis_url, self._obey, on_soon)

    def entered(self) -> list[PoolWorker]:
        """The workers that stand in RQ's registry."""
        return [worker for _, worker in self._members.values() if worker.birth_date is not None]

    def add(self, child: Child) -> None:
        """Enters a new process, as soon as Redis is there."""
        worker = PoolWorker(
            child.name,
            child.queues,
            pid=child.pid,
            connection=self._registrar.connection,
            pool=self._pool,
            runs=child.runs,
            counters=child.block.counters,
            on_stop_job=self._stop_at_once,
            on_kill=lambda: child.signal(signal.SIGKILL),
            on_shutdown=lambda: self._on_dismiss(child),
        )
        self._members[child.name] = child, worker
        self._listen()
        self._spawn(self._enter(child, worker))

    def bury(self, child: Child, ending: Ending) -> None:
        """Settles what an ended process held and removes it, as soon as Redis is there."""
        self._spawn(self._bury(child, Remains.of(child, ending), LastWords(child, ending)))

    async def settled(self, timeout_s: float) -> bool:
        """Waits until all that was begun here is done; False: it wasn't within the time."""
        if not self._work:
            return True
        _, pending = await asyncio.wait(self._work, timeout=timeout_s)
        return not pending

    async def _enter(self, child: Child, worker: PoolWorker) -> None:
        async def enter() -> None:
            if not child.ended.is_set():
                await asyncio.to_thread(self._registrar.enter, worker)

        await insist(enter, self._outage)
        self._on_change()

    async def _bury(self, child: Child, remains: Remains, words: LastWords) -> None:
        async def look() -> None:
            with suppress(RedisFull, ReplyFault):  # then they are lost; what becomes of the attempts isn't
                await self._store.carry_out(words.send(self._limits))
            for id, attempt_id in await self._store.run(attempts_of(child.name)):
                try:
                    await self._store.carry_out(settle(remains, id, attempt_id, max_crashes=self._max_crashes))
                except ReplyFault as fault:  # a damaged record; the others are settled all the same
                    log.error("what task %s ran in worker %s can't be settled: %s", id, child.name, fault)

        await await_end(child)
        for wait_s in remains.looks_s:
            await asyncio.sleep(wait_s)
            await insist(look, self._outage)
        _, worker = self._members.pop(child.name)
        self._listen()
        await insist(lambda: asyncio.to_thread(self._registrar.leave, worker), self._outage)
        self._on_change()

    def _obey(self, name: str, command: Mapping[str, Any]) -> None:
        """Carries out what was said on a worker's channel."""
        if name not in self._members:
            return
        child, worker = self._members[name]
        if command.get("command") != "taskpool-stop":
            worker.obey(command)
            return
        attempt_id, grace_s = str(command.get("attempt_id")), seconds_of(command.get("grace_s")) or 0.0
        self._stops.stop_attempt(child, attempt_id, grace_s=grace_s, force=bool(command.get("force")))

    def _stop_at_once(self, id: str) -> None:
        """RQ's stop-job: noted on the record like any other stop; the message that follows carries it out."""

        async def ask() -> None:
            await self._store.run(scripts.stop(id, grace_s=0, force=True))

        self._spawn(insist(ask, self._outage))

    def _listen(self) -> None:
        self.commands.listen_to(frozenset(self._members))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
