"""Task types for the canary test: each gives its secrets away in every way there is, beside a word that may be seen."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from taskpool import NonRetryable, Retry, Secret, Snooze, TaskContext, TaskStopped, task

SEEN = "pebble"
"""Stands beside each secret: where this is found, the secret would have been."""

NOTHING: dict[str, str] = {}

logger = logging.getLogger("app.secrets")


class Account(msgspec.Struct):
    """Something with a secret deep in it."""

    user: str
    password: Secret[str]


class Picky(msgspec.Struct):
    """A payload whose own check says what it was given."""

    token: Secret[str]

    def __post_init__(self) -> None:
        raise ValueError(f"{SEEN} {self.token}")


@task("leak", max_attempts=2, backoff_s=0)
def leak(ctx: TaskContext, how: str, token: Secret[str], account: Account, *, pin: Secret[int], path: str) -> Any:
    """Tell everybody, then end in one way."""
    say_all(ctx, (token, account, pin))
    for line in (token, account.password, str(pin)):
        say(ctx, line)
        say_below(line)
    return ENDS[how](ctx, f"{SEEN} {token} {account!r} {pin}", path)


@task("leak_async", max_attempts=2, backoff_s=0)
async def leak_async(ctx: TaskContext, token: Secret[str]) -> None:
    """Tell everybody from a coroutine, one of its tasks and a thread of its own, and fail."""

    async def shout() -> None:
        say(ctx, token)  # no programs: in a process of several slots their output belongs to no task
        raise LookupError(f"{SEEN} {token}")

    await asyncio.to_thread(print, SEEN, token)
    in_thread(lambda: print(SEEN, token))
    async with asyncio.TaskGroup() as group:
        group.create_task(shout())


@task("refuse")
def refuse(picky: Picky) -> None:
    """Never runs: its payload is refused by itself."""


@task("quiet")
def quiet(number: int) -> int:
    """Has nothing to tell."""
    return number


def say_all(ctx: TaskContext, values: tuple[Any, ...]) -> None:
    """As a whole."""
    print(SEEN, values, flush=True)
    ctx.log((SEEN, values))


def say(ctx: TaskContext, secret: str) -> None:
    """One secret, in all the ways in which a program speaks."""
    text = f"{SEEN} {secret}"
    ctx.progress(1, 2, text)
    ctx.log(text)
    print(text)
    print(text, file=sys.stderr)
    sys.stdout.buffer.write(text.encode() + b"\n")
    in_two(sys.stdout.write, secret)
    logger.warning("%s %s", SEEN, secret)
    warnings.warn(text, stacklevel=1)
    try:
        raise KeyError(text)
    except KeyError:
        logger.exception(text)
    in_thread(lambda: print(text))
    in_thread(lambda: NOTHING[text])
    for form in (repr, json.dumps, quote, lambda value: base64.b64encode(value.encode()).decode()):
        print(SEEN, form(secret))
    print(f"{SEEN} {'x' * (8192 - len(SEEN) - len(secret) // 2)}{secret} across the end of a piece")


def say_below(secret: str) -> None:
    """One secret, past `sys.stdout`: as C code and other programs speak."""
    text = f"{SEEN} {secret}"
    for fd in (1, 2):
        os.write(fd, text.encode() + b"\n")
    in_two(lambda part: os.write(2, part.encode()), secret)
    subprocess.run(["sh", "-c", 'echo "$0"; echo "$0" >&2', text], check=True)


def in_two(write: Callable[[str], Any], secret: str) -> None:
    """A line in two halves, with the secret across them."""
    half = len(secret) // 2
    write(f"{SEEN} {secret[:half]}")
    time.sleep(0.02)
    write(f"{secret[half:]}\n")


def in_thread(function: Callable[[], Any]) -> None:
    """Call it in a thread, whose traceback goes to stderr."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def fail(ctx: TaskContext, text: str, path: str) -> None:
    """An error with a cause, a note and a long text that is cut within the secret."""
    try:
        NOTHING[text]
    except KeyError as cause:
        error = ValueError(f"{'y' * 480} {text}")
        error.add_note(text)
        raise error from cause


def fail_in_group(ctx: TaskContext, text: str, path: str) -> None:
    raise ExceptionGroup(text, [ValueError(text), OSError(2, text, text)])


def leave(ctx: TaskContext, text: str, path: str) -> None:
    sys.exit(text)


def fail_to_compile(ctx: TaskContext, text: str, path: str) -> None:
    compile(text, "<given>", "exec")


def try_again(ctx: TaskContext, text: str, path: str) -> None:
    if ctx.attempt == 1:
        raise Retry(text, after_s=0)
    raise NonRetryable(text)


def snooze(ctx: TaskContext, text: str, path: str) -> Any:
    if not Path(path).exists():
        Path(path).touch()
        raise Snooze(text, after_s=0)
    return give_back(ctx, text, path)


def give_back(ctx: TaskContext, text: str, path: str) -> Any:
    return {text: [text, {"deep": (text,)}]}


def give_nonsense(ctx: TaskContext, text: str, path: str) -> Any:
    return {"a": type(text, (), {})()}


def die(ctx: TaskContext, text: str, path: str) -> None:
    os.write(1, f"{text}, without an end".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def ignore_a_stop(ctx: TaskContext, text: str, path: str) -> None:
    Path(path).touch()
    while True:
        try:
            time.sleep(60)
        except TaskStopped:
            print(text)


def speak_later(ctx: TaskContext, text: str, path: str) -> None:
    """From a thread, when the task is long over."""

    def wait() -> None:
        while not Path(path).exists():
            time.sleep(0.01)
        print(f"late {text}")
        logger.warning("late %s", text)
        os.write(1, f"late {text}\n".encode())

    threading.Thread(target=wait, daemon=True).start()


ENDS: dict[str, Callable[[TaskContext, str, str], Any]] = {
    "fail": fail,
    "group": fail_in_group,
    "exit": leave,
    "compile": fail_to_compile,
    "retry": try_again,
    "snooze": snooze,
    "return": give_back,
    "nonsense": give_nonsense,
    "die": die,
    "hang": ignore_a_stop,
    "late": speak_later,
}
