"""When a failed task runs again: exponential back-off with full jitter, capped.

The formula is the one of Marc Brooker's "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from typing import Final

FIRST_S: Final = 1.0
LONGEST_S: Final = 300.0


def backoff_s(
    attempt: int, random_unit: float | None = None, *, first_s: float | None = None, longest_s: float | None = None
) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): anything from 0 to 1, 2, 4, ... 300, or to
    `first_s`, twice that, and so on, `longest_s` at the most. None means these defaults."""
    unit = random.random() if random_unit is None else random_unit
    first_s = FIRST_S if first_s is None else first_s
    longest_s = max(LONGEST_S, first_s) if longest_s is None else longest_s
    return unit * min(longest_s, first_s * 2.0 ** min(attempt - 1, 30))
