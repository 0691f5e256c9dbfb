"""A task as RQ's job: the hash that `rq.job.Job` would save, and how its fields are read.

RQ builds the fields, so that RQ's tools read our records. Data is JSON, never pickle: a job that doesn't call our entry
point is refused unread. A field that can't be read counts as missing, so that one damaged record doesn't keep a worker
or a listing from the others.
"""

from __future__ import annotations

import base64
import binascii
import re
import reprlib
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from math import ceil
from typing import Any, Final, overload

import msgspec
from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, get_current_job
from rq.serializers import JSONSerializer

from taskpool.errors import ParentResultGone
from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, Script
from taskpool.text import Secrets, is_deeper_than, printable
from taskpool.types import (
    DEFAULT_FAILURE_TTL_S,
    DEFAULT_RESULT_TTL_S,
    RQ_STATUS,
    ForeignJobs,
    RunningTask,
    TaskStatus,
    trace_of,
    utc,
)
from taskpool.validation import LONGEST_S

_DIGITS: Final = 15
_NUMBER: Final = re.compile(rb"-?[0-9]{1,%d}" % _DIGITS)

DEEPEST: Final = 128
"""How many arrays and objects may be nested in a JSON field that is shown."""

_decode = msgspec.json.Decoder().decode


def text_of(raw: bytes | None) -> str | None:
    """Text; None for none."""
    return raw.decode("utf-8", "replace") if raw else None


def ids_of(raw: bytes | None) -> tuple[str, ...]:
    """A JSON list of ids."""
    ids = json_of(raw)
    return tuple([id for id in ids if isinstance(id, str)]) if isinstance(ids, list) else ()


def time_of(raw: bytes | None) -> datetime | None:
    """A time as RQ writes them, aware, in UTC."""
    try:
        time = datetime.fromisoformat(raw.decode()) if raw else None
        if time is None or time.tzinfo is UTC:
            return time
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # no time; or one whose zone takes it out of the years 1 to 9999
        return None


def moment_of(ms: bytes | None) -> datetime | None:
    """A time in ms since 1970."""
    number = number_of(ms)
    try:
        return None if number is None else utc(number)
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return None


def limit_s(timeout_ms: bytes | None, timeout: bytes | None) -> float | None:
    """The time limit: ours in ms, else RQ's in whole seconds, where -1 is for none."""
    limit_ms = number_of(timeout_ms) if timeout_ms else None
    seconds = number_of(timeout) if limit_ms is None else limit_ms / 1000
    return seconds if seconds is not None and seconds > 0 else None


def backoff_part_s(raw: bytes | None, part: int) -> float | None:
    """The first (0) or the longest (1) wait of a back-off (see `shared.backoff_text`)."""
    parts = raw.split(b",") if raw else []
    ms = number_of(parts[part]) if part < len(parts) else None
    return None if ms is None else max(ms, 0) / 1000


@overload
def number_of(raw: bytes | None) -> int | None: ...
@overload
def number_of(raw: bytes | None, default: int) -> int: ...
def number_of(raw: bytes | None, default: int | None = None) -> int | None:
    """A whole number; `default` for anything else."""
    if raw and raw.isdigit() and len(raw) <= _DIGITS:
        return int(raw)
    return int(raw) if raw and _NUMBER.fullmatch(raw) else default


def json_of(raw: bytes | None) -> Any:
    """A JSON field; None when it can't be read, see `why_unreadable`."""
    if not raw or is_too_deep(raw):
        return None
    try:
        return _decode(raw)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def object_of(raw: bytes | None) -> dict[str, Any] | None:
    """A JSON field that holds an object; None for anything else."""
    value = json_of(raw) if raw else None
    return value if isinstance(value, dict) else None


def why_unreadable(raw: bytes | None) -> str | None:
    """Why `json_of` can't read a field that is there; None when it can."""
    if not raw:
        return None
    if is_too_deep(raw):
        return f"it is nested more than {DEEPEST} levels deep"
    try:
        _decode(raw)
    except (ValueError, RecursionError):  # RQ writes its own serializer's bytes when a dashboard saves a job
        return "it isn't JSON"
    return None


def is_too_deep(raw: bytes) -> bool:
    """Whether JSON is nested so deep that its readers, each with a stack of its own, can't be trusted with it.

    New results and payloads are refused at far less. This is for records that an older release or RQ has written.
    """
    return is_deeper_than(DEEPEST, raw)


FIELDS: Final = ("status", "result", "data")
"""The fields of a parent's hash that tell its result."""

RQ_SUCCEEDED: Final = b"1"

_decode_result: Final = msgspec.json.Decoder().decode


class ParentResults(Mapping[str, Any]):
    """Results by id, in the order of `depends_on`, where at least one is missing: to read that one raises
    ParentResultGone. It is never None, so a task can't take it for a result."""

    def __init__(self, results: Mapping[str, Any], faults: Mapping[str, str]) -> None:
        self._results, self._faults = results, faults

    def __getitem__(self, id: str) -> Any:
        if id in self._faults:
            raise ParentResultGone(id, self._faults[id])
        return self._results[id]

    def __contains__(self, id: object) -> bool:
        return id in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        shown = {id: f"<{self._faults[id]}>" if id in self._faults else each for id, each in self._results.items()}
        return f"{type(self).__name__}({shown!r})"


def parents_of(ids: Sequence[str]) -> Plan[Mapping[str, Any]]:
    """The results of the tasks that a task depends on, by id, in order. To read one that is gone raises
    ParentResultGone."""
    hashes: list[list[bytes | None]] = yield [Call(("HMGET", keys.JOB + id, *FIELDS), list, again=True) for id in ids]
    records = dict(zip(ids, hashes, strict=True))
    ran_in_rq = [id for id, fields in records.items() if is_in_stream(fields)]
    latest: dict[str, Any] = {}
    if ran_in_rq:
        entries = yield [
            Call(("XREVRANGE", keys.RESULTS + id, "+", "-", "COUNT", 1), list, again=True) for id in ran_in_rq
        ]
        latest = {id: entry for id, (entry, *_) in zip(ran_in_rq, map(_entries, entries), strict=True)}
    return results_of(records, latest)


FINISHED: Final = RQ_STATUS[TaskStatus.DONE].encode()


def is_in_stream(fields: Sequence[bytes | None]) -> bool:
    """Whether a parent is done and its record has no result: then a plain RQ worker ran a function that isn't ours."""
    status, result, _ = fields
    return status == FINISHED and result is None


def results_of(
    records: Mapping[str, Sequence[bytes | None]], latest: Mapping[str, Mapping[bytes, bytes] | None]
) -> Mapping[str, Any]:
    """The results in parents' `FIELDS`, and in the `latest` entries of RQ's result streams."""
    results: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for id, (status, result, data) in records.items():
        results[id] = None
        try:
            if data is None and status != FINISHED:
                faults[id] = "its record expired or was removed"
            elif status != FINISHED:
                faults[id] = f"it has none, its status is {(status or b'unknown').decode('utf-8', 'replace')}"
            elif result is not None:
                results[id] = _decode_result(result)
            elif (entry := latest.get(id)) is None or entry.get(b"type") != RQ_SUCCEEDED:
                faults[id] = "it is no longer stored"
            elif b"return_value" in entry:  # RQ stores no entry for None
                results[id] = _decode_result(base64.b64decode(entry[b"return_value"]))
        except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, RecursionError):
            faults[id] = "what is stored is not JSON"
    return ParentResults(results, faults) if faults else results


def _entries(reply: Sequence[Any]) -> Sequence[Mapping[bytes, bytes] | None]:
    """The entries of a stream, read as flat lists; at least one."""
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in reply] or [None]


ENTRY_POINT: Final = keys.ENTRY_POINT

UNKNOWN_TYPE: Final = keys.UNKNOWN_TYPE

OF_AN_ATTEMPT: Final = (
    *("attempt_id", "ended_at", "error", "failure", "reason", "progress", "result"),
    *("stop_ms", "stop_grace_s", "stop_force", "rq_failure"),
)
"""What an attempt leaves on the record that the next one must not find."""

LEAST_TTL_FOR_DEPENDENTS_S: Final = 86_400
DESCRIPTION_LENGTH: Final = 120
SMALL: Final = 2000
LONGEST_TRACEBACK: Final = 1_000_000

_own_key = Script("own_key")
_encode = msgspec.json.Encoder().encode
_CALL: Final = _encode((ENTRY_POINT, None, ())).removesuffix(b"]]")


class Refused(Exception):
    """Raised when a job's data isn't a call of our entry point; the text says what it is instead."""


def template(queue: str, timeout_s: float, result_ttl_s: int, failure_ttl_s: int) -> tuple[str | int, ...]:
    """The hash fields, flat, that all tasks with these options share: as RQ saves them, without the empty ones."""
    fields = _fields_of_rq() | {
        "origin": queue,
        "timeout": ceil(timeout_s),
        "result_ttl": result_ttl_s,
        "failure_ttl": failure_ttl_s,
    }
    if timeout_s != ceil(timeout_s):
        fields["timeout_ms"] = round(timeout_s * 1000)
    return tuple([part for item in fields.items() for part in item])


@cache  # RQ takes most of a millisecond for it, and callers can choose any options
def _fields_of_rq() -> dict[str, str | int]:
    """What RQ saves of a job, but for what differs between two of them. The four options are placeholders."""
    job = Job.create(
        ENTRY_POINT,
        connection=Redis(),  # Job wants one; nothing here ever connects
        serializer=JSONSerializer,
        origin="default",
        timeout=1,
        result_ttl=1,
        failure_ttl=1,
        status=JobStatus.QUEUED,
    )
    varying = {"data", "description", "created_at", "status"}
    return {name: value for name, value in job.to_dict().items() if value not in ("", None) and name not in varying}


def data(type: str, payload: bytes) -> bytes:
    """RQ's `data` of a task, uncompressed; `payload` is JSON, and stored here and nowhere else."""
    return b"%b%b,%b],{}]" % (_CALL, _encode(type), payload)


def call_of(stored: bytes, functions: Collection[str] = ()) -> tuple[str, Any]:
    """The type and the payload in a job's `data`, compressed (as RQ writes it) or not (as we do). A job that calls one
    of the RQ `functions` has that name as its type, and its arguments as ``{"args": [...], "kwargs": {...}}``.

    Raises:
        Refused: it isn't JSON, or calls anything else. Nothing of it was imported or run.
    """
    try:
        raw = stored if stored[:1] == b"[" else zlib.decompress(stored)
        if is_too_deep(raw):
            raise Refused(f"its payload is nested more than {DEEPEST} levels deep")
        function, instance, arguments, named = _decode(raw)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        raise Refused("its data is not JSON (pickle is never loaded)") from error
    if isinstance(function, str) and function in functions and instance is None:
        if not isinstance(arguments, list) or not isinstance(named, dict):
            raise Refused(f"its arguments for {function} are not a list and an object")
        return function, {"args": arguments, "kwargs": named}
    if function != ENTRY_POINT or instance is not None:
        raise Refused(f"it calls {str(function)[:80]!r}, and only registered task types are run")
    if not isinstance(arguments, list) or named or not 1 <= len(arguments) <= 2 or not isinstance(arguments[0], str):
        raise Refused(f"{ENTRY_POINT} takes a type and a payload")
    return arguments[0], arguments[1] if len(arguments) == 2 else {}


def description(type: str, payload: Any, *, size: int) -> str:
    """What people read in dashboards, like ``resize(width=80)``; cut to a short line. `size`: bytes of the payload."""
    if size > SMALL:
        inside = reprlib.repr(payload)  # the whole would be written out only to keep a line of it
    elif isinstance(payload, dict):
        inside = ", ".join([f"{name}={value!r}" for name, value in payload.items()])
    else:
        inside = repr(payload)
    text = f"{type}({inside})"
    return text if len(text) <= DESCRIPTION_LENGTH else text[: DESCRIPTION_LENGTH - 2] + "…)"


def exc_string(text: str) -> bytes:
    """A traceback as RQ keeps it in its result stream: base64 of zlib, where dashboards look for it."""
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace")))


def return_value(result: bytes) -> bytes:
    """A result (JSON) as RQ keeps it in its result stream."""
    return base64.b64encode(result)


def is_unread(exc_string: str) -> bool:
    """Whether a traceback in RQ's result stream says that its worker couldn't read the job: nothing of it ran."""
    try:
        text = zlib.decompressobj().decompress(base64.b64decode(exc_string), LONGEST_TRACEBACK)
    except (zlib.error, ValueError):
        return False
    return text.rstrip().rpartition(b"\n")[2].startswith(b"rq.exceptions.DeserializationError")


def release_dependents(connection: Redis, id: str) -> None:
    """Queue the RQ jobs that waited for this one, which has ended. RQ's code does it; it reads no data of theirs."""
    try:
        job = Job.fetch(id, connection=connection, serializer=JSONSerializer)
    except NoSuchJobError:
        return
    Queue(job.origin, connection=connection, serializer=JSONSerializer).enqueue_dependents(job)


class PlainJob:
    """The job that a plain RQ worker runs in this process: what a task's context needs of it."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @classmethod
    def current(cls) -> PlainJob:
        """The one being run.

        Raises:
            RuntimeError: no RQ worker runs one here.
        """
        job = get_current_job()
        if job is None:
            raise RuntimeError(f"{ENTRY_POINT} is for RQ workers; use TaskPool.add_task to submit a task")
        return cls(job)

    def rival(self) -> str | None:
        """The task that took this one's unique key before RQ's tools queued this one again; None when it may run."""
        found: Any = self._job.connection.eval(_own_key.text.decode(), 0, self._job.id)
        return found.decode() or None

    def running(self, type: str, payload: Any) -> RunningTask:
        """The attempt, counted on the record, as our own workers see theirs. RQ enforces the timeout."""
        job = self._job
        with job.connection.pipeline() as pipeline:
            pipeline.hincrby(job.key, "attempt", 1)
            pipeline.hset(job.key, "type", type)
            pipeline.hdel(job.key, *OF_AN_ATTEMPT)
            pipeline.zadd(keys.BY_TYPE + type, {job.id: 0})
            pipeline.sadd(keys.TYPES_USED, type)
            pipeline.hget(job.key, "trace")
            pipeline.hexists(job.key, "secret_ttl")
            pipeline.get(keys.SECRETS + job.id)
            attempt, *_, trace, has_secrets, hidden = pipeline.execute()
        traceparent, tracestate = trace_of(trace.decode() if trace else None)
        return RunningTask(
            id=job.id,
            type=type,
            payload=payload,
            queue=job.origin,
            attempt=attempt,
            attempt_id="",
            worker=job.worker_name or "",
            max_attempts=attempt,
            timeout_s=None,
            result_ttl_s=job.result_ttl or 0,
            failure_ttl_s=job.failure_ttl or 0,
            started_ms=0,
            secrets=Secrets.restore(hidden or b"") if has_secrets else None,
            traceparent=traceparent,
            tracestate=tracestate,
        )

    def keep(self, fields: Mapping[str, str | bytes]) -> None:
        """Write fields of the record that RQ doesn't know."""
        mapping: dict[Any, Any] = dict(fields)
        self._job.connection.hset(self._job.key, mapping=mapping)

    def keep_for_dependents(self) -> None:
        """Have RQ keep the record for a day at least, if other tasks depend on it: they are released by a worker pool,
        which may not run at this moment."""
        job = self._job
        if job.connection.exists(keys.DEPENDENTS + job.id, keys.NEEDED + job.id) and (job.result_ttl or 0) >= 0:
            job.result_ttl = max(job.result_ttl or 0, LEAST_TTL_FOR_DEPENDENTS_S)

    def forget_secrets(self, running: RunningTask) -> None:
        """Delete the secrets of a task that is done: it can't be retried."""
        if running.secrets is not None:
            with self._job.connection.pipeline() as pipeline:
                pipeline.delete(keys.SECRETS + running.id)
                pipeline.zrem(keys.SECRETS_INDEX, running.id)
                pipeline.execute()

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Keep the progress on the record."""
        self.keep({"progress": _encode({"done": done, "total": total, "note": note})})

    def log(self, message: str) -> None:
        """Say it in the RQ worker's own log."""
        self._job.log.info("Job %s: %s", self._job.id, printable(message))

    def is_cancelled(self) -> bool:
        """Never: RQ kills what it stops."""
        return False

    def parents(self) -> Mapping[str, Any]:
        """The results of the tasks it depends on, by id. To read one that is gone raises ParentResultGone."""
        redis: Any = self._job.connection  # its stubs allow every reply to be of any type
        ids = ids_of(redis.hget(self._job.key, "dependency_ids"))
        records = {id: redis.hmget(Job.key_for(id), *FIELDS) for id in ids}
        in_stream = [id for id, fields in records.items() if is_in_stream(fields)]
        entries = {id: redis.xrevrange(keys.RESULTS + id, count=1) for id in in_stream}
        return results_of(records, {id: found[0][1] if found else None for id, found in entries.items()})


RQ_TTL_S: Final = 500
RQ_FAILURE_TTL_S: Final = 31_536_000
"""How long RQ keeps jobs that don't say, and so do we when they call an RQ function."""


def restore_claimed(reply: Sequence[Any], worker: str, attempt_id: str, foreign: ForeignJobs) -> RunningTask:
    """The claimed task. A job that isn't one of ours, and calls no RQ function to run, has a `refusal`."""
    id, queue, type, data, attempt, max_attempts, timeout, result_ttl, failure_ttl, enqueued_at, started_ms, *more = (
        reply
    )
    parents, timeout_ms, backoff, snoozes, hidden, trace, on_lost_lease, suspect, *retry = more
    refusal = None
    secrets = None
    payload: Any = None
    try:
        name, payload = call_of(data or b"", foreign.functions)
        secrets = None if hidden is None else _secrets(hidden)
    except Refused as error:
        name, refusal = text_of(type) or UNKNOWN_TYPE, str(error)
    of_rq = name in foreign.functions and refusal is None
    retries_left, retry_intervals = retry or (None, None)
    retries = number_of(retries_left, 0) if of_rq else 0
    traceparent, tracestate = trace_of(text_of(trace)) if trace else (None, None)
    return RunningTask(
        id=id.decode(),
        type=name,
        payload=payload,
        queue=queue.decode(),
        attempt=attempt,
        attempt_id=attempt_id,
        worker=worker,
        max_attempts=attempt + retries if of_rq else number_of(max_attempts, 0) or 1,
        timeout_s=limit_s(timeout_ms, timeout),
        result_ttl_s=number_of(result_ttl, RQ_TTL_S if of_rq else DEFAULT_RESULT_TTL_S),
        failure_ttl_s=number_of(failure_ttl, RQ_FAILURE_TTL_S if of_rq else DEFAULT_FAILURE_TTL_S),
        enqueued_at=(enqueued_at or b"").decode("ascii", "replace"),
        started_ms=int(started_ms),
        depends_on=ids_of(parents) if parents else (),
        backoff_s=backoff_part_s(backoff, 0) if backoff else None,
        backoff_max_s=backoff_part_s(backoff, 1) if backoff else None,
        on_lost_lease="kill" if on_lost_lease == b"kill" else "continue",
        snoozes=number_of(snoozes, 0) if snoozes else 0,
        is_suspect=suspect is not None,
        secrets=secrets,
        refusal=refusal,
        traceparent=traceparent,
        tracestate=tracestate,
        of_rq=of_rq,
        retry_in_s=_interval_s(retry_intervals, retries) if retries else None,
    )


def waited_ms(running: RunningTask) -> int:
    """How long a claimed task had been queued, as far as its record tells. (Read when the task is over: it takes longer
    than all the rest.)"""
    enqueued = time_of(running.enqueued_at.encode())
    return 0 if enqueued is None else max(running.started_ms - round(enqueued.timestamp() * 1000), 0)


def _interval_s(intervals: bytes | None, retries_left: int) -> float:
    """How long RQ waits for the next retry: the last ones of its intervals in order, before that the first one."""
    found = json_of(intervals)
    if not isinstance(found, list) or not found:
        return 0.0
    interval = found[max(len(found) - retries_left, 0)]
    return float(interval) if isinstance(interval, int | float) and 0 <= interval <= LONGEST_S else 0.0


def _secrets(hidden: bytes) -> Secrets:
    try:
        return Secrets.restore(hidden)
    except (ValueError, RecursionError) as error:
        raise Refused("its secret fields can't be read") from error


STATUS_OF: Final[Mapping[bytes, TaskStatus]] = {
    b"created": TaskStatus.QUEUED,
    b"ready_to_enqueue": TaskStatus.QUEUED,
    # Of two statuses with one word the first counts, in the order of STATUSES: `stopping` needs more than the word.
    **{word.encode(): status for status, word in reversed(RQ_STATUS.items())},
}
"""RQ's words (ours and those that only RQ's own moves leave) as the API shows them."""


def status_of(word: bytes | str | None) -> TaskStatus:
    """The status for the word in a hash. One that neither RQ 3 nor this release knows is kept as it is (see
    `TaskStatus`). What is no word counts as failed: nothing moves such a task on."""
    raw = word.encode() if isinstance(word, str) else word or b""
    known = STATUS_OF.get(raw)
    if known is not None:
        return known
    try:
        return TaskStatus(raw.decode())
    except ValueError:
        return TaskStatus.FAILED
