"""Canary redrive: retries a group of failures in growing steps, and stops by itself when they fail again.

Starting one only stores it. The housekeeping of any pool drives it, a bounded part each round, and goes on where a pool
that died has stopped: a task is noted with its `seq` before it is retried, so one that still has that `seq` is still to
be retried. A pool takes a redrive with a lease; the scripts refuse one that has lost it, and the redrive retries each
task once.

The tasks are found by walking the registries of failed tasks, oldest first. A task that is retried leaves its registry,
so only those that are passed over move the position on. The walk is over when a whole pass has found none. Tasks that
failed after the start don't belong to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from taskpool.access.audit import Actor, entry
from taskpool.errors import FailureNotFound, FieldError, NotAllowed, RedriveConflict
from taskpool.operations.insight.failure_values import STEPS, check_fingerprint, check_steps
from taskpool.operations.insight.failures import redrive_of
from taskpool.operations.listing import all_queues
from taskpool.operations.status import release_dependents
from taskpool.redis import bulk_scripts, insight_scripts, keys, scripts
from taskpool.redis.calls import Call, Plan, as_it_is, hash_of, one, redis_ms, texts, tolerant
from taskpool.redis.rq_job import json_of, number_of, object_of, text_of, time_of
from taskpool.types import RQ_STATUS, TaskStatus
from taskpool.types.insight import Redrive, RedriveStatus
from taskpool.validation import new_id

WINDOW: Final = 500
"""How many retried tasks of a step may be unended at once."""
PAGE: Final = 200
PAGES: Final = 10
"""How much of the registries one round reads."""
STOP_LEAST: Final = 5
STOP_SHARE: Final = 0.1
"""The step `all` stops when this many, and this share of those that have ended, failed again. Any other step stops at
the first."""
AT_ONCE: Final = 10
SOON_S: Final = 0.05
LATER_S: Final = 1.0

_FIELDS: Final = ("status", "seq", "fingerprint", "reason", "ended_at", "type", "origin")
_encode: Final = msgspec.json.Encoder().encode


class _By(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of who started it: the tasks are retried in that name, and only those that it may start."""

    name: str
    key: str | None = None
    project: str | None = None
    address: str = ""
    types: Sequence[str] | None = None
    queues: Sequence[str] | None = None

    @property
    def actor(self) -> Actor:
        return Actor(self.key, self.name, self.project, self.address, self.types, self.queues)


# --- by hand ----------------------------------------------------------------------------------------------------------


def start_redrive(
    fingerprint: str,
    *,
    steps: Sequence[int | str] = STEPS,
    include_nonretryable: bool = False,
    by: Actor | None = None,
) -> Plan[Redrive]:
    """Begin to retry the failed tasks of a group: as many as each step says, the next step only once those of the last
    are done. Raises: FailureNotFound, InvalidTask (the steps are invalid), RedriveConflict (it runs already)."""
    check_fingerprint(fingerprint)
    checked = check_steps(steps)
    (now_ms,) = yield (redis_ms(),)
    who = None if by is None else _By(by.name, by.key, by.project, by.address, _listed(by.types), _listed(by.queues))
    fields = {
        "steps": _encode(checked),
        "step": 1,
        "include": "1" if include_nonretryable else "",
        "created_ms": now_ms,
        "by": b"" if who is None else _encode(who),
    }
    audited = entry(by, "failures.redriven", fingerprint)
    word = yield from one(insight_scripts.redrive_start(fingerprint, new_id(), fields, audited))
    if word == "gone":
        raise FailureNotFound(fingerprint)
    if word == "running":
        raise RedriveConflict(f"the failures {fingerprint} are being redriven already: stop that first, or wait")
    return (yield from get_redrive(fingerprint))


def get_redrive(fingerprint: str) -> Plan[Redrive]:
    """The last redrive of a group. It is kept for a week after its end. Raises: FailureNotFound."""
    check_fingerprint(fingerprint)
    found = yield from one(redrive_of(fingerprint))
    if found is None:
        raise FailureNotFound(fingerprint, f"there is no redrive of the failures {fingerprint}")
    return found


def stop_redrive(fingerprint: str, by: Actor | None = None) -> Plan[Redrive]:
    """Retry no more tasks of a group; those that were retried run on. Raises: FailureNotFound; RedriveConflict (it has
    ended); NotAllowed (the key is bound to types or queues, and who started it wasn't, or to others)."""
    redrive = yield from get_redrive(fingerprint)
    if by is not None and by.is_bound and not by.covers((yield from _starter(fingerprint))):
        text = f"the redrive of the failures {fingerprint} may retry tasks that the key {by.name!r} may not"
        raise NotAllowed([FieldError("", text)])
    why = "stopped by hand" if by is None else f"stopped by {by.name}"
    audited = entry(by, "failures.redrive_stopped", fingerprint)
    ending = {"status": RedriveStatus.STOPPED.value, "why": why}
    word = yield from one(insight_scripts.redrive_note(fingerprint, redrive.id, set=ending, audited=audited))
    redrive = yield from get_redrive(fingerprint)
    if word != "ok" and redrive.why != why:
        raise RedriveConflict(f"the redrive of the failures {fingerprint} is {redrive.status}")
    return redrive


def _starter(fingerprint: str) -> Plan[Actor | None]:
    kept = yield from one(tolerant(Call(("HGET", keys.REDRIVE + fingerprint, "by"), as_it_is, again=True), None))
    try:
        return msgspec.json.decode(kept, type=_By).actor if kept else None
    except msgspec.MsgspecError:
        return None


def _listed(names: Any) -> Sequence[str] | None:
    return None if names is None else tuple(names)


# --- by housekeeping --------------------------------------------------------------------------------------------------


def drive_redrives(driver: str) -> Plan[float]:
    """One round of the program `driver` for the redrives that run and that no other program has; the seconds until
    there may be more to do."""
    (found,) = yield (tolerant(Call(("SRANDMEMBER", keys.REDRIVES, AT_ONCE), texts, again=True), []),)
    waits_s = [LATER_S]
    for fingerprint in found:
        waits_s.append((yield from drive_redrive(fingerprint, driver)))
    return min(waits_s)


def drive_redrive(fingerprint: str, driver: str) -> Plan[float]:
    """The same for one redrive."""
    damaged = bulk_scripts.Taken("damaged", {})
    taken = yield from one(tolerant(bulk_scripts.take_redrive(fingerprint, driver), damaged))
    if taken is damaged:
        yield (Call(("SREM", keys.REDRIVES, fingerprint), int, again=True),)
    if taken.word != "ok":
        return LATER_S
    try:
        return (yield from _drive(fingerprint, driver))
    except _Lost:
        return LATER_S


class _Lost(Exception):
    """The redrive has ended, or another program goes on with it."""


@dataclass(slots=True)
class _State:
    """A redrive that runs."""

    fingerprint: str
    id: str
    driver: str
    noted: int  # how many steps programs have noted
    steps: Sequence[int | str]
    step: int
    counts: Mapping[str, int]  # of the step
    created_ms: int
    includes: bool
    by: _By | None
    offsets: Mapping[str, int]  # by queue: how many tasks of its registry were passed over; negative: all
    is_first: bool  # the first pass through the registries
    has_found: bool  # this pass has found tasks
    is_over: bool  # no more tasks are to be found
    waiting: Mapping[str, str]

    @property
    def size(self) -> int | None:
        """How many tasks the step retries; None: all."""
        size = self.steps[self.step - 1]
        return size if isinstance(size, int) else None

    def note(self, *, audited: bytes = b"", **noted: Any) -> Plan[None]:
        """Note a step; what it changes isn't changed here. Raises: _Lost."""
        call = insight_scripts.redrive_note(
            self.fingerprint, self.id, driver=self.driver, steps=self.noted, audited=audited, **noted
        )
        if (yield from one(call)) != "ok":
            raise _Lost
        self.noted += 1

    def end(self, status: RedriveStatus, why: str = "") -> Plan[None]:
        """Note the end. Raises: _Lost."""
        more = {"why": why} if why else {}
        comment = f"{status}: {why}" if why else status.value
        audited = entry(self.actor, "failures.redrive_ended", self.fingerprint, comment=comment)
        yield from self.note(set={"status": status.value, **more}, audited=audited)

    @property
    def actor(self) -> Actor | None:
        """Who started it, for the audit."""
        by = self.by
        return None if by is None else Actor(by.key, by.name, by.project, by.address)


def _drive(fingerprint: str, driver: str) -> Plan[float]:
    state = yield from _state(fingerprint, driver)
    if state is None:  # its key is gone, or can't be read
        yield (Call(("SREM", keys.REDRIVES, fingerprint), int, again=True),)
        return LATER_S
    ended, unsent = yield from _look(state)
    moved = len(ended)
    if ended:
        yield from state.note(ended=ended)
    begun, refused = yield from _retry(state, unsent)
    moved += begun
    if refused:
        yield from state.note(refused=refused)
    state = yield from _state(fingerprint, driver)
    if state is None:
        return LATER_S
    if why := _fault(state):
        yield from state.end(RedriveStatus.STOPPED, why)
        return SOON_S
    left = min(WINDOW - len(state.waiting), WINDOW if state.size is None else state.size - state.counts["retried"])
    if left > 0 and not state.is_over:
        moved += yield from _walk(state, left)
        state = yield from _state(fingerprint, driver)
        if state is None:
            return LATER_S
    is_full = state.size is not None and state.counts["retried"] >= state.size
    if (is_full or state.is_over) and not state.waiting and not _fault(state):
        if state.is_over or state.step == len(state.steps):
            yield from state.end(RedriveStatus.DONE)
        else:
            fresh = {f"step_{name}": 0 for name in state.counts}
            yield from state.note(set={"step": state.step + 1, **fresh})
        moved += 1
    return SOON_S if moved else LATER_S


def _fault(state: _State) -> str | None:
    """Why the redrive has to stop; None: it may go on."""
    failed, ended = state.counts["failed_again"], state.counts["failed_again"] + state.counts["succeeded"]
    if not failed or (state.size is None and (failed < STOP_LEAST or failed < ended * STOP_SHARE)):
        return None
    size = "all" if state.size is None else state.size
    return f"step {state.step} ({size}): {failed} of {ended} failed again"


def _state(fingerprint: str, driver: str) -> Plan[_State | None]:
    key = keys.REDRIVE + fingerprint

    def read(reply: Any) -> Mapping[bytes, bytes]:
        return hash_of(reply)

    h, waiting = yield (
        tolerant(Call(("HGETALL", key), read, again=True), {}),
        tolerant(Call(("HGETALL", key + keys.REDRIVE_WAITING), read, again=True), {}),
    )
    steps, step = json_of(h.get(b"steps")), number_of(h.get(b"step"), 0)
    if h.get(b"status") != b"running" or not isinstance(steps, list) or not 1 <= step <= len(steps):
        return None
    try:
        by = msgspec.json.decode(h[b"by"], type=_By) if h.get(b"by") else None
    except msgspec.MsgspecError:
        return None
    offsets = object_of(h.get(b"offsets")) or {}
    return _State(
        fingerprint,
        text_of(h.get(b"id")) or "",
        driver,
        number_of(h.get(b"steps_noted"), 0),
        steps,
        step,
        {name: number_of(h.get(b"step_" + name.encode()), 0) for name in ("retried", "succeeded", "failed_again")},
        number_of(h.get(b"created_ms"), 0),
        h.get(b"include") == b"1",
        by,
        {queue: at for queue, at in offsets.items() if isinstance(at, int)},
        h.get(b"passes") != b"1",
        h.get(b"found") == b"1",
        h.get(b"over") == b"1",
        {id.decode("utf-8", "replace"): seq.decode("latin-1") for id, seq in waiting.items()},
    )


def _row(id: str) -> Call[Sequence[bytes | None]]:
    return tolerant(Call(("HMGET", keys.JOB + id, *_FIELDS), as_it_is, again=True), [None] * len(_FIELDS))


def _look(state: _State) -> Plan[tuple[dict[str, str], list[str]]]:
    """How tasks that were retried have ended, and those that are still to be retried."""
    ended: dict[str, str] = {}
    unsent: list[str] = []
    rows = yield [_row(id) for id in state.waiting]
    for (id, noted), (status, seq, fingerprint, *_) in zip(state.waiting.items(), rows, strict=True):
        word = (status or b"").decode("latin-1")
        if word == RQ_STATUS[TaskStatus.DONE]:
            ended[id] = "succeeded"
        elif status is None or word in (RQ_STATUS[TaskStatus.STOPPED], RQ_STATUS[TaskStatus.CANCELED]):
            ended[id] = "left_out"
        elif word == RQ_STATUS[TaskStatus.FAILED] and (seq or b"").decode("latin-1") == noted:
            unsent.append(id)
        elif fingerprint is not None:  # also if it has attempts left
            ended[id] = "failed_again"
    return ended, unsent


def _are_refused(state: _State, ids: Sequence[str]) -> Call[Sequence[int]]:
    """Whether the redrive has tried in vain to retry each of these tasks."""
    if not ids:
        return Call(("PING",), lambda _: (), again=True)
    key = keys.REDRIVE + state.fingerprint + keys.REDRIVE_REFUSED
    return tolerant(Call(("SMISMEMBER", key, *ids), as_it_is, again=True), [0] * len(ids))


def _retry(state: _State, ids: Sequence[str]) -> Plan[tuple[int, list[str]]]:
    """Retry tasks that are noted: how many of them began a new life, and those that can't. Raises: _Lost."""
    if not ids:
        return 0, []
    work = scripts.Work(state.id, state.driver, keys.REDRIVE + state.fingerprint)
    audited = [entry(state.actor, "task.retried", id) for id in ids]
    words = yield [
        tolerant(scripts.revive(id, each, work=work), "unreadable") for id, each in zip(ids, audited, strict=True)
    ]
    for id, word in zip(ids, words, strict=True):
        if word == "children":
            yield from release_dependents(id)
    if "lost" in words:
        raise _Lost
    refused = [id for id, word in zip(ids, words, strict=True) if word not in ("ok", "children")]
    return len(ids) - len(refused), refused


def _walk(state: _State, room: int) -> Plan[int]:
    """Retry up to `room` more tasks of the group, and note how far the walk has come. How many were retried."""
    names = yield from one(tolerant(Call(("HKEYS", keys.FAILURE + state.fingerprint), texts, again=True), []))
    queues = sorted(name[2:] for name in names if name.startswith("q:") and name != "q:")
    if "q:" in names or not queues:  # of more queues than the group names
        queues = yield from one(all_queues())
    offsets = dict(state.offsets)
    retried = passed = 0
    pages, has_found = PAGES, state.has_found
    for queue in queues:
        while room > 0 and pages > 0 and offsets.get(queue, 0) >= 0:
            pages -= 1
            at = offsets.get(queue, 0)
            ids = yield from one(
                tolerant(Call(("ZRANGE", keys.FAILED + queue, at, at + PAGE - 1), texts, again=True), [])
            )
            rows = yield [_row(id) for id in ids]
            is_refused = yield from one(_are_refused(state, ids))
            chosen: dict[str, str] = {}
            looked_at = 0
            for id, row, refusal in zip(ids, rows, is_refused, strict=True):
                if len(chosen) == room:
                    break
                looked_at += 1
                if refusal or not _belongs(state, row):
                    continue
                if _may(state, row):
                    chosen[id] = (row[1] or b"").decode("latin-1")
                else:
                    passed += 1
            begun = 0
            if chosen:
                yield from state.note(waiting=chosen, set={"found": "1"})
                begun, refused = yield from _retry(state, list(chosen))
                has_found = has_found or begun > 0
                if refused:
                    yield from state.note(refused=refused)
            retried, room = retried + begun, room - begun
            offsets[queue] = at + looked_at - begun
            if looked_at == len(ids) < PAGE:
                offsets[queue] = -1  # its end
    is_end = all(offsets.get(queue, 0) < 0 for queue in queues)
    changes: dict[str, str | int] = {"offsets": _encode(offsets).decode(), "found": "1" if has_found else ""}
    if is_end:
        changes = {"offsets": "{}", "found": "", "passes": "1", "over": "" if has_found else "1"}
    yield from state.note(set=changes, passed=passed if state.is_first else 0)
    return retried + is_end


def _belongs(state: _State, row: Sequence[bytes | None]) -> bool:
    """Whether a task has failed with the fingerprint before the redrive began."""
    status, _, fingerprint, _, ended_at, *_ = row
    at = time_of(ended_at)
    return (
        status == RQ_STATUS[TaskStatus.FAILED].encode()
        and fingerprint == state.fingerprint.encode()
        and (at is None or at.timestamp() * 1000 <= state.created_ms)
    )


def _may(state: _State, row: Sequence[bytes | None]) -> bool:
    """Whether the redrive retries a task that belongs to it."""
    if row[3] == b"non_retryable" and not state.includes:
        return False
    if state.by is None:
        return True
    try:
        state.by.actor.check_task(text_of(row[5]) or "", text_of(row[6]) or "")
    except NotAllowed:
        return False
    return True
