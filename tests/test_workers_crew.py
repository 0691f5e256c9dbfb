"""The processes of a pool (workers/process_pool.py), with a fork server that answers as the test wants."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from workers.fork_client import Ending
from workers.process_handle import Child
from workers.process_pool import Crew
from workers.shared_memory import SharedMemory

EXIT_3 = 3 << 8


class HastyNursery:
    """A fork server that reports the end of each process before `fork` has returned its process id."""

    runs_at_loss: int | None = None

    def __init__(self) -> None:
        self.crew: Crew
        self.pids = iter(range(1_000_000, 1_000_010))

    async def fork(self, block: int, name: str, queues: tuple[str, ...]) -> int:
        pid = next(self.pids)
        self.crew.ended(pid, Ending(EXIT_3))
        await asyncio.sleep(0)
        return pid


async def test_a_process_that_ends_before_its_fork_is_known_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    nursery: Any = HastyNursery()

    def on_start(child: Child) -> None:
        seen.append(("start", child.name))

    def on_end(child: Child, ending: Ending) -> None:
        assert ending.status == EXIT_3
        seen.append(("end", child.name))
        if child.name == "pool.3":
            crew.size = 0

    memory = SharedMemory.create(1, 1)
    crew = nursery.crew = Crew("pool", 1, memory, on_start=on_start, on_end=on_end)
    crew.staff_from(nursery, ("default",))

    monkeypatch.setattr("workers.process_pool.BACKOFF_S", 0.001)

    while not crew.gone.is_set():
        assert await crew.step() == 0.0
    memory.close()

    assert seen == [(what, f"pool.{number}") for number in (1, 2, 3) for what in ("start", "end")]
    assert crew.children == {}
