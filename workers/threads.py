"""What a thread does can't be cancelled: it can be asked to end, and waited for."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(thread: asyncio.Future[T], interrupt: Callable[[], None] = lambda: None) -> T:
    """Await what runs in a thread. A cancellation calls `interrupt` and goes on waiting: the thread sees
    `ctx.cancelled`, and a task that ignores that is killed with its process."""
    while True:
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if thread.done():
                return thread.result()
            interrupt()


class LoopRunner:
    """Runs on an event loop what a function in a thread returned: a coroutine. There it can be cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: asyncio.Task[Any] | None = None
        self._is_cancelled = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it, and wait for it in this thread. Raises: asyncio.CancelledError after `cancel`."""
        try:
            return asyncio.run_coroutine_threadsafe(self._run(coroutine), self._loop).result()
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None

    def cancel(self) -> None:
        """Cancel it, or what is still to come. Called on the loop."""
        self._is_cancelled = True
        if self._running is not None:
            self._running.cancel()

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._running = asyncio.current_task()
        if self._is_cancelled:
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine
