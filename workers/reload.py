"""`--reload`: loads the task files anew when they change. A broken file is told of, and the old workers stay."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from watchfiles import PythonFilter, awatch

from taskpool.errors import ConfigurationError

log = logging.getLogger("workers")


async def watch(files: Callable[[], Sequence[str]], reload: Callable[[], Awaitable[None]]) -> None:
    """Calls `reload` after each change of a Python file in the folder of one of the files; never returns."""
    while True:
        folders = _folders(files())
        async for _ in awatch(*folders, watch_filter=PythonFilter(), recursive=False, debounce=200):
            try:
                await reload()
            except ConfigurationError as error:
                log.error("not reloaded: %s", error)
            if _folders(files()) != folders:
                break  # the code now lies elsewhere as well


def _folders(files: Sequence[str]) -> set[Path]:
    return {folder for file in files if (folder := Path(file).parent).is_dir()}
