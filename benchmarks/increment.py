"""The function that every contestant runs as its task: it only counts, so that what is measured is the queue.

`BENCHMARK_SLEEP_S` and `BENCHMARK_BUSY_S` make it sleep, or use the processor, for so many seconds.
"""

import os
import time
from typing import Final

SLEEP_S: Final = float(os.environ.get("BENCHMARK_SLEEP_S", "0"))
BUSY_S: Final = float(os.environ.get("BENCHMARK_BUSY_S", "0"))


def increment(n: int) -> dict[str, int]:
    """The next number."""
    if BUSY_S:
        end = time.process_time() + BUSY_S
        while time.process_time() < end:
            pass
    if SLEEP_S:
        time.sleep(SLEEP_S)
    return {"n": n + 1}
