"""dramatiq: Redis broker and Redis result backend, its default middleware and its default of 8 threads a process.

With one thread a process it prefetches two messages and sleeps between fetches: some 500 tasks a second, which
would be no comparison. Results have a database of their own, so that counting them costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq.results.errors import ResultMissing

from benchmarks.contestants import database
from benchmarks.increment import increment
from benchmarks.processes import Command

URL_VARIABLE = "BENCHMARK_REDIS_URL"


class Queue:
    speed: float = 4_000
    threads = 8
    environment: Mapping[str, str] = MappingProxyType({})

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.backend = RedisBackend(url=database(redis_url, 1))
        self.broker = RedisBroker(url=redis_url)  # type: ignore[no-untyped-call]
        self.broker.add_middleware(Results(backend=self.backend, store_results=True))  # type: ignore[no-untyped-call]
        self.actor = dramatiq.actor(broker=self.broker)(increment)

    def enqueue(self, n: int) -> Any:
        return self.actor.send(n=n)

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        return [self.actor.send(n=n) for n in numbers]

    def commands(self, processes: int) -> list[Command]:
        sizes = ["--processes", str(processes), "--threads", str(self.threads)]
        arguments = ["-m", "dramatiq", f"{__name__}:serve", *sizes]
        return [Command(arguments, {**self.environment, URL_VARIABLE: self.redis_url})]

    def completed(self) -> int:
        return int(self.backend.client.dbsize())

    def result(self, handle: Any) -> dict[str, int] | None:
        try:
            found: dict[str, int] = handle.get_result(backend=self.backend)
        except ResultMissing:
            return None
        return found

    def close(self) -> None:
        self.broker.close()
        self.backend.client.close()


def serve() -> None:
    """What dramatiq's command calls to find its broker."""
    dramatiq.set_broker(Queue(os.environ[URL_VARIABLE]).broker)
