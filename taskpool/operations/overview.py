"""How the cluster stands: its queues, worker processes, counters and Redis server. Reads only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import nlargest
from typing import Annotated, Any, Final

from taskpool.operations.catalog import pools
from taskpool.operations.listing import all_queues
from taskpool.redis import calls, keys, pause_scripts, scripts
from taskpool.redis.calls import Call, Plan, Script, as_it_is, hash_of, names, one, redis_ms, tolerant
from taskpool.redis.embedded import ServerVersion
from taskpool.redis.rq_job import number_of, text_of, time_of
from taskpool.types import QUEUE_COUNTS, Page, Pause, QueueInfo, RunningNow, WorkerInfo, utc
from taskpool.validation import Field

Hash = Mapping[bytes, bytes]

_probe, _counts, _sizes = map(Script, ("probe", "queue_counts", "queue_sizes"))

FOREIGN_FRESH_S: Final = 60
MOST_NAMES: Final = 10
QUEUES_AT_ONCE: Final = 500
LONGEST_PAGE: Final = 500
OTHERS: Final = "(other)"  # no queue of ours can have this name


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
    queued. A queue that is paused is there also without tasks."""
    known, pauses = yield from known_queues()
    names = known if names is None else names
    found: list[QueueInfo] = []
    for at in range(0, len(names), QUEUES_AT_ONCE):
        part = names[at : at + QUEUES_AT_ONCE]
        now_ms, *rows = yield from one(_counts.call(part, as_it_is))
        found += [
            _queue(name, row, now_ms, pauses.get(pause_scripts.QUEUE + name))
            for name, row in zip(part, rows, strict=True)
        ]
    return found


def known_queues() -> Plan[tuple[list[str], Mapping[str, Pause]]]:
    """The names of all queues, sorted, and what is paused."""
    names, pauses = yield (all_queues(), pause_scripts.paused())
    paused = {field.removeprefix(pause_scripts.QUEUE) for field in pauses if field.startswith(pause_scripts.QUEUE)}
    return (sorted(paused.union(names)) if paused else names), pauses


def busiest_queues(most: int) -> Plan[list[QueueInfo]]:
    """The `most` queues that have the most tasks still to end, and all others as one with the name `OTHERS`, of whose
    ended tasks nothing is said."""
    known, _ = yield from known_queues()
    names = [name for name in known if name != OTHERS]
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
    """A page of the queues by name: of all, or of these. Raises: InvalidTask (the cursor or the limit is invalid)."""
    limit = calls.page_length(limit, LONGEST_PAGE)
    after = calls.decode_cursor(cursor, (str,))[0] if cursor else ""
    if names is None:
        names, _ = yield from known_queues()
    first = bisect_right(names, after)
    page = names[first : first + limit]
    infos = yield from queues(page)
    return Page(tuple(infos), calls.encode_cursor(page[-1]) if first + limit < len(names) else None)


def _queue(name: str, row: Sequence[Any] | None, now_ms: float, paused: Pause | None = None) -> QueueInfo:
    *counts, head = row or (*[0] * len(QUEUE_COUNTS), b"")
    since = time_of(head)
    oldest_s = None if since is None else max(0.0, (utc(now_ms) - since).total_seconds())
    return QueueInfo(**dict(zip(QUEUE_COUNTS, counts, strict=True)), name=name, oldest_s=oldest_s, paused=paused)


def workers() -> Plan[list[WorkerInfo]]:
    """Every registered worker process, ours and plain RQ ones, by name."""
    pool_of = {worker: pool.id for pool in (yield from pools()) for worker in pool.workers}
    found = sorted((yield from one(_worker_keys())))
    hashes = [_hash_at(key) for key in found]
    runs = [tolerant(scripts.attempts_of(key.removeprefix(keys.WORKER)), []) for key in found]
    values = yield [*hashes, *runs]
    rows = [
        (key.removeprefix(keys.WORKER), h, runs)
        for key, h, runs in zip(found, values[: len(found)], values[len(found) :], strict=True)
        if _is_live(h)
    ]
    first = [min((member.partition(":")[0] for member in runs), default=None) for _, _, runs in rows]
    tasks = yield [_running_now(id) for id in first if id is not None]
    left = iter(tasks)
    return [
        _worker(name, h, runs, pool_of, None if id is None else next(left))
        for (name, h, runs), id in zip(rows, first, strict=True)
    ]


def _running_now(id: str) -> Call[RunningNow | None]:
    def read(reply: Sequence[bytes | None]) -> RunningNow | None:
        type, since = text_of(reply[0]), time_of(reply[1])
        return None if since is None else RunningNow(id=id, type=type or "", since_ms=round(since.timestamp() * 1000))

    return tolerant(Call(("HMGET", keys.JOB + id, "type", "started_at"), read, again=True), None)


def _is_live(h: Hash) -> bool:
    return b"birth" in h and b"death" not in h


def neighbours() -> Plan[tuple[set[str], dict[str, set[str]]]]:
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
    ours, plain = yield from neighbours()
    scores = Call(("ZRANGE", keys.FOREIGN_QUEUES, 0, -1, "WITHSCORES"), hash_of, again=True)
    found, now_ms = yield (tolerant(scores, {}), redis_ms())
    fresh = [queue for queue, at_s in found.items() if now_ms / 1000 - float(at_s) < FOREIGN_FRESH_S]
    foreign = {queue.decode(errors="replace") for queue in fresh}
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


def write_probe() -> Call[None]:
    """A script's write that changes nothing, refused if our other writes are. Raises, when run: RedisFull (the memory
    limit is reached), RedisRefused (Redis takes no writes at all)."""
    return _probe.call((), lambda reply: None)


def _worker(name: str, h: Hash, runs: Sequence[str], pool_of: Mapping[str, str], task: RunningNow | None) -> WorkerInfo:
    return WorkerInfo(
        name=name,
        host=text_of(h.get(b"hostname")) or "",
        pid=number_of(h.get(b"pid"), 0),
        state=text_of(h.get(b"state")) or "?",
        queues=_queues_of(h),
        pool=pool_of.get(name) or text_of(h.get(b"pool")),
        build=text_of(h.get(b"build")),
        current=tuple(sorted(member.partition(":")[0] for member in runs)),
        done=number_of(h.get(b"successful_job_count"), 0),
        failed=number_of(h.get(b"failed_job_count"), 0),
        working_s=_float(h.get(b"total_working_time")),
        started_at=time_of(h.get(b"birth")),
        last_heartbeat=time_of(h.get(b"last_heartbeat")),
        task=task,
        memory_bytes=number_of(h.get(b"memory_bytes")),
    )


def _queues_of(h: Hash) -> tuple[str, ...]:
    return tuple((text_of(h.get(b"queues")) or "").split(","))


def _worker_keys() -> Call[list[str]]:
    return tolerant(Call(("SMEMBERS", keys.WORKERS), names, again=True), [])


def _hash_at(key: str) -> Call[Hash]:
    return tolerant(Call(("HGETALL", key), hash_of, again=True), {})


def _float(raw: bytes | None) -> float:
    try:
        return float(raw or 0)
    except ValueError:
        return 0.0
