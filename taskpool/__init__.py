"""Typed tasks on Redis: what a program imports. Everything else is reached through these names.

A task file needs no Redis and no RQ, and workers start by importing task files: so the pool, which brings
both, is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskpool.context import TaskContext
from taskpool.errors import (
    AttemptLost,
    ConfigurationError,
    DuplicateType,
    FieldError,
    InvalidPayload,
    InvalidTask,
    QueueFull,
    RedisUnavailable,
    TaskConflict,
    TaskNotFound,
    TaskpoolError,
    UnknownDependency,
    UnknownType,
    WaitTimeout,
)
from taskpool.interrupts import NonRetryable, Retry, Snooze, SoftTimeout, TaskStopped
from taskpool.registry import Registry
from taskpool.secret import Secret
from taskpool.task import Task, task
from taskpool.types import TaskRecord, TaskSpec, TaskStatus

if TYPE_CHECKING:
    from taskpool.async_pool import AsyncTaskPool
    from taskpool.pool import TaskPool

__all__ = [
    "AsyncTaskPool",
    "AttemptLost",
    "ConfigurationError",
    "DuplicateType",
    "FieldError",
    "InvalidPayload",
    "InvalidTask",
    "NonRetryable",
    "QueueFull",
    "RedisUnavailable",
    "Registry",
    "Retry",
    "Secret",
    "Snooze",
    "SoftTimeout",
    "Task",
    "TaskConflict",
    "TaskContext",
    "TaskNotFound",
    "TaskPool",
    "TaskRecord",
    "TaskSpec",
    "TaskStatus",
    "TaskStopped",
    "TaskpoolError",
    "UnknownDependency",
    "UnknownType",
    "WaitTimeout",
    "task",
]


def __getattr__(name: str) -> Any:
    if name == "TaskPool":
        from taskpool.pool import TaskPool

        return TaskPool
    if name == "AsyncTaskPool":
        from taskpool.async_pool import AsyncTaskPool

        return AsyncTaskPool
    raise AttributeError(f"module 'taskpool' has no attribute {name!r}")
