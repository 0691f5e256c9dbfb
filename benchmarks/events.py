"""Milliseconds from a task's report, in its worker, until 1,000 subscribers of one API process have it.

A real worker process runs a task that reports now and then; each report says when it was made. The subscribers are
connections of one process on the same machine, so what they cost is in the figures as well.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import ExitStack

import msgspec

from benchmarks.contestants.taskpool import Queue
from benchmarks.ports import free_port
from benchmarks.processes import Workers, process_cpu_s, running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis
from benchmarks.web.listen import Ages, Audience, Channel
from benchmarks.web.servers import ours, wait_until_they_answer

PAUSE_S = 0.4
"""Between two reports: longer than a worker takes to send one after the other, so that none waits for its turn."""


def measure(queue: Queue, api: Workers, audience: Audience) -> dict[str, float]:
    """The figures of one task's reports to an audience, which is subscribed before a worker starts."""
    with (
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.web.listen"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as listening,
        ExitStack() as ending,
    ):
        ending.callback(listening.kill)  # one that is left before its end would be waited for
        assert listening.stdin is not None
        assert listening.stdout is not None
        assert listening.stderr is not None
        listening.stdin.write(msgspec.json.encode(audience))
        listening.stdin.close()
        if listening.stderr.readline() != b"ready\n":
            raise ChildProcessError(listening.stderr.read().decode())
        (server,) = [each for each in api.tree() if each.pid == api.started[0][1].pid]
        before = process_cpu_s(server)
        with running(queue.commands(1)):
            answer = listening.stdout.read()
        cpu_s = process_cpu_s(server) - before
        if listening.wait():
            raise ChildProcessError(listening.stderr.read().decode())
    ages = msgspec.json.decode(answer, type=Ages)
    cuts = statistics.quantiles(ages.milliseconds, n=100)
    return {
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "last_p50_ms": statistics.median(ages.last_ms),
        "api_cpu_us": cpu_s / len(ages.milliseconds) * 1e6,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("--subscribers", type=int, default=1000, help="connections (%(default)s)")
    parser.add_argument("--reports", type=int, default=25, help="of the task in each round (%(default)s)")
    asked = parser.parse_args(arguments)
    channels: list[Channel] = ["sse", "ws"]
    readings = Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url:
        queue, port = Queue(redis_url), free_port()
        with running([ours(port, redis_url)]) as api:
            wait_until_they_answer([port], api)
            for _ in range(asked.rounds):
                for channel in channels:
                    for size in (1, asked.subscribers):
                        task = queue.pool.add_task("report", {"times": asked.reports, "pause_s": PAUSE_S})
                        audience = Audience(port, size, channel, task.id)
                        readings.add(f"{channel}, {size:,}", measure(queue, api, audience))
        queue.close()
    show("from a report to its subscribers", readings.medians(), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
