"""The start and the end of a worker process, which was forked from one that has imported the task modules."""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from taskpool import hooks

log = logging.getLogger("workers")

STOP_S: Final = 5.0
"""How long the hooks of a process's end and the handlers of `atexit` may take together."""


def become_separate() -> None:
    """Undoes what a fork shares: random generators, and what is to be removed when the fork server ends."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with suppress(Exception):
            numpy_random.seed()
    # Temporary directories and child processes that the task modules made at import are the fork server's: it removes
    # them at its own end. Python tells of neither in public; `multiprocessing` does the same in what it forks itself.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    for module, name in (("multiprocessing.process", "_children"), ("multiprocessing.util", "_finalizer_registry")):
        with suppress(AttributeError, KeyError):
            getattr(sys.modules[module], name).clear()


def run_start_hooks(run: Callable[[Any], Any]) -> bool:
    """Calls them in order. `run` runs what an `async def` hook returns. False: one failed, and the log says so."""
    for hook in hooks.starts:
        try:
            if (awaitable := hook()) is not None:
                run(awaitable)
        except BaseException:
            log.exception("the hook %s of the process's start failed: the process ends", _name(hook))
            return False
    return True


def run_stop_hooks(run: Callable[[Any], Any]) -> None:
    """Calls them, the last one first; what they raise is logged."""
    for hook in reversed(hooks.stops):
        try:
            if (awaitable := hook()) is not None:
                run(awaitable)
        except BaseException:
            log.exception("the hook %s of the process's end failed", _name(hook))


async def await_start_hooks() -> bool:
    """As `run_start_hooks`, on the running event loop."""
    for hook in hooks.starts:
        try:
            await _awaited(hook())
        except BaseException:
            log.exception("the hook %s of the process's start failed: the process ends", _name(hook))
            return False
    return True


async def await_stop_hooks() -> None:
    """As `run_stop_hooks`, on the running event loop."""
    for hook in reversed(hooks.stops):
        try:
            await _awaited(hook())
        except BaseException:
            log.exception("the hook %s of the process's end failed", _name(hook))


def run_exit_handlers() -> None:
    """Runs the handlers of `atexit`, those that the task modules registered at import as well. A process that was
    forked by hand would end without them."""
    try:
        atexit._run_exitfuncs()
    except BaseException:
        log.exception("a handler of atexit failed")


def limit_end() -> None:
    """From now on the process has STOP_S left: then it ends, whatever hook or handler hangs."""

    def end() -> None:
        time.sleep(STOP_S)
        log.error("the hooks and handlers of the process's end took longer than %g s: it ends without them", STOP_S)
        os._exit(0)

    with suppress(RuntimeError):  # no more threads are allowed
        threading.Thread(target=end, name="taskpool-end", daemon=True).start()


async def _awaited(result: Awaitable[None] | None) -> None:
    if result is not None:
        await result


def _name(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))
