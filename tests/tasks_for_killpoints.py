"""The tasks of tests/test_killpoints.py: they report, wait for a file, and note in another one that they ended."""

from __future__ import annotations

import os
import time
from typing import Any

from taskpool import TaskContext, task


@task("live", timeout_s=60)
def live(ctx: TaskContext, note: str, until: str) -> dict[str, Any]:
    """Goes through all that a task does with Redis. The line is its effect."""
    ctx.progress(1, 2)
    while not os.path.exists(until):
        time.sleep(0.002)
    parents = dict(ctx.parents)
    ctx.log("nearly there")
    with open(note, "a") as file:
        file.write(ctx.id + "\n")
    return {"parents": len(parents)}
