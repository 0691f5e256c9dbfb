"""The values of schedules: their statuses, what is submitted, and what is stored. Clients read them without Redis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from taskpool.errors import FieldError, InvalidSchedule
from taskpool.operations.specs import check_spec
from taskpool.tasks.schedule import At, Cron, Every, Times, Timing
from taskpool.types import Document, OpenEnum, TaskSpec
from taskpool.validation import Field, shortened

SCHEDULE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAME_TAKES: Final = "1 to 64 letters, digits, '_', '-' or '.' (ASCII)"
SCHEDULE_ID: Final = re.compile(rf"(?:{SCHEDULE_NAME.pattern}:)?{SCHEDULE_NAME.pattern}")
NOT_IN_A_SCHEDULE: Final = ("delay", "delay_s", "run_at", "depends_on")
"""Options that a scheduled task can't have: its schedule says when it runs."""


class ScheduleStatus(OpenEnum):
    """The status of a schedule. Later releases may add statuses."""

    ACTIVE = "active"
    PAUSED = "paused"
    UNDECLARED = "undeclared"  # it is declared in code, and no live worker pool has loaded that code
    ENDED = "ended"  # it has no further runs


class ScheduleSpec(Timing, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule: when it runs, and the task that it submits."""

    task: Annotated[
        TaskSpec,
        Field(f"The task, as `POST /tasks` takes it, without {', '.join(f'`{name}`' for name in NOT_IN_A_SCHEDULE)}."),
    ]


class PastRun(Document, frozen=True, kw_only=True):
    """What became of one occurrence of a schedule."""

    occurrence: Annotated[datetime, Field("Its nominal time.")]
    at: Annotated[datetime, Field("When it was submitted or settled.")]
    outcome: Annotated[
        str,
        Field(
            "`submitted`; `refused`, for the `reason`; `skipped`, because the run before hadn't ended; or `missed`,"
            " like all others before `until`.",
            examples=["submitted"],
        ),
    ]
    task: Annotated[str | None, Field("The id of the submitted task.", examples=["d217r8m2n3aolstf2ch5"])] = None
    reason: str | None = None
    until: datetime | None = None


class ScheduleRecord(Timing, Document, frozen=True, kw_only=True):
    """A schedule as it is stored. Times are aware, in UTC. Only a schedule that is read by itself has `next_runs` and
    `clock_changes`; a listing has the last ten of its `history`."""

    name: Annotated[str, Field(examples=["nightly"])]
    status: ScheduleStatus
    words: Annotated[str, Field("When it runs, in words.", examples=["At 02:00 every day (Europe/Berlin)"])]
    task: Annotated[Mapping[str, Any], Field("The task that it submits.", examples=[{"type": "long_task"}])]
    project: Annotated[str | None, Field("The project of the API key it was made with.")] = None
    next_at: Annotated[datetime | None, Field("The nominal time of its next run.")] = None
    last_at: Annotated[datetime | None, Field("The nominal time of its last run.")] = None
    last_task: Annotated[str | None, Field("The id of the task that it submitted last.")] = None
    declared_at: Annotated[str | None, Field("The place in the code that declares it.", examples=["tasks.py:12"])] = (
        None
    )
    paused_at: datetime | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    next_runs: Annotated[tuple[datetime, ...], Field("The nominal times of the next ten runs.")] = ()
    clock_changes: Annotated[
        tuple[str, ...], Field("What happens when the clock of its time zone is next put forward and back.")
    ] = ()
    history: Annotated[tuple[PastRun, ...], Field("What became of its last 100 runs, the newest first.")] = ()


def check_name(name: object) -> None:
    """Return if a schedule may be called this. Raises: InvalidSchedule."""
    if not isinstance(name, str) or not SCHEDULE_ID.fullmatch(name):
        raise InvalidSchedule([FieldError("/name", f"must be {NAME_TAKES}, not {shortened(repr(name))}")])


def spec_of(times: Times, task: TaskSpec) -> ScheduleSpec:
    """What a program submits. Raises: InvalidSchedule, if these are no times, or this is no task."""
    if not isinstance(times, Cron | Every | At):
        raise InvalidSchedule([FieldError("/times", f"must be a Cron, an Every or an At, not {type(times).__name__}")])
    check_spec(task, "/task")
    timing = times.timing()
    return ScheduleSpec(**{name: getattr(timing, name) for name in Timing.__struct_fields__}, task=task)
