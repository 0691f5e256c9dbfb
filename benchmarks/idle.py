"""What a pool of five costs while nothing happens: CPU of its processes, their children and Redis, in % of a core."""

from __future__ import annotations

import sys
import time

import redis

from benchmarks.contestants.taskpool import Queue
from benchmarks.processes import running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis

PROCESSES = 5
WATCH_S = 20
SETTLE_S = 2


def main(arguments: list[str] | None = None) -> int:
    asked = options(__doc__, tasks=100, rounds=1).parse_args(arguments)
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url, redis.Redis.from_url(redis_url) as client:

        def redis_cpu_s() -> float:
            used = client.info("cpu")
            return float(used["used_cpu_user"] + used["used_cpu_sys"])

        queue = Queue(redis_url)
        with running(queue.commands(PROCESSES)) as workers:
            for n in range(asked.tasks):  # an idle pool is one that has worked
                queue.ask(n)
            for _ in range(asked.rounds):
                time.sleep(SETTLE_S)
                pool, server, start = workers.cpu_s(), redis_cpu_s(), time.monotonic()
                time.sleep(WATCH_S)
                elapsed = (time.monotonic() - start) / 100
                figures = {"pool_cpu_percent": (workers.cpu_s() - pool) / elapsed}
                figures["redis_cpu_percent"] = (redis_cpu_s() - server) / elapsed
                readings.add("taskpool", {**figures, "processes": len(workers.tree())})
        queue.close()
    show(f"an idle pool of {PROCESSES}, over {WATCH_S} s", readings.medians(), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
