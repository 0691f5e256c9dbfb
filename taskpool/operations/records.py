"""Reads tasks: from a task's hash to a `TaskRecord`, also for plain RQ jobs, as far as they have the same fields.

`FIELDS` declares how each field of the hash is read. A field that can't be read counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import hiredis
import msgspec
from msgspec.structs import replace

from taskpool.errors import TaskNotFound, UnreadableTask
from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, hash_of, tolerant
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
from taskpool.types import ENDS, OPTIONS, PastAttempt, TaskRecord, TaskStatus, rare_fields, utc
from taskpool.validation import Declared, is_text

Hash = Mapping[bytes, bytes]

OUTSIDE: Final = "it failed outside our workers: RQ's own tools have the traceback"

_json = msgspec.json.Decoder().decode
_attempts = msgspec.json.Decoder(PastAttempt).decode_lines

_MEMBERS_OF_AN_END: Final = frozenset({"seq", "at_ms", "attempt", "started_at", "worker", "result"})
"""The members of an event that has the complete end of a task."""


def _words(raw: bytes) -> tuple[str, ...]:
    return tuple(raw.decode("utf-8", "replace").split(",")) if raw else ()


def _count(raw: bytes) -> int:
    return number_of(raw, 0)


def _history(raw: bytes) -> tuple[PastAttempt, ...]:
    try:
        return tuple(_attempts(raw))
    except (ValueError, RecursionError):
        return ()


def _reader(option: Declared) -> Callable[[bytes], Any]:
    """What reads an option that has a hash field for itself. One that can't be read has its default."""
    if option.is_list:
        return _words if option.about.is_joined else ids_of
    if option.type is str:
        return text_of
    decode = msgspec.json.Decoder(option.type).decode

    def read(raw: bytes) -> Any:
        try:
            return decode(raw)
        except msgspec.MsgspecError:
            return option.default

    return read


FIELDS: Final[Mapping[bytes, tuple[str, Callable[[bytes], Any]]]] = {
    b"origin": ("queue", lambda raw: text_of(raw) or ""),
    b"created_at": ("created_at", time_of),
    b"enqueued_at": ("enqueued_at", time_of),
    b"run_ms": ("run_at", moment_of),
    b"started_at": ("started_at", time_of),
    b"ended_at": ("ended_at", time_of),
    b"expires_ms": ("expires_at", moment_of),
    b"error": ("error", text_of),
    b"failure": ("failure", object_of),
    b"reason": ("reason", text_of),
    b"progress": ("progress", object_of),
    b"attempt": ("attempt", _count),
    b"max_attempts": ("max_attempts", lambda raw: number_of(raw) or 1),
    b"on_lost_lease": ("on_lost_lease", lambda raw: "kill" if raw == b"kill" else "continue"),
    b"snoozes": ("snoozes", _count),
    b"crashes": ("crashes", _count),
    b"result_ttl": ("result_ttl_s", number_of),
    b"failure_ttl": ("failure_ttl_s", number_of),
    b"worker_name": ("worker", text_of),
    b"history": ("history", _history),
    b"project": ("project", text_of),
    b"seq": ("seq", _count),
    **{option.about.stored.encode(): (option.name, _reader(option)) for option in OPTIONS if option.about.stored},
}
"""The fields of the hash that are read one by one: the name in the record, and how the value is read."""


def check_id(id: object) -> None:
    """Return if a task may have this id. (A plain RQ job may have any text for one.)

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

    def read(reply: list[bytes]) -> TaskRecord | None:
        h = hash_of(reply)
        return restore_hash(id, h) if b"data" in h else None

    return tolerant(Call(("HGETALL", keys.JOB + id), read, again=True), None)


def restore_hash(id: str, h: Hash) -> TaskRecord:
    """The record in a hash that has ``data``. (A late write of RQ's may leave a hash without it, which is no task.)"""
    fields: dict[str, Any] = {"queue": ""}
    for name, raw in h.items():
        if (field := FIELDS.get(name)) is not None:
            fields[field[0]] = field[1](raw)
    type, payload = _call_of(h)
    status = status_of(h.get(b"status"))
    if status is TaskStatus.IN_PROGRESS and b"stop_ms" in h:
        status = TaskStatus.STOPPING
    if status is TaskStatus.DONE:
        fields |= _result_of(h.get(b"result"))
    elif status is TaskStatus.FAILED:
        fields["error"] = fields.get("error") or OUTSIDE
    if not status.is_terminal:
        fields["ended_at"] = None
    if b"backoff" in h:
        fields["backoff_s"], fields["backoff_max_s"] = (backoff_part_s(h[b"backoff"], part) for part in (0, 1))
    if b"callback_url" in h or b"callback_events" in h:
        fields["callback_events"] = (fields.get("callback_events") or ENDS) if fields.get("callback_url") else ()
    if b"unique" in h or b"trace" in h:
        fields |= rare_fields(text_of(h.get(b"unique")), text_of(h.get(b"trace")))
    timeout_s = limit_s(h.get(b"timeout_ms"), h.get(b"timeout"))
    return TaskRecord(id=id, type=type, status=status, payload=payload, timeout_s=timeout_s, **fields)


def _result_of(stored: bytes | None) -> dict[str, Any]:
    result = json_of(stored)
    if result is None and stored != b"null" and (why := why_unreadable(stored)):
        return {"error": f"its stored result can't be shown: {why}"}
    return {"result": result}


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


def record_at_end(record: TaskRecord, event: bytes) -> TaskRecord | None:
    """The record of a task whose end an event shows completely. None when the record must be read: the task didn't end
    well, the result is large, or more happened since `record` was read than the event shows."""
    if is_too_deep(event):
        return None
    end = _json(event)
    if not (isinstance(end, dict) and end.keys() >= _MEMBERS_OF_AN_END):
        return None
    steps = end["seq"] - record.seq
    if (record.status, steps) not in ((TaskStatus.QUEUED, 2), (TaskStatus.IN_PROGRESS, 1)):
        return None
    return replace(
        record,
        status=TaskStatus.DONE,
        seq=end["seq"],
        attempt=end["attempt"],
        worker=end["worker"],
        started_at=datetime.fromisoformat(end["started_at"]),
        ended_at=utc(end["at_ms"]),
        result=end["result"],
        progress=record.progress if record.status is TaskStatus.IN_PROGRESS else None,
        error=None,
        failure=None,
    )
