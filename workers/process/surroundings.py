"""Restores the global state that a task has changed: streams, logging, working directory, umask and so on.

Only what would harm the next task or the worker, and can't have been meant to last, is restored: docs/tasks.md lists
what is and what isn't. The checks after each task cost about a microsecond together.
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
    """The global state at the start of a process. `Output` restores the descriptors 1 and 2."""

    def __init__(self, capture: Capture, stacks: IO[Any]) -> None:
        self._stacks = stacks
        root = self._root = logging.getLogger()
        self._log = logging.getLogger("workers")
        self._ours = [(each, each.formatter, each.level, list(each.filters)) for each in capture.handlers]
        self._handlers, self._level, self._disabled = list(root.handlers), root.level, root.manager.disable
        known = root.manager.loggerDict.items()
        self._disabled_loggers = {name for name, each in known if getattr(each, "disabled", False)}
        self._streams = [
            (name, getattr(sys, name), dict(_members(getattr(sys, name)))) for name in ("stdout", "stderr")
        ]
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
        """Restores what the next task needs. Called while no task runs."""
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
        """Restores what the worker itself needs. May be called while tasks run."""
        self._restore_streams()
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
        with suppress(OSError, ValueError, RuntimeError):
            process_group.write_stacks_to(self._stacks)

    def _restore_streams(self) -> None:
        for name, stream, members in self._streams:
            if getattr(sys, name, None) is not stream:
                setattr(sys, name, stream)
            if _members(stream) != members:  # a method was replaced, say `sys.stdout.write`
                _members(stream).clear()
                _members(stream).update(members)

    def _enable_loggers(self) -> None:
        for logger in list(self._root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger) and logger.name not in self._disabled_loggers:
                logger.disabled = False

    def _drop_error_filters(self) -> None:
        """Drops new filters that raise warnings: they would fail other tasks. One that ignores warnings may come from a
        library."""
        kept = [each for each in warnings.filters if each[0] != "error" or each in self._filters]
        if len(kept) < len(warnings.filters):
            warnings.resetwarnings()
            warnings.filters.extend(kept)  # type: ignore[attr-defined]


def _members(stream: object) -> dict[str, Any]:
    """The attributes that were set on this stream itself."""
    return getattr(stream, "__dict__", {})


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None
