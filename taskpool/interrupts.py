"""What a worker raises inside a running task to end it from outside.

Both derive from BaseException, so that a task's own `except Exception` doesn't swallow them. A task may catch
them to tidy up, and should let them go on; `finally` and `with` blocks run as usual.
"""

from __future__ import annotations


class TaskStopped(BaseException):
    """Raised in a task that somebody asked to stop; the task ends as `stopped`."""


class SoftTimeout(BaseException):
    """Raised in a task whose `timeout_s` has passed; it has a short grace to tidy up, then its process is killed."""
