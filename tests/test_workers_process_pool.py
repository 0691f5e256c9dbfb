"""The processes of a pool (workers/process_pool.py), with a fork server that answers as the test wants."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from taskpool.settings import Settings
from workers import process_pool
from workers.fork_client import Ending, LoadedTasks, ProcessHandle
from workers.process_pool import ProcessPool
from workers.shared_memory import SharedMemory

EXIT_3 = 3 << 8


class HastyForkServer:
    """A fork server that reports the end of each process before `fork` has returned its process id."""

    loaded = LoadedTasks()
    is_usable = True

    def __init__(self, memory: SharedMemory, *, on_failure: Any) -> None:
        self.pids = iter(range(1_000_000, 1_000_010))

    async def start(self, settings: Settings, *, checks: bool = False) -> None: ...

    async def fork(self, block: int, name: str, queues: tuple[str, ...]) -> tuple[int, asyncio.Future[Ending]]:
        end = asyncio.get_running_loop().create_future()
        end.set_result(Ending(EXIT_3))
        await asyncio.sleep(0)
        return next(self.pids), end

    async def close(self) -> None: ...


class Registration:
    """Notes each start and each end, and ends the pool after the third."""

    def __init__(self) -> None:
        self.pool: ProcessPool
        self.seen: list[tuple[str, str]] = []

    def add(self, process: ProcessHandle) -> None:
        self.seen.append(("start", process.name))

    def remove(self, process: ProcessHandle, ending: Ending) -> None:
        assert ending.status == EXIT_3
        self.seen.append(("end", process.name))
        if process.name == "pool.3":
            self.pool.size = 0


async def test_a_process_that_ends_before_its_fork_is_known_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "ForkClient", HastyForkServer)
    monkeypatch.setattr(process_pool, "BACKOFF_S", 0.001)
    registration = Registration()
    pool = registration.pool = ProcessPool("pool", Settings(workers=1), cast("Any", registration))
    await pool.load_tasks()

    while not pool.all_ended.is_set():
        await pool.start_missing()
        await asyncio.wait_for(pool.changed.wait(), 30)
        pool.changed.clear()
    await pool.close()

    assert registration.seen == [(what, f"pool.{number}") for number in (1, 2, 3) for what in ("start", "end")]
    assert pool.processes == {}
