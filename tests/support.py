"""What tests share: waiting for what another process does, and whether it lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def eventually(predicate: Callable[[], T | None], timeout_s: float = 30) -> T:
    """The first truthy answer of `predicate`, asked every 10 ms.

    Raises:
        AssertionError: none came in time; the text shows the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout_s:g} s"
        time.sleep(0.01)
    return answer


def is_running(pid: int) -> bool:
    """True while the process lives. One that ended and whom nobody collected doesn't."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
