"""Exceptions that end an attempt early: those that a worker raises inside a task, and those that a task raises itself.

The worker's derive from BaseException, so that a task's own `except Exception` doesn't swallow them. A task may catch
one to clean up, and should raise it again; `finally` and `with` blocks run as usual.
"""

from __future__ import annotations

from taskpool.validation import seconds_fault


class TaskStopped(BaseException):
    """Raised in a task when a client stops it. The task ends as `stopped`."""


class SoftTimeout(BaseException):
    """Raised in a task when its `timeout_s` has passed. After a short grace period its process is killed."""


class Retry(Exception):
    """Raise this in a task to retry it after `after_s` seconds (None: the back-off of its type). If no attempts are
    left, the task fails with `message`.

    A class of your own may leave out `super().__init__()`, and may set `after_s` itself. A value that isn't a number of
    seconds counts as None.
    """

    after_s: float | None = None

    def __init__(self, message: str = "", *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = None if after_s is None else _checked("Retry", after_s)


class Snooze(Exception):
    """Raise this in a task that can't do its work yet. It runs again after `after_s` seconds, and the attempt isn't
    counted.

    A task can snooze 1,000 times; then it fails. If a class of your own sets no `after_s`, or one that isn't a number
    of seconds, the back-off of the type is used.
    """

    after_s: float | None = None

    def __init__(self, message: str = "", *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = _checked("Snooze", after_s)


def _checked(name: str, after_s: float) -> float:
    if fault := seconds_fault(after_s):
        raise ValueError(f"{name}(after_s=...) {fault}")
    return float(after_s)
