"""The tasks that benchmarks run: one only counts, so that what is measured is the queue; one sleeps; one reports."""

import asyncio
import time

from benchmarks.increment import SLEEP_S, increment
from taskpool import TaskContext, task

task("increment")(increment)


@task("sleep")
async def sleep(n: int) -> dict[str, int]:
    """The next number, after a sleep on the event loop."""
    await asyncio.sleep(SLEEP_S)
    return {"n": n + 1}


@task("report")
def report(ctx: TaskContext, times: int, pause_s: float) -> None:
    """Report so many times; each report says when it was made, in nanoseconds of this machine's monotonic clock."""
    for done in range(times):
        time.sleep(pause_s)
        ctx.progress(done, times, note=str(time.monotonic_ns()))
