"""The stacks of a worker process's threads, in words: written by the interpreter itself, also while code outside Python
holds it up, into a file without a name that its fork server reads when the process has ended.

They are written when the supervisor asks for them, before it ends a task by force, and at a fatal error.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import IO, Any, Final

from workers import anonymous

ASK: Final = signal.SIGUSR2
FATAL: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
LONGEST_BYTES: Final = 16_000
"""The end is kept: there stands the main thread."""
WRITE_S: Final = 0.2
"""How long to wait, after asking, until they are surely written."""


def open_file() -> IO[bytes]:
    """A file for one process."""
    return anonymous.open_file("taskpool-stacks")


def write_into(file: IO[Any]) -> None:
    """Has the stacks of this process written into the file from now on. It must stay open."""
    faulthandler.enable(file, all_threads=True)
    faulthandler.register(ASK, file, all_threads=True, chain=False)


def read(file: IO[bytes]) -> str:
    """What was written, at most LONGEST_BYTES of it; empty when nothing was."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_BYTES))
    return file.read().decode("utf-8", "replace").strip()
