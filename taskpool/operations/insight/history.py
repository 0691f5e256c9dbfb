"""Counts over time, and how they are kept in Redis.

Worker processes and scripts count into hashes of the current minute. When a minute is over, a pool closes it: what was
counted is added to the totals of /metrics, and becomes a *bucket* of the history. Buckets of minutes are kept for a
day. Those of ten minutes, hours and days are made from shorter ones, and kept for a day, a week and 90 days.

A bucket is a small MessagePack document. It has at most MOST_ROWS rows, each for a type, a queue and a build; the rest
is one row. So the history takes bounded space, whatever names are used: at most about 60 MB, and 6 MB with 20 rows in
each minute. Two pools that close the same minute make the same document, and the script takes only the first one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from taskpool.redis import insight_scripts, keys
from taskpool.redis.calls import SLICE_S, UNREADABLE, Call, Plan, hash_of, redis_ms, tell_unreadable, texts, tolerant
from taskpool.redis.keys import field_name, split_name

MOST_ROWS: Final = 200
MOST_PAIRS: Final = 1000
"""How many pairs of a type and a queue have totals of their own. Once one has, it keeps them."""
MOST_CLOSED: Final = 120
"""How many minutes one call closes."""
MINUTE_DIGITS: Final = 15
"""No number of one minute is longer, not even a sum of microseconds."""
OTHER: Final = "(other)"  # no type and no queue of ours can have this name
Row = dict[str, int]
"""Counts by column: an outcome or `submitted`, `w0.5` or `r0.5` for a bucket of waits or runs, `ws` and `rs` for their
sums in µs. Only what isn't zero."""


class Key(NamedTuple):
    """What a row counts."""

    type: str
    queue: str
    build: str = ""


REST: Final = Key(OTHER, OTHER)


class Unit(NamedTuple):
    """A length of buckets: in minutes, the key that holds them, how many are kept, the unit that they are made of."""

    minutes: int
    key: str
    kept: int
    parts: Unit | None = None


MINUTE: Final = Unit(1, keys.STATS_MINUTES, 1500)
TEN_MINUTES: Final = Unit(10, keys.STATS_TENS, 150, MINUTE)
HOUR: Final = Unit(60, keys.STATS_HOURS, 193, TEN_MINUTES)
DAY: Final = Unit(1440, keys.STATS_DAYS, 91, HOUR)


class Bucket(msgspec.Struct, array_like=True):
    """What happened in a minute, an hour or a day. `total` is the sum of its rows; `depth` has the number of queued
    tasks by queue (the highest of the samples). The rows are decoded only when they are needed."""

    total: Row = {}
    depth: dict[str, int] = {}
    encoded: msgspec.Raw = msgspec.Raw(b"\x80")  # an empty map

    def rows(self) -> dict[str, Row]:
        """The rows, by the text of their key (`key_of`)."""
        return _rows(self.encoded)


_bucket: Final = msgspec.msgpack.Decoder(Bucket).decode
_rows: Final = msgspec.msgpack.Decoder(dict[str, Row]).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def key_of(text: str) -> Key:
    """The key of a row from its text."""
    return Key(*split_name(text))


def add(into: Row, row: Mapping[str, int]) -> None:
    """Add the counts of a row to another one."""
    for column, n in row.items():
        into[column] = into.get(column, 0) + n


# --- one minute: what was counted -------------------------------------------------------------------------------------


def column_of(field: str) -> tuple[str, Key] | None:
    """The column and the key that a counted field belongs to; None for a field of another release."""
    metric, *labels = split_name(field)
    if metric == keys.TASKS and len(labels) == 4:
        return labels[0], Key(*labels[1:])
    if metric in _BUCKET_COLUMNS and len(labels) == 4:
        type, queue, bound, build = labels
        return _BUCKET_COLUMNS[metric] + bound, Key(type, queue, build)
    if metric in _SUM_COLUMNS and len(labels) == 3:
        return _SUM_COLUMNS[metric], Key(*labels)
    return None


_BUCKET_COLUMNS: Final = {keys.WAIT_BUCKET: "w", keys.RUN_BUCKET: "r"}
_SUM_COLUMNS: Final = {keys.WAIT_US_SUM: "ws", keys.RUN_US_SUM: "rs"}


class Counted(NamedTuple):
    """What was counted in one minute that isn't closed."""

    submitted: Mapping[str, int]
    """By `type|queue`."""
    fields: Mapping[str, int]
    """By the field of the totals and the build."""

    def rows(self) -> dict[Key, Row]:
        """As rows."""
        rows: dict[Key, Row] = {}
        for pair, n in self.submitted.items():
            if len(names := split_name(pair)) == 2:
                add(rows.setdefault(Key(*names), {}), {keys.SUBMITTED: n})
        for field, n in self.fields.items():
            if found := column_of(field):
                column, key = found
                add(rows.setdefault(key, {}), {column: n})
        return rows

    def totals(self) -> Iterator[tuple[str, str, int]]:
        """Its increments of the totals: the pair, the field without the build, and by how much."""
        for pair, n in self.submitted.items():
            yield pair, f"{keys.SUBMITTED}|{pair}", n
        for field, n in self.fields.items():
            found = column_of(field)
            if found is None:  # another release may know it
                yield "", field.rpartition("|")[0], n
            else:
                yield field_name(*found[1][:2]), field.rpartition("|")[0], n


def counted_in(minute: int) -> list[Call[dict[str, int]]]:
    """The calls that read what was counted in a minute, for `Counted`."""
    return [counts_of(key + str(minute), MINUTE_DIGITS) for key in (keys.STATS_SUBMITTED, keys.STATS_COUNTED)]


def counts_of(key: str, digits: int = 18) -> Call[dict[str, int]]:
    """The whole numbers in a hash. Longer ones are no counts: another program may have written any."""

    def read(reply: list[bytes]) -> dict[str, int]:
        counted = hash_of(reply).items()
        return {name.decode(errors="replace"): int(n) for name, n in counted if n.isdigit() and len(n) <= digits}

    return tolerant(Call(("HGETALL", key), read, again=True), {})


def open_minutes() -> Call[list[int]]:
    """The minutes that aren't closed, in order."""

    def read(reply: list[bytes]) -> list[int]:
        return sorted(int(each) for each in reply if each.isdigit())

    return tolerant(Call(("SMEMBERS", keys.STATS_OPEN), read, again=True), [])


def folded(totals: Iterable[tuple[str, str, int]], known: set[str]) -> tuple[dict[str, int], list[str]]:
    """Increments of totals, with those of one pair for all others when there are MOST_PAIRS of them already. The second
    value has the pairs that are new; they are added to `known`."""
    increments: dict[str, int] = {}
    new: list[str] = []
    for pair, field, n in sorted(totals):
        is_new = pair != "" and pair not in known
        if is_new and len(known) < MOST_PAIRS:
            known.add(pair)
            new.append(pair)
        shown = _of_others(field, pair) if pair and pair not in known else field
        increments[shown] = increments.get(shown, 0) + n
    return increments, new


def _of_others(field: str, pair: str) -> str:
    """The field of the totals for all pairs that have none of their own."""
    return f"{field}|".replace(f"|{pair}|", f"|{OTHER}|{OTHER}|", 1)[:-1]


# --- buckets ----------------------------------------------------------------------------------------------------------


def bucket_of(rows: Mapping[Key, Row], depth: Mapping[str, int]) -> bytes:
    """The document of a bucket, with the busiest MOST_ROWS rows and one for the rest."""
    kept = dict(sorted(rows.items(), key=lambda item: (-weight(item[1]), item[0])))
    documents: dict[str, Row] = {}
    total: Row = {}
    for at, (key, row) in enumerate(kept.items()):
        add(total, row)
        add(documents.setdefault(field_name(*(key if at < MOST_ROWS else REST)), {}), row)
    return _encode(Bucket(total, dict(depth), msgspec.Raw(_encode(documents))))


def weight(row: Row) -> int:
    """How much happened: tasks submitted, attempts and tasks ended."""
    return sum(row.get(outcome, 0) for outcome in (keys.SUBMITTED, *keys.OUTCOMES))


def read_bucket(document: bytes | None) -> Bucket | None:
    """A bucket from its document; None if there is none, or one that can't be read."""
    if not document:
        return None
    try:
        return _bucket(document)
    except UNREADABLE as error:
        tell_unreadable("a bucket of the history", error)
        return None


def merged(buckets: Iterable[Bucket]) -> Plan[bytes]:
    """The bucket of all of these together."""
    rows: dict[str, Row] = {}
    depth: dict[str, int] = {}
    due_mono = time.monotonic() + SLICE_S
    for bucket in buckets:
        for queue, n in bucket.depth.items():
            depth[queue] = max(n, depth.get(queue, 0))
        try:
            for text, row in bucket.rows().items():
                add(rows.setdefault(text, {}), row)
        except UNREADABLE as error:
            tell_unreadable("a bucket of the history", error)
        if time.monotonic() >= due_mono:
            yield ()
            due_mono = time.monotonic() + SLICE_S
    return bucket_of({key_of(text): row for text, row in rows.items()}, depth)


def buckets_at(unit: Unit, numbers: Sequence[int]) -> Call[list[Bucket | None]]:
    """The buckets with these numbers."""
    return tolerant(
        Call(("HMGET", unit.key, *numbers), lambda reply: [read_bucket(each) for each in reply], again=True),
        [None] * len(numbers),
    )


# --- closing minutes --------------------------------------------------------------------------------------------------


def close_minutes(now_ms: int, depth: Mapping[str, int] | None = None) -> Plan[None]:
    """Close the minutes that are over, at most MOST_CLOSED of them. `depth`: the queued tasks by queue now; then the
    last minute gets a bucket even if nothing happened in it."""
    now = now_ms // 60_000
    (opened,) = yield (open_minutes(),)
    over = [minute for minute in opened if minute < now][:MOST_CLOSED]
    if depth is not None and now - 1 not in over:
        over.append(now - 1)
    if not over:
        return
    (found,) = yield (tolerant(Call(("SMEMBERS", keys.STATS_PAIRS), texts, again=True), []),)
    known = set(found)
    for minute in over:
        submitted, fields, was = yield (*counted_in(minute), _document(MINUTE, minute))
        counted = Counted(submitted, fields)
        rows, sample = counted.rows(), depth or {} if minute == now - 1 else {}
        bucket = bucket_of(rows, sample)
        if (before := read_bucket(was)) is not None:  # Redis's clock was put back into a minute that was closed
            bucket = yield from merged(bucket for bucket in (before, read_bucket(bucket)) if bucket)
        increments, new = folded(counted.totals(), known)
        yield (insight_scripts.roll(minute, bucket, was, new, increments),)
    for unit in (TEN_MINUTES, HOUR, DAY):
        yield from _make(unit, now)
    for unit in (MINUTE, TEN_MINUTES, HOUR, DAY):  # at last: what is made now may be old already
        yield from _trim(unit, now)


def take_turn(minute: int) -> Call[bool]:
    """Take a minute in hand that has begun: of all pools, the first one closes the minutes before."""
    command = ("SET", f"{keys.STATS_TURN}{minute}", 1, "NX", "EX", keys.TURN_TTL_S)
    return Call(command, lambda reply: reply is not None)


def _document(unit: Unit, number: int) -> Call[bytes]:
    return tolerant(Call(("HGET", unit.key, number), lambda reply: reply or b"", again=True), b"")


def _make(unit: Unit, now: int) -> Plan[None]:
    """Make the buckets that are missing from those of their parts."""
    parts = unit.parts
    assert parts is not None
    there, of_parts = yield (_numbers(unit), _numbers(parts))
    share = unit.minutes // parts.minutes
    current = now // unit.minutes
    missing = sorted({number // share for number in of_parts} - set(there) - {current})
    for number in missing:
        if number < current:
            (found,) = yield (buckets_at(parts, range(number * share, (number + 1) * share)),)
            bucket = yield from merged(each for each in found if each)
            yield (Call(("HSETNX", unit.key, number, bucket), int, again=True),)


def _trim(unit: Unit, now: int) -> Plan[None]:
    """Remove the buckets that are older than they are kept, or far ahead: Redis's clock was put back."""
    (numbers,) = yield (_numbers(unit),)
    last = now // unit.minutes
    if old := [number for number in numbers if not last - unit.kept < number <= last + 1]:
        yield (Call(("HDEL", unit.key, *old), int, again=True),)


def _numbers(unit: Unit) -> Call[list[int]]:
    return tolerant(
        Call(("HKEYS", unit.key), lambda reply: [int(each) for each in reply if each.isdigit()], again=True), []
    )


# --- totals -----------------------------------------------------------------------------------------------------------

TRIES: Final = 5


def counters() -> Plan[dict[str, int]]:
    """The running totals of the whole cluster, by field (see `redis/keys.py`). They only grow."""
    (minutes,) = yield (open_minutes(),)
    if len(minutes) > MOST_CLOSED:  # no pool has run for some time
        (now_ms,) = yield (redis_ms(),)
        yield from close_minutes(now_ms)
    pairs = tolerant(Call(("SMEMBERS", keys.STATS_PAIRS), texts, again=True), [])
    totals: dict[str, int] = {}
    for _ in range(TRIES):
        (minutes,) = yield (open_minutes(),)
        found = yield [call for minute in minutes for call in counted_in(minute)]
        totals, known, after = yield (counts_of(keys.COUNTERS), pairs, open_minutes())
        if set(minutes) <= set(after):  # else one was closed meanwhile: it may be in the totals, or not
            break
    known = set(known)
    for at in range(0, len(found), 2):
        increments, _ = folded(Counted(*found[at : at + 2]).totals(), known)
        for field, n in increments.items():
            totals[field] = totals.get(field, 0) + n
    return totals


# --- reading ----------------------------------------------------------------------------------------------------------


def read_range(unit: Unit, first: int, now_ms: int) -> Plan[dict[int, list[Bucket]]]:
    """The buckets of a unit from number `first` until now: each bucket itself, or the parts of one that isn't made yet,
    down to what is counted in this minute. What isn't there is left out."""
    opened: dict[int, Bucket] = {}
    (minutes,) = yield (open_minutes(),)
    minutes = [minute for minute in minutes if minute >= first * unit.minutes][-MOST_CLOSED:]
    found = yield [call for minute in minutes for call in counted_in(minute)]
    for at, minute in enumerate(minutes):
        rows = Counted(*found[2 * at : 2 * at + 2]).rows()
        if rows and (bucket := read_bucket(bucket_of(rows, {}))):
            opened[minute] = bucket
    return (yield from _read_range(unit, first, now_ms // 60_000 // unit.minutes, opened))


def _read_range(unit: Unit, first: int, last: int, opened: Mapping[int, Bucket]) -> Plan[dict[int, list[Bucket]]]:
    numbers = range(first, last + 1)
    (found,) = yield (buckets_at(unit, numbers),)
    yield ()
    there = {number: [bucket] for number, bucket in zip(numbers, found, strict=True) if bucket}
    if unit.parts is None:
        for number, bucket in opened.items():
            there.setdefault(number, []).append(bucket)
        return there
    share = unit.minutes // unit.parts.minutes
    missing = [number for number in numbers if number not in there]
    oldest = (last + 1) * share - unit.parts.kept
    starts = [number * share for number in missing if (number + 1) * share > oldest]
    if starts:
        parts = yield from _read_range(unit.parts, starts[0], (last + 1) * share - 1, opened)
        for part, buckets in parts.items():
            if part // share in missing:
                there.setdefault(part // share, []).extend(buckets)
    return there
