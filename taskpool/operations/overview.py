"""How the cluster stands: its queues, worker processes, counters and Redis server. Reads only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest
from typing import Annotated, Any, Final

from taskpool.operations.catalog import pools
from taskpool.operations.listing import queue_names
from taskpool.redis import keys
from taskpool.redis.calls import (
    Call,
    Plan,
    Script,
    as_it_is,
    decode_cursor,
    encode_cursor,
    hash_of,
    names,
    one,
    page_length,
    redis_ms,
    tolerant,
)
from taskpool.redis.embedded import ServerVersion
from taskpool.redis.rq_job import number_of, text_of, time_of
from taskpool.types import QUEUE_COUNTS, Page, QueueInfo, WorkerInfo, utc
from taskpool.validation import Field

Hash = Mapping[bytes, bytes]

_probe, _counts, _sizes = map(Script, ("probe", "queue_counts", "queue_sizes"))

FOREIGN_FRESH_S: Final = 60
MOST_NAMES: Final = 10
QUEUES_AT_ONCE: Final = 500
LONGEST_PAGE: Final = 500
OTHERS: Final = "(other)"
"""No queue of ours can have this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The Redis behind it all. What of its data outlives a crash: all but the last second with `aof`, else what
    its last snapshot held (`rdb_saved_at`; at first the time it started)."""

    name: Annotated[str, Field(examples=["Redis", "Valkey"])] = "Redis"
    version: Annotated[str, Field(examples=["7.2.11"])]
    role: str
    aof: bool
    rdb_saved_at: datetime
    used_memory_bytes: int
    maxmemory_bytes: int
    maxmemory_policy: Annotated[str, Field(examples=["noeviction"])]
    aof_writes: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What endangers the tasks or the server, each in a sentence for those who run it."""
        found = []
        if unsafe := ServerVersion(self.name, self.version).security_warning:
            found.append(unsafe)
        if not self.aof:
            found.append(
                "Redis keeps no append-only file (appendonly no): its crash costs all since the last snapshot, "
                f"{self.rdb_saved_at:%Y-%m-%d %H:%M:%S} UTC"
            )
        elif not self.aof_writes:
            found.append("Redis could not write its append-only file the last time: look at its disk")
        if self.maxmemory_bytes and self.maxmemory_policy != "noeviction":
            found.append(
                f"Redis deletes tasks when its memory is full (maxmemory-policy {self.maxmemory_policy}): "
                "set it to noeviction"
            )
        return tuple(found)


def queues(names: Sequence[str] | None = None) -> Plan[list[QueueInfo]]:
    """Every queue, or those of these names, with its counts; `oldest_s` is how long the task at its head has been
    queued."""
    if names is None:
        names = yield from queue_names()
    found: list[QueueInfo] = []
    for at in range(0, len(names), QUEUES_AT_ONCE):
        part = names[at : at + QUEUES_AT_ONCE]
        now_ms, *rows = yield from one(_counts.call(part, as_it_is))
        found += [_queue(name, row, now_ms) for name, row in zip(part, rows, strict=True)]
    return found


def busiest_queues(most: int) -> Plan[list[QueueInfo]]:
    """The `most` queues that have the most tasks still to end, and all others as one with the name `OTHERS`, of whose
    ended tasks nothing is said."""
    names = [name for name in (yield from queue_names()) if name != OTHERS]
    if len(names) <= most:
        return (yield from queues(names))
    top: list[tuple[int, str]] = []
    totals = [0, 0, 0, 0]
    for at in range(0, len(names), QUEUES_AT_ONCE):
        part = names[at : at + QUEUES_AT_ONCE]
        reply = yield from one(_sizes.call(part, as_it_is))
        totals = [total + count for total, count in zip(totals, reply, strict=False)]
        top = nlargest(most, [*top, *zip(reply[4:], part, strict=True)])
    busiest = yield from queues([name for _, name in top])
    shown = [(each.queued, each.in_progress, each.scheduled, each.waiting) for each in busiest]
    others = [max(total - sum(counts), 0) for total, *counts in zip(totals, *shown, strict=True)]
    return [*busiest, _queue(OTHERS, [*others, 0, 0, 0, b""], 0)]


def queues_page(
    names: Sequence[str] | None = None, *, cursor: str | None = None, limit: int = LONGEST_PAGE
) -> Plan[Page[QueueInfo]]:
    """A page of the queues by name: of all, or of these.

    Raises:
        InvalidTask: the cursor or the limit can't be.
    """
    limit = page_length(limit, LONGEST_PAGE)
    after = decode_cursor(cursor, (str,))[0] if cursor else ""
    if names is None:
        names = yield from queue_names()
    first = bisect_right(names, after)
    page = names[first : first + limit]
    infos = yield from queues(page)
    return Page(tuple(infos), encode_cursor(page[-1]) if first + limit < len(names) else None)


def _queue(name: str, row: Sequence[Any] | None, now_ms: float) -> QueueInfo:
    *counts, head = row or (*[0] * len(QUEUE_COUNTS), b"")
    return QueueInfo(**dict(zip(QUEUE_COUNTS, counts, strict=True)), name=name, oldest_s=_age_s(head, now_ms))


def workers() -> Plan[list[WorkerInfo]]:
    """Every registered worker process, ours and plain RQ ones, by name."""
    pool_of = {worker: pool.id for pool in (yield from pools()) for worker in pool.workers}
    found = sorted(key.removeprefix(keys.WORKER) for key in (yield from one(_worker_keys())))
    calls: list[Call[Any]] = []
    for name in found:
        calls.append(_hash_at(keys.WORKER + name))
        calls.append(tolerant(Call(("SMEMBERS", f"{keys.WORKER}{name}:executions"), names, again=True), []))
    values = yield calls
    rows = zip(found, values[::2], values[1::2], strict=True)
    return [_worker(name, h, runs, pool_of.get(name)) for name, h, runs in rows if _is_live(h)]


def _is_live(h: Hash) -> bool:
    return b"birth" in h and b"death" not in h


def plain_workers() -> Plan[dict[str, set[str]]]:
    """The RQ workers that aren't ours, and which of our queues they serve."""
    _, plain = yield from _neighbours()
    return plain


def _neighbours() -> Plan[tuple[set[str], dict[str, set[str]]]]:
    """The queues of our pools; and the RQ workers that aren't ours, with those of these queues that they serve."""
    live = yield from pools()
    entered = yield from one(_worker_keys())
    others = sorted(set(entered) - {keys.WORKER + worker for pool in live for worker in pool.workers})
    hashes = yield [_hash_at(key) for key in others]
    ours = {queue for pool in live for queue in pool.queues}
    return ours, {
        key.removeprefix(keys.WORKER): ours & set(_queues_of(h))
        for key, h in zip(others, hashes, strict=True)
        if _is_live(h) and b"pool" not in h
    }


def foreign_queues() -> Call[list[str]]:
    """The queues in which claims have found foreign jobs, whenever that was."""
    return tolerant(Call(("ZRANGE", keys.FOREIGN_QUEUES, 0, -1), names, again=True), [])


def worker_warnings() -> Plan[list[str]]:
    """What is wrong with the RQ programs that share queues with our pools, each in a sentence for operators."""
    ours, plain = yield from _neighbours()
    found, now_ms = yield (
        tolerant(Call(("ZRANGE", keys.FOREIGN_QUEUES, 0, -1, "WITHSCORES"), hash_of, again=True), {}),
        redis_ms(),
    )
    foreign = {
        queue.decode(errors="replace") for queue, at_s in found.items() if now_ms / 1000 - float(at_s) < FOREIGN_FRESH_S
    }
    return [*_sharing(plain), *(_foreign(queue, plain) for queue in sorted(foreign & ours))]


def _sharing(plain: Mapping[str, set[str]]) -> Iterator[str]:
    names = [f"{name} ({', '.join(sorted(queues))})" for name, queues in plain.items() if queues]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    if names:
        yield (
            f"RQ workers serve Taskpool's queues: {', '.join(names[:MOST_NAMES])}{more}. Start them with `-S json` and "
            "TASKPOOL_TASKS, or on other queues: RQ's default serializer can't read tasks"
        )


def _foreign(queue: str, plain: Mapping[str, set[str]]) -> str:
    left = f"The queue {queue!r} holds RQ jobs that aren't Taskpool tasks. They are left to RQ workers"
    if any(queue in queues for queues in plain.values()):
        return left
    return (
        f"{left}, but none serves that queue: start one, name the jobs' functions in TASKPOOL_RQ_FUNCTIONS, "
        "or set TASKPOOL_FOREIGN_JOBS=refuse"
    )


def counters() -> Call[dict[str, int]]:
    """The running totals of the cluster (see `metrics_names`)."""
    return tolerant(Call(("HGETALL", keys.COUNTERS), _counted, again=True), {})


def server() -> Call[ServerInfo]:
    """The Redis server: version and persistence."""

    def read(reply: bytes) -> ServerInfo:
        info = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
        name, version = ServerVersion.from_info(info)
        return ServerInfo(
            name=name,
            version=version,
            aof=info.get("aof_enabled") == "1",
            rdb_saved_at=utc(int(info.get("rdb_last_save_time", 0)) * 1000),
            used_memory_bytes=int(info.get("used_memory", 0)),
            maxmemory_bytes=int(info.get("maxmemory", 0)),
            maxmemory_policy=info.get("maxmemory_policy", "noeviction"),
            aof_writes=info.get("aof_last_write_status", "ok") == "ok",
            role=info.get("role", "?"),
        )

    return Call(("INFO",), read, again=True)


def _counted(reply: list[bytes]) -> dict[str, int]:
    counters = hash_of(reply).items()
    return {
        name.decode(errors="replace"): int(value) for name, value in counters if value.isdigit()
    }  # others aren't ours


def write_probe() -> Call[None]:
    """A script's write that changes nothing: refused as our other writes are at the moment, if they are.

    Raises, when run:
        RedisFull: the memory limit is reached.
        RedisRefused: Redis takes no writes at all.
    """
    return _probe.call((), lambda reply: None)


def _worker(name: str, h: Hash, runs: Sequence[str], pool: str | None) -> WorkerInfo:
    return WorkerInfo(
        name=name,
        host=text_of(h.get(b"hostname")) or "",
        pid=number_of(h.get(b"pid"), 0),
        state=text_of(h.get(b"state")) or "?",
        queues=_queues_of(h),
        pool=pool or text_of(h.get(b"pool")),
        current=tuple(sorted(member.partition(":")[0] for member in runs)),
        done=number_of(h.get(b"successful_job_count"), 0),
        failed=number_of(h.get(b"failed_job_count"), 0),
        working_s=_float(h.get(b"total_working_time")),
        started_at=time_of(h.get(b"birth")),
        last_heartbeat=time_of(h.get(b"last_heartbeat")),
    )


def _queues_of(h: Hash) -> tuple[str, ...]:
    return tuple((text_of(h.get(b"queues")) or "").split(","))


def _age_s(enqueued_at: bytes, now_ms: float) -> float | None:
    at = time_of(enqueued_at)
    return None if at is None else max(0.0, (utc(now_ms) - at).total_seconds())


def _worker_keys() -> Call[list[str]]:
    """The keys of all registered workers."""
    return tolerant(Call(("SMEMBERS", keys.WORKERS), names, again=True), [])


def _hash_at(key: str) -> Call[Hash]:
    """The hash under a key; empty when the key has another kind of value."""
    return tolerant(Call(("HGETALL", key), hash_of, again=True), {})


def _float(raw: bytes | None) -> float:
    try:
        return float(raw or 0)
    except ValueError:
        return 0.0
