"""What the operations below `taskpool.operations.insight` return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from taskpool.types import TaskStatus
from taskpool.types.base import Document, OpenEnum
from taskpool.validation import Field

StatsRange = Literal["1h", "24h", "7d", "90d"]
StatsBy = Literal["type", "queue", "build"]
WaitsBy = Literal["queue", "type", "key", "project"]
Counts = Annotated[tuple[int, ...], Field("For each point.")]
Milliseconds = Annotated[tuple[float | None, ...], Field("For each point; null where no attempt ended.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A version of the task modules. `since`: when a worker pool with it was first seen."""

    build: Annotated[str, Field(examples=["3f9c2ab"])]
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsDurations:
    """How long attempts had been queued, and how long they ran, over a whole range; None if none ended."""

    wait_p50_ms: float | None = None
    wait_p95_ms: float | None = None
    run_p50_ms: float | None = None
    run_p95_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsSeries:
    """Counts and durations over time, of one type, queue or build, or of all. An attempt that was lost with its process
    counts as `crashed`. Waits and runs are those of attempts, by when they ended; `p50` is the median."""

    type: Annotated[str | None, Field("`(other)` is the rest.", examples=["resize"])] = None
    queue: Annotated[str | None, Field("`(other)` is the rest.", examples=["default"])] = None
    build: Annotated[str | None, Field("Empty for what no worker did; `(other)` is the rest.")] = None
    submitted: Counts
    done: Counts
    failed: Counts
    retried: Counts
    crashed: Counts
    stopped: Counts
    canceled: Counts
    expired: Counts
    snoozed: Counts
    given_back: Counts
    asked: Counts
    wait_p50_ms: Milliseconds
    wait_p95_ms: Milliseconds
    run_p50_ms: Milliseconds
    run_p95_ms: Milliseconds
    durations: Annotated[StatsDurations, Field("Of all attempts that ended in the range.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepths:
    """How many tasks were queued in a queue: the highest sample of each point."""

    queue: Annotated[str, Field("`(other)` is the rest.", examples=["default"])]
    values: Annotated[tuple[int | None, ...], Field("For each point; null where there is no sample.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts and durations over time: `points` points of `step_s` seconds each, from `start` on."""

    step_s: int
    start: datetime
    points: int
    series: tuple[StatsSeries, ...]
    depth: tuple[QueueDepths, ...]
    builds: tuple[Build, ...]
    is_partial: Annotated[bool, Field("The last point isn't over.")] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long the attempts of a task type ran in the last seven days."""

    count: Annotated[int, Field(least=0)]
    p50_ms: Annotated[float | None, Field("Null if there were none.")] = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    buckets: Annotated[
        tuple[tuple[float | None, ...], ...],
        Field(
            "`[le_s, n]`: `n` attempts took at most `le_s` seconds, and more than the bucket before; the last has null."
        ),
    ]


_FINGERPRINT: Final = Field(
    "12 hexadecimal digits, the same for failures with the same cause.", examples=["3f9c02d51ab7"]
)
_COUNT: Final = Field(least=0)
ALL: Final = "all"
"""The step of a redrive that retries what is left."""


class RedriveStatus(OpenEnum):
    """Where a redrive stands. `stopped`: its tasks failed again, or a person stopped it."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"


class Redrive(Document, frozen=True, kw_only=True):
    """The retry of a group of failures in growing steps, which stops by itself when they fail again."""

    id: Annotated[str, Field(examples=["d2mk1v8q4e6c0a7rstug"])]
    fingerprint: Annotated[str, _FINGERPRINT]
    status: RedriveStatus
    steps: Annotated[tuple[int | str, ...], Field("How many tasks each step retries; `all` is the rest.")]
    step: Annotated[int, Field("The number of the current or last step, from 1.", least=0)]
    retried: Annotated[int, Field("How many tasks it has retried.", least=0)] = 0
    succeeded: Annotated[int, Field("How many of them are done.", least=0)] = 0
    failed_again: Annotated[int, _COUNT] = 0
    left_out: Annotated[
        int,
        Field("Tasks that were not or can't be retried, or ended otherwise: removed, stopped, canceled.", least=0),
    ] = 0
    include_nonretryable: bool = False
    why: Annotated[str | None, Field("Why it has stopped.")] = None
    by: Annotated[str | None, Field("Who started it.")] = None
    created_at: datetime
    ended_at: datetime | None = None


class FailureGroup(Document, frozen=True, kw_only=True):
    """Failed attempts with the same fingerprint. Of more than 20 types, builds, queues or workers, the others count
    together under an empty name."""

    fingerprint: Annotated[str, _FINGERPRINT]
    error_type: Annotated[
        str, Field("The exception, or the reason of a failure without one.", examples=["KeyError", "crashed SIGSEGV"])
    ]
    message: Annotated[str, Field("The error of the last one.")]
    place: Annotated[
        str,
        Field("The innermost place in the user's code; empty if there is none.", examples=["images.py:41 in resize"]),
    ] = ""
    count: Annotated[int, Field("Failed attempts, also of tasks that were done later.", least=0)]
    tasks: Annotated[int, Field("Those after which the task stayed failed.", least=0)]
    first_seen: datetime
    last_seen: datetime
    types: Mapping[str, int]
    builds: Mapping[str, int]
    queues: Mapping[str, int]
    workers: Mapping[str, int]
    spark: Annotated[tuple[int, ...], Field("Failed attempts in each of the last 24 hours, the current one last.")]
    retryable: Annotated[bool, Field("False if the last one was a `NonRetryable`.")]
    sample: Annotated[str, Field("The task that failed last.", examples=["d217r8m2n3aolstf2ch5"])]
    traceback: Annotated[str | None, Field("That of the sample, if its record is still there.")] = None
    redrive: Redrive | None = None


class Severity(StrEnum):
    """How urgent a finding is."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class Finding(Document, frozen=True, kw_only=True):
    """Something that is wrong, or may become so."""

    id: Annotated[str, Field("The rule, and what it found.", examples=["unserved_queue:reports"])]
    severity: Severity
    title: Annotated[str, Field("One sentence.", examples=["No worker serves the queue reports: 212 tasks wait"])]
    text: Annotated[str, Field("What it means and what to do.")]
    count: Annotated[int, Field("How many tasks, processes or deliveries are affected.", least=0)] = 0
    since: datetime | None = None
    link: Annotated[str, Field("The fragment of the page that shows more.", examples=["#/queues/reports"])] = ""
    action: Annotated[str | None, Field("A command that may solve it.")] = None
    runbook: Annotated[str, Field(examples=["docs/monitoring.md#no-worker-serves-a-queue"])] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingGroup:
    """Queued tasks that have the queue, the type, the API key or the project in common."""

    name: Annotated[
        str | None, Field("None: tasks that no API key submitted, or without a project.", examples=["default"])
    ] = None
    count: Annotated[int, Field("How many of the tasks that were looked at belong to it.", least=0)]
    queued: Annotated[int | None, Field("Only of a queue: how many tasks are queued in it.", least=0)] = None
    oldest_s: Annotated[float, Field("How long the one that waits longest has been queued.", least=0)]
    queues: Annotated[tuple[str, ...], Field("Where they wait, the queue with the longest wait first.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Who waits longest for a worker."""

    by: Annotated[str, Field("What the groups are.", examples=["queue"])]
    groups: Annotated[tuple[WaitingGroup, ...], Field("The 100 that wait longest, the longest wait first.")]
    looked_at: Annotated[
        int, Field("How many tasks were looked at: the first of the queues that wait longest.", least=0)
    ]
    queued: Annotated[int, Field("How many tasks are queued in all queues.", least=0)]


class BrokenTask(Document, frozen=True, kw_only=True):
    """A stored task that would fail with the task types of a build."""

    id: str
    type: str
    status: TaskStatus
    queue: str
    reason: Annotated[str, Field("`unknown_task` or `invalid_payload`.", examples=["invalid_payload"])]
    detail: str


class CheckReport(Document, frozen=True, kw_only=True):
    """What `taskpool check` has found."""

    checked: Annotated[int, Field("How many tasks it has looked at.", least=0)]
    broken: Annotated[int, _COUNT]
    types: Annotated[Mapping[str, int], Field("How many are broken of each type.")]
    tasks: Annotated[tuple[BrokenTask, ...], Field("The first 100 of them.")]
