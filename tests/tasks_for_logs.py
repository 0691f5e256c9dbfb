"""Task types for the tests of logs: each writes in ways of its own."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from taskpool import Secret, TaskContext, task

log = logging.getLogger("app.work")
KEPT = sys.stderr
"""Code that keeps the stream it found when it was imported."""


@task("speak")
def speak(ctx: TaskContext, how: str) -> None:
    """Writes in one way."""
    WAYS[how](ctx)


def by_print(ctx: TaskContext) -> None:
    print("one")
    print("two", "three", sep="-", flush=True)
    print("no line feed", end="")


def by_stderr(ctx: TaskContext) -> None:
    print("to stderr", file=sys.stderr)
    KEPT.write("kept\n")


def by_logging(ctx: TaskContext) -> None:
    log.info("%d things", 3)
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("it failed")
    log.debug("not at this level")


def by_bytes(ctx: TaskContext) -> None:
    sys.stdout.buffer.write("bytes é\n".encode())
    sys.stdout.flush()


def by_binary(ctx: TaskContext) -> None:
    sys.stdout.buffer.write(b"\x00\x1b\x80\xff\n")


def by_subprocess(ctx: TaskContext) -> None:
    subprocess.run(["sh", "-c", "echo from sh; echo to 2 >&2; echo reopened > /dev/stdout"], check=True)


def by_descriptor(ctx: TaskContext) -> None:
    os.write(1, b"raw \xc3")
    os.write(1, b"\xa9\n")
    os.write(2, b"raw 2\n")


def by_fork(ctx: TaskContext) -> None:
    process = multiprocessing.get_context("fork").Process(target=in_child)
    process.start()
    process.join()


def by_thread(ctx: TaskContext) -> None:
    thread = threading.Thread(target=print, args=("from a thread",))
    thread.start()
    thread.join()


def by_bar(ctx: TaskContext) -> None:
    for percent in range(0, 101, 10):
        print(f"\r{percent} %", end="", file=sys.stderr)
    print(file=sys.stderr)


def by_everything(ctx: TaskContext) -> None:
    ctx.log("said")
    print("printed")
    log.warning("logged")
    print("printed again")


WAYS: dict[str, Callable[[TaskContext], None]] = {
    "print": by_print,
    "stderr": by_stderr,
    "logging": by_logging,
    "bytes": by_bytes,
    "binary": by_binary,
    "subprocess": by_subprocess,
    "descriptor": by_descriptor,
    "fork": by_fork,
    "thread": by_thread,
    "colour": lambda ctx: print("\x1b[31mred\x1b[0m"),
    "bar": by_bar,
    "everything": by_everything,
    "nothing": lambda ctx: None,
}


def in_child() -> None:
    print("from the child")
    log.warning("the child logs")
    sys.stdout.flush()


@task("much")
def much(lines: int = 0, chars: int = 0) -> None:
    """Writes much."""
    for number in range(lines):
        print(f"line {number}")
    if chars:
        print("x" * chars)


@task("raw_much")
def raw_much(megabytes: int) -> None:
    """Writes much outside Python."""
    subprocess.run(["sh", "-c", f"head -c {megabytes}000000 /dev/zero | tr '\\0' x"], check=True)


@task("crash")
def crash(ctx: TaskContext, wait_s: float = 0) -> str:
    """Writes, and dies in its first attempt."""
    print("before the end")
    log.warning("logged")
    os.write(1, b"raw, and no line feed")
    time.sleep(wait_s)
    if not os.path.exists(os.environ["TASKS_NOTE"]):
        with open(os.environ["TASKS_NOTE"], "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


@task("fail")
def fail(ctx: TaskContext) -> None:
    """Says which attempt it is, and fails."""
    print(f"attempt {ctx.attempt}")
    raise ValueError("as asked")


@task("slow")
def slow(until: str, steps: int = 3) -> None:
    """Writes a line, and further ones as the file `until` grows."""
    for step in range(steps):
        while os.path.getsize(until) < step:
            time.sleep(0.005)
        print(f"step {step}", flush=True)


@task("hang")
def hang(until: str = "") -> None:
    """Writes, and goes on until somebody ends it."""
    print("it hangs")
    while True:
        time.sleep(0.01)


@task("chat")
async def chat(name: str, lines: int) -> None:
    """Writes by turns with its neighbours, in each way that there is."""
    for number in range(lines):
        print(f"{name} {number}")
        await asyncio.sleep(0)
        log.info("%s logs %d", name, number)
        await asyncio.gather(aside(name, number))
        await asyncio.to_thread(print, f"{name} in a thread {number}")


async def aside(name: str, number: int) -> None:
    print(f"{name} aside {number}", file=sys.stderr)


@task("chat_blocking")
def chat_blocking(ctx: TaskContext, name: str, lines: int) -> None:
    """The same in a thread."""
    for number in range(lines):
        print(f"{name} {number}")
        log.info("%s logs %d", name, number)
        ctx.log(f"{name} says {number}")
        time.sleep(0.001)


@task("tell")
def tell(token: Annotated[str, msgspec.Meta(extra_json_schema={"writeOnly": True})]) -> None:
    """Shows its secret in every way."""
    print(f"token={token}")
    log.warning("token %s", token)
    os.write(1, f"raw {token}\n".encode())


FORGED = "2026-11-29 12:00:00,000 INFO forged"
ORDER = "\x1b]52;c;aGk=\x07\x1b[2J\x9b1A\b\u202e"


@task("forge")
def forge(token: Secret[str]) -> None:
    """Writes what looks like the worker's log, and orders to a terminal, in every way there is."""
    print(FORGED)
    for end in ("\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\x1bE"):
        print(f"{ORDER}{end}{FORGED}", file=sys.stderr)
    print(f"no end {ORDER}", end="", flush=True)
    sys.stdout.buffer.write(f"{ORDER}\n{FORGED}\n".encode())
    sys.stdout.flush()
    for name in ("app.work", "workers", "taskpool"):
        logging.getLogger(name).error("%s\n%s", ORDER, FORGED)
    thread = threading.Thread(target=print, args=(f"{ORDER}\n{FORGED}",), daemon=True)
    thread.start()
    thread.join()
    for name in ("app.work", "workers"):
        thread = threading.Thread(target=logging.getLogger(name).error, args=(f"{ORDER}\n{FORGED}",), daemon=True)
        thread.start()
        thread.join()
    subprocess.run(["printf", f"{ORDER}\\n{FORGED}\\n{token}\\n".replace("%", "%%")], check=True)
    sys.stdout.write(token[:7])
    sys.stdout.write(f"{token[7:]}\n")
    raise ValueError(f"{ORDER}\n{FORGED}")
