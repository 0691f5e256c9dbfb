"""How an attempt ends early: what a worker raises inside a running task, and what a task raises to say what is next.

What comes from outside derives from BaseException, so that a task's own `except Exception` doesn't swallow it. A task
may catch it to tidy up, and should let it go on; `finally` and `with` blocks run as usual.
"""

from __future__ import annotations

from taskpool.validation import seconds_fault


class TaskStopped(BaseException):
    """Raised in a task that somebody asked to stop; the task ends as `stopped`."""


class SoftTimeout(BaseException):
    """Raised in a task whose `timeout_s` has passed; it has a short grace to tidy up, then its process is killed."""


class Retry(Exception):
    """Raised by a task whose attempt failed and should be made again: after `after_s` seconds (None: the back-off of
    its type), if attempts are left. If none is, the task fails with `message`.

    A class of your own may leave out `super().__init__()`, and may set `after_s` itself. What isn't a number of seconds
    counts as None.
    """

    after_s: float | None = None

    def __init__(self, message: str = "", *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = None if after_s is None else _checked("Retry", after_s)


class Snooze(Exception):
    """Raised by a task that can't do its work yet: it runs again after `after_s` seconds, with its attempt uncounted.

    A task has 1,000 of them; the next one fails it. A class of your own that sets no `after_s`, or one that isn't a
    number of seconds, waits for the back-off of its type.
    """

    after_s: float | None = None

    def __init__(self, message: str = "", *, after_s: float) -> None:
        super().__init__(message)
        self.after_s = _checked("Snooze", after_s)


def _checked(name: str, after_s: float) -> float:
    if fault := seconds_fault(after_s):
        raise ValueError(f"{name}(after_s=...) {fault}")
    return float(after_s)
