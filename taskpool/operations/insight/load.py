"""The load of a queue, for autoscalers: what waits, how fast tasks come and go, and how many workers that takes."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from taskpool.operations.control.pauses import check_queue
from taskpool.operations.control.pools import list_pools
from taskpool.operations.insight import history
from taskpool.operations.insight.history import MINUTE, Row, key_of
from taskpool.operations.overview import queues
from taskpool.operations.specs import duration_s
from taskpool.redis import keys
from taskpool.redis.calls import UNREADABLE, Call, Plan, redis_ms, tell_unreadable, tolerant
from taskpool.types.fleet import LEAST_TARGET_S, MOST_TARGET_S, PoolState, QueueLoad
from taskpool.validation import Duration

TARGET_S: Final = 60.0
RATE_MINUTES: Final = 5
"""The rates are those of this many minutes and of the current one."""
RUN_MINUTES: Final = 15
"""How long tasks take is that of the last 15 minutes."""


class Recent(NamedTuple):
    """What happened in a queue lately. None: nothing is known about it."""

    arrival_per_s: float | None = None
    service_per_s: float | None = None
    mean_run_s: float | None = None


def load(name: str, *, target: Duration = TARGET_S) -> Plan[QueueLoad]:
    """The load of a queue. `target`: within which time the workers should have done what waits and arrives meanwhile,
    from a second to a day. A queue that doesn't exist has none.

    Raises:
        InvalidTask: no queue can have this name, or no such duration.
    """
    check_queue(name)
    target_s = duration_s("target", target, LEAST_TARGET_S, MOST_TARGET_S)
    (now_ms,) = yield (redis_ms(),)
    (info,) = yield from queues([name])
    (due,) = yield (_due(name, now_ms),)
    pools = [pool for pool in (yield from list_pools()) if name in pool.queues and pool.state is PoolState.RUNNING]
    recent = yield from _recent(name, now_ms)
    backlog = info.queued + due
    slots = max([1, *[pool.slots for pool in pools]])
    needed = workers_needed(
        backlog if info.paused is None else 0, info.in_progress, recent, target_s=target_s, slots=slots
    )
    return QueueLoad(
        queue=name,
        backlog=backlog,
        oldest_s=info.oldest_s or 0.0,
        in_progress=info.in_progress,
        arrival_per_s=recent.arrival_per_s,
        service_per_s=recent.service_per_s,
        mean_run_s=recent.mean_run_s,
        target_s=target_s,
        workers=sum(pool.processes for pool in pools),
        workers_needed=needed,
        value=needed,
    )


def workers_needed(backlog: int, in_progress: int, recent: Recent, *, target_s: float, slots: int) -> int:
    """How many worker processes, each with so many slots, do the backlog within the target, and what arrives meanwhile.

    A task keeps one slot busy for as long as it runs (Little's law). So never more slots are needed than there are
    tasks, and never fewer than tasks run now. While it isn't known how long tasks take, one process is enough.
    """
    arriving = (recent.arrival_per_s or 0.0) * target_s if backlog or in_progress else 0.0
    tasks = backlog + arriving
    if recent.mean_run_s is None:
        wanted = min(tasks, 1.0)
    else:
        wanted = min(tasks * recent.mean_run_s / target_s, tasks + in_progress)
    return math.ceil(round(max(wanted, in_progress) / slots, 6)) or int(tasks > 0)


def _due(name: str, now_ms: int) -> Call[int]:
    """How many scheduled tasks are due. A pool queues them; while there is none, only the autoscaler sees them."""
    return tolerant(Call(("ZCOUNT", keys.SCHEDULED + name, "-inf", now_ms / 1000), int, again=True), 0)


def _recent(name: str, now_ms: int) -> Plan[Recent]:
    current, into_s = now_ms // 60_000, now_ms % 60_000 / 1000
    found = yield from history.read_range(MINUTE, current - RUN_MINUTES, now_ms)
    seconds = into_s
    counts: Row = {}
    runs: Row = {}
    for minute, buckets in found.items():
        is_late = minute >= current - RATE_MINUTES
        seconds += 60 if is_late and minute < current else 0
        for bucket in buckets:
            for row in _rows_of(bucket, name):
                history.add(runs, row)
                if is_late:
                    history.add(counts, row)
        yield ()
    if seconds == into_s:  # no minute was closed: no pool has run lately
        return Recent()
    ran = sum(runs.get("r" + label, 0) for label in keys.BUCKET_LABELS)
    done = sum(counts.get("r" + label, 0) for label in keys.BUCKET_LABELS)
    return Recent(
        arrival_per_s=round(counts.get(keys.SUBMITTED, 0) / seconds, 3),
        service_per_s=round(done / seconds, 3),
        mean_run_s=round(runs.get("rs", 0) / 1e6 / ran, 6) if ran else None,
    )


def _rows_of(bucket: history.Bucket, name: str) -> list[Row]:
    try:
        return [row for text, row in bucket.rows().items() if key_of(text).queue == name]
    except UNREADABLE as error:
        tell_unreadable("a bucket of the history", error)
        return []
