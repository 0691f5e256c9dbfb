"""The key space when nobody lives any more: every key is one of docs/internals.md and has a reason to exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from benchmarks.chaos.evidence import Finding
from taskpool.redis import keys
from taskpool.types import TERMINAL, TaskRecord, TaskStatus

FIXED: Final = frozenset(
    {
        keys.QUEUES,
        keys.EMPTY_QUEUES,
        keys.TYPES,
        keys.TYPES_SEEN,
        keys.COUNTERS,
        keys.BUILDS,
        keys.FAILURES,
        keys.POOLS_KNOWN,
        keys.STATS_OPEN,
        keys.STATS_MINUTES,
        keys.STATS_TENS,
        keys.STATS_HOURS,
        keys.STATS_DAYS,
        keys.STATS_PAIRS,
        keys.CLOCK,
        keys.WEBHOOKS,
        keys.WEBHOOKS_LANES,
        keys.WORKFLOWS,
        keys.WORKFLOWS_ENDED,
    }
)
"""There for good; as large as there are queues, types and metrics."""
NODE: Final = 200
"""How many more there may be: Redis trims whole nodes."""
CAPPED: Final = {
    keys.EVENTS: keys.EVENTS_MAXLEN,
    keys.WEBHOOKS_OUTBOX: -NODE,  # none is left
    keys.AUDIT: keys.AUDIT_MAXLEN,
    keys.AUDIT_TASKS: keys.AUDIT_MAXLEN,
    keys.AUDIT_SUBMITTED: keys.AUDIT_MAXLEN,
}
"""Streams that are trimmed, to about so many entries."""
EXPIRES: Final = (
    *(keys.WORKFLOWS + keys.SWEPT_OF, keys.WORKFLOWS_OPEN + keys.SWEPT_OF, keys.STAGED),
    *(keys.ONCE, keys.BUCKET, keys.SWEPT, keys.STUCK, keys.EXECUTIONS, keys.UNSEEN),
    *(keys.DELIVERY, keys.DELIVERIES, keys.WEBHOOKS_FAILING, keys.WEBHOOKS_SORTER),
    *(keys.STATS_REPORTED, keys.STATS_TURN, keys.POOL_KNOWN, keys.HOUSEKEEPER),
    *("rq:clean_registries:", "rq:clean_groups"),
)
OF_A_MINUTE: Final = (keys.STATS_SUBMITTED, keys.STATS_COUNTED)
REGISTRY: Final = {
    TaskStatus.DONE: keys.FINISHED,
    TaskStatus.FAILED: keys.FAILED,
    TaskStatus.STOPPED: keys.FAILED,
    TaskStatus.CANCELED: keys.CANCELED,
}
INDEXES: Final = {keys.BY_TYPE: keys.TYPES_USED, keys.BY_TAG: keys.TAGS, keys.BY_PROJECT: keys.PROJECTS}
LOOKED_AT: Final = (keys.JOB, *REGISTRY.values(), *INDEXES, *INDEXES.values())
"""What is in them is compared with the records."""
OF_A_TASK: Final = (keys.RESULTS, keys.LOG, keys.SECRETS, keys.ADDED, keys.NEEDED, keys.REVIVABLE, keys.CHECKPOINT)
IDS: Final = frozenset({keys.SECRETS_INDEX, keys.WEBHOOKS_WANTED, keys.HELD})
"""Tasks that have something; they stay as long as their records."""
WITH_RECORD: Final = (keys.RESULTS, keys.NEEDED, keys.REVIVABLE, keys.CHECKPOINT)
"""What needs no expiry where its record has none."""
FLEET: Final = (keys.WORKERS, keys.WORKERS_OF, keys.WORKER, keys.POOLS, keys.POOL)
WORKER_TTL_S: Final = 120


@dataclass(frozen=True, slots=True)
class Dump:
    """What is in Redis: every key with its type and its time to live in seconds (-1: for ever)."""

    kinds: Mapping[str, str]
    ttls_s: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Gone:
    """The supervisors that had no chance to say goodbye, and how long what they left behind may stay."""

    pids: set[int]
    most_s: int
    purged_by_older: bool = False
    """The release before doesn't know `taskpool:held` and what is kept with it, and leaves those of a task that it
    purges: housekeeping removes them at the time in `held`. Nor does it know `taskpool:attempts:*`, and leaves an
    attempt there that it settles: the key expires."""


def read_keys(redis: Redis) -> Dump:
    """Every key there is."""
    names = [name.decode() for name in redis.scan_iter(count=1000)]
    with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.type(name)
            pipeline.ttl(name)
        answers = pipeline.execute()
    found = zip(names, answers[::2], answers[1::2], strict=True)
    known = [(name, kind.decode(), ttl_s) for name, kind, ttl_s in found if ttl_s != -2]  # -2: it has just expired
    return Dump({name: kind for name, kind, _ in known}, {name: ttl_s for name, _, ttl_s in known})


def check_keys(redis: Redis, records: Mapping[str, TaskRecord], gone: Gone) -> Iterator[Finding]:
    """Findings: place, lease, left-over, index."""
    dump = read_keys(redis)
    places = _places(redis, dump)
    held = {id.decode() for id in redis.zrange(keys.HELD, 0, -1)}
    for id, record in records.items():
        if record.status in TERMINAL:
            expected = Counter({f"{REGISTRY[record.status]}{record.queue}": 1})
            if places.get(id, Counter()) != expected:
                text = f"it is {record.status} and stands in {dict(places.get(id, {})) or 'no place'}"
                yield Finding("place", text, id)
            if record.workflow is None and dump.ttls_s.get(keys.JOB + id, -1) < 0 and id not in held:
                yield Finding("left-over", "its record never expires", id)
        elif sum(places.get(id, Counter()).values()) != 1:
            text = f"it is {record.status} and stands in {dict(places.get(id, {})) or 'no place'}"
            yield Finding("place", text, id)
    for id in places.keys() - records.keys():
        yield Finding("place", f"it has no record and stands in {dict(places[id])}", id)
    for key in dump.kinds:
        if fault := _fault(redis, dump, key, records, gone):
            yield Finding("lease" if key.startswith(keys.WIP) else "left-over", f"{key}: {fault}")
    yield from _check_indexes(redis, dump, records)


def _places(redis: Redis, dump: Dump) -> dict[str, Counter[str]]:
    """Where each task stands: queues, registries, leases. One place for each that has not been purged."""
    places: dict[str, Counter[str]] = {}
    members: Any
    for name in dump.kinds:
        if name.startswith(keys.QUEUE):
            members = redis.lrange(name, 0, -1)
        elif name.startswith((keys.WIP, keys.SCHEDULED, keys.DEFERRED, *REGISTRY.values())):
            members = redis.zrange(name, 0, -1)
        else:
            continue
        for member in members:
            places.setdefault(member.decode().partition(":")[0], Counter())[name] += 1
    return places


def _fault(redis: Redis, dump: Dump, name: str, records: Mapping[str, TaskRecord], gone: Gone) -> str | None:
    """Why a key should not be there; None: it may."""
    ttl_s = dump.ttls_s[name]
    if name in FIXED or name.startswith((*LOOKED_AT, keys.USED)):  # the last have caps, and lose what isn't used
        return None
    if name in IDS:
        left: Any = redis.hkeys(name) if name == keys.WEBHOOKS_WANTED else redis.zrange(name, 0, -1)
        unknown = sorted({id.decode() for id in left} - records.keys())
        if name == keys.HELD and gone.purged_by_older:
            return None
        return f"tasks that are gone: {unknown}" if unknown else None
    if name in CAPPED:
        entries: Any = redis.xlen(name)
        return None if entries <= CAPPED[name] + NODE else f"it has {entries} entries"
    if name.startswith(EXPIRES):
        return None if ttl_s >= 0 else "it never expires"
    if name.startswith(keys.FAILURE):
        is_listed = redis.zscore(keys.FAILURES, name.removeprefix(keys.FAILURE)) is not None
        return None if is_listed else "its group isn't listed"
    if name.startswith(OF_A_MINUTE):
        is_open = redis.sismember(keys.STATS_OPEN, name.rpartition(":")[2])
        return None if is_open else "its minute is closed"
    if workflow := _workflow_of(name):
        return None if keys.WORKFLOW + workflow in dump.kinds else "its workflow is gone"
    if name.startswith(OF_A_TASK):
        return _fault_of_a_tasks(name, ttl_s, records, gone)
    if name.startswith(keys.DOORBELL):
        length: Any = redis.llen(name)
        return None if length <= keys.DOORBELL_CAP else f"it has {length} entries"
    if name.startswith(keys.ATTEMPTS):
        may_stay = gone.purged_by_older and ttl_s >= 0
        return None if may_stay else f"it shows something that runs, for {ttl_s} s"
    if name.startswith(FLEET):
        return _fault_of_the_fleet(redis, name, ttl_s, gone)
    return "nothing should be here when all has ended"


def _workflow_of(name: str) -> str:
    """The workflow that a key belongs to: its own, or one that is about its groups; empty: to none."""
    prefix = next((prefix for prefix in (keys.WORKFLOW, keys.NEEDED, keys.REVIVABLE) if name.startswith(prefix)), None)
    if prefix is None:
        return ""
    id, colon, _ = name.removeprefix(prefix).partition(":")
    return id if colon or prefix == keys.WORKFLOW else ""


def _fault_of_a_tasks(name: str, ttl_s: int, records: Mapping[str, TaskRecord], gone: Gone) -> str | None:
    """The same of a key that belongs to one task."""
    prefix = next(prefix for prefix in OF_A_TASK if name.startswith(prefix))
    record = records.get(name.removeprefix(prefix))
    if record is None:
        may_stay = prefix in (keys.NEEDED, keys.REVIVABLE) and gone.purged_by_older
        return None if may_stay else "its task is gone"
    if prefix == keys.SECRETS and record.status is TaskStatus.DONE:
        return "its task is done"
    return None if ttl_s >= 0 or prefix in WITH_RECORD else "it never expires"


def _fault_of_the_fleet(redis: Redis, name: str, ttl_s: int, gone: Gone) -> str | None:
    """The same of a key that says which workers and pools there are."""
    members: Any
    if name.startswith((keys.WORKERS, keys.WORKERS_OF)):
        members = redis.smembers(name)
        alive = [key.decode() for key in members if not _is_of(key.decode().removeprefix(keys.WORKER), gone.pids)]
        return f"workers that have ended: {alive}" if alive else None
    if name.startswith(keys.WORKER):
        if name.endswith(":executions"):
            return "it shows something that runs"
        return None if 0 <= ttl_s <= gone.most_s else f"it expires in {ttl_s} s"
    pools: Any = redis.zrange(name, 0, -1) if name == keys.POOLS else [name.removeprefix(keys.POOL).encode()]
    alive = [pool.decode() for pool in pools if not _is_of(pool.decode(), gone.pids)]
    return f"pools that have ended: {alive}" if alive else None


def _is_of(name: str, pids: set[int]) -> bool:
    """Whether a pool's or worker's name, HOST.PID.RANDOM[.NUMBER], is of one of these supervisors."""
    return any(f".{pid}." in name for pid in pids)


def _check_indexes(redis: Redis, dump: Dump, records: Mapping[str, TaskRecord]) -> Iterator[Finding]:
    expected: dict[str, set[str]] = {}
    for id, record in records.items():
        expected.setdefault(keys.BY_TYPE + record.type, set()).add(id)
        if record.project is not None:
            expected.setdefault(keys.BY_PROJECT + record.project, set()).add(id)
        for tag in record.tags:
            expected.setdefault(keys.BY_TAG + tag, set()).add(id)
    found: dict[str, set[str]] = {}
    for name in dump.kinds:
        if name.startswith(tuple(INDEXES)):
            members: Any = redis.zrange(name, 0, -1)
            found[name] = {id.decode() for id in members}
    for name in expected.keys() | found.keys():
        has, should = found.get(name, set()), expected.get(name, set())
        yield from _compare(name, has, should)
    for prefix, name in INDEXES.items():
        names: Any = redis.smembers(name)
        should = {key.removeprefix(prefix) for key in expected if key.startswith(prefix)}
        has = {each.decode() for each in names}
        # The name of a type without tasks stays until the minute of its last submission is over, and is swept then.
        yield from _compare(name, has & should if name == keys.TYPES_USED else has, should)


def _compare(name: str, has: set[str], should: set[str]) -> Iterator[Finding]:
    if has != should:
        text = f"{name}: too many {sorted(has - should)[:5]}, missing {sorted(should - has)[:5]}"
        yield Finding("index", text)
