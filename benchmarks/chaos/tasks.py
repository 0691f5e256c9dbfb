"""The soak's task types. Each attempt notes in a file outside Redis that it begins, runs and is done."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from taskpool import Secret, Snooze, TaskContext, TaskSpec, TaskStopped, task
from taskpool.errors import RedisUnavailable

STEP_S = 0.05
ALIVE_S = 0.2
ADDED = "+"
"""Behind the id of a task, it names the batch of the tasks that this one adds."""


@task("chaos")
def chaos(
    ctx: TaskContext,
    *,
    n: int,
    do: str = "ok",
    seconds: float = 0.0,
    fails: int = 0,
    snoozes: int = 0,
    asks: int = 0,
    batch: str = "",
    key: str = "",
    parents: Sequence[str] = (),
    word: Secret[str] = "",
    adds: int = 0,
    rows: int | None = None,
) -> dict[str, Any]:
    """Works for `seconds`, or fails, snoozes, asks, dies, talks or ignores a stop, as `do` says. Before that it adds
    equal tasks, as many in each attempt; and in the end, rows to its workflow."""
    note(ctx, n, "start", batch=batch)
    if adds:
        add(ctx, adds)
    if ctx.attempt <= fails:
        raise ValueError("as planned")
    if do == "die" and ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if snoozes and _starts(ctx) <= snoozes:
        raise Snooze("as planned", after_s=0.3)
    ask(ctx, asks)
    deadline = time.monotonic() + seconds
    next_note = time.monotonic() + ALIVE_S
    while (left_s := deadline - time.monotonic()) > 0:
        if do == "talk":
            ctx.progress(seconds - left_s, seconds)
            ctx.log(f"{left_s:.3f} s left")
        try:
            time.sleep(min(STEP_S, left_s))
            if time.monotonic() > next_note:
                note(ctx, n, "alive")
                next_note = time.monotonic() + ALIVE_S
        except TaskStopped:
            if do != "stubborn":
                raise
    if word and word != str(n):
        raise ValueError("its secret is gone")
    while (seen := results(ctx, parents)) is None:
        time.sleep(STEP_S)
    if rows is not None:
        grow(ctx, batch, rows)
    return done(ctx, n, seen)


@task("chaos_async")
async def chaos_async(
    ctx: TaskContext,
    *,
    n: int,
    do: str = "ok",
    seconds: float = 0.0,
    fails: int = 0,
    batch: str = "",
    key: str = "",
    parents: Sequence[str] = (),
) -> dict[str, Any]:
    """The same for an event loop; it only works or fails."""
    note(ctx, n, "start", batch=batch)
    if ctx.attempt <= fails:
        raise ValueError("as planned")
    deadline = time.monotonic() + seconds
    while (left_s := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(ALIVE_S, left_s))
        note(ctx, n, "alive")
    while (seen := results(ctx, parents)) is None:
        await asyncio.sleep(STEP_S)
    return done(ctx, n, seen)


def grow(ctx: TaskContext, batch: str, count: int) -> None:
    """Adds so many rows to the workflow of this task, and an end behind all of them."""

    def spec(n: int) -> TaskSpec:
        return TaskSpec(type="chaos", payload={"n": n, "batch": batch}, queue="bulk", result_ttl_s=3600)

    rows = ctx.map("rows", [spec(n) for n in range(1, count + 1)])
    ctx.add("end", spec(count + 1), after=rows.any())


def add(ctx: TaskContext, count: int) -> None:
    """Adds so many tasks, all at once or one by one. Tries again while Redis is away."""
    spec = TaskSpec(type="chaos", payload={"n": 0, "batch": f"{ctx.id}{ADDED}"}, queue="fast", result_ttl_s=3600)
    groups = [[spec] * count] if count % 2 else [[spec]] * count
    for group in groups:
        while True:
            try:
                ctx.add_tasks(group)
                break
            except RedisUnavailable:
                time.sleep(STEP_S)


def results(ctx: TaskContext, parents: Sequence[str]) -> dict[str, str] | None:
    """The words that the parents returned; None: Redis is away."""
    try:
        return {id: ctx.parents[id]["token"] for id in parents}
    except RedisUnavailable:
        return None


def ask(ctx: TaskContext, questions: int) -> None:
    """Asks so many questions. A checkpoint says how many were answered. Waits while Redis is away."""
    while questions:
        try:
            for number in range(questions):
                ctx.ask(f"q{number}", "Go on?", schema=bool, timeout=1.0, default=True)
                ctx.checkpoint(number + 1)
            assert ctx.state == questions
            return
        except RedisUnavailable:
            time.sleep(STEP_S)


def done(ctx: TaskContext, n: int, seen: Mapping[str, str]) -> dict[str, Any]:
    """Notes the end, with what the attempt returns: a word that no other attempt returns, and those of its parents."""
    token = secrets.token_hex(8)
    note(ctx, n, "end", token=token, parents=seen)
    return {"n": n, "token": token, "parents": seen}


def note(ctx: TaskContext, n: int, what: str, **more: Any) -> None:
    """Adds one line to the file of effects: one write, so that lines of several processes don't mix."""
    line = {
        "id": ctx.id,
        "n": n,
        "attempt": ctx.attempt,
        "what": what,
        "pool": os.environ["CHAOS_POOL"],
        "pid": os.getpid(),
        "at_ms": time.time() * 1000,
        **more,
    }
    file = os.open(os.environ["CHAOS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def _starts(ctx: TaskContext) -> int:
    """How often this task has begun, by the file of effects: snoozed attempts keep their number."""
    with open(os.environ["CHAOS_EFFECTS"]) as file:
        return sum(f'"{ctx.id}"' in line and '"what": "start"' in line for line in file)
