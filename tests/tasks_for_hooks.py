"""A task file with hooks: each notes in the file HOOKS_NOTE what happens, and in which process."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from taskpool import TaskContext, around_attempt, on_process_start, on_process_stop, task

span: ContextVar[str] = ContextVar("span", default="none")
FAULT = os.environ.get("HOOKS_FAULT", "")
folder = tempfile.TemporaryDirectory()


def note(text: str) -> None:
    """Adds a line."""
    with open(os.environ["HOOKS_NOTE"], "a") as file:
        file.write(f"{os.getpid()} {text}\n")


class Numbers(ModuleType):
    """Stands for numpy.random: a generator that is seeded at import."""

    seeded = 0

    def seed(self) -> None:
        Numbers.seeded = os.getpid()


sys.modules["numpy.random"] = Numbers("numpy.random")


begun: list[int] = []
"""Worker processes note themselves here; the fork server doesn't."""


@atexit.register
def at_exit() -> None:
    note("atexit")
    if FAULT == "atexit":
        raise SystemExit(5)
    if FAULT == "hang" and begun:
        time.sleep(600)


@on_process_start
def start() -> None:
    if FAULT == "start":
        raise RuntimeError("the start fails")
    begun.append(os.getpid())
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    note("start")


@on_process_start
async def start_async() -> None:
    note("start async")


@on_process_stop
def stop() -> None:
    note("stop")


@on_process_stop
async def stop_async() -> None:
    note("stop async")
    if FAULT == "stop":
        raise SystemExit("the stop fails")


@around_attempt
@contextmanager
def outer(ctx: TaskContext) -> Iterator[None]:
    token = span.set(f"outer {ctx.type}")
    try:
        yield
    except ValueError:
        note("outer saw it")
        raise
    finally:
        span.reset(token)


@around_attempt
@contextmanager
def inner(ctx: TaskContext) -> Iterator[None]:
    if ctx.type == "refused":
        raise PermissionError("not this one")
    token = span.set(f"{span.get()}, inner")
    try:
        yield
    finally:
        span.reset(token)


@task("spans")
def spans() -> str:
    return span.get()


@task("spans_async")
async def spans_async() -> str:
    return span.get()


@task("returns_coroutine")
def returns_coroutine(fault: bool = False) -> Any:
    async def answer() -> str:
        await asyncio.sleep(0)
        if fault:
            raise ValueError("as asked")
        return span.get()

    return answer()


@task("raises")
def raises() -> None:
    raise ValueError("as asked")


@task("refused")
def refused() -> str:
    return "never"


@task("numbers")
def numbers() -> list[Any]:
    return [os.getpid(), Numbers.seeded, random.random(), os.path.isdir(folder.name)]
