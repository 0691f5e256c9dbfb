"""Tasks that ask people and keep checkpoints, for tests with real workers."""

from __future__ import annotations

import os
import signal
from typing import Any

from taskpool import TaskContext, task


@task("asks")
def asks(ctx: TaskContext, timeout: float = 3600) -> dict[str, Any]:
    """Asks, and says what the answer was and in which process it ran."""
    answer = ctx.ask("go", "Go on?", schema=bool, timeout=timeout, default=False)
    return {"answer": answer, "pid": os.getpid(), "attempt": ctx.attempt}


@task("asks_async")
async def asks_async(ctx: TaskContext) -> dict[str, Any]:
    """The same on an event loop, after a checkpoint."""
    ctx.checkpoint([*(ctx.state or []), ctx.attempt])
    answer = ctx.ask("go", "Go on?", schema=bool)
    return {"answer": answer, "state": ctx.state}


@task("dies_on_the_way", max_attempts=3)
def dies_on_the_way(ctx: TaskContext) -> list[int]:
    """Its process is killed in the middle, once; the next attempt continues."""
    done: list[int] = ctx.state or []
    for step in range(len(done), 4):
        if step == 2 and ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(10 * ctx.attempt + step)
        ctx.checkpoint(done)
    return done
