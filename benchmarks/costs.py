"""What operations cost Redis: its CPU time and commands for each, and how they grow with queues and their length.

One program makes the calls that a worker process makes, one after the other, so each figure has the whole cost: the
script, reading the call and writing the answer.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import redis

from benchmarks.contestants.taskpool import Queue
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis
from taskpool.redis import scripts
from taskpool.redis.keys import FIREHOSE
from taskpool.redis.scripts import Done, Turn
from taskpool.redis.store import Store

WORKER = "bench.1.0000.1"
BATCH = 16
LEASE_MS = 600_000
MANY = 50
SUBSCRIBERS = 10


class Meter:
    """Adds what Redis used for a number of operations to the readings."""

    def __init__(self, client: redis.Redis, readings: Readings) -> None:
        self._client, self._readings = client, readings

    def _used(self) -> tuple[float, int]:
        cpu, stats = self._client.info("cpu"), self._client.info("commandstats")
        return cpu["used_cpu_user"] + cpu["used_cpu_sys"], sum(each["calls"] for each in stats.values())

    @contextmanager
    def of(self, name: str, operations: int) -> Iterator[None]:
        """What is done in the block is that many operations."""
        cpu_s, commands = self._used()
        begun_mono = time.monotonic()
        yield
        took_s = time.monotonic() - begun_mono
        cpu_end_s, commands_end = self._used()
        self._readings.add(
            name,
            {
                "redis_cpu_us": (cpu_end_s - cpu_s) / operations * 1e6,
                "commands": (commands_end - commands - 2) / operations,  # without the two INFO
                "one_after_the_other_per_s": operations / took_s,
            },
        )


class Bench:
    """The operations, on an empty Redis at first."""

    def __init__(self, redis_url: str, readings: Readings) -> None:
        self.url, self.store = redis_url, Store(redis_url)
        self.client = redis.Redis.from_url(redis_url)
        self.meter = Meter(self.client, readings)
        self.ids = itertools.count()

    def close(self) -> None:
        self.store.close()
        self.client.close()

    def turn(self, queues: list[str], done: list[Done], most: int) -> Turn:
        """Ends attempts, and claims up to `most` tasks."""
        return self.store.run(
            scripts.turn(queues, done, worker=WORKER, attempt_id=f"a{next(self.ids)}", lease_ms=LEASE_MS, most=most)
        )

    def work(self, name: str, queues: list[str], tasks: int, most: int) -> None:
        """Claims and ends that many tasks, `most` with each call."""
        ended = 0
        with self.meter.of(name, tasks):
            done: list[Done] = []
            while ended < tasks:
                turn = self.turn(queues, done, most)
                ended += len(done)
                done = [Done(running, b'{"n":1}') for running in turn.claimed]
                assert done or ended >= tasks

    def fill(self, tasks: int, queue: str = "default") -> None:
        with closing(Queue(self.url, queues=[queue])) as pool:
            pool.enqueue_many(range(tasks))

    def repeat(self, name: str, operations: int, call: Callable[[int], object]) -> None:
        with self.meter.of(name, operations):
            for n in range(operations):
                call(n)


def run(bench: Bench, tasks: int, long: int) -> None:
    bench.client.flushall()
    with closing(Queue(bench.url)) as queue:
        bench.repeat("submit a task", tasks, queue.enqueue)
        with bench.meter.of("submit a task, 1,000 in a call", tasks):
            queue.enqueue_many(range(tasks))
        (first,) = bench.store.run(
            scripts.turn(["default"], worker=WORKER, attempt_id="x", lease_ms=LEASE_MS, most=1)
        ).claimed
        bench.repeat("read a task", tasks, lambda n: queue.pool.get(first.id))
        attempts = [(first.id, first.attempt_id, first.queue)]
        bench.repeat(
            "renew the lease of a task", tasks, lambda n: bench.store.run(scripts.heartbeat(attempts, LEASE_MS))
        )
    bench.work("claim and end a task", ["default"], tasks, 1)
    bench.work(f"claim and end a task, {BATCH} in a call", ["default"], tasks // 2, BATCH)
    bench.repeat("claim from an empty queue", tasks, lambda n: bench.turn(["empty"], [], 1))
    queues = [f"queue-{n}" for n in range(MANY)]
    bench.repeat(f"claim from {MANY} empty queues", tasks, lambda n: bench.turn(queues, [], 1))

    bench.fill(tasks // 2, queues[-1])
    bench.work(f"claim and end a task, the last of {MANY} queues", queues, tasks // 2 - BATCH, 1)

    bench.client.flushall()
    bench.fill(long)
    bench.work(f"claim and end a task, {long:,} wait", ["default"], tasks, 1)
    bench.work(f"claim and end a task, {BATCH} in a call, {long:,} wait", ["default"], tasks, BATCH)

    bench.client.flushall()
    bench.fill(tasks)
    with ExitStack() as clients:
        for _ in range(SUBSCRIBERS):
            client = clients.enter_context(closing(redis.Redis.from_url(bench.url)))
            clients.enter_context(closing(client.pubsub())).psubscribe(FIREHOSE)
        bench.work(f"claim and end a task, {SUBSCRIBERS} connections hear all", ["default"], tasks // 10, 1)


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__, tasks=20_000)
    parser.add_argument("--long", type=int, default=1_000_000, help="the length of a long queue (%(default)s)")
    asked = parser.parse_args(arguments)
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url, closing(Bench(redis_url, readings)) as bench:
        for _ in range(asked.rounds):
            run(bench, asked.tasks, asked.long)
    show("what operations cost Redis", readings.medians(), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
