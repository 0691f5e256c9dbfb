"""What operators do, as values: pauses, worker pools, workers, why a task isn't running, the stack of a running one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from taskpool.types.base import Document, OpenEnum
from taskpool.validation import Field

# --- pauses, pools ------------------------------------------------------------------------------------------------


class Pause(Document, frozen=True, kw_only=True):
    """That a queue, a worker pool or everything is paused."""

    at: Annotated[datetime, Field("Since when.")]
    by: Annotated[str | None, Field("The name of the API key or of the user.")] = None
    why: str | None = None
    drains: Annotated[bool, Field("Of a pool: it finishes its tasks and ends.")] = False


class PoolState(OpenEnum):
    """What a worker pool does."""

    RUNNING = "running"
    PAUSED = "paused"
    """It runs, and claims no tasks."""
    DRAINING = "draining"
    """It finishes its tasks and ends."""
    GONE = "gone"
    """It went away without draining: killed, or cut off from Redis."""


class PoolRecord(Document, frozen=True, kw_only=True):
    """A worker pool: the processes of one supervisor on one host."""

    name: Annotated[str, Field("Unique to its life.", examples=["host-1.4711.9f3c"])]
    host: str
    state: PoolState
    started_at: datetime | None = None
    last_seen_ms: Annotated[int, Field("Its last heartbeat, in ms since 1970.", least=0)]
    processes: Annotated[int, Field(least=0)]
    slots: Annotated[int, Field("How many tasks each process runs at once.", least=1)] = 1
    busy: Annotated[int, Field("How many tasks it runs.", least=0)]
    queues: tuple[str, ...]
    version: Annotated[str, Field("Of Taskpool.")] = ""
    memory_bytes: Annotated[int | None, Field("What its processes use, as of its last heartbeat.", least=0)] = None
    paused: Annotated[Pause | None, Field("Who paused or drains it.")] = None


class TypeStorage(Document, frozen=True, kw_only=True):
    """How much of Redis the tasks of a type use."""

    type: Annotated[str, Field(examples=["resize"])]
    tasks: Annotated[int, Field("Records, also of ended tasks.", least=0)]
    bytes: Annotated[
        int | None, Field("About how much memory they use, by a sample. None: too small to be sampled.", least=0)
    ] = None


LEAST_TARGET_S: Final = 1.0
MOST_TARGET_S: Final = 86_400.0
"""Within which time a queue's load can be asked to be done."""


class QueueLoad(Document, frozen=True, kw_only=True):
    """What a queue asks of its workers, for autoscalers."""

    queue: Annotated[str, Field(examples=["default"])]
    backlog: Annotated[int, Field("Tasks that could start now, and scheduled ones that are due.", least=0)]
    oldest_s: Annotated[float, Field("For how long the first of them has waited.", least=0)]
    in_progress: Annotated[int, Field(least=0)]
    arrival_per_s: Annotated[
        float | None, Field("Tasks submitted per second, in the last five minutes; None if that isn't known.", least=0)
    ] = None
    service_per_s: Annotated[
        float | None, Field("Attempts that ended per second, in the last five minutes.", least=0)
    ] = None
    mean_run_s: Annotated[
        float | None, Field("How long an attempt took on average, in the last 15 minutes.", least=0)
    ] = None
    target_s: Annotated[float, Field("Within which time the workers should have done what waits.", least=0)]
    workers: Annotated[int, Field("Worker processes that serve the queue now.", least=0)]
    workers_needed: Annotated[int, Field("Worker processes that would do it within the target.", least=0)]
    value: Annotated[int, Field("The same as `workers_needed`, under the name that autoscalers read.", least=0)]


class RunningNow(Document, frozen=True, kw_only=True):
    """The task that a worker process runs; of several the one that was submitted first."""

    id: str
    type: str
    since_ms: Annotated[int, Field("When it started, in ms since 1970.", least=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process as RQ's registry shows it."""

    name: str
    host: str
    pid: int
    pool: str | None = None
    build: Annotated[str | None, Field("The version of its task modules; null for RQ's own.", examples=["3f9c2ab"])] = (
        None
    )
    state: Annotated[str, Field("started, idle, busy or suspended", examples=["idle"])]
    queues: tuple[str, ...]
    current: tuple[str, ...]
    done: int
    failed: int
    working_s: float
    started_at: datetime | None = None
    last_heartbeat: datetime | None = None
    task: Annotated[RunningNow | None, Field("What it runs; of several the task that was submitted first.")] = None
    memory_bytes: Annotated[int | None, Field("What it used at its last heartbeat.", least=0)] = None


# --- why a task isn't running -------------------------------------------------------------------------------------


class ReasonKind(OpenEnum):
    """Why a task isn't running."""

    NO_WORKER_FOR_QUEUE = "no_worker_for_queue"
    NO_WORKER_FOR_TYPE = "no_worker_for_type"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    WAITS_FOR = "waits_for"
    SCHEDULED = "scheduled"
    RETRY_BACKOFF = "retry_backoff"
    CONFIRMATION = "confirmation"
    BUSY = "busy"
    HELD_BACK = "held_back"
    EXPIRED = "expired"
    WORKFLOW_STOPPED = "workflow_stopped"
    RUNNING = "running"
    ENDED = "ended"


class TypeCount(Document, frozen=True):
    """How many tasks of a type run."""

    type: str
    n: Annotated[int, Field(least=0)]


class AwaitedTask(Document, frozen=True, kw_only=True):
    """A task, workflow or map that a task waits for. `why` are the reasons for which that one isn't running."""

    id: str
    status: Annotated[str | None, Field("None: it is gone, or isn't a task.")] = None
    why: tuple[Reason, ...] = ()


class Reason(Document, frozen=True, kw_only=True, rename={"running": "with"}):
    """One reason for which a task isn't running. The other members depend on its kind."""

    kind: ReasonKind
    text: Annotated[str, Field("For people.")]
    at: Annotated[datetime | None, Field("When it is to go on; or since when, of a pause, a run and an end.")] = None
    paused: Annotated[str | None, Field("What is paused: `all`, `queue` or `pool`.")] = None
    name: Annotated[str | None, Field("The paused queue or pool.")] = None
    by: Annotated[str | None, Field("Who paused it.")] = None
    tasks: Annotated[tuple[AwaitedTask, ...], Field("What it waits for.")] = ()
    more: Annotated[int, Field("How many more tasks it waits for.", least=0)] = 0
    ahead: Annotated[int | None, Field("How many tasks come first, at least.", least=0)] = None
    workers: Annotated[int | None, Field("How many tasks the workers can run at once.", least=0)] = None
    running: Annotated[tuple[TypeCount, ...], Field("What the workers run.")] = ()
    worker: Annotated[str | None, Field("The worker process that runs it.")] = None


class Why(Document, frozen=True, kw_only=True):
    """Why a task isn't running. Without reasons it can start at once (`can_run`)."""

    id: str
    status: str
    can_run: bool
    reasons: tuple[Reason, ...] = ()


# --- the stack of a running task ----------------------------------------------------------------------------------


class StackFrame(Document, frozen=True, kw_only=True):
    """One frame, the innermost last."""

    file: str
    line: int
    function: str
    is_user: Annotated[bool, Field("It is code of the task's authors, not of Taskpool, Python or a package.")] = False


class Stack(Document, frozen=True, kw_only=True):
    """Where a running task was when it was asked."""

    id: str
    taken_at: datetime
    frames: tuple[StackFrame, ...]
    text: Annotated[str, Field("The stacks of all threads of its worker process.")]
