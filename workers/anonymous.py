"""Files without a name, which end with the processes that hold them. On Linux they are in memory: a full disk doesn't
matter to them (a full one would end a process that writes to a mapped file)."""

from __future__ import annotations

import os
import tempfile
from typing import IO


def open_file(name: str) -> IO[bytes]:
    """A new, empty file, unbuffered. `name` is only shown, in /proc/PID/fd for example.

    Raises:
        OSError: no file descriptors, memory or disk space are left.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(prefix=f"{name}-", buffering=0)
