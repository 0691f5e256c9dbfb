"""The log of a worker pool's processes: one line each, to stderr."""

from __future__ import annotations

import logging
import sys


def configure(level: str) -> None:
    """Sets up the process's log; `level` is one of the setting's words."""
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    if level == "info":  # a line for each request of a task would be a line for each task
        logging.getLogger("httpx").setLevel(logging.WARNING)
