"""The tasks of `benchmarks.workflows`: many that do next to nothing, and one that runs when all have ended."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from taskpool import TaskContext, task

app = Celery("fan", broker=os.environ.get("FAN_REDIS"), backend=os.environ.get("FAN_REDIS"))
app.conf.update(task_ignore_result=False, worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)


@app.task
def celery_row(n: int) -> int:
    """A row."""
    return n + 1


@app.task
def celery_summary(rows: list[Any]) -> int:
    """How many rows there were."""
    return len(rows)


def rq_row(n: int) -> int:
    """A row."""
    return n + 1


def rq_summary(count: int) -> int:
    """The end. It reads no row: RQ would fetch each job."""
    return count


@task("fan_row")
def fan_row(n: int) -> int:
    """A row."""
    return n + 1


@task("fan_summary")
def fan_summary(ctx: TaskContext, count: int) -> int:
    """The end."""
    return count
