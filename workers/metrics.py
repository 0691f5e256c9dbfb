"""What a worker process counts of its attempts. It sends the increments about once a second."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from taskpool.redis import keys
from taskpool.redis.keys import BUCKET_LABELS, BUCKETS_S, field_name
from taskpool.types import TaskStatus

COUNTED_AS: Final = {
    TaskStatus.DONE: "done",
    TaskStatus.FAILED: "failed",
    TaskStatus.STOPPED: "stopped",
    TaskStatus.SCHEDULED: "retried",
}
"""The outcome under which an attempt is counted, by the status it ended with."""


@dataclass(slots=True)
class _Cell:
    """The counts of one task type in one queue."""

    outcomes: Counter[str] = field(default_factory=Counter)
    waits: list[int] = field(default_factory=lambda: [0] * len(BUCKET_LABELS))
    runs: list[int] = field(default_factory=lambda: [0] * len(BUCKET_LABELS))
    wait_us: int = 0
    run_us: int = 0

    def increments(self, type: str, queue: str) -> Iterable[tuple[str, int]]:
        for outcome, count in self.outcomes.items():
            yield field_name(keys.TASKS, outcome, type, queue), count
        for metric, buckets in ((keys.WAIT_BUCKET, self.waits), (keys.RUN_BUCKET, self.runs)):
            for label, count in zip(BUCKET_LABELS, buckets, strict=True):
                if count:
                    yield field_name(metric, type, queue, label), count
        yield field_name(keys.WAIT_US_SUM, type, queue), self.wait_us
        yield field_name(keys.RUN_US_SUM, type, queue), self.run_us


class Stats:
    """Counts since the last `take`. Each task is recorded, which costs about a microsecond."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], _Cell] = {}
        self.done = self.failed = self.working_us = 0

    def record(self, type: str, queue: str, outcome: str, *, wait_ms: int, run_s: float) -> None:
        """Counts one attempt."""
        cell = self._cells.get((type, queue))
        if cell is None:
            cell = self._cells[type, queue] = _Cell()
        run_us = int(run_s * 1e6)
        cell.outcomes[outcome] += 1
        cell.waits[bisect_left(BUCKETS_S, wait_ms / 1000)] += 1
        cell.runs[bisect_left(BUCKETS_S, run_s)] += 1
        cell.wait_us += wait_ms * 1000
        cell.run_us += run_us
        self.working_us += run_us
        if outcome == "done":
            self.done += 1
        else:
            self.failed += 1

    def take(self) -> dict[str, int]:
        """The increments of the counters, by field; starts again from zero."""
        cells = self._cells.items()
        increments = {name: count for (type, queue), cell in cells for name, count in cell.increments(type, queue)}
        self._cells.clear()
        self.done = self.failed = self.working_us = 0
        return increments
