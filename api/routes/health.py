"""/, /livez, /readyz and /metrics.

/metrics shows the whole cluster, so one scrape of any API process is enough: the counters are those that workers keep
in Redis (`taskpool.redis.keys` names them), the gauges are read from the queues. The API itself counts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from taskpool.async_pool import AsyncTaskPool
from taskpool.errors import RedisFull, RedisRefused
from taskpool.operations.overview import busiest_queues, write_probe
from taskpool.redis import keys as names
from taskpool.text import own_version
from taskpool.types import QueueInfo, WorkerInfo
from taskpool.webhooks.delivery import outbox_length

from ..answers import Door, Live, Ready, ServerDocument
from ..auth.caller import READ_ALL
from ..auth.gate import Gate
from ..http.prefix import public_path
from ..http.problems import Problem, retry_after
from ..http.responses import Json
from ..openapi.declarations import Answer, operation
from ..routing import Resource, Socket

BY_TYPE: Final = ("type", "queue")
MOST_QUEUES: Final = 100
"""This many queues have lines of their own, those with the most waiting tasks. All others share one line."""

LABELS: Final = {
    names.TASKS: 3,
    names.WAIT_BUCKET: 3,
    names.WAIT_US_SUM: 2,
    names.RUN_BUCKET: 3,
    names.RUN_US_SUM: 2,
    names.WEBHOOK_ATTEMPTS: 1,
}
"""The number of labels in a counter's field name."""


@dataclass(frozen=True)
class Scrape(Collector):
    """The state of the cluster at one moment, as a collector for prometheus-client."""

    counters: Mapping[str, int]
    queues: Sequence[QueueInfo]
    workers: Sequence[WorkerInfo]
    webhook_outbox: int = 0

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        counted: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for field, value in self.counters.items():
            metric, *labels = names.split_name(field)
            if len(labels) == LABELS.get(metric):  # workers of another version may count other things
                counted[metric].append((tuple(labels), value))
        yield _outcomes(counted[names.TASKS])
        yield _histogram(
            "taskpool_task_wait_seconds",
            "Time from being queued to the start of the attempt.",
            counted[names.WAIT_BUCKET],
            counted[names.WAIT_US_SUM],
        )
        yield _histogram(
            "taskpool_task_run_seconds",
            "Time an attempt ran.",
            counted[names.RUN_BUCKET],
            counted[names.RUN_US_SUM],
        )
        yield from _of_queues(self.queues)
        yield from _of_workers(self.workers)
        yield from _of_webhooks(dict(counted[names.WEBHOOK_ATTEMPTS]), self.webhook_outbox)


def exposition(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    """The text of one scrape and its media type: OpenMetrics for those who accept it, else Prometheus's own."""
    encode, media_type = choose_encoder(accept)
    return encode(scrape), media_type


def _outcomes(counted: Iterable[tuple[tuple[str, ...], int]]) -> Metric:
    family = CounterMetricFamily(
        "taskpool_tasks", "Attempts that ended, by how they ended.", labels=("outcome", *BY_TYPE)
    )
    for labels, value in sorted(counted):
        family.add_metric(labels, value)
    return family


def _histogram(
    name: str,
    text: str,
    buckets: Iterable[tuple[tuple[str, ...], int]],
    sums_us: Iterable[tuple[tuple[str, ...], int]],
) -> Metric:
    """A histogram. Each of the given buckets excludes those below it; Prometheus wants cumulative ones."""
    held: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for labels, value in buckets:
        held[labels[:-1]][labels[-1]] = value
    total_us = dict(sums_us)
    family = HistogramMetricFamily(name, text, labels=BY_TYPE)
    for labels in sorted(held):
        running = accumulate(held[labels].get(bound, 0) for bound in names.BUCKET_LABELS)
        cumulative = list(zip(names.BUCKET_LABELS, map(float, running), strict=True))
        family.add_metric(labels, cumulative, total_us.get(labels, 0) / 1e6)
    return family


def _of_queues(queues: Sequence[QueueInfo]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[QueueInfo], float]]] = {
        "taskpool_queue_depth": ("Tasks that could start now.", lambda queue: queue.queued),
        "taskpool_queue_in_progress": ("Tasks that run now.", lambda queue: queue.in_progress),
        "taskpool_queue_scheduled": ("Tasks that wait for their time.", lambda queue: queue.scheduled),
        "taskpool_queue_waiting": ("Tasks that wait for other tasks.", lambda queue: queue.waiting),
        "taskpool_queue_oldest_seconds": (
            "How long the next task of the queue has waited; 0 when there is none.",
            lambda queue: queue.oldest_s or 0,
        ),
    }
    for name, (text, value_of) in gauges.items():
        family = GaugeMetricFamily(name, text, labels=("queue",))
        for queue in queues:
            family.add_metric((queue.name,), value_of(queue))
        yield family


def _of_workers(workers: Sequence[WorkerInfo]) -> Iterator[Metric]:
    states = ("started", "idle", "busy", "suspended")
    count = dict.fromkeys(states, 0)
    for worker in workers:
        count[worker.state] = count.get(worker.state, 0) + 1
    family = GaugeMetricFamily("taskpool_workers", "Worker processes that are alive, by state.", labels=("state",))
    for state, number in count.items():
        family.add_metric((state,), number)
    yield family


def _of_webhooks(counted: Mapping[tuple[str, ...], int], outbox: int) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "taskpool_webhooks", "Attempts to send webhooks by how they ended, and what was lost.", labels=("outcome",)
    )
    for outcome in names.WEBHOOK_OUTCOMES:
        family.add_metric((outcome,), counted.get((outcome,), 0))
    yield family
    yield GaugeMetricFamily("taskpool_webhook_outbox", "Events that are still to become webhooks.", value=outbox)


logger = logging.getLogger("api")

MEMORY_FULL: Final = "Redis's memory is full (maxmemory): it takes no new tasks until there is room"
EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")
_is_one_word: Final = re.compile(r"/[^/{}]+").fullmatch


class HealthRoutes:
    """Handlers for probes and scrapes. They ignore query parameters, because some probes add one."""

    def __init__(self, pool: AsyncTaskPool, gate: Gate) -> None:
        self._pool = pool
        self._gate = gate

    @operation("open_door", tag="service", query=None, answers={200: Door}, asks_redis=False)
    async def index(self, request: Request) -> Json:
        """GET /: get the name and version of this service, and links to its pages."""
        paths = [path for path in map(_open_path, request.app.routes) if path]
        links = {path.removeprefix("/"): public_path(request.scope, path) for path in paths}
        return Json(Door(service="taskpool", version=own_version(), links=links))

    @operation("is_alive", tag="service", query=None, answers={200: Live}, asks_redis=False)
    async def live(self, request: Request) -> Json:
        """GET /livez: check that this process answers. It doesn't check Redis, which a restart wouldn't repair."""
        return Json(Live(status="ok"))

    @operation("is_ready", tag="service", query=None, answers={200: Ready})
    async def ready(self, request: Request) -> Json:
        """GET /readyz: check that Redis answers and takes writes. Callers that may see all tasks get details."""
        server, workers, beside = await asyncio.gather(
            self._pool.server(), self._pool.workers(), self._pool.worker_warnings()
        )
        if server.role != "master":
            raise _not_ready("it is a read-only replica now")
        is_full = await self._memory_is_full()
        if not await self._gate.would_admit(request.scope, READ_ALL):
            return Json(Ready(status="ok"))
        warnings = (*server.warnings, *((MEMORY_FULL,) if is_full else ()), *beside)
        document = ServerDocument.of(server)
        return Json(
            Ready(status="ok", reads=True, writes=True, redis=document, workers=len(workers), warnings=warnings)
        )

    async def _memory_is_full(self) -> bool:
        """Send Redis a write that changes nothing: whether its memory is full, so that it takes no new tasks.

        Raises:
            Problem: it takes no writes.
        """
        try:
            await self._pool.store.run(write_probe())
        except RedisFull:
            return True
        except RedisRefused as error:
            raise _not_ready(str(error)) from error
        return False

    @operation("get_metrics", tag="service", query=None, answers={200: Answer(str, media_types=EXPOSITIONS)})
    async def metrics(self, request: Request) -> Response:
        """GET /metrics: get the metrics of the whole cluster for Prometheus, or as OpenMetrics by `Accept`."""
        counters, queues, workers, outbox = await asyncio.gather(
            self._pool.counters(),
            self._pool.store.carry_out(busiest_queues(MOST_QUEUES)),
            self._pool.workers(),
            self._pool.store.run(outbox_length()),
        )
        text, media_type = exposition(Scrape(counters, queues, workers, outbox), request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})


def _not_ready(why: str) -> Problem:
    """Redis answers reads but takes no writes. `why` may name hosts, so only the log has it."""
    logger.warning("not ready, Redis takes no writes: %s", why)
    detail = "Redis can be read, but takes no writes at the moment"
    return Problem("redis-unavailable", detail, headers=[retry_after(1)], reads=True, writes=False)


def _open_path(route: BaseRoute) -> str:
    """The path of a route that GET or a WebSocket can open, if it is one constant word; else empty."""
    if not isinstance(route, Route | WebSocketRoute) or not _is_one_word(route.path):
        return ""
    served: object = route.endpoint
    is_open = isinstance(served, Socket) or (isinstance(served, Resource) and "GET" in served.guarded)
    return route.path if is_open else ""
