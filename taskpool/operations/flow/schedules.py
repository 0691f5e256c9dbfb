"""Schedules: how they are stored, read, changed and removed. `occurrences` has what happens when they are due.

A schedule is one hash in Redis. A change compares the schedule's revision, so that two changes never mix. Its
incarnation is new each time a schedule is added: what an earlier one of the same name submitted is no obstacle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import asdict, replace

from taskpool.access.api_key import RIGHTS, Effect
from taskpool.access.audit import Actor, entry
from taskpool.errors import (
    CapReached,
    FieldError,
    InvalidSchedule,
    NotAllowed,
    ScheduleConflict,
    ScheduleNotFound,
    UnknownType,
    UnreadableSchedule,
)
from taskpool.operations.catalog import PoolInfo, pools
from taskpool.operations.flow.schedule_values import (
    NOT_IN_A_SCHEDULE,
    SCHEDULE_ID,
    PastRun,
    ScheduleRecord,
    ScheduleSpec,
    ScheduleStatus,
    check_name,
)
from taskpool.operations.queue import Rules
from taskpool.operations.submit import check_task
from taskpool.redis import keys, rq_job, schedule_scripts
from taskpool.redis.add_script import NewTask
from taskpool.redis.calls import (
    Call,
    Part,
    Plan,
    collected,
    decode_cursor,
    encode_cursor,
    hash_of,
    names,
    one,
    page_length,
    readable,
    redis_ms,
    tolerant,
    wrong_cursor,
)
from taskpool.tasks.schedule import (
    Timing,
    clock_changes,
    jitter_ms,
    preview,
    times_of,
    timing_faults,
)
from taskpool.text import Secrets
from taskpool.types import OPTIONS, Page, TaskSpec, utc
from taskpool.validation import new_id

LONGEST_PAGE: Final = 500
LISTED_RUNS: Final = 10
"""How many of its last runs a listing shows of each schedule."""
RETRIES: Final = 20
MOST_MS: Final = 100_000_000_000_000  # in the year 5138: all times of schedules are earlier
TIMES: Final = ("cron", "tz", "every", "anchor", "at")
"""What decides when a schedule runs. As long as these stay, a change leaves the next occurrence as it is."""


class Stored(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A schedule as its hash holds it. Times in ms."""

    id: str
    timing: Timing
    task: TaskSpec
    """With masks in the places of its secrets."""
    secrets: Secrets | None
    owner: Actor
    """In whose name it submits: with the project, types and queues of the key that made it."""
    queue: str
    incarnation: str
    revision: int
    next_ms: int | None
    last_ms: int
    paused_ms: int | None
    retry_ms: int | None
    created_ms: int
    updated_ms: int
    last_task: str | None
    module: str | None
    digest: str | None
    place: str | None

    @property
    def name(self) -> str:
        """Its name within its project."""
        return self.id.rpartition(":")[2]

    def is_declared(self, live: Collection[PoolInfo]) -> bool:
        """Whether it may run: it isn't declared in code, or a live pool has loaded the code that declares it."""
        return self.module is None or any(pool.declares.get(self.module) == self.digest for pool in live)

    def status(self, live: Collection[PoolInfo]) -> ScheduleStatus:
        """Its status, with these live pools."""
        if self.paused_ms is not None:
            return ScheduleStatus.PAUSED
        if not self.is_declared(live):
            return ScheduleStatus.UNDECLARED
        return ScheduleStatus.ENDED if self.next_ms is None else ScheduleStatus.ACTIVE

    def due_ms(self, occurrence_ms: int) -> int:
        """When an occurrence starts: later than its nominal time by its jitter."""
        return occurrence_ms + jitter_ms(self.timing, self.id, occurrence_ms)

    def spec(self) -> TaskSpec:
        """The task that it submits, with its secrets."""
        return (
            self.task if self.secrets is None else replace(self.task, payload=self.secrets.put_into(self.task.payload))
        )

    def record(self, live: Collection[PoolInfo]) -> ScheduleRecord:
        """The record, without what only a schedule that is read by itself has."""
        return ScheduleRecord(
            **asdict(self.timing),
            name=self.name,
            status=self.status(live),
            words=times_of(self.timing).words(),
            task=shown_task(self.task),
            project=self.owner.project,
            next_at=None if self.next_ms is None else utc(self.next_ms),
            last_at=utc(self.last_ms) if self.last_ms else None,
            last_task=self.last_task,
            declared_at=self.place,
            paused_at=None if self.paused_ms is None else utc(self.paused_ms),
            created_at=utc(self.created_ms),
            updated_at=utc(self.updated_ms),
        )


def shown_task(task: TaskSpec) -> dict[str, Any]:
    """A submission as JSON values, without the options that have their defaults."""
    given = {each.name: value for each in OPTIONS if (value := getattr(task, each.name)) != each.default}
    shown: dict[str, Any] = msgspec.to_builtins({"type": task.type, "payload": task.payload, **given})
    return shown


# --- the hash ---------------------------------------------------------------------------------------------------------


class _Owner(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of the key that made a schedule."""

    key: str | None = None
    types: Sequence[str] | None = None
    queues: Sequence[str] | None = None


_encode: Final = msgspec.json.Encoder().encode
_decode_timing: Final = msgspec.json.Decoder(Timing).decode
_task: Final = msgspec.json.Decoder(TaskSpec).decode
_owner: Final = msgspec.json.Decoder(_Owner).decode
_past_run: Final = msgspec.json.Decoder(dict[str, Any]).decode


@lru_cache(maxsize=4096)
def _timing(raw: bytes) -> Timing:
    """When a stored schedule runs. Raises: ValueError, for a time zone that this host doesn't know, and the like."""
    timing = _decode_timing(raw)
    for fault in timing_faults(timing):
        raise ValueError(f"{fault.pointer}: {fault.detail}")
    return timing


def _ms(h: Mapping[bytes, bytes], name: bytes) -> int | None:
    """A time in ms. Raises: ValueError, for one from which the next run can't be computed."""
    ms = rq_job.number_of(h.get(name))
    if ms is not None and not 0 <= ms <= MOST_MS:
        raise ValueError(f"{name.decode()} is no time")
    return ms


def restore(id: str, h: Mapping[bytes, bytes]) -> Stored | None:
    """The schedule in a hash; None if there is none. Raises: an exception of `calls.UNREADABLE` for one that no release
    up to this one has written."""
    if b"timing" not in h:
        return None
    owner = _owner(h.get(b"owner") or b"{}")
    project = id.rpartition(":")[0] or None
    name = f"schedule {id.rpartition(':')[2]}"
    return Stored(
        id=id,
        timing=_timing(h[b"timing"]),
        task=_task(h[b"task"]),
        secrets=Secrets.restore(h[b"secrets"]) if b"secrets" in h else None,
        owner=Actor(owner.key, name, project, "", types=owner.types, queues=owner.queues),
        queue=h[b"queue"].decode(),
        incarnation=h[b"incarnation"].decode(),
        revision=int(h[b"revision"]),
        next_ms=_ms(h, b"next_ms"),
        last_ms=_ms(h, b"last_ms") or 0,
        paused_ms=_ms(h, b"paused_ms"),
        retry_ms=_ms(h, b"retry_ms"),
        created_ms=_ms(h, b"created_ms") or 0,
        updated_ms=_ms(h, b"updated_ms") or 0,
        last_task=rq_job.text_of(h.get(b"last_task")),
        module=rq_job.text_of(h.get(b"module")),
        digest=rq_job.text_of(h.get(b"digest")),
        place=rq_job.text_of(h.get(b"place")),
    )


def stored(id: str) -> Call[Stored | None]:
    """A schedule; None if there is none, or it can't be read."""
    return tolerant(Call(("HGETALL", keys.SCHEDULE + id), lambda reply: restore(id, hash_of(reply)), again=True), None)


def timing_of(timing: Timing) -> Timing:
    """Only when it runs, of a submission."""
    return Timing(**{name: getattr(timing, name) for name in Timing.__struct_fields__})


def fields_of(timing: Timing, task: TaskSpec, secrets: bytes, queue: str) -> dict[str, Part]:
    """The fields of the hash that a declaration or a submission decides."""
    return {"timing": _encode(timing_of(timing)), "task": _encode(shown_task(task)), "secrets": secrets, "queue": queue}


# --- names and rights -------------------------------------------------------------------------------------------------


def id_of(name: object, project: str | None) -> str:
    """The id of the schedule that a caller calls `name`: callers without a project call those of one ``project:name``.
    Raises: ScheduleNotFound, if it can't be a name."""
    id = name if project is None or not isinstance(name, str) or name.startswith(f"{project}:") else f"{project}:{name}"
    if not isinstance(id, str) or not SCHEDULE_ID.fullmatch(id):
        raise ScheduleNotFound(name)
    return id


def find(name: object, by: Actor | None) -> Plan[Stored]:
    """A schedule that the caller may see. Raises: ScheduleNotFound."""
    id = id_of(name, None if by is None else by.project)
    schedule: Stored | None
    schedule, there = yield (stored(id), Call(("EXISTS", keys.SCHEDULE + id), bool, again=True))
    if schedule is None:
        raise UnreadableSchedule(name) if there else ScheduleNotFound(name)
    return schedule


def check_rights(schedule: Stored, by: Actor | None) -> None:
    """Return if the caller may start and stop the schedule's tasks. Raises: NotAllowed."""
    if by is not None:
        by.check_task(schedule.task.type, schedule.queue, "/task")


# --- reading ----------------------------------------------------------------------------------------------------------


def list_schedules(
    *, cursor: str | None = None, limit: int = 100, project: str | None = None
) -> Plan[Page[ScheduleRecord]]:
    """A page of the schedules, by name, with their last ten runs; with `project`, of those of that alone.
    Raises: InvalidTask (the cursor or the limit is invalid)."""
    limit = page_length(limit, LONGEST_PAGE)
    after = decode_cursor(cursor, (str,))[0] if cursor else ""
    if after and (not SCHEDULE_ID.fullmatch(after) or (project is not None and not after.startswith(f"{project}:"))):
        raise wrong_cursor()
    first = f"({after}" if after else "-" if project is None else f"[{project}:"
    last = "+" if project is None else f"({project};"  # the character after the colon
    listed = Call(("ZRANGEBYLEX", keys.SCHEDULES, first, last, "LIMIT", 0, limit + 1), names, again=True)
    ids = yield from one(tolerant(listed, []))
    live = yield from pools()
    ids, is_last = ids[:limit], len(ids) <= limit
    runs = [tolerant(schedule_scripts.occurrences(id, LISTED_RUNS), []) for id in ids]
    found = yield [*[stored(id) for id in ids], *runs]
    records = yield from collected(
        replace(each.record(live), history=_history(each, last))
        for each, last in zip(found[: len(ids)], found[len(ids) :], strict=True)
        if each is not None
    )
    return Page(tuple(records), None if is_last else encode_cursor(ids[-1]))


def get_schedule(name: str, by: Actor | None = None) -> Plan[ScheduleRecord]:
    """A schedule with its next runs and its history. Raises: ScheduleNotFound."""
    schedule = yield from find(name, by)
    return (yield from _whole(schedule))


def _whole(schedule: Stored) -> Plan[ScheduleRecord]:
    history, now_ms = yield (tolerant(schedule_scripts.occurrences(schedule.id), []), redis_ms())
    live = yield from pools()
    runs: Sequence[int] = ()
    if schedule.next_ms is not None:
        runs = preview(schedule.timing, schedule.next_ms - 1)
    return replace(
        schedule.record(live),
        next_runs=tuple(map(utc, runs)),
        clock_changes=tuple(clock_changes(schedule.timing, now_ms)),
        history=_history(schedule, history),
    )


def _history(schedule: Stored, documents: Sequence[bytes]) -> tuple[PastRun, ...]:
    """What became of its runs, as far as this release can read it."""
    runs = readable(enumerate(documents), _past, f"a run of the schedule {schedule.name!r}, number")
    return tuple(runs.values())


def _past(document: bytes) -> PastRun:
    entry = _past_run(document)
    until_ms = entry.get("until_ms")
    return PastRun(
        occurrence=utc(entry["occurrence_ms"]),
        at=utc(entry["at_ms"]),
        outcome=entry["outcome"],
        task=entry.get("task"),
        reason=entry.get("reason"),
        until=None if until_ms is None else utc(until_ms),
    )


# --- changing ---------------------------------------------------------------------------------------------------------


def spec_faults(spec: ScheduleSpec, now_ms: int) -> Iterator[FieldError]:
    """What is wrong with a submission, besides its task's payload and options."""
    faults = list(timing_faults(spec))
    yield from faults
    if not faults and spec.at is not None and spec.at.timestamp() * 1000 <= now_ms:
        yield FieldError("/at", "must be a time to come")
    for name in NOT_IN_A_SCHEDULE:
        if getattr(spec.task, name):
            yield FieldError(f"/task/{name}", "can't be given here: the schedule says when the task runs")


def set_schedule(
    name: str, spec: ScheduleSpec, rules: Rules, by: Actor | None = None
) -> Plan[tuple[ScheduleRecord, bool]]:
    """Make a schedule, or replace the one of that name; and whether it is new. A schedule that was paused stays paused.
    As long as its times don't change, its next occurrence stays, even if it is due.

    Raises: InvalidSchedule, InvalidTask (its task; the pointers begin with ``/task``), NotAllowed, CapReached,
    ScheduleConflict (it is declared in code)."""
    project = None if by is None else by.project
    check_name(name)
    now_ms = yield from one(redis_ms())
    if faults := list(spec_faults(spec, now_ms)):
        raise InvalidSchedule(faults)
    if by is not None and spec.overlap == "replace" and not by.may(RIGHTS[Effect.STOP].scope):
        text = f"the key {by.name!r} doesn't have the scope {RIGHTS[Effect.STOP].scope.value}, which replace needs"
        raise NotAllowed([FieldError("/overlap", text)])
    id = id_of(name, project)
    for _ in range(RETRIES):
        before, now_ms = yield (stored(id), redis_ms())
        if before is None and project is None and ":" in id:
            raise ScheduleNotFound(name)
        if before is not None:
            _refuse_declared(before, "changed")
            check_rights(before, by)
        try:
            task = yield from check_task(spec.task, *rules, by=by, start="/task")
        except UnknownType as error:
            error.errors = tuple([FieldError("/task/type", each.detail) for each in error.errors])
            raise
        saved = yield from _save(_Submission(id, spec, task, before, by), now_ms, most=rules.defaults.max_schedules)
        if saved is not None:
            return (yield from _whole(saved)), before is None
    raise _busy(name)


class _Submission(NamedTuple):
    """A checked submission, and the schedule as it was before."""

    id: str
    spec: ScheduleSpec
    task: NewTask
    before: Stored | None
    by: Actor | None


def _save(submitted: _Submission, now_ms: int, *, most: int) -> Plan[Stored | None]:
    """Store a checked submission; None if another change came first."""
    id, spec, task, before, by = submitted
    masked = replace(spec.task, payload=task.payload)
    next_ms = next_of(spec, before, now_ms)
    paused = before is not None and before.paused_ms is not None
    fields: dict[str, Part] = {
        **fields_of(spec, masked, task.secrets, task.shared.queue),
        "next_ms": "" if paused or next_ms is None else next_ms,
        "retry_ms": "",
        "owner": _encode(_owner_of(by)),
        "updated_ms": now_ms,
    }
    if before is None:
        fields["created_ms"] = now_ms
    audited = entry(by, "schedule.created", id) if before is None else entry(by, "schedule.changed", id)
    most *= 1 if ":" in id else keys.WITHOUT_PROJECT
    word = yield from one(
        schedule_scripts.save(
            id,
            fields,
            revision=None if before is None else before.revision,
            next_ms=None if before is None else before.next_ms,
            incarnation=new_id() if before is None else before.incarnation,
            due_ms=None if paused else due_of(id, spec, next_ms, now_ms),
            most=most or None,
            audited=audited,
        )
    )
    if word == "full":
        raise CapReached("schedules", id.rpartition(":")[0] or None, most)
    return (yield from one(stored(id))) if word == "ok" else None


def _owner_of(by: Actor | None) -> _Owner:
    if by is None:
        return _Owner()
    return _Owner(by.key, *(None if each is None else tuple(each) for each in (by.types, by.queues)))


def next_of(timing: Timing, before: Stored | None, now_ms: int) -> int | None:
    """The next occurrence of a schedule that is new or has been changed. It is later than now, and than the last one:
    that may be later than now when Redis's clock was put back."""
    if before is None:
        return times_of(timing).after(now_ms)
    if before.next_ms is not None and all(getattr(timing, name) == getattr(before.timing, name) for name in TIMES):
        return before.next_ms
    return times_of(timing).after(max(now_ms, before.last_ms))


def due_of(id: str, timing: Timing, next_ms: int | None, now_ms: int) -> int:
    """When pools look at it next. One without further runs is removed after a while."""
    return now_ms + keys.SCHEDULE_KEPT_S * 1000 if next_ms is None else next_ms + jitter_ms(timing, id, next_ms)


class _Changes(NamedTuple):
    """Fields of a schedule's hash that change, when pools look at it next (in ms), and the entry of the audit."""

    fields: Mapping[str, Part]
    due_ms: int | None
    audited: bytes


def pause_schedule(name: str, by: Actor | None = None) -> Plan[ScheduleRecord]:
    """Let a schedule submit nothing until it is resumed. Raises: ScheduleNotFound, NotAllowed."""

    def change(schedule: Stored, now_ms: int) -> _Changes | None:
        if schedule.paused_ms is not None:
            return None
        fields: dict[str, Part] = {"paused_ms": now_ms, "next_ms": "", "retry_ms": ""}
        return _Changes(fields, None, entry(by, "schedule.paused", schedule.id))

    return (yield from _change(name, by, change))


def resume_schedule(name: str, by: Actor | None = None) -> Plan[ScheduleRecord]:
    """Resume a paused schedule with its next occurrence from now on. Raises: ScheduleNotFound, NotAllowed."""

    def change(schedule: Stored, now_ms: int) -> _Changes | None:
        if schedule.paused_ms is None:
            return None
        next_ms = times_of(schedule.timing).after(max(now_ms, schedule.last_ms))
        fields: dict[str, Part] = {"paused_ms": "", "next_ms": "" if next_ms is None else next_ms}
        due_ms = due_of(schedule.id, schedule.timing, next_ms, now_ms)
        return _Changes(fields, due_ms, entry(by, "schedule.resumed", schedule.id))

    return (yield from _change(name, by, change))


def _change(name: str, by: Actor | None, change: Callable[[Stored, int], _Changes | None]) -> Plan[ScheduleRecord]:
    """Change fields of a schedule, unless `change` says that there is nothing to change."""
    for _ in range(RETRIES):
        schedule = yield from find(name, by)
        check_rights(schedule, by)
        now_ms = yield from one(redis_ms())
        changes = change(schedule, now_ms)
        if changes is None:
            return (yield from _whole(schedule))
        save = schedule_scripts.save(
            schedule.id,
            {**changes.fields, "updated_ms": now_ms},
            revision=schedule.revision,
            next_ms=schedule.next_ms,
            incarnation=schedule.incarnation,
            due_ms=changes.due_ms,
            audited=changes.audited,
        )
        if (yield from one(save)) == "ok":
            return (yield from get_schedule(name, by))
    raise _busy(name)


def remove_schedule(name: str, by: Actor | None = None) -> Plan[None]:
    """Remove a schedule. The tasks that it has submitted stay. Raises: ScheduleNotFound, NotAllowed, ScheduleConflict
    (it is declared in code that a live pool has loaded)."""
    for _ in range(RETRIES):
        schedule = yield from find(name, by)
        check_rights(schedule, by)
        live = yield from pools()
        if schedule.is_declared(live):
            _refuse_declared(schedule, "removed")
        audited = entry(by, "schedule.removed", schedule.id)
        remove = schedule_scripts.remove(schedule.id, schedule.incarnation, schedule.revision, audited)
        if (yield from one(remove)) != "changed":
            return
    raise _busy(name)


def _refuse_declared(schedule: Stored, verb: str) -> None:
    if schedule.module is not None:
        raise ScheduleConflict(
            f"the schedule {schedule.name!r} is declared at {schedule.place}, so it can only be {verb} there; here it "
            "can be paused, resumed and run"
        )


def _busy(name: object) -> ScheduleConflict:
    return ScheduleConflict(f"the schedule {name!r} is being changed by others; try again")
