"""Why a task isn't running: read from the same keys that claims, releases and housekeeping read.

A task that has no reason is queued, and a worker that is free now takes it with its next claim. The tasks that it waits
for are explained, too, down to those that wait for nothing: at most `MOST_TASKS` of them, `DEEPEST` levels down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from msgspec.structs import replace

from taskpool.operations.catalog import PoolInfo, pools
from taskpool.operations.records import fetch, fetch_if_there
from taskpool.redis import keys, pause_scripts, rq_job, scripts
from taskpool.redis.calls import Call, Plan, names, one, redis_ms, tolerant
from taskpool.types import TaskRecord, TaskStatus, utc
from taskpool.types.dependency import Edge
from taskpool.types.fleet import AwaitedTask, Pause, Reason, ReasonKind, TypeCount, Why

S = TaskStatus
Kind = ReasonKind

MOST_TASKS: Final = 50
DEEPEST: Final = 10
MOST_LISTED: Final = 20
"""Of the tasks that one task waits for; the others are counted."""
LOOKED_AT: Final = 10_000
"""How many ids at either end of a queue the search for a task looks at."""
MOST_RUNNING: Final = 500
"""How many running tasks are counted by their types."""

_OURS: Final = f'["{keys.ENTRY_POINT}"'.encode()
_FIELDS: Final = ("data", "suspect", "unconfirmed", "expires_ms", "started_at", "dependency_ids", "edges")


def why_not_running(id: str) -> Plan[Why]:
    """Why a task isn't running. Raises: TaskNotFound."""
    record = yield from one(fetch(id))
    live = yield from pools()
    paused, suspended, now_ms = yield (
        pause_scripts.paused(),
        tolerant(Call(("EXISTS", keys.SUSPENDED), bool, again=True), False),
        redis_ms(),
    )
    fleet = _Fleet(live, paused, suspended, utc(now_ms))
    reasons = tuple((yield from _reasons(record, fleet, DEEPEST)))
    return Why(id=id, status=record.status, can_run=record.status is S.QUEUED and not reasons, reasons=reasons)


def for_tenants(why: Why) -> Why:
    """The same for a caller with a project: without what concerns other projects, and without operators' names."""
    return replace(why, reasons=tuple(map(_for_tenants, why.reasons)))


def _for_tenants(reason: Reason) -> Reason:
    tasks = tuple([replace(each, why=tuple(map(_for_tenants, each.why))) for each in reason.tasks])
    if reason.kind is Kind.PAUSED:
        reason = replace(reason, text="It is paused.", by=None, name=None if reason.paused == "pool" else reason.name)
    return replace(reason, tasks=tasks, running=())


@dataclass
class _Fleet:
    """What is the same for all tasks that are looked at."""

    pools: Sequence[PoolInfo]
    paused: Mapping[str, Pause]
    is_suspended: bool
    now: datetime
    tasks_left: int = MOST_TASKS
    runs: dict[str, list[str]] = field(default_factory=dict)
    """By worker process: what it runs, as far as that was read."""


class _Hash(Mapping[str, bytes]):
    """Fields of a task's hash; those that aren't there are left out."""

    def __init__(self, values: Sequence[bytes | None]) -> None:
        self._values = {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}

    def __getitem__(self, name: str) -> bytes:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _hash(id: str) -> Call[_Hash]:
    return Call(("HMGET", keys.JOB + id, *_FIELDS), _Hash, again=True)


def _reasons(record: TaskRecord, fleet: _Fleet, depth: int) -> Plan[Sequence[Reason]]:
    fleet.tasks_left -= 1
    if record.status.is_terminal:
        return [Reason(kind=Kind.ENDED, text=f"It has ended: it is {record.status}.", at=record.ended_at)]
    match record.status:
        case S.IN_PROGRESS | S.STOPPING:
            text = f"It runs in the worker process {record.worker}."
            return [Reason(kind=Kind.RUNNING, text=text, at=record.started_at, worker=record.worker)]
        case S.WAITING_CONFIRMATION:
            return [_asks(record)]
        case S.SCHEDULED:
            return [*_scheduled(record, fleet), *_unserved(record, fleet)]
        case S.WAITING:
            return (yield from _waits(record, fleet, depth))
        case S.QUEUED:
            return (yield from _queued(record, fleet))
    return []  # a status of a later release


# --- tasks that wait for a person, a time, other tasks ------------------------------------------------------------


def _asks(record: TaskRecord) -> Reason:
    asked = record.question or record.confirm
    text = "It waits for a person" + (f": {asked.text}" if asked is not None else ".")
    return Reason(kind=Kind.CONFIRMATION, text=text, at=record.answer_by)


def _scheduled(record: TaskRecord, fleet: _Fleet) -> Iterator[Reason]:
    last = record.history[-1] if record.history else None
    at = record.run_at
    when = "in a moment" if at is None or at <= fleet.now else f"at {at:%Y-%m-%d %H:%M:%S} UTC"
    if last is None:
        yield Reason(kind=Kind.SCHEDULED, text=f"It is scheduled to be queued {when}.", at=at)
    elif last.outcome == S.FAILED:
        text = f"Its attempt {last.attempt} failed; it is queued for the next one {when}."
        yield Reason(kind=Kind.RETRY_BACKOFF, text=text, at=at)
    else:
        text = f"It was put back{f': {last.error}' if last.error else ''}; it is queued again {when}."
        yield Reason(kind=Kind.SCHEDULED, text=text, at=at)


def _unserved(record: TaskRecord, fleet: _Fleet) -> Iterator[Reason]:
    """The reason of a task whose time has come, while no pool lives that could queue it."""
    if not fleet.pools and record.run_at is not None and record.run_at <= fleet.now:
        text = "Its time has come, but no worker pool runs: tasks that are due are queued by pools."
        yield Reason(kind=Kind.NO_WORKER_FOR_QUEUE, text=text)


def _waits(record: TaskRecord, fleet: _Fleet, depth: int) -> Plan[Sequence[Reason]]:
    (h,) = yield (_hash(record.id),)
    edges = rq_job.edges_of(h.get("dependency_ids"), h.get("edges"))
    statuses: Sequence[str | None] = yield [_status_of(edge) for edge in edges]
    open_ones = {
        edge.ref: status
        for edge, status in zip(edges, statuses, strict=True)
        if status is not None and not (TaskStatus(status).is_terminal or status == "removed")
    }
    if not open_ones:
        text = "What it waited for has ended; it is released in a moment."
        if not fleet.pools:
            text = "What it waited for has ended, but no worker pool runs: pools release what waits."
        return [Reason(kind=Kind.WAITS_FOR, text=text)]
    listed = list(open_ones.items())[:MOST_LISTED]
    tasks = []
    for ref, status in listed:
        reasons: Sequence[Reason] = ()
        if ":" not in ref and depth > 0 and fleet.tasks_left > 0:
            parent = yield from one(fetch_if_there(ref))
            if parent is not None:
                reasons = yield from _reasons(parent, fleet, depth - 1)
        tasks.append(AwaitedTask(id=ref.removesuffix(":"), status=status, why=tuple(reasons)))
    count = len(open_ones)
    shown = ", ".join([each.id for each in tasks[:3]]) + (" and others" if count > 3 else "")
    text = f"It waits for {'a task' if count == 1 else f'{count:,} tasks'} still to end: {shown}."
    return [Reason(kind=Kind.WAITS_FOR, text=text, tasks=tuple(tasks), more=count - len(tasks))]


def _status_of(edge: Edge) -> Call[str | None]:
    """The status of a task or workflow; of a map that hasn't ended ``in_progress``; None if it is gone."""
    workflow, colon, name = edge.ref.partition(":")
    if not colon:
        command: tuple[Any, ...] = ("HMGET", keys.JOB + edge.ref, "status", "stop_ms", "asked_ms")
        return tolerant(Call(command, lambda h: None if h[0] is None else rq_job.status_of(*h).value, again=True), None)
    if not name:
        return tolerant(Call(("HGET", keys.WORKFLOW + workflow, "status"), rq_job.text_of, again=True), None)
    command = ("HMGET", keys.WORKFLOW + workflow, f"map:{name}:ended", f"map:{name}:total")

    def read(counts: Sequence[bytes | None]) -> str | None:
        ended, total = rq_job.number_of(counts[0], 0), rq_job.number_of(counts[1])
        return None if total is None else S.DONE.value if ended >= total else S.IN_PROGRESS.value

    return tolerant(Call(command, read, again=True), None)


# --- tasks in a queue ---------------------------------------------------------------------------------------------


def _queued(record: TaskRecord, fleet: _Fleet) -> Plan[Sequence[Reason]]:
    h, stopped = yield (_hash(record.id), _is_stopped(record.workflow))
    found = [*_canceled_by_its_claim(record, h, fleet, stopped=stopped), *_paused(record.queue, fleet)]
    serving = [pool for pool in fleet.pools if record.queue in pool.queues]
    if not serving:
        if (yield from _has_plain_workers(record.queue, fleet)):
            return found
        text = f"No live worker serves the queue {record.queue!r}: start a pool that does (TASKPOOL_QUEUES)."
        return [*found, Reason(kind=Kind.NO_WORKER_FOR_QUEUE, text=text)]
    is_task = h.get("data", b"").startswith(_OURS)
    capable = [pool for pool in serving if record.type in pool.types or not is_task]
    if not capable:
        text = f"No live worker of the queue {record.queue!r} knows the type {record.type!r}."
        return [*found, Reason(kind=Kind.NO_WORKER_FOR_TYPE, text=text)]
    active = [pool for pool in capable if pause_scripts.POOL + pool.id not in fleet.paused]
    if not active:
        found += [_pause("pool", pool.id, fleet.paused[pause_scripts.POOL + pool.id]) for pool in capable]
    return found or (yield from _crowded(record, active, fleet, is_suspect="suspect" in h))


def _canceled_by_its_claim(record: TaskRecord, h: _Hash, fleet: _Fleet, *, stopped: bool) -> Iterator[Reason]:
    """What makes a claim cancel a task, or put it back, in place of starting it."""
    expires_at = rq_job.moment_of(h.get("expires_ms"))
    if expires_at is not None and expires_at <= fleet.now and "started_at" not in h:
        text = "It has expired, because it didn't start in time; it is canceled in a moment."
        yield Reason(kind=Kind.EXPIRED, text=text, at=expires_at)
    if stopped:
        yield Reason(kind=Kind.WORKFLOW_STOPPED, text="Its workflow was stopped; it is canceled in a moment.")
    if "unconfirmed" in h:
        text = "Another program queued it, but a person has to confirm it first; it asks in a moment."
        yield Reason(kind=Kind.CONFIRMATION, text=text)


def _is_stopped(workflow: str | None) -> Call[bool]:
    key = keys.NOTHING if workflow is None else keys.WORKFLOW + workflow
    return tolerant(Call(("HEXISTS", key, "stop"), bool, again=True), False)


def _paused(queue: str, fleet: _Fleet) -> Iterator[Reason]:
    if fleet.is_suspended:
        yield Reason(kind=Kind.SUSPENDED, text="`rq suspend` holds all workers; `rq resume` lets them go on.")
    if pause := fleet.paused.get(pause_scripts.ALL):
        yield _pause("all", None, pause)
    if pause := fleet.paused.get(pause_scripts.QUEUE + queue):
        yield _pause("queue", queue, pause)


def _pause(what: str, name: str | None, pause: Pause) -> Reason:
    subject = "Everything" if name is None else f"The queue {name!r}" if what == "queue" else f"The worker pool {name}"
    by = "" if pause.by is None else f" by {pause.by}"
    why = "" if pause.why is None else f": {pause.why}"
    verb = "drains" if pause.drains else "is paused"
    text = f"{subject} {verb} since {pause.at:%Y-%m-%d %H:%M:%S} UTC{by}{why}."
    return Reason(kind=Kind.PAUSED, text=text, at=pause.at, paused=what, name=name, by=pause.by)


def _has_plain_workers(queue: str, fleet: _Fleet) -> Plan[bool]:
    """Whether an RQ worker that isn't ours serves a queue."""
    found = yield from one(tolerant(Call(("SMEMBERS", keys.WORKERS_OF + queue), names, again=True), []))
    ours = {keys.WORKER + worker for pool in fleet.pools for worker in pool.workers}
    plain = sorted(set(found) - ours)
    if not plain:
        return False
    return (yield from one(Call(("EXISTS", *plain), bool, again=True)))


def _crowded(
    record: TaskRecord, active: Sequence[PoolInfo], fleet: _Fleet, *, is_suspect: bool
) -> Plan[Sequence[Reason]]:
    """Whether the workers that are free now take other tasks first."""
    place = keys.QUEUE + record.queue
    front: list[str] = min((_more_urgent(pool, record.queue) for pool in active), key=len)
    front = [queue for queue in front if pause_scripts.QUEUE + queue not in fleet.paused]
    from_head, from_tail, length, *before = yield [
        _position(place, record.id, 1),
        _position(place, record.id, -1),
        *[tolerant(Call(("LLEN", key), int, again=True), 0) for key in (place, *[keys.QUEUE + name for name in front])],
    ]
    position = from_head if from_head is not None else from_tail
    if position is None:
        if length <= 2 * LOOKED_AT:
            text = "A plain RQ worker took it out of its queue. If that doesn't start it, it is queued again."
            return [Reason(kind=Kind.HELD_BACK, text=text)]
        position = LOOKED_AT
    yield from _read_runs([worker for pool in active for worker in pool.workers], fleet)
    runs = {worker: fleet.runs[worker] for pool in active for worker in pool.workers}
    slots = sum(len(pool.workers) * pool.slots for pool in active)
    running = [id for each in runs.values() for id in each]
    ahead = position + sum(before)
    if is_suspect and any(pool.slots > 1 for pool in active):
        # It starts only in a process that runs nothing else.
        if sum(not each for each in runs.values()) > ahead:
            return []
        text = "A process died while it ran this task beside others, so it runs alone, once a worker process is empty."
        return [Reason(kind=Kind.HELD_BACK, text=text, ahead=ahead, workers=slots)]
    if slots - len(running) > ahead:
        return []
    types = yield [_type_of(id) for id in running[:MOST_RUNNING]]
    counts = Counter(each for each in types if each is not None)
    busy = f"all {slots:,} slots of its workers are taken" if slots > 1 else "its worker is busy"
    if slots > len(running):
        busy = f"{slots - len(running):,} of its workers' {slots:,} slots are free"
    text = f"{ahead:,} {'task is' if ahead == 1 else 'tasks are'} ahead of it, and {busy}."
    return [
        Reason(
            kind=Kind.BUSY,
            text=text[:1].upper() + text[1:],
            ahead=ahead,
            workers=slots,
            running=tuple([TypeCount(type, n) for type, n in counts.most_common()]),
        )
    ]


def _more_urgent(pool: PoolInfo, queue: str) -> list[str]:
    return list(pool.queues[: pool.queues.index(queue)])


def _position(place: str, id: str, rank: int) -> Call[int | None]:
    command = ("LPOS", place, id, "RANK", rank, "MAXLEN", LOOKED_AT)
    return tolerant(Call(command, lambda at: None if at is None else int(at), again=True), None)


def _read_runs(workers: Sequence[str], fleet: _Fleet) -> Plan[None]:
    unread = [worker for worker in workers if worker not in fleet.runs]
    runs = yield [tolerant(scripts.attempts_of(worker), []) for worker in unread]
    for worker, members in zip(unread, runs, strict=True):
        fleet.runs[worker] = [member.partition(":")[0] for member in members]


def _type_of(id: str) -> Call[str | None]:
    return tolerant(Call(("HGET", keys.JOB + id, "type"), rq_job.text_of, again=True), None)
