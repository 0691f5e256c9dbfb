"""Which of the followed tasks are looked at next: a record that somebody deletes by hand tells nobody of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

LOOK_S: Final = 2.0
"""How long at least lies between two looks, however often the hub could make one."""
MOST_AT_ONCE: Final = 1000


class Rota:
    """Each task in its turn, `most` at a time, so that a look costs little however many are followed."""

    def __init__(self, tasks: Callable[[], list[str]], most: int = MOST_AT_ONCE) -> None:
        self._tasks, self._most = tasks, most
        self._waiting: list[str] = []
        self._looked_mono = -math.inf

    def take(self) -> list[str]:
        """Those whose turn it is; none, if it is too early."""
        now_mono = time.monotonic()
        if now_mono < self._looked_mono + LOOK_S:
            return []
        self._looked_mono = now_mono
        self._waiting = self._waiting or self._tasks()
        ids = self._waiting[-self._most :]
        del self._waiting[-self._most :]
        return ids
