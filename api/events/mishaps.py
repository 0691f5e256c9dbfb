"""What goes wrong in a loop that goes on all the same: it is logged once, not each time it is tried again."""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from taskpool.errors import RedisUnavailable
from taskpool.store import ReplyFault

AGAIN_S: Final = 60.0
"""A bug that stays is told again after so long."""

logger = logging.getLogger(__name__)


class Mishaps:
    """The errors of what is called `name`: a Redis that is away until it is `over`, each kind of bug once a minute."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: dict[type[Exception], float] = {}

    def note(self, error: Exception) -> None:
        """Log it, unless it was told."""
        kind, now_mono = type(error), time.monotonic()
        if now_mono < self._told.get(kind, -math.inf):
            return
        if isinstance(error, RedisUnavailable | ReplyFault):
            self._told[kind] = math.inf
            logger.warning("%s: %s; trying again", self._name, error)
        else:
            self._told[kind] = now_mono + AGAIN_S
            logger.error("%s: a bug; trying again", self._name, exc_info=error)

    def over(self) -> None:
        """Redis is there."""
        self._told = {kind: until_mono for kind, until_mono in self._told.items() if until_mono < math.inf}
