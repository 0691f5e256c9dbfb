"""How a drain is measured, the same for every contestant: from the first tenth of its results to the last one.

The first tenth is left out because processes don't start at the same moment; the clock stops when every
result is stored. Counting reads one number from Redis a few hundred times a second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from benchmarks.contestants import Contestant
from benchmarks.processes import Workers

STALL_S = 60.0
HEAD = 0.1


@dataclass(frozen=True)
class Drain:
    """`tasks` were done within `seconds`, at that cost in CPU time of the workers and of Redis."""

    tasks: int
    seconds: float
    worker_cpu_s: float
    redis_cpu_s: float

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    def figures(self) -> dict[str, float]:
        return {
            "tasks_per_s": self.rate,
            "worker_cpu_us": self.worker_cpu_s / self.tasks * 1e6,
            "redis_cpu_us": self.redis_cpu_s / self.tasks * 1e6,
        }


@dataclass(frozen=True)
class Mark:
    """What the clocks said when so many tasks were done."""

    done: int
    at: float
    worker_cpu_s: float
    redis_cpu_s: float


class Meter:
    """Watches `contestant` and its `workers` on the Redis at `redis_url`, looking every `sample_s` seconds."""

    def __init__(self, contestant: Contestant, workers: Workers, redis_url: str, *, sample_s: float = 0.005) -> None:
        self.contestant = contestant
        self.workers = workers
        self.redis = redis.Redis.from_url(redis_url)
        self.sample_s = sample_s

    def drain(self, total: int, *, already: int = 0) -> Drain:
        """Measure until `total` results are stored beyond the `already` stored ones.

        Raises:
            ChildProcessError: a worker ended, or no task was done for STALL_S.
        """
        start = self.mark(already + max(1, int(total * HEAD)))
        end = self.mark(already + total)
        return between(start, end)

    def mark(self, target: int) -> Mark:
        """The clocks at the first look that finds at least `target` results."""
        seen, moved = -1, time.monotonic()
        while (done := self.contestant.completed()) < target:
            now = time.monotonic()
            if done != seen:
                seen, moved = done, now
            elif now - moved > STALL_S:
                raise ChildProcessError(f"stuck at {done} of {target}:\n{self.workers.tail()}")
            self.workers.check_alive()
            time.sleep(self.sample_s)
        at = time.monotonic()
        used = self.redis.info("cpu")
        return Mark(done, at, self.workers.cpu_s(), float(used["used_cpu_user"] + used["used_cpu_sys"]))


def between(start: Mark, end: Mark) -> Drain:
    return Drain(
        tasks=end.done - start.done,
        seconds=end.at - start.at,
        worker_cpu_s=end.worker_cpu_s - start.worker_cpu_s,
        redis_cpu_s=end.redis_cpu_s - start.redis_cpu_s,
    )


def check_results(contestant: Contestant, handles: list[object], *, sample: int = 100) -> None:
    """Read a spread of results back through the contestant's own interface: task n's is n + 1.

    Raises:
        AssertionError: one is missing or wrong.
    """
    for n in range(0, len(handles), max(1, len(handles) // sample)):
        found = contestant.result(handles[n])
        if found != {"n": n + 1}:
            raise AssertionError(f"task {n} of {type(contestant).__module__} has the result {found!r}")
