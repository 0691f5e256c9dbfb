"""How many tasks a worker process claims at once, from how long its last tasks took: as many as will begin soon."""

from __future__ import annotations

from typing import Final

MOST: Final = 16
QUICK_S: Final = 0.0015
"""A task that takes longer ends the batches."""
BATCH_S: Final = 0.004
"""How long the last task of a batch may wait for the others, as far as the last ones tell."""
GROWS_AFTER: Final = 8
"""So many quick tasks in a row double the number."""
WEIGHT: Final = 0.2
"""How much the last task counts in the mean."""


class BatchSize:
    """The number of tasks of the next batch, from how long the last ones took."""

    def __init__(self) -> None:
        self.number = 1
        self._quick = 0
        self._mean_s = 0.0

    def note(self, run_s: float) -> None:
        """A task has taken that long."""
        self._mean_s += WEIGHT * (run_s - self._mean_s)
        if run_s > QUICK_S:
            self._quick = 0
            self.number = max(self.number // 4, 1)
            return
        self._quick += 1
        if self._quick >= GROWS_AFTER and self.number < MOST:
            self._quick = 0
            self.number *= 2
        if (self.number - 1) * self._mean_s > BATCH_S:
            self.number = int(BATCH_S / self._mean_s) + 1
