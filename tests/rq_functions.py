"""Functions that plain RQ jobs call in the tests: in our workers, where they are named, and in RQ's own."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

NOT_A_FUNCTION = 7


def add(a: int, b: int = 0) -> dict[str, int]:
    """A result that is JSON."""
    return {"sum": a + b}


async def add_later(a: int, b: int = 0) -> int:
    """A coroutine function, as RQ runs them too."""
    await asyncio.sleep(0)
    return a + b


def who(note: str = "") -> int:
    """The process that ran it."""
    return os.getppid()


def fail(path: str) -> str:
    """Note the attempt, then fail."""
    with Path(path).open("a") as file:
        file.write("x")
    raise ValueError("no luck")


def fail_once(path: str) -> str:
    """Fail at the first attempt."""
    if not Path(path).exists():
        Path(path).touch()
        raise ValueError("no luck")
    return "the second time"


def sleep(seconds: float) -> None:
    """Take that long."""
    time.sleep(seconds)


def nothing() -> None:
    """No result."""


class Tools:
    """A class with a function that needs no object."""

    @staticmethod
    def double(n: int) -> int:
        """Twice the number."""
        return 2 * n
