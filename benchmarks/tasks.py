"""The tasks that benchmarks run: one does nothing but count, so that what is measured is the queue; one reports."""

import time

from taskpool import TaskContext, task


@task("increment")
def increment(n: int) -> dict[str, int]:
    """The next number."""
    return {"n": n + 1}


@task("report")
def report(ctx: TaskContext, times: int, pause_s: float) -> None:
    """Report so many times; each report says when it was made, in nanoseconds of this machine's monotonic clock."""
    for done in range(times):
        time.sleep(pause_s)
        ctx.progress(done, times, note=str(time.monotonic_ns()))
