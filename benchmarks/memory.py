"""Bytes of Redis memory per queued small task and per finished one, and which keys they are in.

Once with Redis's own settings, once with those of the embedded one. The total is the growth of `used_memory`; the
rows below it are `MEMORY USAGE` added up by family of keys.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import redis

from benchmarks.contestants.taskpool import Queue
from benchmarks.measure import Meter
from benchmarks.processes import running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis
from taskpool.redis.embedded import COMPACT_HASHES

TOTAL = "used_memory"
IN_A_FAMILY = re.compile(r"^(rq:\w+|taskpool:\w+)")


def used_memory(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def by_family(client: redis.Redis) -> Counter[str]:
    """Bytes by family of keys, exact: nested values are not sampled."""
    sizes: Counter[str] = Counter()
    for key in client.scan_iter(count=1_000):
        name = key.decode()
        match = IN_A_FAMILY.match(name)
        sizes[match.group() if match else name] += int(client.memory_usage(key, samples=0) or 0)
    return sizes


def main(arguments: list[str] | None = None) -> int:
    asked = options(__doc__, tasks=20_000, rounds=1).parse_args(arguments)
    for title, config in (("Redis's own settings", {}), ("the embedded Redis's settings", COMPACT_HASHES)):
        readings = Readings()
        with (
            private_redis(asked.redis_server, unix=asked.unix, config=config) as redis_url,
            redis.Redis.from_url(redis_url) as client,
        ):
            for _ in range(asked.rounds):
                client.flushall()
                measure(redis_url, client, asked.tasks, readings)
            version = client.info("server")["redis_version"]
        show(f"memory, bytes a task: Redis {version}, {title}", readings.medians(), as_json=asked.json)
    return 0


def measure(redis_url: str, client: redis.Redis, total: int, readings: Readings) -> None:
    """Fill, read, let a pool finish everything and end, read again."""
    queue = Queue(redis_url)
    queue.enqueue(0)  # scripts and connections are paid for before the count starts
    empty, families_empty = used_memory(client), by_family(client)

    def add(state: str) -> None:
        grown = {TOTAL: used_memory(client) - empty, **(by_family(client) - families_empty)}
        for family, size in grown.items():
            readings.add(family, {state: size / total})

    queue.enqueue_many(range(total))
    add("queued_bytes")
    with running(queue.commands(2)) as workers:
        Meter(queue, workers, redis_url).mark(total + 1)
    add("finished_bytes")
    queue.close()


if __name__ == "__main__":
    sys.exit(main())
