"""taskpool: a pool started as its command starts it, tasks put in through `TaskPool`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import redis

from benchmarks.processes import Command
from taskpool import TaskPool, TaskSpec
from taskpool.tasks.registry import Registry

MODULE = "benchmarks.tasks"
CHUNK = 1_000


class Queue:
    """`type` is one of `benchmarks.tasks`. Tasks go to the `queues` in turn, in calls of CHUNK tasks."""

    speed: float = 10_000

    def __init__(
        self, redis_url: str, *, type: str = "increment", slots: int = 1, queues: Sequence[str] = ("default",)
    ) -> None:
        self.redis_url = redis_url
        self.type, self.slots, self.queues = type, slots, queues
        self.redis = redis.Redis.from_url(redis_url)
        registry = Registry()
        registry.load([MODULE])
        self.pool = TaskPool(redis_url, registry=registry)

    def enqueue(self, n: int) -> str:
        id: str = self.pool.add_task(self.type, {"n": n}).id
        return id

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        ids: list[str] = []
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            queues = itertools.islice(itertools.cycle(self.queues), start, start + len(chunk))
            specs = [TaskSpec(type=self.type, payload={"n": n}, queue=q) for n, q in zip(chunk, queues, strict=True)]
            ids += [record.id for record in self.pool.add_tasks(specs)]
        return ids

    def ask(self, n: int) -> dict[str, int]:
        """Put a task in and wait for its result."""
        spec = TaskSpec(type=self.type, payload={"n": n})
        result: dict[str, int] = self.pool.add_and_wait(spec, wait_s=10).result
        return result

    def commands(self, processes: int) -> list[Command]:
        settings: dict[str, object] = {
            "REDIS_URL": self.redis_url,
            "WORKERS": processes,
            "TASKS": MODULE,
            "LOG_LEVEL": "warning",
        }
        settings |= {"SLOTS": self.slots, "QUEUES": ",".join(self.queues)}
        ours = {f"TASKPOOL_{name}": str(value) for name, value in settings.items()}
        return [Command(["-m", "taskpool_workers"], ours)]

    def completed(self) -> int:
        return sum(int(self.redis.zcard(f"rq:finished:{queue}")) for queue in self.queues)

    def result(self, handle: str) -> dict[str, int] | None:
        found: dict[str, int] | None = self.pool.get(handle).result
        return found

    def close(self) -> None:
        self.pool.close()
        self.redis.close()
