"""What a running task sees of the system: who it is, how to report, whether to stop, what its parents gave.

The context knows no Redis. Whoever runs the task gives it a `ContextSink`, which decides how a report travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from taskpool.handover import progress_number, text_of
from taskpool.interrupts import TaskStopped
from taskpool.secret import Secrets, hidden
from taskpool.types import RunningTask

NOTE_MAX_CHARS = 500
LONGEST_MESSAGE = 16 * 1024 * 1024
"""Characters of one message for the log; how many lines and bytes a log holds is a setting."""


class ContextSink(Protocol):
    """What a context needs of the process that runs the task. The methods are called from the task's thread."""

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Report how far the task is. Called as often as the task likes: the sink thins it out."""

    def log(self, message: str) -> None:
        """Keep one line of the task's log."""

    def is_cancelled(self) -> bool:
        """Whether the task was asked to stop. Cheap: a task may ask thousands of times a second."""

    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks it depends on, by id. Called once at most. To read one that is gone raises
        ParentResultGone."""


class TaskContext:
    """Handed to a task that asks for it, with a parameter annotated `TaskContext` or named `ctx`.

    `attempt` counts from 1. What it says is kept with the `secrets` of its payload masked. `traceparent` and
    `tracestate` are the W3C trace context of the submission, if it had one. Example:

        @task("resize_all")
        def resize_all(ctx: TaskContext, urls: list[str]) -> int:
            for done, url in enumerate(urls):
                ctx.raise_if_cancelled()
                ctx.progress(done, len(urls), note=url)
                ...
            return len(urls)
    """

    __slots__ = (
        *("_parents", "_secrets", "_sink", "attempt", "id", "max_attempts", "queue"),
        *("traceparent", "tracestate", "type"),
    )

    def __init__(
        self,
        sink: ContextSink,
        *,
        id: str,
        type: str,
        queue: str = "default",
        attempt: int = 1,
        max_attempts: int = 1,
        secrets: Secrets | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> None:
        self.id = id
        self.type = type
        self.queue = queue
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.traceparent = traceparent
        self.tracestate = tracestate
        self._sink = sink
        self._secrets = secrets
        self._parents: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, running: RunningTask, sink: ContextSink) -> TaskContext:
        """The context of an attempt."""
        return cls(
            sink,
            id=running.id,
            type=running.type,
            queue=running.queue,
            attempt=running.attempt,
            max_attempts=running.max_attempts,
            secrets=running.secrets,
            traceparent=running.traceparent,
            tracestate=running.tracestate,
        )

    @property
    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks named in `depends_on`, by id, in that order. Fetched when first asked for.

        A result is kept until this task is done, but not for ever. To read one that is gone raises ParentResultGone.
        """
        if self._parents is None:
            self._parents = self._sink.parents()
        return self._parents

    @property
    def cancelled(self) -> bool:
        """True once somebody has asked this task to stop. A task that looks can end tidily, in its own time."""
        return self._sink.is_cancelled()

    def raise_if_cancelled(self) -> None:
        """Raises: TaskStopped when somebody has asked this task to stop."""
        if self._sink.is_cancelled():
            raise TaskStopped

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Tell how far the task is: `done` of `total`, in any unit, and a note for people (500 characters are kept).

        Anything that converts to a number counts as one, `Decimal`, `Fraction` and numpy's numbers, too. A note may be
        any object: its `str` is kept.

        Raises: ValueError for what is no number, negative, or not finite.
        """
        done = progress_number("done", done)
        if total is not None:
            total = progress_number("total", total)
        if note is not None:
            note = hidden(text_of(note), self._secrets)[:NOTE_MAX_CHARS]
        self._sink.progress(done, total, note)

    def log(self, message: object) -> None:
        """Keep a line in the task's log: the `str` of any object."""
        self._sink.log(hidden(text_of(message, LONGEST_MESSAGE), self._secrets))
