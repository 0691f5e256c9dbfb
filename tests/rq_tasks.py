"""Task types for the tests with RQ's own tools: one that can fail and later not, one that waits to be stopped."""

from __future__ import annotations

import time
from pathlib import Path

from taskpool import TaskContext, TaskSpec, task


@task("read")
def read(path: str) -> str:
    """The text of a file; fails while there is none."""
    return Path(path).read_text()


@task("hold")
def hold(ctx: TaskContext, path: str) -> str:
    """Run until a file is there."""
    while not Path(path).exists():
        ctx.raise_if_cancelled()
        time.sleep(0.02)
    return "released"


@task("collect")
def collect(ctx: TaskContext) -> list[object]:
    """The results of the tasks it depends on."""
    return list(ctx.parents.values())


@task("grow")
def grow(ctx: TaskContext) -> None:
    """Adds a row to its workflow."""
    ctx.map("rows", [TaskSpec(type="echo", payload={"message": 1})])


@task("add")
def add(ctx: TaskContext) -> str:
    """Add a task."""
    return ctx.add_task("echo", {"message": 1}).id


@task("asks")
def asks(ctx: TaskContext) -> bool:
    """Asks a person, which needs our workers."""
    return ctx.ask("go", "Go on?", schema=bool)
