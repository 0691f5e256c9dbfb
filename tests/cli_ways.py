"""The two ways on which commands reach tasks, Redis and an API: they must do the same on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from taskpool import Registry, TaskPool


class Reached(TaskPool):
    """A pool on the tests' Redis, and the flags with which the commands reach the same tasks."""

    def __init__(self, redis_url: str, way: Sequence[str], registry: Registry) -> None:
        super().__init__(redis_url, registry=registry)
        self.way = way

    def __enter__(self) -> Self:
        return self
