"""Task types for the pages Tasks and Task: they wait for files, write logs in colours, ask, and fail in libraries."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskpool import NonRetryable, TaskContext, task

INERT = "<img src=x onerror=alert(1)>"
STEP_S = 0.02


@task("page.write")
def write(ctx: TaskContext, until: str = "", lines: int = 20) -> dict[str, Any]:
    """Writes lines in colours, and more of them until the file `until` is there."""
    for number in range(lines):
        print(f"\x1b[3{number % 8}mline {number}\x1b[0m of {lines}")
    written = lines
    ctx.progress(1, 4, note="written")
    while until and not Path(until).exists():
        print(f"still there, {written}")
        written += 1
        time.sleep(STEP_S)
    ctx.progress(4, 4, note="over")
    return {"written": lines, "big": 12345678901234567890, "ratio": 1.0}


@task("page.add")
def add(ctx: TaskContext, until: str = "") -> list[str]:
    """Adds two tasks, and waits for the file `until`."""
    ids = [each.id for each in ctx.add_tasks([write.spec(lines=n) for n in (1, 2)])]
    while until and not Path(until).exists():
        time.sleep(STEP_S)
    return ids


@task("page.break", max_attempts=2, backoff_s=0)
def break_(ctx: TaskContext, mend: str = "", text: str = "") -> str:
    """Fails in a library, called from here, unless the file `mend` is there."""
    print(f"attempt {ctx.attempt}")
    if mend and Path(mend).exists():
        return "mended"
    return parsed(text or "{broken")


def parsed(text: str) -> str:
    """The user's innermost frame."""
    value: str = json.loads(text)
    return value


@task("page.die")
def die(ctx: TaskContext) -> None:
    """Kills its process."""
    print("going down")
    os.kill(os.getpid(), signal.SIGKILL)


@task("page.hostile")
def hostile(ctx: TaskContext, text: str = INERT) -> None:
    """Everything that a page shows of it is hostile."""
    print(f"{text} \u202e reversed \x07 bell \x1b]0;title\x07 \x1b[31m{text}")
    ctx.progress(1, 2, note=text)
    raise NonRetryable(f"{text} \u202e reversed")


@dataclass
class Choice:
    """An answer that needs a form."""

    table: str
    rows: int


@task("page.choose")
def choose(ctx: TaskContext) -> Any:
    """Asks for more than yes or no."""
    choice = ctx.ask("which", "Which rows?", schema=Choice, timeout="1d")
    return {"table": choice.table, "rows": choice.rows}


@task("page.ask")
def ask(ctx: TaskContext) -> str:
    """Asks in the middle of its work."""
    answer = ctx.ask("delete", f"Delete 3,120 rows? {INERT}", schema=bool, timeout="1d", default=False)
    return "deleted" if answer else "kept"
