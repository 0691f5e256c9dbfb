"""What the command's exit status says, and how an error becomes one line on stderr.

A status tells a script how the task ended, without parsing anything. No command prints a traceback.
"""

from __future__ import annotations

from enum import IntEnum

from taskpool.errors import (
    ApiUnavailable,
    ConfigurationError,
    InvalidKey,
    InvalidTask,
    KeyNotFound,
    NotAllowed,
    RedisUnavailable,
    TaskConflict,
    TaskNotFound,
    TaskpoolError,
    Unauthorized,
    WaitTimeout,
)
from taskpool.types import TaskStatus


class Exit(IntEnum):
    """The exit statuses, as `taskpool --help` lists them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMED_OUT = 4
    STOPPED = 5
    CONFLICT = 6
    NO_REDIS = 7
    BUG = 70
    INTERRUPTED = 130


HELP = """\b
Exit status:
  0  done, or the command did what was asked
  1  the task failed; `up`: a part died
  2  a flag, a setting, a key or a payload is wrong; `up`: it can't start
  3  no task, or no key, has this id
  4  the task didn't end in the time given
  5  the task was stopped or canceled
  6  the task's status doesn't allow that
  7  Redis, or the API of --server, can't be reached
  130  Ctrl-C
"""


class Failure(Exception):
    """Raised to leave the command with one line on stderr and an exit status."""

    def __init__(self, message: str, status: Exit) -> None:
        super().__init__(message)
        self.status = status


def exit_of(status: TaskStatus) -> Exit:
    """How a task ended, as an exit status; a task that hasn't ended gives 0."""
    if status is TaskStatus.FAILED:
        return Exit.FAILED
    if status in (TaskStatus.STOPPED, TaskStatus.CANCELED):
        return Exit.STOPPED
    return Exit.DONE


def failure_of(error: TaskpoolError) -> Failure:
    """The one line and the exit status of an error of the library."""
    statuses: tuple[tuple[type[TaskpoolError], Exit], ...] = (
        (TaskNotFound, Exit.NOT_FOUND),
        (TaskConflict, Exit.CONFLICT),
        (WaitTimeout, Exit.TIMED_OUT),
        (RedisUnavailable, Exit.NO_REDIS),
        (ApiUnavailable, Exit.NO_REDIS),
        (ConfigurationError, Exit.USAGE),
        (InvalidTask, Exit.USAGE),
        (InvalidKey, Exit.USAGE),
        (Unauthorized, Exit.USAGE),
        (NotAllowed, Exit.USAGE),
        (KeyNotFound, Exit.NOT_FOUND),
    )
    status = next((status for kind, status in statuses if isinstance(error, kind)), Exit.FAILED)
    return Failure(_text(error), status)


def _text(error: TaskpoolError) -> str:
    if isinstance(error, Unauthorized):
        return f"{error}; the command takes it as --api-key, or from TASKPOOL_API_KEY"
    if not isinstance(error, InvalidTask):
        return str(error)
    faults = [f"{fault.pointer}: {fault.detail}" for fault in error.errors if fault.detail not in str(error)]
    return "; ".join([str(error), *faults])
