"""What a thread does can't be cancelled: it can be asked to end, and waited for."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(thread: asyncio.Future[T]) -> T:
    """Await what runs in a thread. Who cancels this waits all the same: `ctx.cancelled` says so there, then comes
    SIGKILL."""
    while True:
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if thread.done():
                return thread.result()
