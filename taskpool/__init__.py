"""Typed tasks on Redis: what a program imports. Everything else is reached through these names.

A task file needs no Redis, no RQ and no HTTP, and workers start by importing task files: so the pools and the clients,
which bring them, are imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from taskpool.errors import (
    ApiError,
    ApiUnavailable,
    AttemptLost,
    CapReached,
    ConfigurationError,
    DuplicateType,
    FieldError,
    InvalidPayload,
    InvalidTask,
    NoEventLoop,
    NonRetryable,
    NotAllowed,
    ParentResultGone,
    QueueFull,
    RedisUnavailable,
    TaskConflict,
    TaskNotFound,
    TaskpoolError,
    Unauthorized,
    UniqueConflict,
    UnknownDependency,
    UnknownType,
    WaitTimeout,
)
from taskpool.operations.specs import spec_for
from taskpool.tasks.context import TaskContext
from taskpool.tasks.hooks import around_attempt, on_process_start, on_process_stop
from taskpool.tasks.interrupts import Retry, Snooze, SoftTimeout, TaskStopped
from taskpool.tasks.registry import Registry
from taskpool.tasks.task import Task, task
from taskpool.text import Secret
from taskpool.types import TaskRecord, TaskSpec, TaskStatus

if TYPE_CHECKING:
    from taskpool.async_pool import AsyncTaskPool
    from taskpool.client.async_client import AsyncClient
    from taskpool.client.client import Client
    from taskpool.pool import TaskPool

__all__ = [
    "ApiError",
    "ApiUnavailable",
    "AsyncClient",
    "AsyncTaskPool",
    "AttemptLost",
    "CapReached",
    "Client",
    "ConfigurationError",
    "DuplicateType",
    "FieldError",
    "InvalidPayload",
    "InvalidTask",
    "NoEventLoop",
    "NonRetryable",
    "NotAllowed",
    "ParentResultGone",
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
    "Unauthorized",
    "UniqueConflict",
    "UnknownDependency",
    "UnknownType",
    "WaitTimeout",
    "around_attempt",
    "on_process_start",
    "on_process_stop",
    "spec_for",
    "task",
]


_LATER: Final = {
    "AsyncClient": "taskpool.client.async_client",
    "AsyncTaskPool": "taskpool.async_pool",
    "Client": "taskpool.client.client",
    "TaskPool": "taskpool.pool",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'taskpool' has no attribute {name!r}")
