"""Tasks a second of two worker processes on a no-op task whose result is kept, beside the peers.

Each round drains a queue filled before the workers start, contestant by contestant; medians are reported. Round
trips are counted apart, through a proxy, on a shorter run.
"""

from __future__ import annotations

import sys

import redis

from benchmarks.contestants import NAMES, contestant, installed
from benchmarks.measure import Drain, Meter, check_results
from benchmarks.processes import running
from benchmarks.proxy import counting_proxy
from benchmarks.report import Readings, chosen, options, show
from benchmarks.server import private_redis

PROCESSES = 2


def drain(name: str, redis_url: str, total: int, *, workers_url: str | None = None) -> Drain:
    """Fill an empty Redis with `total` tasks, start the workers (through `workers_url` if given), measure, check."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    queue = contestant(name, redis_url)
    served = contestant(name, workers_url) if workers_url else queue
    try:
        handles = queue.enqueue_many(range(total))
        with running(served.commands(PROCESSES)) as workers:
            measured = Meter(queue, workers, redis_url).drain(total)
        check_results(queue, handles)
    finally:
        queue.close()
    return measured


def round_trips(name: str, redis_url: str, total: int) -> float:
    """Network round trips a task of the workers, start and stop included."""
    with counting_proxy(redis_url) as proxy:
        drain(name, redis_url, total, workers_url=proxy.url)
        return proxy.round_trips / total


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="about how long each drains in a round (%(default)s)")
    parser.add_argument("--contestants", default=",".join(NAMES), help="comma separated (%(default)s)")
    asked = parser.parse_args(arguments)
    names = chosen(asked.contestants, NAMES)
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url:
        queues = installed(names, redis_url)
        sizes = {name: int(queue.speed * asked.seconds) for name, queue in queues.items()}
        for queue in queues.values():
            queue.close()
        for name, size in sizes.items():
            readings.add(name, {"round_trips": round_trips(name, redis_url, size // 2)})
        for _ in range(asked.rounds):
            for name, size in sizes.items():
                readings.add(name, drain(name, redis_url, size).figures())
    title = f"throughput: {PROCESSES} processes, no-op task, result kept; CPU per task"
    show(title, readings.medians(), as_json=asked.json, ratio_of="tasks_per_s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
