"""Tasks that add tasks, the same ones in each attempt."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from taskpool import TaskContext, task


@task("leaf")
def leaf(n: int = 0, note: str = "") -> int:
    if note:
        with Path(note).open("a") as file:
            file.write(f"{n}\n")
    return n


@task("add", max_attempts=3, backoff_s=0)
def add(ctx: TaskContext, note: str = "", attempts: int = 1, kills: bool = False) -> list[str]:
    """Adds the same in each attempt, and ends well in the last one."""
    ids = [ctx.add_task(leaf.spec(n=1, note=note)).id, ctx.add_task(leaf.spec(n=1, note=note), tags=["x"]).id]
    ids += [each.id for each in ctx.add_tasks(leaf.spec(n=n, note=note) for n in (1, 1, 2))]
    if ctx.attempt < attempts:
        if kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("not yet")
    return ids


@task("add_async", max_attempts=3, backoff_s=0)
async def add_async(ctx: TaskContext, note: str = "", attempts: int = 1, kills: bool = False) -> list[str]:
    """The same for an event loop, which may leave it to a thread."""
    if ctx.attempt > 1:
        return await asyncio.to_thread(add, ctx, note, attempts, kills)
    return add(ctx, note, attempts, kills)


@task("add_forked")
def add_forked(ctx: TaskContext) -> list[str]:
    """Its own processes add tasks and keep states, while it does so itself."""
    pids = []
    for n in range(4):
        pid = os.fork()
        if not pid:
            ctx.add_task(leaf.spec(n=n))
            for step in range(50):
                ctx.checkpoint([n, step])
            os._exit(0)
        pids.append(pid)
    for step in range(50):
        ctx.checkpoint([4, step])
        assert ctx.state[1] <= 50
    exits = [os.waitpid(pid, 0)[1] for pid in pids]
    assert exits == [0] * 4
    return [ctx.add_task(leaf.spec(n=n)).id for n in range(5)]  # four of them are there already
