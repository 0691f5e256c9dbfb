"""What an API process keeps for some seconds, so that many readers cost Redis no more than one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from taskpool.redis.async_store import AsyncStore
from taskpool.redis.calls import Plan

FRESH_S: Final = 3.0

T = TypeVar("T")


class Fresh(Generic[T]):
    """What a plan reads: read anew when it is older than `fresh_s`, once for all who ask meanwhile."""

    def __init__(self, store: AsyncStore, plan: Callable[[], Plan[T]], *, fresh_s: float = FRESH_S) -> None:
        self._store, self._plan, self._fresh_s = store, plan, fresh_s
        self._kept: tuple[float, T] | None = None
        self._reading: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """The value, at most `fresh_s` old. Raises: RedisUnavailable."""
        if self._kept is not None and time.monotonic() - self._kept[0] < self._fresh_s:
            return self._kept[1]
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
        return await asyncio.shield(self._reading)

    async def _read(self) -> T:
        value = await self._store.carry_out(self._plan())
        self._kept = (time.monotonic(), value)
        return value
