"""taskpool: a pool started as its command starts it, tasks put in through `TaskPool`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from benchmarks.processes import Command
from taskpool import TaskPool, TaskSpec
from taskpool.tasks.registry import Registry

MODULE = "benchmarks.tasks"
CHUNK = 1_000


class Queue:
    speed: float = 10_000

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.redis = redis.Redis.from_url(redis_url)
        registry = Registry()
        registry.load([MODULE])
        self.pool = TaskPool(redis_url, registry=registry)

    def enqueue(self, n: int) -> str:
        id: str = self.pool.add_task("increment", {"n": n}).id
        return id

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        ids: list[str] = []
        for start in range(0, len(numbers), CHUNK):
            specs = [TaskSpec(type="increment", payload={"n": n}) for n in numbers[start : start + CHUNK]]
            ids += [record.id for record in self.pool.add_tasks(specs)]
        return ids

    def ask(self, n: int) -> dict[str, int]:
        """Put a task in and wait for its result."""
        spec = TaskSpec(type="increment", payload={"n": n})
        result: dict[str, int] = self.pool.add_and_wait(spec, wait_s=10).result
        return result

    def commands(self, processes: int) -> list[Command]:
        settings = {"REDIS_URL": self.redis_url, "WORKERS": str(processes), "TASKS": MODULE, "LOG_LEVEL": "warning"}
        ours = {f"TASKPOOL_{name}": value for name, value in settings.items()}
        return [Command(["-m", "taskpool_workers"], ours)]

    def completed(self) -> int:
        return int(self.redis.zcard("rq:finished:default"))

    def result(self, handle: str) -> dict[str, int] | None:
        found: dict[str, int] | None = self.pool.get(handle).result
        return found

    def close(self) -> None:
        self.pool.close()
        self.redis.close()
