"""Milliseconds from putting a task in to having its result, on idle workers, beside a bare Lua loop.

Both pools run all the time, blocked; the program asks them in turn, one task at a time with a pause
between, so that each task meets an idle pool.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Protocol

from benchmarks.contestants.lua import Queue as Lua
from benchmarks.contestants.taskpool import Queue as TaskPool
from benchmarks.processes import running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis

PROCESSES = 2
WARM_UP = 100
PAUSE_S = 0.005


class Asked(Protocol):
    def ask(self, n: int) -> dict[str, int]: ...


def ask_ms(queue: Asked, n: int) -> float:
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    answer = queue.ask(n)
    elapsed_ms = (time.perf_counter() - start) * 1000
    if answer != {"n": n + 1}:
        raise AssertionError(f"task {n} has the result {answer!r}")
    return elapsed_ms


def main(arguments: list[str] | None = None) -> int:
    asked = options(__doc__, tasks=500).parse_args(arguments)
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url:
        ours, bare = TaskPool(redis_url), Lua(redis_url)
        queues: dict[str, Asked] = {"taskpool": ours, "lua": bare}
        with running([*ours.commands(PROCESSES), *bare.commands(PROCESSES, mode="answer")]):
            for n in range(WARM_UP):
                for queue in queues.values():
                    ask_ms(queue, n)
            for _ in range(asked.rounds):
                taken: dict[str, list[float]] = {name: [] for name in queues}
                for n in range(asked.tasks):
                    for name, queue in queues.items():
                        taken[name].append(ask_ms(queue, n))
                for name, values in taken.items():
                    cuts = statistics.quantiles(values, n=100)
                    readings.add(name, {"p50_ms": cuts[49], "p99_ms": cuts[98]})
        ours.close()
        bare.close()
    show("latency, enqueue to result, idle pool", readings.medians(), as_json=asked.json, ratio_of="p50_ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
