"""Reads tasks: from a task's hash to a `TaskRecord`, also for plain RQ jobs, as far as they have the same fields.

`FIELDS` declares how each field of the hash is read. A field that can't be read counts as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import hiredis
import msgspec
from msgspec.json import Decoder
from msgspec.structs import replace

from taskpool.errors import TaskNotFound, UnreadableTask
from taskpool.redis import keys, rq_job
from taskpool.redis.calls import Call, hash_of, tolerant
from taskpool.types import (
    ENDS,
    OPTIONS,
    Confirmation,
    PastAttempt,
    Question,
    TaskRecord,
    TaskStatus,
    rare_fields,
    utc,
)
from taskpool.validation import Declared, is_text

Hash = Mapping[bytes, bytes]

OUTSIDE: Final = "it failed outside our workers: RQ's own tools have the traceback"

_attempts = Decoder(PastAttempt).decode_lines

_MEMBERS_OF_AN_END: Final = frozenset({"seq", "at_ms", "attempt", "started_at", "worker", "result"})
"""The members of an event that has the complete end of a task."""


def _words(raw: bytes) -> tuple[str, ...]:
    return tuple(raw.decode("utf-8", "replace").split(",")) if raw else ()


def _tolerant(decode: Callable[[bytes], Any], default: Any) -> Callable[[bytes], Any]:
    def read(raw: bytes) -> Any:
        try:
            return decode(raw)
        except (ValueError, RecursionError):
            return default

    return read


def _reader(option: Declared) -> Callable[[bytes], Any]:
    """What reads an option that has a hash field for itself. One that can't be read has its default."""
    if option.is_list:
        return _words if option.about.is_joined else rq_job.ids_of
    return rq_job.text_of if option.type is str else _tolerant(Decoder(option.type).decode, option.default)


_count: Final = partial(rq_job.number_of, default=0)

FIELDS: Final[Mapping[bytes, tuple[str, Callable[[bytes], Any]]]] = {
    b"origin": ("queue", lambda raw: rq_job.text_of(raw) or ""),
    b"created_at": ("created_at", rq_job.time_of),
    b"enqueued_at": ("enqueued_at", rq_job.time_of),
    b"run_ms": ("run_at", rq_job.moment_of),
    b"started_at": ("started_at", rq_job.time_of),
    b"ended_at": ("ended_at", rq_job.time_of),
    b"expires_ms": ("expires_at", rq_job.moment_of),
    b"error": ("error", rq_job.text_of),
    b"failure": ("failure", rq_job.object_of),
    b"reason": ("reason", rq_job.text_of),
    b"fingerprint": ("fingerprint", rq_job.text_of),
    b"progress": ("progress", rq_job.object_of),
    b"attempt": ("attempt", _count),
    b"max_attempts": ("max_attempts", lambda raw: rq_job.number_of(raw) or 1),
    b"on_lost_lease": ("on_lost_lease", lambda raw: "kill" if raw == b"kill" else "continue"),
    b"snoozes": ("snoozes", _count),
    b"crashes": ("crashes", _count),
    b"result_ttl": ("result_ttl_s", rq_job.number_of),
    b"failure_ttl": ("failure_ttl_s", rq_job.number_of),
    b"worker_name": ("worker", rq_job.text_of),
    b"history": ("history", _tolerant(lambda raw: tuple(_attempts(raw)), ())),
    b"added_by": ("added_by", rq_job.text_of),
    b"canceled_by": ("canceled_by", rq_job.text_of),
    b"operations": ("operations", _words),
    b"submitted_by": ("submitted_by", rq_job.text_of),
    b"project": ("project", rq_job.text_of),
    b"workflow": ("workflow", rq_job.text_of),
    b"node": ("node", rq_job.text_of),
    b"schedule": ("schedule", rq_job.text_of),
    b"occurrence_ms": ("occurrence", rq_job.moment_of),
    b"seq": ("seq", _count),
    b"confirmation": ("confirmation", _tolerant(Decoder(Confirmation).decode, None)),
    b"question": ("question", _tolerant(Decoder(Question).decode, None)),
    b"asked_ms": ("asked_at", rq_job.moment_of),
    b"answer_by_ms": ("answer_by", rq_job.moment_of),
    b"answers": ("answers", rq_job.answers_of),
    **{option.about.stored.encode(): (option.name, _reader(option)) for option in OPTIONS if option.about.stored},
}
"""The fields of the hash that are read one by one: the name in the record, and how the value is read."""


def check_id(id: object) -> None:
    """Return if a task may have this id. (A plain RQ job may have any text for one.) Raises: TaskNotFound."""
    if not is_text(id):
        raise TaskNotFound(id)


def fetch(id: str) -> Call[TaskRecord]:
    """Read one task. Raises, when run: TaskNotFound, UnreadableTask."""

    def read(reply: Any) -> TaskRecord:
        if isinstance(reply, hiredis.ReplyError):
            raise UnreadableTask(id)
        record = _read(id, reply)
        if record is None:
            raise TaskNotFound(id)
        return record

    check_id(id)
    return Call(("HGETALL", keys.JOB + id), read, again=True, reads_faults=True)


def fetch_if_there(id: str) -> Call[TaskRecord | None]:
    """Read one task; None when there is none, or it can't be read."""
    return tolerant(Call(("HGETALL", keys.JOB + id), partial(_read, id), again=True), None)


def part_if_there(id: str, fields: Sequence[str]) -> Call[TaskRecord | None]:
    """Read these fields of a task's hash, with `created_at` among them; None when there is no task, or it can't be
    read. What isn't read has its default."""

    def read(reply: Sequence[bytes | None]) -> TaskRecord | None:
        h = {name.encode(): raw for name, raw in zip(fields, reply, strict=True) if raw is not None}
        return restore_hash(id, h) if b"created_at" in h else None

    return tolerant(Call(("HMGET", keys.JOB + id, *fields), read, again=True), None)


def _read(id: str, reply: Any) -> TaskRecord | None:
    h = hash_of(reply)
    return restore_hash(id, h) if b"data" in h else None


def restore_hash(id: str, h: Hash) -> TaskRecord:
    """The record in a hash. (A late write of RQ's may leave one without ``data``, which is no task.)"""
    fields: dict[str, Any] = {"queue": ""}
    for name, raw in h.items():
        if (field := FIELDS.get(name)) is not None:
            fields[field[0]] = field[1](raw)
    type, payload = _call_of(h)
    status = rq_job.status_of(h.get(b"status"), h.get(b"stop_ms"), h.get(b"asked_ms"))
    if status is TaskStatus.DONE:
        fields |= _result_of(h.get(b"result"))
    elif status is TaskStatus.FAILED:
        fields["error"] = fields.get("error") or OUTSIDE
    if not status.is_terminal:
        fields["ended_at"] = None
    if status is not TaskStatus.WAITING_CONFIRMATION and b"asked_ms" in h:
        fields["asked_at"] = fields["answer_by"] = fields["question"] = None
    if b"dependency_ids" in h or b"edges" in h:
        edges = rq_job.edges_of(h.get(b"dependency_ids"), h.get(b"edges"))
        fields["depends_on"] = tuple([edge.shown for edge in edges])
    if b"backoff" in h:
        fields["backoff_s"], fields["backoff_max_s"] = rq_job.backoff_of(h[b"backoff"])
    if b"callback_url" in h or b"callback_events" in h:
        fields["callback_events"] = (fields.get("callback_events") or ENDS) if fields.get("callback_url") else ()
    if b"unique" in h or b"trace" in h:
        fields |= rare_fields(rq_job.text_of(h.get(b"unique")), rq_job.text_of(h.get(b"trace")))
    timeout_s = rq_job.limit_s(h.get(b"timeout_ms"), h.get(b"timeout"))
    return TaskRecord(id=id, type=type, status=status, payload=payload, timeout_s=timeout_s, **fields)


def _result_of(stored: bytes | None) -> dict[str, Any]:
    try:
        return {"result": rq_job.read_json(stored) if stored else None}
    except ValueError as error:
        return {"error": f"its stored result can't be shown: {error}"}


def _call_of(h: Hash) -> tuple[str, Any]:
    type = rq_job.text_of(h.get(b"type")) or keys.UNKNOWN_TYPE
    if b"data" not in h:
        return type, None
    try:
        return rq_job.call_of(h[b"data"], (type,))  # an RQ function that was run here has its own name as its type
    except rq_job.Refused:
        return type, None


def record_at_end(record: TaskRecord, event: bytes) -> TaskRecord | None:
    """The record of a task whose end an event shows completely. None when the record must be read: the task didn't end
    well, the result is large, or more happened since `record` was read than the event shows."""
    if rq_job.is_too_deep(event):
        return None
    end = msgspec.json.decode(event)
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
