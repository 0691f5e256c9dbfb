"""The soak's task types. Each attempt notes in a file outside Redis that it begins, and that it has done its work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

from taskpool import Secret, TaskContext, TaskStopped, task

STEP_S = 0.05


@task("chaos")
def chaos(
    ctx: TaskContext,
    *,
    n: int,
    do: str = "ok",
    seconds: float = 0.0,
    fails: int = 0,
    batch: str = "",
    word: Secret[str] = "",
) -> dict[str, Any]:
    """Works for `seconds`, or fails, dies, talks or ignores a stop, as `do` says."""
    note(ctx, n, "start")
    if ctx.attempt <= fails:
        raise ValueError("as planned")
    if do == "die" and ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + seconds
    while (left_s := deadline - time.monotonic()) > 0:
        if do == "talk":
            ctx.progress(seconds - left_s, seconds)
            ctx.log(f"{left_s:.3f} s left")
        try:
            time.sleep(min(STEP_S, left_s))
        except TaskStopped:
            if do != "stubborn":
                raise
    if word and word != str(n):
        raise ValueError("its secret is gone")
    note(ctx, n, "end")
    return {"n": n}


@task("chaos_async")
async def chaos_async(
    ctx: TaskContext, *, n: int, do: str = "ok", seconds: float = 0.0, fails: int = 0, batch: str = ""
) -> dict[str, Any]:
    """The same for an event loop; it only works or fails."""
    note(ctx, n, "start")
    if ctx.attempt <= fails:
        raise ValueError("as planned")
    await asyncio.sleep(seconds)
    note(ctx, n, "end")
    return {"n": n}


def note(ctx: TaskContext, n: int, what: str) -> None:
    """Adds one line to the file of effects: one write, so that lines of several processes don't mix."""
    line = {
        "id": ctx.id,
        "n": n,
        "attempt": ctx.attempt,
        "what": what,
        "pool": os.environ["CHAOS_POOL"],
        "pid": os.getpid(),
        "at_ms": time.time() * 1000,
    }
    file = os.open(os.environ["CHAOS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)
