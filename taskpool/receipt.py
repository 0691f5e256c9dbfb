"""What whoever submits is told of a task, when nothing of it is read back."""

from __future__ import annotations

from typing import NamedTuple

from taskpool.types import TaskStatus


class Receipt(NamedTuple):
    """What a submission became. `is_existing`: a task that was there already holds its unique key."""

    id: str
    status: TaskStatus
    is_existing: bool = False
