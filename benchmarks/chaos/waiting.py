"""Waiting for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

START_S: Final = 60.0


def await_true(what: str, is_true: Callable[[], bool], timeout_s: float = START_S) -> None:
    """Waits for something to become true.

    Raises:
        TimeoutError: it didn't.
    """
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)
