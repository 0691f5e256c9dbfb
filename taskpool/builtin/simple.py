"""Built-in task types that need nothing: `echo`, and `long_task` to watch progress, stop and timeout at work."""

from __future__ import annotations

import time
from typing import Annotated, Any

from msgspec import Meta

from taskpool.context import TaskContext
from taskpool.task import Task, task

STOP_CHECK_S = 0.1


@task("echo")
def echo(message: Any) -> Any:
    """Give back the message, any JSON value."""
    return message


class LongTask(Task):
    """Sleep for `duration_s` seconds with progress each second, and stop when asked to."""

    type = "long_task"

    class Payload:
        duration_s: Annotated[float, Meta(ge=0, le=86_400, description="Seconds to sleep.")] = 180

    def run(self, ctx: TaskContext) -> dict[str, float]:
        duration_s = self.payload.duration_s
        start = time.monotonic()
        told_s = -1
        while (slept_s := time.monotonic() - start) < duration_s:
            ctx.raise_if_cancelled()
            if int(slept_s) > told_s:
                told_s = int(slept_s)
                ctx.progress(told_s, duration_s, note=f"{duration_s - told_s:g} s to go")
            time.sleep(min(STOP_CHECK_S, duration_s - slept_s))
        ctx.progress(duration_s, duration_s)
        return {"slept_s": duration_s}
