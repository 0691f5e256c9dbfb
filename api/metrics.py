"""The whole cluster's figures as Prometheus metrics: one scrape of any API process shows all workers and queues.

The counters are what workers add up in Redis (`taskpool.metrics_names` is their vocabulary); the gauges are
read from the queues at the moment of the scrape. The API itself counts nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from taskpool import metrics_names as names
from taskpool.fleet import QueueInfo, WorkerInfo

BY_TYPE: Final = ("type", "queue")
MOST_QUEUES: Final = 100
"""So many queues have lines of their own, those with the most tasks to come. The others have one line together."""

LABELS: Final = {
    names.TASKS: 3,
    names.WAIT_BUCKET: 3,
    names.WAIT_US_SUM: 2,
    names.RUN_BUCKET: 3,
    names.RUN_US_SUM: 2,
    names.WEBHOOKS: 1,
}
"""How many labels a counter's field has."""


@dataclass(frozen=True)
class Scrape(Collector):
    """What Redis said at one moment, as a collector of prometheus-client's."""

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
        yield from _of_webhooks(dict(counted[names.WEBHOOKS]), self.webhook_outbox)


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
    """A histogram of buckets that each hold only what the one below doesn't."""
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
