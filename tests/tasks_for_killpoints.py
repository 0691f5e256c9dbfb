"""The tasks of tests/test_killpoints*.py: they report, wait for a file, add a task, and note their end in a file."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from taskpool import TaskContext, TaskSpec, task


@task("live", timeout_s=60)
def live(ctx: TaskContext, note: str, until: str) -> dict[str, Any]:
    """Goes through all that a task does with Redis. The line is its effect."""
    ctx.progress(1, 2)
    while not os.path.exists(until):
        time.sleep(0.002)
    parents = dict(ctx.parents)
    ctx.log("nearly there")
    ctx.add_task("echo", {"message": ctx.id})
    with open(note, "a") as file:
        file.write(ctx.id + "\n")
    return {"parents": len(parents)}


@task("brief", timeout_s=60)
def brief(ctx: TaskContext, note: str) -> str:
    """Takes no time. The line is its effect."""
    with open(note, "a") as file:
        file.write(ctx.id + "\n")
    return ctx.id


@task("grow", timeout_s=60)
def grow(ctx: TaskContext, note: str, rows: int) -> None:
    """Adds rows to its workflow, and an end behind all of them."""
    added = ctx.map("rows", (TaskSpec(type="grown", payload={"note": note, "n": n}) for n in range(rows)))
    ctx.add("end", "grown", {"note": note, "n": rows}, after=added.any())


@task("grown", timeout_s=60)
def grown(note: str, n: int) -> int:
    """Notes that it ran."""
    with open(note, "a") as file:
        file.write(f"{n}\n")
    return n


@task("asks", timeout_s=60)
def asks(ctx: TaskContext, note: str) -> str:
    """Keeps a checkpoint and asks a person. The line is its effect."""
    ctx.checkpoint("asked")
    answer = ctx.ask("go", "Go on?", schema=str)
    with open(note, "a") as file:
        file.write(ctx.id + "\n")
    return f"{ctx.state}, {answer}"


@task("noted", timeout_s=60)
async def noted(ctx: TaskContext, note: str, fails: int = 0, kind: str = "Broken") -> None:
    """Notes that it ran, and fails in its first attempts."""
    with open(note, "a") as file:
        file.write(ctx.id + "\n")
    if ctx.attempt <= fails:
        raise type(kind, (Exception,), {})("no luck")


@task("patient", timeout_s=600)
async def patient() -> None:
    """Runs until it is stopped."""
    await asyncio.sleep(600)
