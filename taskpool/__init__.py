"""Typed tasks on Redis: the public names of the package.

Task files and workers import this module, and need no Redis, RQ or HTTP client. So the pools and the clients, which
import those, are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from taskpool.errors import (
    ApiError,
    ApiUnavailable,
    AttemptLost,
    CapReached,
    ConfigurationError,
    DuplicateType,
    FieldError,
    InvalidOperation,
    InvalidPayload,
    InvalidSchedule,
    InvalidTask,
    NoEventLoop,
    NonRetryable,
    NotAllowed,
    OperationConflict,
    OperationNotFound,
    ParentNotDone,
    ParentResultGone,
    QueueFull,
    RedisUnavailable,
    ScheduleConflict,
    ScheduleNotFound,
    TaskConflict,
    TaskNotFound,
    TaskpoolError,
    Unauthorized,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
    WaitTimeout,
    WorkflowConflict,
    WorkflowNotFound,
    WorkflowTimeout,
)
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec, WorkflowStatus
from taskpool.tasks.context import Retry, Snooze, SoftTimeout, TaskContext, TaskStopped
from taskpool.tasks.hooks import around_attempt, on_process_start, on_process_stop
from taskpool.tasks.node import After
from taskpool.tasks.outcomes import TaskOutcome
from taskpool.tasks.questions import NotAnswered
from taskpool.tasks.registry import Registry
from taskpool.tasks.schedule import At, Cron, Every
from taskpool.tasks.spec import Spec
from taskpool.tasks.task import Task, task
from taskpool.text import Secret
from taskpool.types import Confirm, TaskRecord, TaskSpec, TaskStatus
from taskpool.types.control import Filter
from taskpool.types.dependency import Dependency

__all__ = [
    "After", "ApiError", "ApiUnavailable", "AsyncClient", "AsyncTaskPool", "At", "AttemptLost", "CapReached",
    "Client", "ConfigurationError", "Confirm", "Cron", "Dependency", "DuplicateType", "Every", "FieldError",
    "Filter", "InvalidOperation", "InvalidPayload", "InvalidSchedule", "InvalidTask", "NoEventLoop", "NodeSpec",
    "NonRetryable", "NotAllowed", "NotAnswered", "OperationConflict", "OperationNotFound", "ParentNotDone",
    "ParentResultGone", "QueueFull", "RedisUnavailable", "Registry", "Retry", "ScheduleConflict",
    "ScheduleNotFound", "ScheduleRecord", "ScheduleStatus", "Secret", "Snooze", "SoftTimeout", "Spec", "Task",
    "TaskConflict", "TaskContext", "TaskNotFound", "TaskOutcome", "TaskPool", "TaskRecord", "TaskSpec",
    "TaskStatus", "TaskStopped", "TaskpoolError", "Unauthorized", "UniqueConflict", "UnknownDependency",
    "UnknownType", "WaitTimeout", "WorkflowConflict", "WorkflowNotFound", "WorkflowRecord", "WorkflowSpec",
    "WorkflowStatus", "WorkflowTimeout", "around_attempt", "on_process_start", "on_process_stop", "task",
]  # fmt: skip


if TYPE_CHECKING:
    from taskpool.async_pool import AsyncTaskPool
    from taskpool.client.async_client import AsyncClient
    from taskpool.client.client import Client
    from taskpool.operations.flow.schedule_values import ScheduleRecord, ScheduleStatus
    from taskpool.pool import TaskPool
else:  # a type checker would take any name from a module with __getattr__
    _LAZY = {
        "AsyncClient": "taskpool.client.async_client",
        "AsyncTaskPool": "taskpool.async_pool",
        "Client": "taskpool.client.client",
        "ScheduleRecord": "taskpool.operations.flow.schedule_values",
        "ScheduleStatus": "taskpool.operations.flow.schedule_values",
        "TaskPool": "taskpool.pool",
    }

    def __getattr__(name):
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'taskpool' has no attribute {name!r}")
