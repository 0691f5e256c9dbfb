"""What people who run Taskpool ask for: which tasks they mean, and operations on many tasks at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypedDict

import msgspec

from taskpool.types import Document, OpenEnum, TaskRecord, TaskStatus
from taskpool.types.dependency import edges_of
from taskpool.validation import DURATION, Duration, Field, seconds_of

ANY_TEXT: Final = re.compile(r"[\s\S]+")
LONGEST_NAME: Final = 128
LONGEST_TEXT: Final = 500
MOST_ATTEMPTS: Final = 1_000_000

if TYPE_CHECKING:
    Past = datetime | timedelta | str
else:  # the form that JSON and queries have
    Past = str
"""A time as filters take it: a time with its zone, or how long ago, such as ``1h``."""

_PAST_TAKES: Final = "a time with its zone, such as 2026-11-24T03:00:00Z, or how long ago, such as 90, 5m or 2d"


def _name(description: str, **more: Any) -> Field:
    return Field(
        description, pattern=ANY_TEXT, most=LONGEST_NAME, takes=f"a text of 1 to {LONGEST_NAME} characters", **more
    )


def _text(description: str) -> Field:
    return Field(description, pattern=ANY_TEXT, most=LONGEST_TEXT, takes=f"a text of 1 to {LONGEST_TEXT} characters")


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which tasks are meant: those that match all given criteria. None gives no criterion.

    Listings, bulk operations and the flags of the command line take the same criteria, which are declared here."""

    status: Annotated[TaskStatus | None, Field("Their status.", metavar="STATUS")] = None
    queue: Annotated[str | None, _name("Their queue.", metavar="NAME")] = None
    type: Annotated[str | None, _name("Their type.", metavar="TYPE")] = None
    tag: Annotated[str | None, _name("A tag that they have.", metavar="TAG")] = None
    project: Annotated[str | None, _name("Their project.", metavar="NAME")] = None
    submitted_by: Annotated[
        str | None, _name("The name of the API key that they were submitted with.", metavar="NAME")
    ] = None
    workflow: Annotated[str | None, _name("The ID of their workflow.", metavar="ID")] = None
    node: Annotated[str | None, _name("The name of their node in `workflow`.", needs="workflow", metavar="NODE")] = None
    parent: Annotated[str | None, _name("The ID of a task that they depend on.", metavar="ID")] = None
    added_by: Annotated[
        str | None, _name("The ID of the task that has added them with `ctx.add_task`.", metavar="ID")
    ] = None
    worker: Annotated[str | None, _name("The worker process that ran them last.", metavar="NAME")] = None
    fingerprint: Annotated[
        str | None, _name("The fingerprint of their failure, see `/failures`.", metavar="FINGERPRINT")
    ] = None
    error: Annotated[str | None, _text("A text that their error contains, in upper or lower case.")] = None
    text: Annotated[
        str | None, _text("A task's ID; anything else is a text that the error contains, in upper or lower case.")
    ] = None
    since: Annotated[
        Past | None,
        Field(f"They were created at this time or later: {_PAST_TAKES}.", takes=_PAST_TAKES, metavar="TIME"),
    ] = None
    until: Annotated[
        Past | None, Field(f"They were created before this time: {_PAST_TAKES}.", takes=_PAST_TAKES, metavar="TIME")
    ] = None
    attempts: Annotated[
        int | None, Field("They have begun at least so many attempts.", least=1, most=MOST_ATTEMPTS)
    ] = None
    min_duration: Annotated[
        Duration | None,
        Field(
            "Their last attempt took at least this long: a number of seconds, or a text like `5m`. An attempt that runs"
            " counts until now.",
            least=0,
            pattern=DURATION,
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The criteria that are given, by name."""
        return {name: value for name in CRITERIA if (value := getattr(self, name)) is not None}

    def keeps(self, record: TaskRecord, now: datetime | None = None) -> bool:
        """Whether a task matches. `now`: until when a running attempt counts. Times and durations must have been read
        with `taskpool.operations.control.search.checked`, and `text` must be no id."""
        same = ("status", "queue", "type", "project", "submitted_by", "workflow", "node", "added_by", "worker")
        if any(getattr(self, name) not in (None, getattr(record, name)) for name in same):
            return False
        if self.tag is not None and self.tag not in record.tags:
            return False
        if self.parent is not None and all(edge.ref != self.parent for edge in edges_of(record.depends_on)):
            return False
        if any(
            text is not None and text.lower() not in (record.error or "").lower() for text in (self.error, self.text)
        ):
            return False
        if self.fingerprint is not None and record.fingerprint != self.fingerprint:
            return False
        if self.attempts is not None and record.attempt < self.attempts:
            return False
        return self._was_created_in_time(record) and self._took_long_enough(record, now)

    def _was_created_in_time(self, record: TaskRecord) -> bool:
        if self.since is None and self.until is None:
            return True
        at = record.created_at
        if at is None:
            return False
        return not (
            (isinstance(self.since, datetime) and at < self.since)
            or (isinstance(self.until, datetime) and at >= self.until)
        )

    def _took_long_enough(self, record: TaskRecord, now: datetime | None) -> bool:
        if self.min_duration is None:
            return True
        ended = record.ended_at
        if ended is None and record.status in (TaskStatus.IN_PROGRESS, TaskStatus.STOPPING):
            ended = now or datetime.now(UTC)
        if record.started_at is None or ended is None:
            return False
        return (ended - record.started_at).total_seconds() >= seconds_of(self.min_duration)


CRITERIA: Final = Filter.__struct_fields__
"""The names of the criteria."""


class Criteria(TypedDict, total=False):
    """The criteria of a `Filter` as keyword arguments."""

    status: TaskStatus | None
    queue: str | None
    type: str | None
    tag: str | None
    project: str | None
    submitted_by: str | None
    workflow: str | None
    node: str | None
    parent: str | None
    added_by: str | None
    worker: str | None
    fingerprint: str | None
    error: str | None
    text: str | None
    since: Past | None
    until: Past | None
    attempts: int | None
    min_duration: Duration | None


Action = Literal["retry", "stop", "cancel", "remove", "move", "run_now"]
"""What an operation does to each task: see `ACTIONS`."""

ACTIONS: Final[Mapping[str, str]] = {
    "retry": "queues failed, stopped and canceled tasks again",
    "stop": "asks running tasks to stop, and cancels those that haven't started",
    "cancel": "cancels tasks that haven't started",
    "remove": "removes ended tasks",
    "move": "puts tasks that haven't started into another queue",
    "run_now": "queues scheduled tasks at once",
}
UNDOABLE: Final = ("cancel", "remove")
"""The actions that can be undone."""


class OperationStatus(OpenEnum):
    """The status of an operation. Later releases may add statuses. An unknown status isn't terminal."""

    RUNNING = "running"
    DONE = "done"
    CANCELED = "canceled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """True if it has ended: nothing of it changes any more."""
        return self.is_known and self is not OperationStatus.RUNNING


class OperationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operation on all tasks that match a filter."""

    action: Annotated[
        Action,
        Field("What is done to each task: " + "; ".join(f"`{name}` {what}" for name, what in ACTIONS.items()) + "."),
    ]
    filter: Annotated[Filter, Field("Which tasks. At least one criterion.", takes="an object of criteria")]
    queue: Annotated[str | None, _name("The queue to which `move` moves the tasks.")] = None
    include_nonretryable: Annotated[
        bool, Field("With `retry`: also tasks whose failure says that a retry is in vain (`NonRetryable`).")
    ] = False
    preview: Annotated[bool, Field("Only count the tasks, and show some of them. Nothing is changed.")] = False


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation would do."""

    count: Annotated[int, Field("How many tasks it would change; if `is_exact` is false, an estimate.", least=0)]
    is_exact: Annotated[bool, Field("All tasks were looked at. Otherwise the count follows from those that were.")]
    sample: Annotated[tuple[TaskRecord, ...], Field("The first five of them.")] = ()
    left_out: Annotated[
        Mapping[str, int],
        Field("Tasks that match, but would be skipped, by reason: `nonretryable`, `not_allowed`, or their status."),
    ] = {}


class Operation(Document, frozen=True, kw_only=True):
    """An operation on many tasks, as it is now."""

    id: Annotated[str, Field(examples=["d217r8m2n3aolstf2ch5"])]
    action: Annotated[
        str, Field("As it was asked for; `undo` for an operation that undoes another one.", examples=["retry"])
    ]
    status: OperationStatus
    filter: Annotated[Mapping[str, Any], Field("The criteria, with times in full.")] = {}
    queue: Annotated[str | None, Field("The queue to which `move` moves the tasks.")] = None
    undoes: Annotated[str | None, Field("The operation that it undoes.")] = None
    matched: Annotated[int, Field("Tasks that have matched so far.", least=0)] = 0
    changed: Annotated[int, Field("Tasks that it has changed so far.", least=0)] = 0
    skipped: Annotated[
        Mapping[str, int],
        Field(
            "Tasks that matched and weren't changed, by reason: their status, or `nonretryable`, `not_allowed`,"
            " `dependency`, `unique_key`, `secrets`, `needed`, `gone`, ..."
        ),
    ] = {}
    looked_at: Annotated[int, Field("Tasks that it has looked at so far.", least=0)] = 0
    progress: Annotated[float, Field("The part that is done, 0 to 1; an estimate while it runs.", least=0, most=1)] = (
        0.0
    )
    by: Annotated[str | None, Field("The name of the API key that started it.")] = None
    project: Annotated[str | None, Field("The project of that key.")] = None
    error: Annotated[str | None, Field("Why it failed.")] = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    undo_until: Annotated[datetime | None, Field("Until when it can be undone.")] = None
