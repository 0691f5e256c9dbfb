"""Tasks that use the processor for 1 ms, or sleep for 10 ms: how close the rate comes to that of the bare loop.

Sleeps run 16 at once: in 16 processes, or in two processes of eight slots. The memory is that of all processes, where
what several of them share is divided among them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

import psutil
import redis

from benchmarks.contestants import Contestant, lua, taskpool
from benchmarks.measure import Meter, check_results
from benchmarks.processes import Workers, running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis

BUSY: Final = {"BENCHMARK_BUSY_S": "0.001"}
SLEEP: Final = {"BENCHMARK_SLEEP_S": "0.01"}


class Case(NamedTuple):
    """One row of the table: what a task does, who runs it and in how many processes, and the tasks a second there can
    be."""

    does: dict[str, str]
    queue: Callable[[str], Contestant]
    processes: int
    ideal: float


CASES: Final = {
    "1 ms: lua, 2 processes": Case(BUSY, lua.Queue, 2, 2_000),
    "1 ms: taskpool, 2 processes": Case(BUSY, taskpool.Queue, 2, 2_000),
    "10 ms: lua, 16 processes": Case(SLEEP, lua.Queue, 16, 1_600),
    "10 ms: taskpool, 16 processes": Case(SLEEP, taskpool.Queue, 16, 1_600),
    "10 ms: taskpool, 2 processes of 8 slots": Case(
        SLEEP, lambda url: taskpool.Queue(url, type="sleep", slots=8), 2, 1_600
    ),
}


def memory_mb(workers: Workers) -> float:
    used = 0
    for process in workers.tree():
        with suppress(psutil.NoSuchProcess):
            used += process.memory_full_info().pss
    return used / 1e6


def run(case: Case, redis_url: str, seconds: float) -> dict[str, float]:
    """Fills an empty Redis, starts the workers, and measures."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    queue = case.queue(redis_url)
    total = int(case.ideal * seconds)
    try:
        handles = queue.enqueue_many(range(total))
        commands = [
            replace(each, environment={**each.environment, **case.does}) for each in queue.commands(case.processes)
        ]
        with running(commands) as workers:
            measured = Meter(queue, workers, redis_url).drain(total)
            memory = memory_mb(workers)
        check_results(queue, handles)
    finally:
        queue.close()
    return {**measured.figures(), "of_ideal": measured.rate / case.ideal, "memory_mb": memory}


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="about how long each runs in a round (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the rows that contain this text")
    asked = parser.parse_args(arguments)
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url:
        for _ in range(asked.rounds):
            for name, case in CASES.items():
                if asked.only in name:
                    readings.add(name, run(case, redis_url, asked.seconds))
    show("durations: result kept; CPU per task", readings.medians(), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
