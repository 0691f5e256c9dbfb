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
from taskpool.tasks.context import Retry, Snooze, SoftTimeout, TaskContext, TaskStopped
from taskpool.tasks.hooks import around_attempt, on_process_start, on_process_stop
from taskpool.tasks.registry import Registry
from taskpool.tasks.task import Task, task
from taskpool.text import Secret
from taskpool.types import TaskRecord, TaskSpec, TaskStatus

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


if TYPE_CHECKING:
    from taskpool.async_pool import AsyncTaskPool
    from taskpool.client.async_client import AsyncClient
    from taskpool.client.client import Client
    from taskpool.pool import TaskPool
else:  # a type checker would take any name from a module with __getattr__
    _LAZY = {
        "AsyncClient": "taskpool.client.async_client",
        "AsyncTaskPool": "taskpool.async_pool",
        "Client": "taskpool.client.client",
        "TaskPool": "taskpool.pool",
    }

    def __getattr__(name):
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'taskpool' has no attribute {name!r}")
