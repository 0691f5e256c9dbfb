"""Reads the history: counts and durations over time, and how long the attempts of a type take."""

from __future__ import annotations

import builtins
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, get_args

from taskpool.operations.insight import history
from taskpool.operations.insight.builds import builds
from taskpool.operations.insight.history import DAY, HOUR, MINUTE, OTHER, TEN_MINUTES, Bucket, Key, Row, Unit, key_of
from taskpool.operations.specs import check_word
from taskpool.redis import keys
from taskpool.redis.calls import SLICE_S, UNREADABLE, Plan, collected, one, redis_ms, tell_unreadable
from taskpool.types import utc
from taskpool.types.insight import Durations, QueueDepths, Stats, StatsBy, StatsDurations, StatsRange, StatsSeries

MOST_SERIES: Final = 20
"""How many types, queues or builds have a series of their own, the busiest ones."""
DURATIONS_H: Final = 7 * 24


class Range(NamedTuple):
    """A range of time: the buckets and how many of them."""

    unit: Unit
    points: int


RANGES: Final[Mapping[str, Range]] = {
    "1h": Range(MINUTE, 60),
    "24h": Range(MINUTE, 1440),
    "7d": Range(HOUR, 168),
    "90d": Range(DAY, 90),
}
DAY_IN_PARTS: Final = Range(TEN_MINUTES, 144)
"""A day with a series for each type, queue or build: by minute it would take seconds with many of them."""

_BUCKETS: Final = {letter: [letter + label for label in keys.BUCKET_LABELS] for letter in ("w", "r")}
_Line = dict[int, list[Row]]
"""What belongs to one series, by the number of the point."""
_COUNTED: Final[Mapping[str, Sequence[str]]] = {
    "submitted": (keys.SUBMITTED,),
    "done": ("done",),
    "failed": ("failed",),
    "retried": ("retried",),
    "crashed": ("crashed", "lease_lost"),
    "stopped": ("stopped",),
    "canceled": ("canceled",),
    "expired": ("expired",),
    "snoozed": ("snoozed",),
    "given_back": ("given_back",),
    "asked": ("asked",),
}
"""The columns of a row that each series of `StatsSeries` adds up."""


def stats(
    range: StatsRange = "1h", *, type: str | None = None, queue: str | None = None, by: StatsBy | None = None
) -> Plan[Stats]:
    """Counts and durations over time, of a type, of a queue, or of all; `by`: a series for each type, queue or build.
    Raises: InvalidTask (no such range, or nothing to sort by)."""
    check_word("range", range, tuple(RANGES))
    if by is not None:
        check_word("by", by, get_args(StatsBy))
    unit, points = RANGES[range] if by is None or range != "24h" else DAY_IN_PARTS
    (now_ms,) = yield (redis_ms(),)
    last = now_ms // 60_000 // unit.minutes
    first = last - points + 1
    found = yield from history.read_range(unit, first, now_ms)

    needs_rows = not (type is None and queue is None and by is None)
    lines: dict[str, _Line] = {}
    names = _Names(lambda key: type in (None, key.type) and queue in (None, key.queue), by)
    depths: dict[str, dict[int, int]] = {}
    due_mono = time.monotonic() + SLICE_S
    for number, buckets in found.items():
        for bucket in buckets:
            for name, n in bucket.depth.items():
                if queue in (None, name):
                    samples = depths.setdefault(name, {})
                    samples[number] = max(n, samples.get(number, 0))
            if not needs_rows:
                lines.setdefault("", {}).setdefault(number, []).append(bucket.total)
                continue
            for text, row in rows_of(bucket).items():
                if (line := names.of(text)) is not None:
                    lines.setdefault(line, {}).setdefault(number, []).append(row)
            if time.monotonic() >= due_mono:
                yield ()
                due_mono = time.monotonic() + SLICE_S
    numbers = [first + at for at in builtins.range(points)]
    series = []
    for name, rows in _busiest(lines, by).items():
        series.append((yield from _series(rows, numbers, {by: name} if by else {})))
        yield ()
    known = yield from one(builds())
    return Stats(
        step_s=unit.minutes * 60,
        start=utc(first * unit.minutes * 60_000),
        points=points,
        series=tuple(series),
        depth=_depths(depths, numbers),
        builds=tuple(known),
    )


def durations(type: str) -> Plan[Durations]:
    """How long the attempts of a type ran in the last seven days."""
    (now_ms,) = yield (redis_ms(),)
    found = yield from history.read_range(HOUR, now_ms // 3_600_000 - DURATIONS_H + 1, now_ms)
    row: Row = {}
    names = _Names(lambda key: key.type == type, None)
    due_mono = time.monotonic() + SLICE_S
    for bucket in [bucket for buckets in found.values() for bucket in buckets]:
        for text, counts in rows_of(bucket).items():
            if names.of(text) is not None:
                history.add(row, counts)
        if time.monotonic() >= due_mono:
            yield ()
            due_mono = time.monotonic() + SLICE_S
    ns = in_buckets(row, "r")
    bounds: tuple[float | None, ...] = (*keys.BUCKETS_S, None)
    return Durations(
        count=sum(ns),
        p50_ms=quantile_ms(ns, 0.5),
        p95_ms=quantile_ms(ns, 0.95),
        p99_ms=quantile_ms(ns, 0.99),
        buckets=tuple(zip(bounds, ns, strict=True)),
    )


def quantile_ms(ns: Sequence[int], share: float) -> float | None:
    """The duration that this share of the attempts didn't exceed, from their numbers by bucket; None: there are none.
    Within a bucket they count as evenly spread, as in Prometheus's `histogram_quantile`; above the last bound, as that
    bound."""
    rank = sum(ns) * share
    if not rank:
        return None
    for at, n in enumerate(ns[: len(keys.BUCKETS_S)]):
        if n >= rank:
            below, bound = keys.BUCKETS_S[at - 1] if at else 0.0, keys.BUCKETS_S[at]
            return round((below + (bound - below) * rank / n) * 1000, 3)
        rank -= n
    return keys.BUCKETS_S[-1] * 1000.0


class _Names:
    """Names the series that a row belongs to, by the text of its key."""

    def __init__(self, is_wanted: Callable[[Key], bool], by: StatsBy | None) -> None:
        self._is_wanted, self._by = is_wanted, by
        self._known: dict[str, str | None] = {}

    def of(self, text: str) -> str | None:
        """The name of its series; empty if there is only one, None if the row isn't wanted."""
        if text not in self._known:
            key = key_of(text)
            name = getattr(key, self._by) if self._by else ""
            self._known[text] = name if self._is_wanted(key) else None
        return self._known[text]


def rows_of(bucket: Bucket) -> Mapping[str, Row]:
    """The rows of a bucket, by the text of their key; none if they can't be read."""
    try:
        return bucket.rows()
    except UNREADABLE as error:
        tell_unreadable("a bucket of the history", error)
        return {}


def _busiest(lines: Mapping[str, _Line], by: StatsBy | None) -> Mapping[str, _Line]:
    """The series of the busiest names, and one of all others. Without names, there is one in any case."""
    if by is None:
        return {"": lines.get("", {})}
    weights = {
        name: sum(history.weight(row) for rows in line.values() for row in rows)
        for name, line in lines.items()
        if name != OTHER
    }
    top = sorted(weights, key=lambda name: (-weights[name], name))[:MOST_SERIES]
    shown = {name: lines[name] for name in top}
    others: _Line = {}
    for name, line in lines.items():
        if name not in shown:
            for number, rows in line.items():
                others.setdefault(number, []).extend(rows)
    return shown | {OTHER: others} if others else shown


def _series(line: _Line, numbers: Sequence[int], labels: Mapping[str, Any]) -> Plan[StatsSeries]:
    at = yield from collected(_together(line.get(number, ())) for number in numbers)
    lists: dict[str, Any] = {
        name: tuple([sum([row.get(column, 0) for column in columns]) if row else 0 for row in at])
        for name, columns in _COUNTED.items()
    }
    overall: dict[str, float | None] = {}
    for word, letter in (("wait", "w"), ("run", "r")):
        yield ()
        inside = [in_buckets(row, letter) if row else () for row in at]
        together = [sum(counts) for counts in zip(*filter(None, inside), strict=True)]
        for share, quantile in ((0.5, "p50"), (0.95, "p95")):
            name = f"{word}_{quantile}_ms"
            lists[name] = tuple([quantile_ms(ns, share) if ns else None for ns in inside])
            overall[name] = quantile_ms(together, share)
    return StatsSeries(**{**labels, **lists, "durations": StatsDurations(**overall)})


def _together(rows: Sequence[Row]) -> Row:
    """The sum of rows. Most points have one, which isn't copied."""
    if len(rows) == 1:
        return rows[0]
    total: Row = {}
    for row in rows:
        history.add(total, row)
    return total


def in_buckets(row: Row, letter: str) -> list[int]:
    """How many attempts of a row fell into each bucket of the waits (`w`) or the runs (`r`)."""
    return [row.get(column, 0) for column in _BUCKETS[letter]]


def _depths(depths: Mapping[str, Mapping[int, int]], numbers: Sequence[int]) -> tuple[QueueDepths, ...]:
    """The depth of the queues that were the deepest, and of all others together."""
    with_samples = {number for samples in depths.values() for number in samples}
    deepest = {name: max(samples.values()) for name, samples in depths.items() if name != OTHER}
    top = sorted(deepest, key=lambda name: (-deepest[name], name))[:MOST_SERIES]
    others: Counter[int] = Counter()
    for name in depths.keys() - set(top):
        others.update(depths[name])
    shown = {name: depths[name] for name in top} | ({OTHER: others} if others else {})
    return tuple(
        QueueDepths(
            queue=name, values=tuple(samples.get(number, 0) if number in with_samples else None for number in numbers)
        )
        for name, samples in shown.items()
    )
