"""`--reload`: loads the task files anew when they change. A broken file is told of, and the old workers stay."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from watchfiles import PythonFilter, awatch

from taskpool.errors import ConfigurationError

log = logging.getLogger("workers")


async def watch(files: Callable[[], Sequence[str]], reload: Callable[[], Awaitable[None]]) -> None:
    """Calls `reload` after each change of one of the files or of a Python file beside one; never returns."""
    while True:
        folders = {Path(file).resolve().parent for file in files()}
        async for _ in awatch(*folders, watch_filter=PythonFilter(), recursive=True, debounce=200):
            try:
                await reload()
            except ConfigurationError as error:
                log.error("not reloaded: %s", error)
            if {Path(file).resolve().parent for file in files()} != folders:
                break  # the tasks now lie elsewhere as well
