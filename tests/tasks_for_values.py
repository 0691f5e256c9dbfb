"""Task types that return or report odd objects (see odd_values.py) in every way, plain and `async def`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from taskpool import TaskContext, task
from tests.odd_values import ERRORS, VALUES


def hand_over(ctx: TaskContext, way: str, name: str) -> Any:
    """Does it. What comes back is the task's result."""
    if way == "raise":
        raise ERRORS[name]()
    value = VALUES[name]()
    match way:
        case "return":
            return value
        case "done":
            ctx.progress(value)
        case "total":
            ctx.progress(0, value)
        case "note":
            ctx.progress(0, 1, value)
        case "log":
            ctx.log(value)
        case "print":
            print(value)
        case "write":
            sys.stdout.write(value)
        case "logging":
            logging.getLogger("odd").warning("%s and %r and %d", value, value, value)
        case "message":
            logging.getLogger("odd").warning(value)
        case "error":
            logging.getLogger("odd").error("odd", exc_info=value, extra={"odd": value})
    return "handed over"


WAYS = ("return", "done", "total", "note", "log", "print", "write", "logging", "message", "error")


@task("odd")
def odd(ctx: TaskContext, way: str, name: str) -> Any:
    return hand_over(ctx, way, name)


@task("odd_async")
async def odd_async(ctx: TaskContext, way: str, name: str) -> Any:
    return hand_over(ctx, way, name)


@task("pid")
def pid() -> int:
    return os.getpid()


@task("halves")
def halves(way: str) -> str:
    """One character in two writes; the next one begins another one and leaves it at that."""
    first, second = b"a\xc3", b"\xa9b\n"
    if way == "buffer":
        for part in (first, second, b"\xe2\x82"):
            sys.stdout.buffer.write(part)
    else:
        for part in (first, second, b"\xe2\x82"):
            os.write(1, part)
    return way
