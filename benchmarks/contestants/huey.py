"""huey: its consumer with worker processes, results kept, no periodic tasks, logging warnings only.

Run as a module it is the consumer: `python -m benchmarks.contestants.huey REDIS_URL PROCESSES`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import huey  # type: ignore[import-untyped]

from benchmarks.increment import increment
from benchmarks.processes import Command


class Queue:
    speed: float = 8_000

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.app = huey.RedisHuey("bench", url=redis_url)
        self.task = self.app.task()(increment)

    def enqueue(self, n: int) -> Any:
        return self.task(n=n)

    def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        return [self.task(n=n) for n in numbers]

    def commands(self, processes: int) -> list[Command]:
        arguments = ["-m", "benchmarks.contestants.huey", self.redis_url, str(processes)]
        return [Command(arguments, stop_signal=signal.SIGINT)]

    def completed(self) -> int:
        return int(self.app.storage.conn.hlen(self.app.storage.result_key))

    def result(self, handle: Any) -> dict[str, int] | None:
        found: dict[str, int] | None = handle.get(preserve=True)
        return found

    def close(self) -> None:
        self.app.storage.conn.close()


def consume(redis_url: str, processes: int) -> None:
    """Work until a signal says stop."""
    logging.getLogger("huey").setLevel(logging.WARNING)
    Queue(redis_url).app.create_consumer(workers=processes, worker_type="process", periodic=False).run()


if __name__ == "__main__":
    consume(sys.argv[1], int(sys.argv[2]))
