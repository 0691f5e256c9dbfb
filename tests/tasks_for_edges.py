"""The tasks of tests/test_system_edges.py: rows of a map, of which some fail, and what looks at them."""

from __future__ import annotations

from typing import Any

from taskpool import ParentNotDone, TaskContext, TaskSpec, task


@task("row")
def row(n: int) -> int:
    if n % 3 == 0:
        raise ValueError(f"row {n} is bad")
    return n


@task("fan_out")
def fan_out(ctx: TaskContext, rows: int, looks: str) -> int:
    """Adds a map of rows to its workflow, and behind all of them a task of the type `looks`."""
    added = ctx.map("rows", (TaskSpec(type="row", payload={"n": n}) for n in range(rows)))
    ctx.add("look", looks, {}, after=added.any())
    return rows


@task("look")
def look(ctx: TaskContext) -> dict[str, Any]:
    rows = ctx.outcomes["rows"]
    bad = [each.error for each in rows if not each.ok]
    try:
        list(ctx.parents["rows"])
    except ParentNotDone as error:
        return {"size": len(rows), "bad": bad, "first": ctx.parents["rows"][1], "refused": str(error)}
    return {"size": len(rows), "bad": bad}


@task("look_async")
async def look_async(ctx: TaskContext) -> dict[str, Any]:
    return look(ctx)
