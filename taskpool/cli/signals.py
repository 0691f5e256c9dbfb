"""Signals that ask this program to end, as a cancellation of what it's doing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def cancelled_by_signals(again: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a hang-up of the terminal cancel the current task; each further one calls `again`."""
    loop, current = asyncio.get_running_loop(), asyncio.current_task()
    assert current is not None

    def on_signal() -> None:
        if current.cancelling():
            again()
        else:
            current.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
