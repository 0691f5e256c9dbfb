"""What the tasks of a process share besides its memory: each of them finds it as the process began with it.

What would harm the next task or the worker itself, and can't have been meant to last, is restored: see docs/tasks.md,
which also names what isn't restored. The looks after each task cost about a microsecond together.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import warnings
from contextlib import suppress
from typing import IO, Any

from .. import process_group
from .output import Capture


class Surroundings:
    """How a process began."""

    def __init__(self, capture: Capture, file: IO[Any] | None, *, has_pipes: bool) -> None:
        self._file = file
        output = {} if has_pipes else {fd: is_ for fd in (1, 2) if (is_ := _file_at(fd)) is not None}
        self._output = {fd: (os.dup(fd), is_) for fd, is_ in output.items()}
        """Descriptors of the worker's own output, each with a copy. Pipes are looked after by `pipes.Output`."""
        root = self._root = logging.getLogger()
        self._log = logging.getLogger("workers")
        self._ours = [(each, each.formatter, each.level, list(each.filters)) for each in capture.handlers]
        self._handlers, self._level, self._disabled = list(root.handlers), root.level, root.manager.disable
        known = root.manager.loggerDict.items()
        self._disabled_loggers = {name for name, each in known if getattr(each, "disabled", False)}
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._stdout_has, self._stderr_has = dict(_members(sys.stdout)), dict(_members(sys.stderr))
        self._umask = os.umask(0o77)
        os.umask(self._umask)
        self._directory = _directory()
        self._socket_timeout_s = socket.getdefaulttimeout()
        self._recursion = sys.getrecursionlimit()
        self._collects = gc.isenabled()
        self._filters = list(warnings.filters)
        self._first_filter = self._filters[0] if self._filters else None
        self._policy = asyncio.get_event_loop_policy() if sys.version_info < (3, 14) else None

    def restore(self) -> None:
        """Restores all that the very next task would trip over. Only while no task runs."""
        self.restore_output()
        os.umask(self._umask)
        if self._directory is not None and _directory() != self._directory:
            with suppress(OSError):  # it was removed
                os.chdir(self._directory)
        if socket.getdefaulttimeout() != self._socket_timeout_s:
            socket.setdefaulttimeout(self._socket_timeout_s)

        if sys.version_info < (3, 14) and asyncio.get_event_loop_policy() is not self._policy:
            asyncio.set_event_loop_policy(self._policy)

    def restore_output(self) -> None:
        """Restores what the worker itself needs, and what keeps a task's output. May be called while tasks run."""
        self._restore_streams()
        if self._output:
            self._restore_descriptors()
        root = self._root
        if root.handlers != self._handlers and not all(each in root.handlers for each, *_ in self._ours):
            root.handlers[:] = self._handlers
        for handler, formatter, level, its_filters in self._ours:
            if handler.formatter is not formatter or handler.level != level or handler.filters != its_filters:
                handler.formatter, handler.level, handler.filters[:] = formatter, level, its_filters
        if self._log.disabled:  # `dictConfig` disables every logger that it doesn't name
            self._enable_loggers()
        if root.level != self._level:
            root.setLevel(self._level)
        if root.manager.disable != self._disabled:
            logging.disable(self._disabled)
        if sys.getrecursionlimit() < self._recursion:  # a higher one may be meant to last
            sys.setrecursionlimit(self._recursion)
        if self._collects and not gc.isenabled():
            gc.enable()
        filters = warnings.filters
        if (filters[0] if filters else None) is not self._first_filter:
            self._drop_error_filters()

    def restore_rest(self) -> None:
        """Restores what can wait a second."""
        if self._file is not None:
            with suppress(OSError, ValueError, RuntimeError):
                process_group.write_stacks_to(self._file)

    def _restore_streams(self) -> None:
        if getattr(sys, "stdout", None) is not self._stdout:
            sys.stdout = self._stdout
        if getattr(sys, "stderr", None) is not self._stderr:
            sys.stderr = self._stderr
        if _members(self._stdout) != self._stdout_has:  # a method was replaced, say `sys.stdout.write`
            _reset(self._stdout, self._stdout_has)
        if _members(self._stderr) != self._stderr_has:
            _reset(self._stderr, self._stderr_has)

    def _restore_descriptors(self) -> None:
        for fd, (copy, is_) in self._output.items():
            if _file_at(fd) != is_:
                with suppress(OSError):
                    os.dup2(copy, fd)

    def _enable_loggers(self) -> None:
        for logger in list(self._root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger) and logger.name not in self._disabled_loggers:
                logger.disabled = False

    def _drop_error_filters(self) -> None:
        """A new filter that ignores warnings may come from a library; one that raises them fails other tasks."""
        kept = [each for each in warnings.filters if each[0] != "error" or each in self._filters]
        if len(kept) < len(warnings.filters):
            warnings.resetwarnings()
            warnings.filters.extend(kept)  # type: ignore[attr-defined]


def _file_at(fd: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None when it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _members(stream: object) -> dict[str, Any]:
    """The attributes of a stream of its own."""
    return getattr(stream, "__dict__", {})


def _reset(stream: object, members: dict[str, Any]) -> None:
    its = _members(stream)
    its.clear()
    its.update(members)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None
