"""Whether a long queue drains as fast as a short one, and many queues as fast as one.

Two worker processes. 1,000 tasks at a time: the queue is filled again and again while they run, and each filling is
measured. A million at once: the queue is filled before they start, and its rate is read at several depths on the way
down. The same tasks, a fifth as many, in one queue and in 50.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import redis

from benchmarks.contestants.taskpool import Queue
from benchmarks.measure import Meter, between, check_results
from benchmarks.processes import running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis

PROCESSES = 2
SHORT = 1_000
FILLINGS = 20
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
MANY = 50


def drain_short(redis_url: str, readings: Readings) -> None:
    """Fillings of SHORT tasks, each in one call, on workers that already run."""
    queue = Queue(redis_url)
    with running(queue.commands(PROCESSES)) as workers:
        meter = Meter(queue, workers, redis_url, sample_s=0.001)
        for filling in range(FILLINGS):
            queue.enqueue_many(range(SHORT))
            readings.add(f"{SHORT:,} queued", meter.drain(SHORT, already=filling * SHORT).figures())
    queue.close()


def drain_long(redis_url: str, total: int, readings: Readings) -> None:
    """One filling of `total`; one reading between each two depths."""
    queue = Queue(redis_url)
    handles = queue.enqueue_many(range(total))
    with running(queue.commands(PROCESSES)) as workers:
        meter = Meter(queue, workers, redis_url)
        marks = [meter.mark(int(total * part)) for part in (0.01, *DEPTHS)]
    check_results(queue, handles)
    queue.close()
    readings.add(f"{total:,} queued", between(marks[0], marks[-1]).figures())
    for start, end in pairwise(marks):
        readings.add(f"  from {total - start.done:,} to {total - end.done:,}", between(start, end).figures())


def drain_queues(redis_url: str, total: int, number: int, readings: Readings) -> None:
    """One filling of `total`, spread over so many queues."""
    queue = Queue(redis_url, queues=[f"queue-{n}" for n in range(number)])
    handles = queue.enqueue_many(range(total))
    with running(queue.commands(PROCESSES)) as workers:
        drained = Meter(queue, workers, redis_url).drain(total)
    check_results(queue, handles)
    queue.close()
    readings.add(f"{total:,} in {number} queue{'s' if number > 1 else ''}", drained.figures())


def main(arguments: list[str] | None = None) -> int:
    asked = options(__doc__, tasks=1_000_000, rounds=1).parse_args(arguments)
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url, redis.Redis.from_url(redis_url) as client:
        for _ in range(asked.rounds):
            client.flushall()
            drain_short(redis_url, readings)
            client.flushall()
            drain_long(redis_url, asked.tasks, readings)
            for number in (1, MANY):
                client.flushall()
                drain_queues(redis_url, asked.tasks // 5, number, readings)
    show(f"drain, {PROCESSES} processes; CPU per task", readings.medians(), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
