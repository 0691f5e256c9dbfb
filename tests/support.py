"""What tests share: waiting for what another process does, whether it lives, and small programs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Final, TypeVar

import psutil

T = TypeVar("T")
ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 120
"""How long a test waits for what has to happen. When it happens, the test goes on at once; so this is long enough for a
slow and busy machine. What must not happen for a long time, like the end of a lease, comes later than this."""


def eventually(predicate: Callable[[], T | None], timeout_s: float = PATIENCE_S) -> T:
    """The first truthy answer of `predicate`, asked every 10 ms.

    Raises:
        AssertionError: none came in time; the text shows the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout_s:g} s"
        time.sleep(0.01)
    return answer


async def until(predicate: Callable[[], T | None]) -> T:
    """`eventually`, for a test whose event loop has to run meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not (answer := predicate()):
            await asyncio.sleep(0.01)
    return answer


def is_running(pid: int) -> bool:
    """True while the process lives; a zombie doesn't."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_program(source: str, *arguments: str, **environment: str) -> str:
    """What a Python program prints in a process of its own. It must end with the status 0 and without warnings."""
    warnings = ("-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning")
    ended = subprocess.run(
        [sys.executable, *warnings, "-c", dedent(source), *arguments],
        cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.returncode == 0
    return ended.stdout
