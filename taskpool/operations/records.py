"""From a task's hash to a `TaskRecord`: ours as we wrote it, and a plain RQ job as far as it says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import hiredis
import msgspec
from msgspec.structs import replace

from taskpool.errors import TaskNotFound, UnreadableTask
from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, tolerant
from taskpool.redis.rq_job import (
    backoff_part_s,
    ids_of,
    is_too_deep,
    json_of,
    limit_s,
    moment_of,
    number_of,
    object_of,
    status_of,
    text_of,
    time_of,
    why_unreadable,
)
from taskpool.types import ENDS, PastAttempt, TaskRecord, TaskStatus, rare_fields, utc
from taskpool.validation import is_text

Hash = Mapping[bytes, bytes]


ELSEWHERE: Final = "it failed outside our workers: RQ's own tools have the traceback"

_json = msgspec.json.Decoder().decode
_attempts = msgspec.json.Decoder(PastAttempt).decode_lines

_TOLD: Final = frozenset({"seq", "at_ms", "attempt", "started_at", "worker", "result"})
"""What a message has that tells a record's end whole."""

_COMMON: Final = frozenset(
    b"attempt attempt_id created_at data description ended_at enqueued_at error failure_ttl last_heartbeat log origin"
    b" project result result_ttl seq started_at status timeout timeout_ms type worker_name".split()
)
"""The fields of a record on which nothing rare happened. (What `add`, `claim` and `finish` write, and heartbeats.)"""


def check_id(id: object) -> None:
    """Return if a task may have this id. (A plain RQ job has any text for one.)

    Raises:
        TaskNotFound
    """
    if not is_text(id):
        raise TaskNotFound(id)


def fetch(id: str) -> Call[TaskRecord]:
    """Read one task.

    Raises, when run:
        TaskNotFound
    """

    def read(reply: Any) -> TaskRecord:
        if isinstance(reply, hiredis.ReplyError):
            raise UnreadableTask(id)
        h = hash_of(reply)
        if b"data" not in h:
            raise TaskNotFound(id)
        return restore_hash(id, h)

    check_id(id)
    return Call(("HGETALL", keys.JOB + id), read, again=True, reads_faults=True)


def fetch_if_there(id: str) -> Call[TaskRecord | None]:
    """Read one task; None when there is none."""
    call = Call(("HGETALL", keys.JOB + id), lambda reply: restore(id, reply) if is_task(reply) else None, again=True)
    return tolerant(call, None)


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
    status = status_of(h.get(b"status"))
    if status is TaskStatus.IN_PROGRESS and b"stop_ms" in h:
        status = TaskStatus.STOPPING
    result, error = None, text_of(h.get(b"error"))
    if status is TaskStatus.DONE:
        stored = h.get(b"result")
        result = json_of(stored)
        if result is None and stored != b"null" and (why := why_unreadable(stored)):
            error = f"its stored result can't be shown: {why}"
    elif status is TaskStatus.FAILED:
        error = error or ELSEWHERE
    created, enqueued = h.get(b"created_at"), h.get(b"enqueued_at")
    created_at = time_of(created)
    rare: dict[str, Any] = {} if _COMMON.issuperset(h) else _rare(h)
    return TaskRecord(
        id=id,
        type=type,
        status=status,
        queue=text_of(h.get(b"origin")) or "",
        payload=payload,
        created_at=created_at,
        enqueued_at=created_at if enqueued == created else time_of(enqueued),  # as most are
        started_at=time_of(h.get(b"started_at")),
        ended_at=time_of(h.get(b"ended_at")) if status.is_terminal else None,
        result=result,
        error=error,
        attempt=number_of(h.get(b"attempt")) or 0,
        timeout_s=limit_s(h.get(b"timeout_ms"), h.get(b"timeout")),
        result_ttl_s=number_of(h.get(b"result_ttl")),
        failure_ttl_s=number_of(h.get(b"failure_ttl")),
        worker=text_of(h.get(b"worker_name")),
        seq=number_of(h.get(b"seq")) or 0,
        project=text_of(h.get(b"project")),
        **rare,
    )


def _rare(h: Hash) -> dict[str, Any]:
    """What most records don't have: looking for each of it is what a read of one would mostly consist of."""
    callback_url = text_of(h.get(b"callback_url"))
    callback_events = text_of(h.get(b"callback_events")) or ",".join(ENDS)
    return {
        "run_at": moment_of(h.get(b"run_ms")),
        "expires_at": moment_of(h.get(b"expires_ms")),
        "failure": object_of(h.get(b"failure")),
        "reason": text_of(h.get(b"reason")),
        "progress": object_of(h.get(b"progress")),
        "max_attempts": number_of(h.get(b"max_attempts")) or 1,
        "backoff_s": backoff_part_s(h.get(b"backoff"), 0),
        "backoff_max_s": backoff_part_s(h.get(b"backoff"), 1),
        "on_lost_lease": "kill" if h.get(b"on_lost_lease") == b"kill" else "continue",
        "snoozes": number_of(h.get(b"snoozes")) or 0,
        "crashes": number_of(h.get(b"crashes")) or 0,
        "tags": tuple((text_of(h.get(b"tags")) or "").split(",")) if h.get(b"tags") else (),
        "depends_on": ids_of(h.get(b"dependency_ids")),
        "callback_url": callback_url,
        "callback_events": tuple(callback_events.split(",")) if callback_url else (),
        "history": _history(h.get(b"history")),
        **rare_fields(text_of(h.get(b"unique")), text_of(h.get(b"trace"))),
    }


def restore_told(record: TaskRecord, message: bytes) -> TaskRecord | None:
    """The record as the message of its end tells it; None when that takes a look: it didn't end well, the result is
    large, or more happened since `record` was read than the message says."""
    if is_too_deep(message):
        return None
    told = _json(message)
    if not (isinstance(told, dict) and told.keys() >= _TOLD):
        return None
    steps = told["seq"] - record.seq
    nothing_else = (record.status, steps) in ((TaskStatus.QUEUED, 2), (TaskStatus.IN_PROGRESS, 1))
    if not nothing_else:
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
        return rq_job.call_of(h[b"data"])
    except rq_job.Refused:
        type = text_of(h.get(b"type"))
    if type is None or type == rq_job.UNKNOWN_TYPE:
        return rq_job.UNKNOWN_TYPE, None
    try:
        return rq_job.call_of(h[b"data"], (type,))  # an RQ function that was run here has its own name as its type
    except rq_job.Refused:
        return type, None


def _history(raw: bytes | None) -> tuple[PastAttempt, ...]:
    try:
        return tuple(_attempts(raw)) if raw else ()
    except (ValueError, RecursionError):
        return ()
