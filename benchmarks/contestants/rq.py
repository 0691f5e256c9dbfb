"""RQ: `SimpleWorker` (no fork a job), one process each, its default serializer, logging errors only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import rq

from benchmarks.increment import increment
from benchmarks.processes import Command


class Queue:
    speed: float = 700

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.redis = redis.Redis.from_url(redis_url)
        self.queue = rq.Queue(connection=self.redis)

    def enqueue(self, n: int) -> rq.job.Job:
        return self.queue.enqueue(increment, n=n)

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        return self.queue.enqueue_many([rq.Queue.prepare_data(increment, kwargs={"n": n}) for n in numbers])

    def commands(self, processes: int) -> list[Command]:
        options = ["--worker-class", "rq.SimpleWorker", "--url", self.redis_url, "--quiet"]
        return [Command(["-m", "rq.cli", "worker", *options])] * processes

    def completed(self) -> int:
        return int(self.redis.zcard("rq:finished:default"))

    def result(self, handle: rq.job.Job) -> dict[str, int] | None:
        found: dict[str, int] | None = handle.return_value(refresh=True)
        return found

    def close(self) -> None:
        self.redis.close()
