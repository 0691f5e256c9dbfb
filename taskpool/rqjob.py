"""A task as RQ's job, in both directions: the hash that `rq.job.Job` would save, and what its `data` says.

RQ builds the fields (once; each task then puts its own options in their places), so that every tool of
RQ's reads our records. Data is JSON, never pickle: what isn't a call of our entry point is refused unread.
"""

from __future__ import annotations

import base64
import reprlib
import zlib
from collections.abc import Collection, Mapping
from functools import cache
from math import ceil
from typing import Any, Final

import msgspec
from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, get_current_job
from rq.serializers import JSONSerializer

from taskpool import keys
from taskpool.hash_fields import DEEPEST, ids_of, is_too_deep
from taskpool.lua import Script
from taskpool.parents import FIELDS, is_in_stream, results_of
from taskpool.printable import printable
from taskpool.secret import Secrets
from taskpool.trace import trace_of
from taskpool.types import RunningTask

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

_own_key = Script("own_key", "unique")
_encode = msgspec.json.Encoder().encode
_CALL: Final = _encode((ENTRY_POINT, None, ())).removesuffix(b"]]")
_decode = msgspec.json.Decoder().decode


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


@cache  # to ask RQ takes most of a millisecond, and the options are for whoever submits to choose
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
        """Delete the secrets of a task that is done: nobody can retry it."""
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
