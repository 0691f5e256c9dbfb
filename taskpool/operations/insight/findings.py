"""Findings: what is wrong now. Home's banners, `taskpool doctor` and the alerts use this one list.

`gather` reads what the rules look at, with a bounded number of reads; `rules.py` has the rules, which read nothing
themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from taskpool.operations import overview
from taskpool.operations.catalog import pools
from taskpool.operations.control.pauses import paused
from taskpool.operations.control.pools import list_pools
from taskpool.operations.flow.schedules import list_schedules
from taskpool.operations.insight.builds import builds
from taskpool.operations.insight.doctor import installation_findings, refusal
from taskpool.operations.insight.failures import list_failures
from taskpool.operations.insight.history import HOUR, MINUTE, OTHER, Row, Unit, add, key_of, read_range
from taskpool.operations.insight.rules import FLOOD_LEAST, RECENT_MS, RULES, STUCK_S, Ended, Facts, Lane, Sampled, check
from taskpool.operations.insight.stats import in_buckets, quantile_ms, rows_of
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, as_it_is, readable, redis_ms, texts, times_of, tolerant
from taskpool.redis.rq_job import number_of, text_of
from taskpool.types import RQ_STATUS, TaskStatus
from taskpool.types.fleet import PoolState
from taskpool.types.insight import Finding
from taskpool.webhooks.store import list_webhooks

MOST_QUEUES: Final = 200
MOST_GROUPS: Final = 100
MOST_TYPES: Final = 50
MOST_SCHEDULES: Final = 200
MOST_LANES: Final = 100
PINGS: Final = 3
SUBMISSIONS: Final = 200
SAMPLE: Final = 20
"""How many tasks of a type, of a queue and of those that wait for people are looked at."""
USUAL_H: Final = 24
FAILED: Final = ("failed", "retried", "crashed", "lease_lost")
QUEUED: Final = RQ_STATUS[TaskStatus.QUEUED].encode()


class Findings(NamedTuple):
    """What is wrong, the most urgent first, and how many rules were checked."""

    findings: tuple[Finding, ...]
    checked: int


def find(*, installation: bool = False) -> Plan[Findings]:
    """Check all rules. `installation`: also how Redis and the pools are set up, as `taskpool doctor` does."""
    if installation and (refused := (yield from refusal())):
        return Findings((refused,), 1)
    facts = yield from gather()
    found = list(check(facts))
    checked = len(RULES)
    if installation:
        more, count = yield from installation_findings(facts)
        found, checked = [*found, *more], checked + count
    order = {severity: at for at, severity in enumerate(("critical", "warning", "info"))}
    found.sort(key=lambda each: (order[each.severity], -each.count, each.id))
    return Findings(tuple(found), checked)


# --- what the rules look at -------------------------------------------------------------------------------------------


def gather() -> Plan[Facts]:
    """Read what the rules look at."""
    round_trips_s = []
    for _ in range(PINGS):
        began_mono = time.monotonic()
        (now_ms,) = yield (redis_ms(),)
        round_trips_s.append(time.monotonic() - began_mono)
    live = yield from pools()
    queues = yield from overview.busiest_queues(MOST_QUEUES)
    groups = yield from list_failures(since="24h", limit=MOST_GROUPS)
    server, known_builds, suspended, seen, used, clock, outbox, events, dead, submitters = yield (
        overview.server(),
        builds(),
        Call(("EXISTS", keys.SUSPENDED), bool, again=True),
        tolerant(Call(("ZRANGE", keys.TYPES_SEEN, 0, -1, "WITHSCORES"), times_of, again=True), {}),
        tolerant(Call(("SMEMBERS", keys.TYPES_USED), texts, again=True), []),
        tolerant(Call(("HGET", keys.CLOCK, "seen_ms"), as_it_is, again=True), None),
        tolerant(Call(("SCARD", keys.OUTBOX), int, again=True), 0),
        tolerant(Call(("XLEN", keys.WEBHOOKS_OUTBOX), int, again=True), 0),
        tolerant(Call(("ZCARD", keys.DELIVERIES_ALL_DEAD), int, again=True), 0),
        tolerant(
            Call(("XREVRANGE", keys.AUDIT_SUBMITTED, "+", "-", "COUNT", SUBMISSIONS), _submitters, again=True), {}
        ),
    )
    schedules = yield from list_schedules(limit=MOST_SCHEDULES)
    known_pools = yield from list_pools()
    now_min = now_ms // 60_000
    recent_min = now_min - RECENT_MS // 60_000 + 1
    recent = yield from _by_type(MINUTE, recent_min, now_min)
    hour = recent_min // 60
    usual = yield from _by_type(HOUR, hour - USUAL_H, hour - 1)
    this_hour = yield from _by_type(MINUTE, hour * 60, recent_min - 1)
    for type, row in this_hour.items():
        add(usual.setdefault(type, {}), row)
    served = {type for pool in live for type in pool.types}
    return Facts(
        now_ms=now_ms,
        round_trip_s=min(round_trips_s),  # the others may have waited for this process
        pools=live,
        queues=queues,
        groups=groups,
        builds=known_builds,
        recent={type: _ended(row) for type, row in recent.items()},
        usual={type: _ended(row) for type, row in usual.items()},
        server=server,
        is_suspended=suspended,
        paused=(yield from paused()),
        gone=[pool for pool in known_pools if pool.state is PoolState.GONE],
        unserved=(yield from _unserved([name for name in sorted(used) if name not in served][:MOST_TYPES])),
        types_seen=seen,
        housekeeping_ms=number_of(clock),
        outbox=outbox,
        webhooks_outbox=events,
        overdue=(yield from _overdue([each.name for each in queues if each.in_progress], now_ms)),
        dead_deliveries=dead,
        submitters=submitters,
        schedules=schedules.items,
        late_schedules=(yield from _late_schedules(now_ms)),
        lanes=(yield from _lanes()),
        asked=(yield from _asked()),
        sampled=(yield from _sample([each.name for each in queues if each.queued >= FLOOD_LEAST][:5])),
    )


class _Submission(msgspec.Struct):
    name: str = ""
    count: int = 1


_submission: Final = msgspec.json.Decoder(_Submission).decode


def _submitters(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> Mapping[str, int]:
    """How many tasks each key has submitted, of entries of the audit."""
    counts: Counter[str] = Counter()
    for entry in readable([(id, fields[1]) for id, fields in reply], _submission, "the audit's entry").values():
        counts[entry.name] += entry.count
    return counts


def _overdue(queues: Sequence[str], now_ms: int) -> Plan[dict[str, int]]:
    """How many attempts of each queue hold leases that ended STUCK_S ago or earlier."""
    by_s = now_ms / 1000 + keys.WIP_GRACE_S - STUCK_S
    counts = yield [
        tolerant(Call(("ZCOUNT", keys.WIP + name, "-inf", f"{by_s:.3f}"), int, again=True), 0) for name in queues
    ]
    return {name: count for name, count in zip(queues, counts, strict=True) if count}


def _by_type(unit: Unit, first: int, last: int) -> Plan[dict[str, Row]]:
    """What was counted of each type in the buckets of a unit from number `first` to `last`."""
    found: dict[str, Row] = {}
    if last < first:
        return found
    end_ms = (last + 1) * unit.minutes * 60_000 - 1
    for number, buckets in (yield from read_range(unit, first, end_ms)).items():
        for bucket in buckets if number <= last else ():
            for text, row in rows_of(bucket).items():
                add(found.setdefault(key_of(text).type, {}), row)
        yield ()
    found.pop(OTHER, None)
    return found


def _ended(row: Row) -> Ended:
    failed = sum(row.get(outcome, 0) for outcome in FAILED)
    return Ended(failed + row.get("done", 0), failed, quantile_ms(in_buckets(row, "r"), 0.5))


def _unserved(types: Sequence[str]) -> Plan[dict[str, int]]:
    """The types with queued tasks among these, with how many of their newest tasks are queued."""
    newest = yield [_listing("ZREVRANGEBYLEX", keys.BY_TYPE + name, "+", "-", "LIMIT", 0, SAMPLE) for name in types]
    ids = [id for part in newest for id in part]
    statuses = dict(zip(ids, (yield [_field(id, "status") for id in ids]), strict=True)) if ids else {}
    counts = {name: sum(statuses[id] == QUEUED for id in part) for name, part in zip(types, newest, strict=True)}
    return {name: count for name, count in counts.items() if count}


def _late_schedules(now_ms: int) -> Plan[list[tuple[str, int]]]:
    """Schedules that are due since when, ms, and haven't been fired."""
    listed = ("ZRANGEBYSCORE", keys.SCHEDULES_DUE, "-inf", f"{now_ms / 1000:.3f}", "WITHSCORES", "LIMIT", 0, SAMPLE)
    (found,) = yield (tolerant(Call(listed, times_of, again=True), {}),)
    return [(id, at_s * 1000) for id, at_s in found.items()]


def _lanes() -> Plan[list[Lane]]:
    """The lanes of webhooks whose last attempt failed, with how many deliveries wait in each."""
    (names,) = yield (_listing("ZRANGE", keys.WEBHOOKS_LANES, 0, MOST_LANES - 1),)
    failing = yield [Call(("EXISTS", keys.WEBHOOKS_FAILING + name), bool, again=True) for name in names]
    bad = [name for name, is_failing in zip(names, failing, strict=True) if is_failing]
    waiting = yield [tolerant(Call(("ZCARD", keys.WEBHOOKS_WAITING + name), int, again=True), 0) for name in bad]
    endpoints = {each.id: each for each in (yield from list_webhooks(None))} if bad else {}
    about = {id: each.description or urlsplit(each.url).hostname or "" for id, each in endpoints.items()}
    return [Lane(name, count, about.get(name, "")) for name, count in zip(bad, waiting, strict=True)]


def _asked() -> Plan[list[tuple[str, int]]]:
    """Tasks that wait for a person, and since when, ms: those first whose default answer counts first."""
    (ids,) = yield (_listing("ZRANGE", keys.CONFIRMATIONS, 0, SAMPLE - 1),)
    if not ids:
        return []
    since = yield [_field(id, "asked_ms") for id in ids]
    return [(id, ms) for id, raw in zip(ids, since, strict=True) if (ms := number_of(raw)) is not None]


def _sample(queues: Sequence[str]) -> Plan[list[Sampled]]:
    """To which projects the tasks of long queues belong, by a sample from the whole length of each."""
    found = []
    for queue in queues:
        (length,) = yield (tolerant(Call(("LLEN", keys.QUEUE + queue), int, again=True), 0),)
        steps = range(0, length, max(1, length // SAMPLE))[:SAMPLE]
        parts = yield [_listing("LRANGE", keys.QUEUE + queue, at, at) for at in steps]
        ids = [id for part in parts for id in part]
        projects = (yield [_field(id, "project") for id in ids]) if ids else []
        found.append(Sampled(queue, length, [text_of(each) for each in projects]))
    return found


def _listing(*command: str | int) -> Call[list[str]]:
    return tolerant(Call(command, texts, again=True), [])


def _field(id: str, name: str) -> Call[bytes | None]:
    return tolerant(Call(("HGET", keys.JOB + id, name), as_it_is, again=True), None)
