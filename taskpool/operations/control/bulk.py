"""Operations on many tasks: preview one, start it, read it, cancel it. `drive` carries it out in bounded steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from taskpool.access.api_key import RIGHTS, Effect
from taskpool.access.audit import Actor, entry
from taskpool.errors import CapReached, FieldError, NotAllowed, OperationConflict, OperationNotFound
from taskpool.operations.control.criteria import checked, checked_operation, within
from taskpool.operations.control.search import part_of
from taskpool.operations.listing import Walk, walk_of
from taskpool.operations.records import fetch_if_there
from taskpool.redis import bulk_scripts, calls, keys, rq_job
from taskpool.redis.calls import Call, Plan, hash_of, one, texts, tolerant
from taskpool.types import RETRYABLE, TERMINAL, Page, TaskRecord, TaskStatus
from taskpool.types.control import (
    ACTIONS,
    UNDOABLE,
    Filter,
    Operation,
    OperationSpec,
    OperationStatus,
    Preview,
)
from taskpool.validation import TASK_ID, is_text, new_id, shortened

MOST_PREVIEWED: Final = 10_000
"""How many tasks a preview looks at."""
AT_ONCE: Final = 100
"""Records whose fields are read in one round trip."""
SAMPLE: Final = 5
LONGEST_PAGE: Final = 100
FIND_PART: Final = 0.25
"""The part of the progress that finding the tasks counts for."""

WAITING: Final = frozenset(keys.CANCELABLE)
ALLOWED: Final[Mapping[str, Collection[TaskStatus]]] = {
    "retry": RETRYABLE,
    "stop": frozenset(TaskStatus) - TERMINAL,
    "cancel": WAITING,
    "remove": TERMINAL,
    "move": WAITING,
    "run_now": (TaskStatus.SCHEDULED,),
}
"""By action: the statuses in which a task can be changed. The scripts decide in the end."""

EFFECTS: Final[Mapping[str, Effect]] = {
    "retry": Effect.START,
    "stop": Effect.STOP,
    "cancel": Effect.STOP,
    "remove": Effect.STOP,
    "move": Effect.START,
    "run_now": Effect.START,
}
"""By action: what it does to tasks, which says what an API key needs."""

UNDOING: Final[Mapping[str, Effect]] = {"cancel": Effect.START, "remove": Effect.STOP}
"""By action that can be undone: what undoing it does to tasks."""

assert ALLOWED.keys() == EFFECTS.keys() == ACTIONS.keys()
assert UNDOING.keys() == {*UNDOABLE}


class Chosen:
    """Which of the tasks that match an operation may change, and why it skips others."""

    def __init__(self, action: str, by: Actor | None, *, include_nonretryable: bool) -> None:
        self._allowed = ALLOWED[action]
        self._by = by if by is not None and by.is_bound else None
        self._leaves_final = action == "retry" and not include_nonretryable
        self.fields = ("failure",) if self._leaves_final else ()
        """The fields of the hash that it needs."""

    def skips(self, task: TaskRecord) -> str:
        """Why it skips a task; empty if it doesn't."""
        if self._by is not None:
            try:
                self._by.check_task(task.type, task.queue)
            except NotAllowed:
                return "not_allowed"
        if task.status not in self._allowed:
            return task.status.value
        if self._leaves_final and (task.failure or {}).get("reason") == "non_retryable":
            return "nonretryable"
        return ""


def _permitted(spec: OperationSpec, by: Actor | None) -> OperationSpec:
    """The operation as it is carried out for a caller. Raises: InvalidOperation; NotAllowed (the key lacks a scope, or
    may not use the queue)."""
    spec = checked_operation(spec)
    _check_rights(spec.action, spec.queue, by)
    return msgspec.structs.replace(spec, filter=within(None if by is None else by.project, spec.filter))


def _check_rights(action: str, queue: str | None, by: Actor | None) -> None:
    if by is None:
        return
    _check_scope(EFFECTS[action], action, "/action", by)
    if queue is not None and by.queues is not None and queue not in by.queues:
        known = ", ".join(sorted(by.queues))
        raise NotAllowed([FieldError("/queue", f"the key {by.name!r} may use the queues {known}, not {queue}")])


def _check_scope(effect: Effect, what: str, pointer: str, by: Actor) -> None:
    scope = RIGHTS[effect].scope
    if not by.may(scope):
        text = f"the key {by.name!r} doesn't have the scope {scope.value}, which {what} needs"
        raise NotAllowed([FieldError(pointer, text)])


def preview_operation(spec: OperationSpec, by: Actor | None = None) -> Plan[Preview]:
    """What an operation would do. It looks at 10,000 tasks at most. Raises: InvalidOperation, NotAllowed."""
    spec = _permitted(spec, by)
    chosen = Chosen(spec.action, by, include_nonretryable=spec.include_nonretryable)
    walk = yield from walk_of(spec.filter)
    size = yield from walk.size()
    count, looked_at, sample, left_out = 0, 0, list[str](), Counter[str]()
    finder = Finder(walk, chosen)
    while not finder.is_over and looked_at < MOST_PREVIEWED:
        found = yield from finder.step()
        looked_at, count = looked_at + found.looked_at, count + len(found.ids)
        left_out += found.skipped
        sample = [*sample, *found.ids][:SAMPLE]
    records = [record for record in (yield [fetch_if_there(id) for id in sample]) if record is not None]
    is_exact = finder.is_over
    if not is_exact:
        count = max(count, round(count * max(size, looked_at) / looked_at))
    return Preview(count=count, is_exact=is_exact, sample=tuple(records), left_out=dict(left_out))


class Found(msgspec.Struct, frozen=True):
    """What one step of a search has found."""

    ids: list[str]
    skipped: Counter[str]
    looked_at: int


class Finder:
    """Walks through the tasks of a filter, step by step."""

    def __init__(self, walk: Walk, chosen: Chosen) -> None:
        self._walk, self._chosen = walk, chosen
        self._source, self._position = walk.source, walk.position
        self._seen: set[str] = set()
        """The tasks that were found. A walk may come to some of them again."""

    @property
    def is_over(self) -> bool:
        """Whether all tasks were looked at."""
        return self._source >= len(self._walk.indexes)

    @property
    def cursor(self) -> str:
        """Where it goes on, for `walk_of`."""
        return calls.encode_cursor(self._walk.indexes[self._source].name, self._position)

    def step(self) -> Plan[Found]:
        """Look at some more tasks. Reads only."""
        indexes = self._walk.indexes
        if not self._position and len(indexes) - self._source > 1:  # skips empty places, many at a time
            ahead = indexes[self._source : self._source + AT_ONCE]
            exist = yield [Call(("EXISTS", each.name), bool, again=True) for each in ahead]
            self._source += exist.index(True) if True in exist else len(exist)
        if self.is_over:
            return Found([], Counter(), 0)
        found = yield from indexes[self._source].step(self._position, AT_ONCE)
        if not found:
            self._source, self._position = self._source + 1, ""
            return Found([], Counter(), 0)
        wanted = self._walk.wanted
        parts = yield [part_of(id, wanted, *self._chosen.fields) for id, _ in found]
        ids, skipped = [], Counter[str]()
        for part in parts:
            if part is not None and part.id not in self._seen and wanted.keeps(part):
                if why := self._chosen.skips(part):
                    skipped[why] += 1
                else:
                    ids.append(part.id)
        self._seen.update(ids)
        self._position = found[-1][1]
        return Found(ids, skipped, len(found))


def start_operation(
    spec: OperationSpec, by: Actor | None = None, *, driver: str = "", most_queues: int = 0
) -> Plan[Operation]:
    """Start an operation. The program `driver` goes on with it, see `drive`; without one, or if that dies, housekeeping
    of any pool does. `most_queues`: how many queues a project may use (0: any number). Raises: InvalidOperation,
    NotAllowed, CapReached."""
    spec = _permitted(spec, by)
    id = new_id()
    fields = {
        "action": spec.action,
        "filter": msgspec.json.encode(spec.filter).decode(),
        **({} if spec.queue is None else {"queue": spec.queue}),
        **({"nonretryable": "1"} if spec.include_nonretryable else {}),
        **_started_by(by),
    }
    audited = entry(by, "operation.started", id, comment=described({k.encode(): v.encode() for k, v in fields.items()}))
    project = None if by is None else by.project
    starting = bulk_scripts.start(id, fields, project=project, audited=audited, driver=driver, most_queues=most_queues)
    if (yield from one(starting)) == "capped":
        raise CapReached("queues", project, most_queues * (1 if project else keys.WITHOUT_PROJECT))
    return (yield from get_operation(id))


def _started_by(by: Actor | None) -> dict[str, str]:
    if by is None:
        return {}
    bounds = {"types": by.types, "queues": by.queues}
    return {
        "by": by.name,
        "by_address": by.address,
        **({} if by.key is None else {"by_key": by.key}),
        **({} if by.project is None else {"project": by.project}),
        **{name: msgspec.json.encode(sorted(each)).decode() for name, each in bounds.items() if each is not None},
    }


def _check_all(operation: Operation, effect: Effect, what: str, by: Actor | None) -> Plan[None]:
    """Return if the caller may do this to all tasks of an operation: it has the scope and, if it is bound to types or
    queues, so was the key that started the operation, to no others. Raises: NotAllowed."""
    if by is None:
        return
    _check_scope(effect, what, "", by)
    if not by.is_bound:
        return
    read = Call(("HGETALL", keys.OPERATION + operation.id), lambda reply: actor_of(hash_of(reply)), again=True)
    starter = yield from one(tolerant(read, None))
    if not by.covers(starter):
        text = f"the operation {operation.id} may change tasks that the key {by.name!r} may not"
        raise NotAllowed([FieldError("", text)])


def undo_operation(id: str, by: Actor | None = None, *, driver: str = "") -> Plan[Operation]:
    """Undo an operation that canceled or removed tasks, up to ten minutes after its end: another operation restores
    them. Raises: OperationNotFound; OperationConflict (it can't be undone, or not any more); NotAllowed."""
    operation = yield from get_operation(id, by)
    if operation.action not in UNDOABLE:
        raise OperationConflict(f"operation {id} can't be undone: only {' and '.join(UNDOABLE)} can")
    yield from _check_all(operation, UNDOING[operation.action], f"undoing {operation.action}", by)
    new = new_id()
    fields = {"action": "undo", "undoes": id, "filter": msgspec.json.encode(operation.filter).decode()}
    audited = entry(by, "operation.undone", id, comment=f"by the operation {new}")
    project = operation.project if by is None or by.project is None else by.project
    fields |= _started_by(by) | ({} if project is None else {"project": project})
    word = yield from one(bulk_scripts.start(new, fields, project=project, audited=audited, driver=driver))
    if word == "gone":
        raise OperationNotFound(id)
    if word != "ok":
        text = {
            "running": "it hasn't ended: cancel it first",
            "undone": "it was undone before",
            "late": "its tasks are no longer kept",
        }
        raise OperationConflict(f"operation {id} can't be undone: {text[word]}")
    return (yield from get_operation(new))


def cancel_operation(id: str, by: Actor | None = None) -> Plan[Operation]:
    """Cancel an operation that runs; one that is canceled stays so. What it has done stays done.
    Raises: OperationNotFound; OperationConflict (it has ended); NotAllowed."""
    operation = yield from get_operation(id, by)
    effect = EFFECTS.get(operation.action, Effect.STOP)
    if operation.undoes is not None:
        undone = yield from one(_fetch(operation.undoes))
        effect = UNDOING.get("" if undone is None else undone.action, Effect.START)
    yield from _check_all(operation, effect, f"canceling {operation.action}", by)
    undo_s = keys.UNDO_S if operation.action in UNDOABLE else None
    h = yield from one(_hash(id))
    audited = entry(by, "operation.canceled", id, comment=described(h))
    word = yield from one(bulk_scripts.cancel(id, undo_s, audited))
    if word not in ("ok", OperationStatus.CANCELED):
        raise OperationConflict(f"operation {id} has ended already: it is {word}")
    return (yield from get_operation(id, by))


def get_operation(id: str, by: Actor | None = None) -> Plan[Operation]:
    """An operation as it is now. Raises: OperationNotFound, also for one of another project."""
    if not (is_text(id) and TASK_ID.fullmatch(id)):  # it could name another key
        raise OperationNotFound(shortened(str(id)))
    operation = yield from one(_fetch(id))
    if operation is None or (by is not None and by.project not in (None, operation.project)):
        raise OperationNotFound(id)
    return operation


def list_operations(*, cursor: str | None = None, limit: int = 50, project: str | None = None) -> Plan[Page[Operation]]:
    """A page of the operations, newest first. Raises: InvalidTask (the cursor or the limit is invalid)."""
    limit = calls.page_length(limit, LONGEST_PAGE)
    position = calls.decode_cursor(cursor, (str,))[0] if cursor else ""
    if position and not position.isalnum():
        raise calls.wrong_cursor()
    index = keys.OPERATIONS if project is None else keys.OPERATIONS_OF + project
    newest = f"({position}" if position else "+"
    listed = Call(("ZREVRANGEBYLEX", index, newest, "-", "LIMIT", 0, limit), texts, again=True)
    ids = yield from one(tolerant(listed, []))
    found = (yield [_fetch(id) for id in ids]) if ids else []
    kept = tuple([operation for operation in found if operation is not None])
    return Page(kept, calls.encode_cursor(ids[-1]) if len(ids) == limit else None)


def _hash(id: str) -> Call[Mapping[bytes, bytes]]:
    return tolerant(Call(("HGETALL", keys.OPERATION + id), hash_of, again=True), {})


def _fetch(id: str) -> Call[Operation | None]:
    def read(reply: Any) -> Operation | None:
        h = hash_of(reply)
        return operation_of(id, h) if b"status" in h else None

    return tolerant(Call(("HGETALL", keys.OPERATION + id), read, again=True), None)


def operation_of(id: str, h: Mapping[bytes, bytes]) -> Operation:
    """The operation in a hash."""

    def number(name: bytes) -> int:
        return rq_job.number_of(h.get(name), 0)

    status = OperationStatus(h[b"status"].decode())
    matched, looked_at = number(b"matched"), number(b"looked_at")
    return Operation(
        id=id,
        action=h[b"action"].decode(),
        status=status,
        filter=rq_job.object_of(h.get(b"filter")) or {},
        queue=rq_job.text_of(h.get(b"queue")),
        undoes=rq_job.text_of(h.get(b"undoes")),
        matched=matched,
        changed=number(b"changed"),
        skipped={name[5:].decode(): number(name) for name in h if name.startswith(b"skip:") and number(name)},
        looked_at=looked_at,
        progress=1.0 if status is OperationStatus.DONE else _progress(h),
        by=rq_job.text_of(h.get(b"by")),
        project=rq_job.text_of(h.get(b"project")),
        error=rq_job.text_of(h.get(b"error")),
        created_at=rq_job.moment_of(h.get(b"created_ms")),
        ended_at=rq_job.moment_of(h.get(b"ended_ms")),
        undo_until=None if b"undone_by" in h else rq_job.moment_of(h.get(b"undo_ms")),
    )


def _progress(h: Mapping[bytes, bytes]) -> float:
    size, looked_at, chosen, acted = (
        rq_job.number_of(h.get(name), 0) for name in (b"size", b"looked_at", b"chosen", b"acted")
    )
    if b"undoes" not in h and h.get(b"phase") != b"act":
        return round(FIND_PART * min(looked_at / size, 1.0), 4) if size else 0.0
    done = min(acted / chosen, 1.0) if chosen else 0.0
    return round(done if b"undoes" in h else FIND_PART + (1 - FIND_PART) * done, 4)


def starter_of(h: Mapping[bytes, bytes]) -> Actor | None:
    """Who started an operation, for the audit; None if it isn't known."""
    if b"by" not in h:
        return None
    name, address = (rq_job.text_of(h.get(field)) or "" for field in (b"by", b"by_address"))
    key, project = (rq_job.text_of(h.get(field)) for field in (b"by_key", b"project"))
    return Actor(key, name, project, address)


def actor_of(h: Mapping[bytes, bytes]) -> Actor:
    """Who started an operation, as far as it says which tasks it may change."""
    types, queues = (
        None if name not in h else frozenset(msgspec.json.decode(h[name], type=list[str]))
        for name in (b"types", b"queues")
    )
    return Actor(None, "", None, "", types, queues)


def described(h: Mapping[bytes, bytes]) -> str:
    """What an operation does, for the audit."""
    action, filter, queue, undoes = (
        rq_job.text_of(h.get(name)) or "" for name in (b"action", b"filter", b"queue", b"undoes")
    )
    return f"undo the operation {undoes}" if undoes else f"{action} {filter}" + (f" to {queue}" if queue else "")


def spec_of(h: Mapping[bytes, bytes]) -> tuple[str, Filter]:
    """The action and the filter of an operation."""
    return h[b"action"].decode(), checked(msgspec.json.decode(h[b"filter"], type=Filter))
