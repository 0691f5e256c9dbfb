"""What tests share: waiting for something that another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T], timeout_s: float = 10) -> T:
    """The first truthy answer of `predicate`, asked every 10 ms.

    Raises:
        AssertionError: none came in time; the text shows the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout_s:g} s"
        time.sleep(0.01)
    return answer
