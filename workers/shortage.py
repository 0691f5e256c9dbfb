"""What the host has run out of, in words that say what to do: file descriptors, processes, threads, memory, disk."""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

log = logging.getLogger("workers")

ADVICE: Final = {
    errno.EMFILE: "this process has too many open files; raise the limit (ulimit -n), or close what tasks leave open",
    errno.ENFILE: "the host has too many open files; raise fs.file-max",
    errno.EAGAIN: "no more processes or threads are allowed; raise the limit (ulimit -u, or pids.max of the container)",
    errno.ENOMEM: "the host has too little memory",
    errno.ENOSPC: "the disk is full; free some space in the folder for temporary files (TMPDIR)",
    errno.EDQUOT: "the disk quota is used up; free some space in the folder for temporary files (TMPDIR)",
}
FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
TAKEN: Final = frozenset({errno.EBADF, errno.ENOTSOCK})
"""What a socket answers whose descriptor was closed, or now stands for something else."""
TAKEN_ADVICE: Final = "a task has closed file descriptors of the worker; a task should close only what it has opened"
RESERVED: Final = 8
"""Enough to look up a host name and to connect."""
NO_EDGE: Final = 1 << 62
QUICK_S: Final = 0.0005
"""A task that was over sooner opened no great number of files. Only each LOOK_EVERYth of those costs a look."""
LOOK_EVERY: Final = 16


def explain(error: OSError) -> str:
    """Why something couldn't be opened or forked. If the host has run out of something, it says what to do."""
    if isinstance(error, BlockingIOError):  # what a fork raises that isn't allowed
        return ADVICE[errno.EAGAIN]
    return lack(error) or str(error)


def lack(error: BaseException) -> str | None:
    """What the host has run out of, and what to do; None: the error comes from something else."""
    for cause in causes(error):
        # A read that would block has the number of a fork that isn't allowed, so that is left out.
        if isinstance(cause, OSError) and cause.errno in ADVICE and not isinstance(cause, BlockingIOError):
            return ADVICE[cause.errno]
        if isinstance(cause, RuntimeError) and "start new thread" in str(cause):
            return ADVICE[errno.EAGAIN]
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def has_lost_selector(error: BaseException) -> bool:
    """Whether an event loop ended with this error because a task has closed its descriptor, or put another file in its
    place: such a loop can never run again."""
    return isinstance(error, OSError) and error.errno in {errno.EBADF, errno.EINVAL}


class Files:
    """The file descriptors of a worker process. It leaves in order before they run out, so that the task that leaked
    them ends as it did, and no other task fails for the lack of them.

    A few are kept in reserve: enough to connect to Redis once more, and to write how the last task ended.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._quick = 0
        self._reserve: list[int] = []
        with suppress(OSError):  # a smaller reserve is better than none
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            for _ in range(RESERVED if limit == resource.RLIM_INFINITY else min(RESERVED, limit // 16)):
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        self._edge = self._edge_now()
        if self._reserve and self._reserve[-1] >= self._edge:
            log.warning("worker %s: the limit of open files is very low; raise it (ulimit -n)", worker)
            self._edge = NO_EDGE

    def are_short_after(self, run_s: float) -> bool:
        """`are_short`, asked after a task that ran for so long: rarely enough to cost nothing."""
        self._quick += 1
        if run_s <= QUICK_S and self._quick < LOOK_EVERY:
            return False
        self._quick = 0
        return self.are_short()

    def are_short(self) -> bool:
        """Whether the process has nearly no file descriptors left, and must leave. The reason is logged.

        It costs about a microsecond: the next free number tells how many are in use."""
        try:
            fd = os.dup(0)
        except OSError as error:
            if error.errno not in FILES:  # a task closed 0
                return False
            self._log()
            return True
        os.close(fd)
        if fd < self._edge or fd < (edge := self._edge_now()):
            return False
        self._edge = edge
        self._log()
        return True

    def give_way(self, error: BaseException) -> bool:
        """Called when Redis couldn't be reached. If the reason was a lack of file descriptors, it frees the reserve for
        another attempt. True: the process itself has used them up, or a task has closed them, and it must leave."""
        numbers = {cause.errno for cause in causes(error) if isinstance(cause, OSError)}
        if numbers & TAKEN:
            self._log(TAKEN_ADVICE)
            return True
        lacks = numbers & FILES
        if not lacks or not self._reserve:
            return False
        fds, self._reserve = self._reserve, []
        for fd in fds:
            with suppress(OSError):  # a task closed it
                os.close(fd)
        if errno.EMFILE in lacks:
            self._log()
        return errno.EMFILE in lacks

    def _edge_now(self) -> int:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return NO_EDGE if limit == resource.RLIM_INFINITY else limit - max(limit // 16, 2 * RESERVED)

    def _log(self, why: str = ADVICE[errno.EMFILE]) -> None:
        log.error("worker %s leaves and is replaced: %s", self._worker, why)
