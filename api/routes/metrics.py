"""/metrics: the figures of the whole cluster, so one scrape of any API process is enough for them.

The counters are those that workers and scripts keep in Redis (`taskpool.redis.keys` names them); the gauges are read
from the queues. What clients follow is counted in each API process on its own (`taskpool_api_...`). No label is
unbounded: at most 1,000 pairs of type and queue have series of their own, and at most MOST_QUEUES queues have gauges.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple, cast

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.insight.findings import Findings
from taskpool.operations.insight.fresh import Fresh
from taskpool.operations.insight.lags import lags
from taskpool.operations.overview import busiest_queues
from taskpool.redis import keys as names
from taskpool.redis import pause_scripts
from taskpool.types import QueueInfo, WorkerInfo
from taskpool.types.fleet import PoolRecord, PoolState
from taskpool.types.insight import Finding

from ..events.metrics import EventMetrics, Followers
from ..events.streams import Streams
from ..http.declarations import Answer, operation

BY_TYPE: Final = ("type", "queue")
MOST_QUEUES: Final = 100
"""This many queues have lines of their own, those with the most waiting tasks. All others share one line."""

LABELS: Final = {
    names.SUBMITTED: 2,
    names.TASKS: 3,
    names.WAIT_BUCKET: 3,
    names.WAIT_US_SUM: 2,
    names.RUN_BUCKET: 3,
    names.RUN_US_SUM: 2,
    names.WEBHOOK_ATTEMPTS: 1,
}
"""The number of labels in a counter's field name."""

OF_QUEUES: Final = {
    "taskpool_queue_depth": ("queued", "Tasks that could start now."),
    "taskpool_queue_in_progress": ("in_progress", "Tasks that run now."),
    "taskpool_queue_scheduled": ("scheduled", "Tasks that wait for their time."),
    "taskpool_queue_waiting": ("waiting", "Tasks that wait for other tasks."),
    "taskpool_queue_oldest_seconds": (
        "oldest_s",
        "How long the next task of the queue has waited; 0 when there is none.",
    ),
}
"""The gauges of each queue: its field of `QueueInfo`, and the help."""

HISTOGRAMS: Final = (
    (
        "taskpool_task_wait_seconds",
        "Time from being queued to the start of the attempt.",
        names.WAIT_BUCKET,
        names.WAIT_US_SUM,
    ),
    ("taskpool_task_run_seconds", "Time an attempt ran.", names.RUN_BUCKET, names.RUN_US_SUM),
)
"""Each one's name and help, and the counters of its buckets and of its sum."""

WORKER_STATES: Final = ("started", "idle", "busy", "suspended")
EXPOSITIONS: Final = ("text/plain", "application/openmetrics-text")

Counted = tuple[tuple[str, ...], int]
"""Labels and a value."""


class Figures(NamedTuple):
    """Single figures of the service."""

    webhook_outbox: int = 0
    webhook_lag_s: float = 0.0
    schedule_lag_s: float = 0.0
    redis_latency_s: float = 0.0
    redis_memory_bytes: int = 0
    redis_maxmemory_bytes: int = 0


GAUGES: Final = {
    "taskpool_webhook_outbox": "Events that are still to become webhooks.",
    "taskpool_webhook_lag_seconds": "How long the oldest of them has waited; 0 when there is none.",
    "taskpool_schedule_lag_seconds": "By how much the schedule is late that should have run first; 0 when none is.",
    "taskpool_redis_latency_seconds": "How long Redis took to answer this API process, with the way there and back.",
    "taskpool_redis_memory_bytes": "Memory that Redis uses.",
    "taskpool_redis_memory_max_bytes": "Redis's memory limit (maxmemory); 0 when it has none.",
}
"""The gauges for `Figures`, in the same order, and their help."""


@dataclass(frozen=True)
class Scrape(Collector):
    """The state of the cluster at one moment, as a collector for prometheus-client."""

    counters: Mapping[str, int]
    queues: Sequence[QueueInfo] = ()
    workers: Sequence[WorkerInfo] = ()
    figures: Figures = field(default_factory=Figures)
    findings: Sequence[Finding] = ()
    pools: Sequence[PoolRecord] = ()
    is_paused: bool = False
    followers: Followers = field(default_factory=lambda: EventMetrics().now())

    def counted(self) -> Mapping[str, list[Counted]]:
        """The counters by metric, with their labels."""
        counted: dict[str, list[Counted]] = defaultdict(list)
        for name, value in self.counters.items():
            metric, *labels = names.split_name(name)
            if len(labels) == LABELS.get(metric):  # workers of another version may count other things
                counted[metric].append((tuple(labels), value))
        return counted

    def collect(self) -> Iterator[Metric]:
        """The metric families, without the histograms."""
        counted = self.counted()
        text = "Tasks that were submitted."
        yield _family(CounterMetricFamily, "taskpool_tasks_submitted", text, BY_TYPE, sorted(counted[names.SUBMITTED]))
        text = "Attempts that ended, and tasks that ended without one (canceled, expired), by how they ended."
        by_outcome = ("outcome", *BY_TYPE)
        yield _family(CounterMetricFamily, "taskpool_tasks", text, by_outcome, sorted(counted[names.TASKS]))
        attempts = dict(counted[names.WEBHOOK_ATTEMPTS])
        counts = [((outcome,), attempts.get((outcome,), 0)) for outcome in names.WEBHOOK_OUTCOMES]
        text = "Attempts to send webhooks by how they ended, and what was lost."
        yield _family(CounterMetricFamily, "taskpool_webhooks", text, ("outcome",), counts)
        yield from self._gauges()
        yield from self._of_followers()

    def _gauges(self) -> Iterator[Metric]:
        for name, (of, text) in OF_QUEUES.items():
            values = [((queue.name,), getattr(queue, of) or 0) for queue in self.queues]
            yield _family(GaugeMetricFamily, name, text, ("queue",), values)
        paused = [((queue.name,), int(queue.paused is not None)) for queue in self.queues]
        text = "1 while the queue is paused."
        yield _family(GaugeMetricFamily, "taskpool_queue_paused", text, ("queue",), paused)
        yield GaugeMetricFamily("taskpool_paused", "1 while everything is paused.", value=int(self.is_paused))
        of_state = Counter(dict.fromkeys([state.value for state in PoolState], 0))
        of_state.update(pool.state.value for pool in self.pools)
        text = "Worker pools by state; gone: those that went away without draining within the last day."
        yield _family(GaugeMetricFamily, "taskpool_pools", text, ("state",), _each(of_state))
        states = Counter(dict.fromkeys(WORKER_STATES, 0))
        states.update(worker.state for worker in self.workers)
        text = "Worker processes that are alive, by state."
        yield _family(GaugeMetricFamily, "taskpool_workers", text, ("state",), _each(states))
        builds = Counter(worker.build for worker in self.workers if worker.build)
        text = "Worker processes that are alive, by the version of the tasks that they run."
        yield _family(GaugeMetricFamily, "taskpool_worker_builds", text, ("build",), _each(builds))
        found = Counter((each.id.partition(":")[0], each.severity) for each in self.findings)
        text = "What is wrong now, by the rule that found it; nothing of a rule that has found nothing."
        yield _family(GaugeMetricFamily, "taskpool_findings", text, ("rule", "severity"), sorted(found.items()))
        for (name, text), value in zip(GAUGES.items(), self.figures, strict=True):
            yield GaugeMetricFamily(name, text, value=value)

    def _of_followers(self) -> Iterator[Metric]:
        own = self.followers
        text = "Open streams of this API process: of events, logs and the web page's figures, and WebSockets."
        yield _family(GaugeMetricFamily, "taskpool_api_streams", text, ("kind",), _each(own.streams))
        text = "Time from an event, by Redis's clock, until this API process had queued it for its clients."
        buckets = list(zip(names.BUCKET_LABELS, accumulate(own.lags), strict=True))
        yield HistogramMetricFamily("taskpool_api_event_lag_seconds", text, buckets=buckets, sum_value=own.lags_sum_s)
        text = "Events that this API process dropped because their client read too slowly."
        yield CounterMetricFamily("taskpool_api_events_dropped", text, value=own.dropped)
        text = "Subscriptions that lost events: slow, the client read too slowly; trimmed, Redis no longer had them."
        yield _family(CounterMetricFamily, "taskpool_api_resyncs", text, ("reason",), _each(own.resyncs))


def exposition(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    """The text of one scrape and its media type: OpenMetrics for those who accept it, else Prometheus's own."""
    encode, media_type = choose_encoder(accept)
    text, end, rest = encode(scrape).partition(b"# EOF\n")  # OpenMetrics ends with that
    counted = scrape.counted()
    return b"".join([text, *(_histogram(counted, *each) for each in HISTOGRAMS), end, rest]), media_type


def _each(counts: Mapping[str, int]) -> list[Counted]:
    return [((name,), count) for name, count in counts.items()]


def _family(
    kind: Callable[..., Any], name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    """A counter or a gauge with these values by label."""
    family = kind(name, text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return cast(Metric, family)


def _histogram(counted: Mapping[str, list[Counted]], name: str, help: str, bucket: str, sum_us: str) -> bytes:
    """The text of a histogram, the same in both formats. With 1,000 types these are most of the lines, and the library
    takes twenty times as long for each.

    Each of the counted buckets excludes those below it; Prometheus wants cumulative ones."""
    held: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for labels, value in counted.get(bucket, ()):
        held[labels[:-1]][labels[-1]] = value
    totals_us = dict(counted.get(sum_us, ()))
    lines = [f"# HELP {name} {help}\n# TYPE {name} histogram\n"]
    for labels in sorted(held):
        type, queue = map(_escaped, labels)
        of = f'queue="{queue}",type="{type}"'
        counts, count = held[labels], 0
        for bound in names.BUCKET_LABELS:
            count += counts.get(bound, 0)
            lines.append(f'{name}_bucket{{le="{bound}",{of}}} {count}\n')
        lines.append(f"{name}_count{{{of}}} {count}\n{name}_sum{{{of}}} {totals_us.get(labels, 0) / 1e6}\n")
    return "".join(lines).encode()


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class MetricsRoutes:
    """The handler of scrapes. It ignores query parameters, because some scrapers add one."""

    def __init__(self, pool: AsyncTaskPool, findings: Fresh[Findings], streams: Streams) -> None:
        self._pool, self._findings, self._streams = pool, findings, streams

    @operation("get_metrics", tag="service", query=None, answers={200: Answer(str, media_types=EXPOSITIONS)})
    async def metrics(self, request: Request) -> Response:
        """GET /metrics: get the metrics of the whole cluster for Prometheus, or as OpenMetrics by `Accept`."""
        began = time.perf_counter()
        late = await self._pool.store.carry_out(lags())
        latency_s = time.perf_counter() - began
        paused = await self._pool.store.run(pause_scripts.paused())
        counters, queues, workers, pools, server, found = await asyncio.gather(
            self._pool.counters(),
            self._pool.store.carry_out(busiest_queues(MOST_QUEUES)),
            self._pool.workers(),
            self._pool.pools(),
            self._pool.server(),
            self._findings.get(),
        )
        figures = Figures(*late, latency_s, server.used_memory_bytes, server.maxmemory_bytes)
        is_paused = pause_scripts.ALL in paused
        followers = self._streams.followers()
        scrape = Scrape(counters, queues, workers, figures, found.findings, pools, is_paused, followers)
        # In a thread: with 1,000 types there are some 40,000 lines, and other requests are to go on meanwhile.
        text, media_type = await asyncio.to_thread(exposition, scrape, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})
