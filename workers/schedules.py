"""Fires schedules, and stores those that the loaded modules declare. What is due is compared and set by scripts, so two
pools may do it at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from taskpool.operations.catalog import PoolInfo, pools
from taskpool.operations.flow.declared import Declarations, declare, declares
from taskpool.operations.flow.occurrences import fire_due
from taskpool.operations.queue import Rules
from taskpool.redis.async_store import AsyncStore
from taskpool.settings import Settings

from .duties import LogOnce

IDLE_S: Final = 1.0
LEAST_S: Final = 0.02
READ_POOLS_S: Final = 5.0
"""How often a round reads which pools live, and compares what this pool's modules declare with what is stored."""


class Schedules:
    """One duty: every second, or earlier when a schedule is due. With any number of schedules of which none is due, a
    round costs one round trip. `declared` are the schedules that the loaded modules declare. `is_mine`: whether this
    pool has the housekeeping, and with it the schedules that are due."""

    def __init__(
        self,
        store: AsyncStore,
        settings: Settings,
        declared: Callable[[], Declarations],
        *,
        is_mine: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store, self._rules, self._declared = store, Rules.of(settings), declared
        self._is_mine = is_mine
        self._pools: list[PoolInfo] = []
        self._read_pools_mono = -READ_POOLS_S
        self._log_once = LogOnce()

    async def step(self) -> float:
        """One round; the seconds until the next. Raises: RedisUnavailable."""
        if not self._is_mine() and not self._declared():
            return IDLE_S
        announced = {item for each in self._pools for item in each.declares.items()}
        every_s = READ_POOLS_S if declares(self._declared()).items() <= announced else IDLE_S
        if time.monotonic() - self._read_pools_mono >= every_s:
            self._pools = await self._store.carry_out(pools())
            for warning in await self._store.carry_out(declare(self._declared(), self._pools)):
                self._log_once(logging.WARNING, warning)
            self._read_pools_mono = time.monotonic()
        if not self._is_mine():
            return IDLE_S
        wait_s = await self._store.carry_out(fire_due(self._rules, self._pools))
        return min(IDLE_S, max(wait_s, LEAST_S))
