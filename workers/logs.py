"""The log of a worker pool's processes: one line each, to stderr."""

from __future__ import annotations

import logging
import sys
from typing import Final

from taskpool.printable import LogFormatter

FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


def configure(level: str, handler: logging.Handler | None = None) -> None:
    """Sets up the process's log; `level` is one of the setting's words, `handler` writes it (None: to stderr)."""
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LogFormatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level == "info":  # a line for each request of a task would be a line for each task
        logging.getLogger("httpx").setLevel(logging.WARNING)
