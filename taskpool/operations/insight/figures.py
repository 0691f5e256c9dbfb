"""The figures of one moment: what waits and runs, how many tasks end, how long they wait. For live displays.

`Sampler` keeps what it needs between two samples, a second apart: rates are differences, and what changes slowly or
costs more is read less often. A sample costs Redis about 15 commands and one for each task that is watched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from taskpool.operations.control.pools import list_pools
from taskpool.operations.insight.history import Counted, Row, add, counted_in
from taskpool.operations.insight.stats import quantile_ms
from taskpool.operations.overview import OTHERS, busiest_queues
from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, Plan, one, redis_ms, tolerant
from taskpool.redis.rq_job import number_of, text_of, time_of
from taskpool.types import QueueInfo, TaskStatus
from taskpool.types.fleet import PoolState

MOST_QUEUES: Final = 20
SLOW_EVERY: Final = 5
"""Worker pools and memory are read with every fifth sample."""
FIELDS_A_SAMPLE: Final = 5000
"""If this minute's counts have more fields, they are read less often, so that they cost the same."""
RATE_OVER: Final = 10
"""Rates are averages over this many samples."""
WAITS_OVER: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The figures of the whole cluster. Rates are None until there are two samples. `wait_p95_ms` is of the last
    minute; None if no attempt ended in it."""

    queued: int
    in_progress: int
    scheduled: int
    waiting: int
    waiting_confirmation: int
    submitted_per_s: float | None
    done_per_s: float | None
    failed_per_s: float | None
    wait_p95_ms: float | None
    workers: int
    busy: int
    redis_memory: int
    redis_maxmemory: int


class Watched(NamedTuple):
    """The state of a task that is watched. `project`: whose it is."""

    project: str | None
    status: TaskStatus
    progress: Mapping[str, Any] | None
    attempt: int
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One sample. `newest`: the position of the last event: it changes when anything has happened to any task."""

    at_ms: int
    totals: Totals
    queues: Sequence[QueueInfo]
    tasks: Mapping[str, Watched]
    newest: str


class Sampler:
    """Takes samples, one after the other."""

    def __init__(self) -> None:
        self._turn = 0
        self._rates_every = 1
        self._counts: dict[int, Row] = {}
        """What this minute and the one before had counted when they were read last."""
        self._gained: deque[tuple[int, Row]] = deque(maxlen=WAITS_OVER)
        """What was counted between two samples, and when the second one was taken, in ms."""
        self._workers = self._busy = self._memory = self._maxmemory = 0

    def sample(self, ids: Collection[str] = ()) -> Plan[Figures]:
        """The figures of now, with the tasks that have these ids."""
        queues = yield from busiest_queues(MOST_QUEUES)
        watched = list(ids)
        now_ms, confirmations, newest, *found = yield (
            redis_ms(), _size_of_people(), _newest(), *[_watched(id) for id in watched]
        )  # fmt: skip
        if self._turn % self._rates_every == 0:
            yield from self._count(now_ms)
        if self._turn % SLOW_EVERY == 0:
            pools = [pool for pool in (yield from list_pools()) if pool.state is not PoolState.GONE]
            self._workers = sum(pool.processes * (pool.slots or 1) for pool in pools)
            self._busy = sum(pool.busy for pool in pools)
            self._memory, self._maxmemory = yield from one(_memory())
        self._turn += 1
        return Figures(
            at_ms=now_ms,
            totals=self._totals(queues, confirmations),
            queues=[queue for queue in queues if queue.name != OTHERS],
            tasks={id: state for id, state in zip(watched, found, strict=True) if state is not None},
            newest=newest,
        )

    def _count(self, now_ms: int) -> Plan[None]:
        """Note what was counted since the last sample."""
        minute = now_ms // 60_000
        gained: Row = {}
        for number in sorted({minute, *(each for each in self._counts if each == minute - 1)}):
            counted = Counted(*(yield counted_in(number)))
            row: Row = {}
            for each in counted.rows().values():
                add(row, each)
            self._rates_every = 1 + len(counted.fields) // FIELDS_A_SAMPLE
            before = self._counts.get(number, {})
            add(gained, {column: n - before.get(column, 0) for column, n in row.items() if n > before.get(column, 0)})
            if row:  # a minute that was closed has none
                self._counts[number] = row
        self._counts = {number: row for number, row in self._counts.items() if number >= minute - 1}
        self._gained.append((now_ms, gained if self._gained else {}))  # the first one only says where to count from

    def _totals(self, queues: Sequence[QueueInfo], confirmations: int) -> Totals:
        def total(field: str) -> int:
            return sum(getattr(queue, field) for queue in queues)

        return Totals(
            queued=total("queued"),
            in_progress=total("in_progress"),
            scheduled=total("scheduled"),
            waiting=max(0, total("waiting") - confirmations),
            waiting_confirmation=confirmations,
            submitted_per_s=self._rate(keys.SUBMITTED),
            done_per_s=self._rate("done"),
            failed_per_s=self._rate("failed"),
            wait_p95_ms=self._wait_p95_ms(),
            workers=self._workers,
            busy=self._busy,
            redis_memory=self._memory,
            redis_maxmemory=self._maxmemory,
        )

    def _rate(self, column: str) -> float | None:
        last = list(self._gained)[-RATE_OVER - 1 :]
        if len(last) < 2:
            return None
        seconds = (last[-1][0] - last[0][0]) / 1000
        return round(sum(row.get(column, 0) for _, row in last[1:]) / seconds, 2) if seconds > 0 else None

    def _wait_p95_ms(self) -> float | None:
        waits = [sum(row.get("w" + label, 0) for _, row in self._gained) for label in keys.BUCKET_LABELS]
        return quantile_ms(waits, 0.95)


def _watched(id: str) -> Call[Watched | None]:
    def read(reply: Sequence[bytes | None]) -> Watched | None:
        project, status, stop_ms, asked_ms, progress, attempt, ended_at = reply
        if status is None:
            return None
        return Watched(
            project=text_of(project),
            status=rq_job.status_of(status, stop_ms, asked_ms),
            progress=rq_job.object_of(progress),
            attempt=number_of(attempt, 0),
            ended_at=time_of(ended_at),
        )

    fields = ("project", "status", "stop_ms", "asked_ms", "progress", "attempt", "ended_at")
    return tolerant(Call(("HMGET", keys.JOB + id, *fields), read, again=True), None)


def _size_of_people() -> Call[int]:
    return tolerant(Call(("ZCARD", keys.CONFIRMATIONS), int, again=True), 0)


def _newest() -> Call[str]:
    def read(reply: Any) -> str:
        return reply[0][0].decode() if reply else ""

    return tolerant(Call(("XREVRANGE", keys.EVENTS, "+", "-", "COUNT", 1), read, again=True), "")


def _memory() -> Call[tuple[int, int]]:
    def read(reply: bytes) -> tuple[int, int]:
        info = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
        return int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))

    return Call(("INFO", "memory"), read, again=True)
