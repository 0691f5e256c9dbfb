"""What the host has run out of, in words that say what to do: file descriptors, processes, threads, memory, disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

ADVICE: Final = {
    errno.EMFILE: "this process has too many open files; raise the limit (ulimit -n), or close what tasks leave open",
    errno.ENFILE: "the host has too many open files; raise fs.file-max",
    errno.EAGAIN: "no more processes or threads are allowed; raise the limit (ulimit -u, or pids.max of the container)",
    errno.ENOMEM: "the host has too little memory",
    errno.ENOSPC: "the disk is full; free some space in the folder for temporary files (TMPDIR)",
    errno.EDQUOT: "the disk quota is used up; free some space in the folder for temporary files (TMPDIR)",
}
FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
RESERVED: Final = 8
"""Enough to look up a host name and to connect."""


def explain(error: BaseException) -> str:
    """An error of the system in words. If the host has run out of something, they say what to do."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in ADVICE:
            return ADVICE[cause.errno]
        if isinstance(cause, RuntimeError) and "start new thread" in str(cause):
            return ADVICE[errno.EAGAIN]
    return str(error)


def is_of_files(error: BaseException) -> bool:
    """Whether an error comes from a lack of file descriptors."""
    return any(isinstance(cause, OSError) and cause.errno in FILES for cause in causes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Reserve:
    """File descriptors that a process keeps for the day on which it has no others: to connect to Redis once more, and
    write how its task ended."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        with suppress(OSError):  # a smaller reserve is better than none
            for _ in range(RESERVED):
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def release(self) -> bool:
        """Gives them free. False: they were already."""
        fds, self._fds = self._fds, []
        for fd in fds:
            with suppress(OSError):  # a task closed it
                os.close(fd)
        return bool(fds)


def is_nearly_out_of_files() -> bool:
    """Whether this process can open hardly any more files. It costs about a microsecond."""
    try:
        fd = os.dup(0)
    except OSError as error:
        return error.errno in FILES
    os.close(fd)
    return False
