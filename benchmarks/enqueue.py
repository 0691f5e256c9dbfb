"""Tasks put in a second by one program, one at a time and in batches, beside the peers. No worker runs.

Blocks of every subject alternate; medians over the rounds are reported.
"""

from __future__ import annotations

import sys
import time

import redis

from benchmarks.contestants import Contestant, EnqueuesElsewhere, installed
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis

NAMES = ("taskpool", "rq", "dramatiq", "huey", "bullmq", "lua")
BATCHED = ("taskpool", "rq", "bullmq", "lua")  # the others put in one at a time
SHARE = {"rq": 0.2}  # of --tasks: RQ would take most of the time otherwise
BATCHES = 10


def one_by_one(queue: Contestant, total: int) -> float:
    start = time.perf_counter()
    if isinstance(queue, EnqueuesElsewhere):
        queue.enqueue_each(range(total))
    else:
        for n in range(total):
            queue.enqueue(n)
    return total / (time.perf_counter() - start)


def in_batches(queue: Contestant, total: int) -> float:
    """As `enqueue_many` does it: taskpool and BullMQ in chunks of 1,000, RQ and the bare loop in one call."""
    start = time.perf_counter()
    queue.enqueue_many(range(total))
    return total / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> int:
    asked = options(__doc__, tasks=5_000, rounds=5).parse_args(arguments)
    singles, batches = Readings(), Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url, redis.Redis.from_url(redis_url) as client:
        queues = installed(NAMES, redis_url)
        for queue in queues.values():
            queue.enqueue(0)  # opens its connections, and starts the program of one that enqueues elsewhere
        for _ in range(asked.rounds):
            for name, queue in queues.items():
                client.flushall()
                singles.add(name, {"tasks_per_s": one_by_one(queue, int(asked.tasks * SHARE.get(name, 1)))})
            for name in [each for each in BATCHED if each in queues]:
                client.flushall()
                total = int(asked.tasks * SHARE.get(name, BATCHES))
                batches.add(name, {"tasks_per_s": in_batches(queues[name], total)})
        for queue in queues.values():
            queue.close()
    show("enqueue, one by one", singles.medians(), as_json=asked.json, ratio_of="tasks_per_s")
    show("enqueue, in batches", batches.medians(), as_json=asked.json, ratio_of="tasks_per_s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
