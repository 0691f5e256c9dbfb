"""Requests a second to submit a task and to read one, beside bare Starlette, FastAPI + RQ and Flower.

Every service is one process; all have the same Redis, and no worker runs. They take turns, one at a time under load
over 32 connections, and medians over the rounds are reported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import msgspec

from benchmarks.processes import Workers, process_cpu_s
from benchmarks.report import Readings, chosen, options, show
from benchmarks.server import free_port, private_redis
from benchmarks.web.load import Load, Outcome
from benchmarks.web.servers import SERVICES, Service, publish_task, request, wait_until_they_answer

WARM_UP = 0.1  # of a round, before the first


def send(load: Load) -> Outcome:
    """Run a load in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.web.load"],
        input=msgspec.json.encode(load),
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Outcome)


class Server:
    """One service under load, and what it costs."""

    def __init__(
        self, service: Service, port: int, workers: Workers, place: int, *, connections: int, headers: str
    ) -> None:
        self.service, self.port, self.connections, self.headers = service, port, connections, headers
        self.workers, self.place = workers, place

    def submit(self, total: int) -> tuple[dict[str, float], list[str]]:
        """The figures of so many submissions, and the ids of some."""
        path, body = self.service.submit
        figures, bodies = self._send(total, [request("POST", path, body, self.headers)], self.service.accepted)
        return figures, [json.loads(body)[self.service.id_field] for body in bodies]

    def read(self, total: int, ids: list[str]) -> dict[str, float]:
        """The figures of so many reads of these tasks."""
        return self._send(total, [request("GET", self.service.read(id), headers=self.headers) for id in ids], b"200")[0]

    def _send(self, total: int, requests: list[bytes], status: bytes) -> tuple[dict[str, float], list[bytes]]:
        before = self._cpu_s()
        done = send(Load(self.port, self.connections, total, requests, status))
        cuts = statistics.quantiles(done.milliseconds, n=100)
        figures = {
            "requests_per_s": total / done.seconds,
            "cpu_us": (self._cpu_s() - before) / total * 1e6,
            "p50_ms": cuts[49],
            "p99_ms": cuts[98],
        }
        return figures, done.bodies

    def _cpu_s(self) -> float:
        pid = self.workers.started[self.place][1].pid
        return sum(process_cpu_s(process) for process in self.workers.tree() if process.pid == pid)


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--requests", type=int, default=10_000, help="of one round to a quick service (%(default)s)")
    parser.add_argument("--connections", type=int, default=32, help="open at once (%(default)s)")
    parser.add_argument("--contestants", default=",".join(SERVICES), help="a comma-separated choice (%(default)s)")
    asked = parser.parse_args(arguments)
    names = chosen(asked.contestants, list(SERVICES))
    submits, reads = Readings(), Readings()
    with private_redis(asked.redis_server, unix=asked.unix) as redis_url:
        publish_task(redis_url)
        headers = {name: SERVICES[name].headers(redis_url) for name in names}
        ports = {name: free_port() for name in names}
        workers = Workers([SERVICES[name].start(ports[name], redis_url) for name in names])
        try:
            wait_until_they_answer(list(ports.values()), workers)
            servers = {
                name: Server(
                    SERVICES[name], ports[name], workers, place, connections=asked.connections, headers=headers[name]
                )
                for place, name in enumerate(names)
            }
            for server in servers.values():
                total = max(100, int(asked.requests * server.service.share * WARM_UP))
                server.read(total, server.submit(total)[1])
            for _ in range(asked.rounds):
                for name, server in servers.items():
                    total = int(asked.requests * server.service.share)
                    figures, ids = server.submit(total)
                    submits.add(name, figures)
                    reads.add(name, server.read(total, ids))
        finally:
            workers.stop()
    for title, readings in (("submit: POST", submits), ("read: GET", reads)):
        rate = "requests_per_s"
        spread = readings.spread_of_ratios(rate) if "taskpool" in names and asked.rounds > 1 else None
        show(title, readings.medians(), as_json=asked.json, ratio_of=rate, spread=spread)
    return 0


if __name__ == "__main__":
    sys.exit(main())
