"""What a task forks, with `multiprocessing` for one, doesn't inherit how a worker process handles its signals.

It would note a SIGTERM for after the task, as its parent does, and never end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


def keep_apart(numbers: Iterable[signal.Signals]) -> None:
    """From now on gives these signals their default meaning in every process that this one forks.

    They are held back while it forks: one sent to the new process at once, before it has set its handlers, isn't lost.
    """
    held = frozenset(numbers)
    masks: list[set[int]] = []

    def before() -> None:
        masks.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, held)})

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def in_child() -> None:
        for number in held:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
