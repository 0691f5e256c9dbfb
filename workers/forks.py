"""What a task forks is no second worker: it handles signals as any program does, and ends where the task's code does.

With the worker's handlers it would note a SIGTERM for after the task, as its parent does, and never end. Coming back
from the task's code (`os.fork()` without an `os._exit`) it would go on in the worker's name, on the same connections.
"""

from __future__ import annotations

import concurrent.futures.thread
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress

from taskpool.attempt import Outcome
from taskpool.types import TaskStatus


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
        # A `multiprocessing.Process` that a thread of an executor starts would wait for that thread at its end: for
        # itself, and so fail. Python has no public way to forget the threads of executors.
        getattr(concurrent.futures.thread, "_threads_queues", {}).clear()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def end_if_forked(worker_pid: int, outcome: Outcome) -> None:
    """Ends this process, as Python would end a program with that outcome, unless it is the worker itself."""
    if os.getpid() == worker_pid:
        return
    is_exit = outcome.failure.get("exception") == SystemExit.__name__
    code = outcome.error.removeprefix(SystemExit.__name__).removeprefix(": ") if is_exit else ""
    with suppress(OSError, ValueError):
        if not is_exit:
            sys.stderr.write(outcome.traceback)
        sys.stdout.flush()
        sys.stderr.flush()
    has_failed = not is_exit and outcome.status is not TaskStatus.DONE
    os._exit(int(code) & 0xFF if code.isdecimal() else int(has_failed or bool(code)))
