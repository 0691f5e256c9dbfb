"""From a task's hash to a `TaskRecord`: ours as we wrote it, and a plain RQ job as far as it says the same.

A field that can't be read counts as missing: one damaged record must not keep a worker or a listing from all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, overload

import msgspec
from msgspec.structs import replace

from taskpool import keys, rqjob
from taskpool.calls import Call
from taskpool.errors import TaskNotFound
from taskpool.secret import Secrets
from taskpool.trace import trace_of
from taskpool.types import PastAttempt, RunningTask, TaskRecord, TaskStatus, utc
from taskpool.unique import rare_fields
from taskpool.webhooks.endpoint import ENDS

Hash = Mapping[bytes, bytes]

STATUS_OF: Final[Mapping[bytes, TaskStatus]] = {
    b"queued": TaskStatus.QUEUED,
    b"created": TaskStatus.QUEUED,
    b"ready_to_enqueue": TaskStatus.QUEUED,
    b"scheduled": TaskStatus.SCHEDULED,
    b"deferred": TaskStatus.WAITING,
    b"rate_limited": TaskStatus.THROTTLED,
    b"started": TaskStatus.IN_PROGRESS,
    b"finished": TaskStatus.DONE,
    b"failed": TaskStatus.FAILED,
    b"stopped": TaskStatus.STOPPED,
    b"canceled": TaskStatus.CANCELED,
}
"""RQ's words (ours and those that only RQ's own moves leave) as the API shows them."""

ELSEWHERE: Final = "it failed outside our workers: RQ's own tools have the traceback"

DEFAULT_TTL_S: Final = 86_400
DEFAULT_FAILURE_TTL_S: Final = 604_800
"""How long RQ jobs are kept that don't say."""

_json = msgspec.json.Decoder().decode
_attempts = msgspec.json.Decoder(PastAttempt).decode_lines
DIGITS: Final = 15
_NUMBER: Final = re.compile(rb"-?[0-9]{1,%d}" % DIGITS)


_COMMON: Final = frozenset(
    b"attempt attempt_id created_at data description ended_at enqueued_at error failure_ttl last_heartbeat log origin"
    b" project result result_ttl seq started_at status timeout timeout_ms type worker_name".split()
)
"""The fields of a record on which nothing rare happened. (What `add`, `claim` and `finish` write, and heartbeats.)"""


def fetch(id: str) -> Call[TaskRecord]:
    """Read one task.

    Raises, when run:
        TaskNotFound
    """

    def read(reply: list[bytes]) -> TaskRecord:
        h = hash_of(reply)
        if b"data" not in h:
            raise TaskNotFound(id)
        return restore_hash(id, h)

    return Call(("HGETALL", keys.JOB + id), read, again=True)


def fetch_if_there(id: str) -> Call[TaskRecord | None]:
    """Read one task; None when there is none."""
    return Call(("HGETALL", keys.JOB + id), lambda reply: restore(id, reply) if is_task(reply) else None, again=True)


def is_task(flat: Sequence[bytes]) -> bool:
    """Whether a hash read as a flat list is a task's: a late write of RQ's may leave one without its data."""
    return b"data" in flat[::2]


def restore(id: str, flat: Sequence[bytes]) -> TaskRecord:
    """The record in a hash read as a flat list of fields and values."""
    return restore_hash(id, hash_of(flat))


def hash_of(flat: Sequence[bytes]) -> Hash:
    """A hash read as a flat list of fields and values."""
    parts = iter(flat)
    return dict(zip(parts, parts, strict=True))


def restore_hash(id: str, h: Hash) -> TaskRecord:
    """The record in a hash."""
    type, payload = _call_of(h)
    status = STATUS_OF.get(h.get(b"status", b""), TaskStatus.FAILED)
    if status is TaskStatus.IN_PROGRESS and b"stop_ms" in h:
        status = TaskStatus.STOPPING
    created, enqueued = h.get(b"created_at"), h.get(b"enqueued_at")
    created_at = _time(created)
    rare: dict[str, Any] = {} if _COMMON.issuperset(h) else _rare(h)
    return TaskRecord(
        id=id,
        type=type,
        status=status,
        queue=_text(h.get(b"origin")) or "",
        payload=payload,
        created_at=created_at,
        enqueued_at=created_at if enqueued == created else _time(enqueued),  # as most are
        started_at=_time(h.get(b"started_at")),
        ended_at=_time(h.get(b"ended_at")) if status.is_terminal else None,
        result=_decoded(h.get(b"result")) if status is TaskStatus.DONE else None,
        error=_text(h.get(b"error")) or (ELSEWHERE if status is TaskStatus.FAILED else None),
        attempt=_number(h.get(b"attempt")) or 0,
        timeout_s=_limit_s(h.get(b"timeout_ms"), h.get(b"timeout")),
        result_ttl_s=_number(h.get(b"result_ttl")),
        failure_ttl_s=_number(h.get(b"failure_ttl")),
        worker=_text(h.get(b"worker_name")),
        seq=_number(h.get(b"seq")) or 0,
        project=_text(h.get(b"project")),
        **rare,
    )


def _rare(h: Hash) -> dict[str, Any]:
    """What most records don't have: looking for each of it is what a read of one would mostly consist of."""
    callback_url = _text(h.get(b"callback_url"))
    callback_events = _text(h.get(b"callback_events")) or ",".join(ENDS)
    return {
        "run_at": _moment(h.get(b"run_ms")),
        "expires_at": _moment(h.get(b"expires_ms")),
        "failure": _decoded(h.get(b"failure")),
        "reason": _text(h.get(b"reason")),
        "progress": _decoded(h.get(b"progress")),
        "max_attempts": _number(h.get(b"max_attempts")) or 1,
        "backoff_s": _backoff_s(h.get(b"backoff"), 0),
        "backoff_max_s": _backoff_s(h.get(b"backoff"), 1),
        "snoozes": _number(h.get(b"snoozes")) or 0,
        "crashes": _number(h.get(b"crashes")) or 0,
        "tags": tuple((_text(h.get(b"tags")) or "").split(",")) if h.get(b"tags") else (),
        "depends_on": _ids(h.get(b"dependency_ids")),
        "callback_url": callback_url,
        "callback_events": tuple(callback_events.split(",")) if callback_url else (),
        "history": _history(h.get(b"history")),
        **rare_fields(_text(h.get(b"unique")), _text(h.get(b"trace"))),
    }


def restore_claimed(reply: Sequence[Any], worker: str, attempt_id: str) -> RunningTask:
    """The claimed task in what `claim.lua` answers."""
    id, queue, type, data, attempt, max_attempts, timeout, result_ttl, failure_ttl, enqueued_at, started_ms, *more = (
        reply
    )
    parents, timeout_ms, backoff, snoozes, hidden, trace = more
    refusal = None
    secrets = None
    payload: Any = None
    try:
        name, payload = rqjob.call_of(data or b"")
        secrets = None if hidden is None else _secrets(hidden)
    except rqjob.Refused as error:
        name, refusal = _text(type) or rqjob.UNKNOWN_TYPE, str(error)
    traceparent, tracestate = trace_of(_text(trace)) if trace else (None, None)
    return RunningTask(
        id=id.decode(),
        type=name,
        payload=payload,
        queue=queue.decode(),
        attempt=attempt,
        attempt_id=attempt_id,
        worker=worker,
        max_attempts=_number(max_attempts, 0) or 1,
        timeout_s=_limit_s(timeout_ms, timeout),
        result_ttl_s=_number(result_ttl, DEFAULT_TTL_S),
        failure_ttl_s=_number(failure_ttl, DEFAULT_FAILURE_TTL_S),
        enqueued_at=(enqueued_at or b"").decode("ascii", "replace"),
        started_ms=int(started_ms),
        depends_on=_ids(parents) if parents else (),
        backoff_s=_backoff_s(backoff, 0) if backoff else None,
        backoff_max_s=_backoff_s(backoff, 1) if backoff else None,
        snoozes=_number(snoozes, 0) if snoozes else 0,
        secrets=secrets,
        refusal=refusal,
        traceparent=traceparent,
        tracestate=tracestate,
    )


def _secrets(hidden: bytes) -> Secrets:
    try:
        return Secrets.restore(hidden)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise rqjob.Refused("its secret fields can't be read") from error


def waited_ms(running: RunningTask) -> int:
    """How long a claimed task had been queued, as far as its record tells. (Read when the task is over: it takes longer
    than all the rest.)"""
    enqueued = _time(running.enqueued_at.encode())
    return 0 if enqueued is None else max(running.started_ms - round(enqueued.timestamp() * 1000), 0)


def restore_told(record: TaskRecord, message: bytes) -> TaskRecord | None:
    """The record as the message of its end tells it; None when that takes a look: it didn't end well, the result is
    large, or more happened since `record` was read than the message says."""
    told = _json(message)
    steps = told["seq"] - record.seq
    nothing_else = (record.status, steps) in ((TaskStatus.QUEUED, 2), (TaskStatus.IN_PROGRESS, 1))
    if "result" not in told or not nothing_else:
        return None
    return replace(
        record,
        status=TaskStatus.DONE,
        seq=told["seq"],
        attempt=told["attempt"],
        worker=told["worker"],
        started_at=datetime.fromisoformat(told["started_at"]),
        ended_at=utc(told["at_ms"]),
        result=told["result"],
        progress=record.progress if record.status is TaskStatus.IN_PROGRESS else None,
        error=None,
        failure=None,
    )


def _call_of(h: Hash) -> tuple[str, Any]:
    try:
        return rqjob.call_of(h[b"data"])
    except rqjob.Refused:
        return (_text(h.get(b"type")) or rqjob.UNKNOWN_TYPE), None


def _decoded(raw: bytes | None) -> Any:
    """A JSON field. RQ writes its own serializer's bytes into `result` when a dashboard saves a job: not ours."""
    if not raw:
        return None
    try:
        return _json(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _history(raw: bytes | None) -> tuple[PastAttempt, ...]:
    try:
        return tuple(_attempts(raw)) if raw else ()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()


def _text(raw: bytes | None) -> str | None:
    return raw.decode("utf-8", "replace") if raw else None


def _ids(raw: bytes | None) -> tuple[str, ...]:
    ids = _decoded(raw)
    return tuple([id for id in ids if isinstance(id, str)]) if isinstance(ids, list) else ()


def _time(raw: bytes | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(raw.decode()) if raw else None
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _moment(ms: bytes | None) -> datetime | None:
    number = _number(ms)
    return None if number is None else utc(number)


def _limit_s(timeout_ms: bytes | None, timeout: bytes | None) -> float | None:
    """The time limit: ours in ms, else RQ's in whole seconds, where -1 is for none."""
    limit_ms = _number(timeout_ms) if timeout_ms else None
    limit_s = _number(timeout) if limit_ms is None else limit_ms / 1000
    return limit_s if limit_s is not None and limit_s > 0 else None


def _backoff_s(raw: bytes | None, part: int) -> float | None:
    parts = raw.split(b",") if raw else []
    ms = _number(parts[part]) if part < len(parts) else None
    return None if ms is None else max(ms, 0) / 1000


@overload
def _number(raw: bytes | None) -> int | None: ...
@overload
def _number(raw: bytes | None, default: int) -> int: ...
def _number(raw: bytes | None, default: int | None = None) -> int | None:
    """A whole number; `default` for anything else."""
    if raw and raw.isdigit() and len(raw) <= DIGITS:
        return int(raw)
    return int(raw) if raw and _NUMBER.fullmatch(raw) else default
