"""A task as RQ's job: the hash that `rq.job.Job` would save, and how its fields are read.

RQ builds the fields, so that RQ's tools read our records. Data is JSON, never pickle: a job that doesn't call our entry
point is refused unread. A field that can't be read counts as missing, so that one damaged record doesn't keep a worker
or a listing from the others.
"""

from __future__ import annotations

import base64
import re
import reprlib
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from math import ceil
from typing import Any, Final, TypeVar, overload

import msgspec
from redis import Redis
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, get_current_job
from rq.serializers import JSONSerializer

from taskpool import types
from taskpool.errors import NonRetryable
from taskpool.redis import keys
from taskpool.redis.calls import Plan, Script
from taskpool.redis.keys import ENTRY_POINT, UNKNOWN_TYPE
from taskpool.text import Secrets, is_deeper_than, printable
from taskpool.types import RQ_STATUS, Answer, ForeignJobs, Receipt, RunningTask, TaskSpec, TaskStatus, trace_of, utc
from taskpool.types.dependency import Edge
from taskpool.validation import LONGEST_S

T = TypeVar("T")

DEEPEST: Final = 128  # how many arrays and objects may be nested in a JSON field that is shown
_is_number: Final = re.compile(rb"-?[0-9]{1,15}").fullmatch

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_decode_answers = msgspec.json.Decoder(types.Answer).decode_lines


# --- how fields are read ----------------------------------------------------------------------------------------------


def text_of(raw: bytes | None) -> str | None:
    """Text; None for none."""
    return raw.decode("utf-8", "replace") if raw else None


def ids_of(raw: bytes | None) -> tuple[str, ...]:
    """A JSON list of ids."""
    ids = json_of(raw)
    return tuple([id for id in ids if isinstance(id, str)]) if isinstance(ids, list) else ()


def edges_of(parents: bytes | None, more: bytes | None) -> tuple[Edge, ...]:
    """What a task depends on, by the fields `dependency_ids` and `edges`: JSON lists of ids, and of objects."""
    plain = [Edge(id) for id in ids_of(parents)] if parents else []
    found = json_of(more) if more else None
    if not isinstance(found, list):
        return tuple(plain)
    pairs = [(each.get("ref"), each.get("on")) for each in found if isinstance(each, dict)]
    return (*plain, *(Edge(ref, on) for ref, on in pairs if isinstance(ref, str) and isinstance(on, str)))


@lru_cache(512)  # most tasks are created and enqueued at the same time, and read several times
def time_of(raw: bytes | str | None) -> datetime | None:
    """A time as RQ writes them, aware, in UTC."""
    try:
        time = datetime.fromisoformat(raw if isinstance(raw, str) else raw.decode()) if raw else None
        if time is None or time.tzinfo is UTC:
            return time
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # no time; or one whose zone takes it out of the years 1 to 9999
        return None


def moment_of(ms: bytes | None) -> datetime | None:
    """A time in ms since 1970."""
    number = number_of(ms)
    at = None if number is None else utc(number)
    return None if at in (types.FIRST_TIME, types.LAST_TIME) else at  # beyond the calendar


def limit_s(timeout_ms: bytes | None, timeout: bytes | None) -> float | None:
    """The time limit: ours in ms, else RQ's in whole seconds, where -1 is for none."""
    limit_ms = number_of(timeout_ms) if timeout_ms else None
    seconds = number_of(timeout) if limit_ms is None else limit_ms / 1000
    return seconds if seconds is not None and seconds > 0 else None


def backoff_of(raw: bytes | None) -> tuple[float | None, float | None]:
    """The first and the longest wait of a back-off (see `add_script.backoff_text`)."""
    if not raw:
        return None, None
    first, longest = (None if ms is None else max(ms, 0) / 1000 for ms in map(number_of, raw.partition(b",")[::2]))
    return first, longest


@overload
def number_of(raw: bytes | None) -> int | None: ...
@overload
def number_of(raw: bytes | None, default: int) -> int: ...
def number_of(raw: bytes | None, default: int | None = None) -> int | None:
    """A whole number; `default` for anything else."""
    if raw and raw.isdigit() and len(raw) < 16:  # most are; the pattern takes four times as long
        return int(raw)
    return int(raw) if raw and _is_number(raw) else default


def json_of(raw: bytes | None) -> Any:
    """A JSON field; None when there is none, or it can't be read."""
    try:
        return read_json(raw) if raw else None
    except ValueError:
        return None


def object_of(raw: bytes | None) -> dict[str, Any] | None:
    """A JSON field that holds an object; None for anything else."""
    value = json_of(raw)
    return value if isinstance(value, dict) else None


def answers_of(raw: bytes | None) -> tuple[Answer, ...]:
    """The answers to what a task has asked: JSON objects, one a line. None if they can't be read."""
    try:
        return tuple(_decode_answers(raw)) if raw else ()
    except (ValueError, RecursionError):
        return ()


def read_json(raw: bytes) -> Any:
    """A JSON field. Raises: ValueError; its text says why the field can't be read."""
    if is_too_deep(raw):
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    try:
        return _decode(raw)
    except (ValueError, RecursionError):  # RQ writes its own serializer's bytes when a dashboard saves a job
        raise ValueError("it isn't JSON") from None


def is_too_deep(raw: bytes) -> bool:
    """Whether JSON is nested so deep that its readers, each with a stack of its own, can't be trusted with it. New
    results and payloads are refused at far less. This is for records that an older release or RQ has written."""
    return is_deeper_than(DEEPEST, raw)


STATUS_OF: Final[Mapping[bytes, TaskStatus]] = {
    b"created": TaskStatus.QUEUED,
    b"ready_to_enqueue": TaskStatus.QUEUED,
    # Of two statuses with one word the first counts, in the order of STATUSES: the other one needs more than the word.
    **{word.encode(): status for status, word in reversed(RQ_STATUS.items())},
}
"""RQ's words (ours and those that only RQ's own moves leave) as the API shows them."""


def status_of(word: bytes | str | None, stop_ms: bytes | None = None, asked_ms: bytes | None = None) -> TaskStatus:
    """The status for these fields of a hash. A word that neither RQ 3 nor this release knows is kept as it is (see
    `TaskStatus`). What is no word counts as failed: nothing moves such a task on."""
    raw = word.encode() if isinstance(word, str) else word or b""
    try:
        status = STATUS_OF.get(raw) or TaskStatus(raw.decode())
    except ValueError:
        return TaskStatus.FAILED
    if status is TaskStatus.WAITING and asked_ms is not None:
        return TaskStatus.WAITING_CONFIRMATION
    return TaskStatus.STOPPING if status is TaskStatus.IN_PROGRESS and stop_ms is not None else status


# --- the job that RQ would save ---------------------------------------------------------------------------------------

DESCRIPTION_LENGTH: Final = 120
SMALL: Final = 2000
LONGEST_TRACEBACK: Final = 1_000_000

_CALL: Final = _encode((ENTRY_POINT, None, ())).removesuffix(b"]]")


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
    options: dict[str, Any] = {"origin": "default", "timeout": 1, "result_ttl": 1, "failure_ttl": 1}
    # Job wants a connection; nothing here ever connects.
    job = Job.create(ENTRY_POINT, connection=Redis(), serializer=JSONSerializer, status=JobStatus.QUEUED, **options)
    varying = {"data", "description", "created_at", "status"}
    return {name: value for name, value in job.to_dict().items() if value not in ("", None) and name not in varying}


class Refused(Exception):
    """Raised when a job's data isn't a call of our entry point; the text says what it is instead."""


def data(type: str, payload: bytes) -> bytes:
    """RQ's `data` of a task, uncompressed. `payload` is JSON. It is stored nowhere else."""
    return b"%b%b,%b],{}]" % (_CALL, _encode(type), payload)


def call_of(stored: bytes, functions: Collection[str] = ()) -> tuple[str, Any]:
    """The type and the payload in a job's `data`, compressed (as RQ writes it) or not (as we do). A job that calls one
    of the RQ `functions` has that name as its type, and its arguments as ``{"args": [...], "kwargs": {...}}``.

    Raises: Refused, if it isn't JSON or calls anything else. Nothing of it was imported or run.
    """
    try:
        raw = stored if stored[:1] == b"[" else zlib.decompress(stored)
        if is_too_deep(raw):
            raise Refused(f"its payload is nested more than {DEEPEST} levels deep")
        function, instance, arguments, named = _decode(raw)
    except (zlib.error, ValueError, TypeError, RecursionError) as error:
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
    """What dashboards show, like ``resize(width=80)``, cut to a short line. `size`: the payload's bytes."""
    if size > SMALL:
        inside = reprlib.repr(payload)  # which doesn't write out the whole
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


# --- what RQ itself does ----------------------------------------------------------------------------------------------

OF_AN_ATTEMPT: Final = (
    *("attempt_id", "ended_at", "error", "failure", "reason", "progress", "result"),
    *("stop_ms", "stop_grace_s", "stop_force", "rq_failure"),
)
"""What an attempt leaves on the record that the next one must not find."""

LEAST_TTL_FOR_DEPENDENTS_S: Final = 86_400

_own_key = Script("own_key")


def release_dependents(connection: Redis, id: str) -> None:
    """Queue the RQ jobs that waited for this one, which has ended. RQ's code does it; it reads no data of theirs."""
    try:
        job = Job.fetch(id, connection=connection, serializer=JSONSerializer)
    except NoSuchJobError:
        return
    Queue(job.origin, connection=connection, serializer=JSONSerializer).enqueue_dependents(job)


CANT_ADD: Final = (
    "a plain RQ worker runs this task, and can't add tasks for it: two attempts could add the same tasks."
    " Tasks that add tasks need `taskpool worker`"
)


class PlainJob:
    """The job that a plain RQ worker runs in this process: what a task's context needs of it."""

    def __init__(self, state_document: Callable[[Any, Secrets | None], bytes]) -> None:
        """`state_document` makes JSON of what a task keeps. Raises: RuntimeError, if no RQ worker runs a job here."""
        self._state_document = state_document
        job = get_current_job()
        if job is None:
            raise RuntimeError(f"{ENTRY_POINT} is for RQ workers; use TaskPool.add_task to submit a task")
        self._job, self.id = job, job.id
        self._redis: Any = job.connection  # its stubs allow every reply to be of any type

    def rival(self) -> str | None:
        """The task that took this one's unique key before RQ's tools queued this one again; None when it may run."""
        return self._redis.eval(_own_key.text.decode(), 0, self._job.id).decode() or None

    def is_unconfirmed(self) -> bool:
        """Whether a person has to confirm the task, and hasn't: another program has queued it."""
        return bool(self._redis.hexists(self._job.key, "unconfirmed"))

    def running(self, type: str, payload: Any) -> RunningTask:
        """The attempt, counted on the record, as our own workers see theirs. RQ enforces the timeout."""
        job = self._job
        with self._redis.pipeline() as pipeline:
            pipeline.hincrby(job.key, "attempt", 1)
            pipeline.hset(job.key, "type", type)
            pipeline.hdel(job.key, *OF_AN_ATTEMPT)
            pipeline.zadd(keys.BY_TYPE + type, {job.id: 0})
            pipeline.sadd(keys.TYPES_USED, type)
            pipeline.hmget(job.key, "trace", "secret_ttl", "occurrence_ms")
            pipeline.get(keys.SECRETS + job.id)
            attempt, *_, (trace, secret_ttl, occurrence), hidden = pipeline.execute()
        traceparent, tracestate = trace_of(text_of(trace))
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
            secrets=None if secret_ttl is None else Secrets.restore(hidden or b""),
            traceparent=traceparent,
            tracestate=tracestate,
            occurrence_ms=number_of(occurrence),
        )

    def keep(self, fields: Mapping[str, str | bytes]) -> None:
        """Write fields of the record that RQ doesn't know."""
        self._redis.hset(self._job.key, mapping=fields)

    def keep_result(self, running: RunningTask, result: bytes) -> None:
        """Write the result of a task that is done. If others depend on it, RQ keeps the record for a day at least: a
        worker pool releases them, and none may run at this moment."""
        job = self._job
        self.keep({"result": result})
        if (
            self._redis.exists(keys.DEPENDENTS + job.id, keys.FOLLOWERS + job.id, keys.NEEDED + job.id)
            and (job.result_ttl or 0) >= 0
        ):
            job.result_ttl = max(job.result_ttl or 0, LEAST_TTL_FOR_DEPENDENTS_S)
        if running.secrets is not None:  # it can't be retried
            with self._redis.pipeline() as pipeline:
                pipeline.delete(keys.SECRETS + running.id)
                pipeline.zrem(keys.SECRETS_INDEX, running.id)
                pipeline.execute()

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Write the progress."""
        self.keep({"progress": _encode({"done": done, "total": total, "note": note})})

    def log(self, message: str) -> None:
        """Write a line to the RQ worker's own log."""
        self._job.log.info("Job %s: %s", self._job.id, printable(message))

    def is_cancelled(self) -> bool:
        """Never: RQ kills what it stops."""
        return False

    def add_task(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> Receipt:
        """Refuse it. Raises: NonRetryable."""
        raise NonRetryable(CANT_ADD)

    def add_tasks(self, specs: Iterable[TaskSpec]) -> list[Receipt]:
        """Refuse it. Raises: NonRetryable."""
        raise NonRetryable(CANT_ADD)

    def ask(self, asking: Any) -> Any:
        """Refuse it: an RQ worker can't put a task aside. Raises: NonRetryable."""
        what = "a plain RQ worker runs this task, and can't ask a person: tasks that ask need `taskpool worker`"
        raise NonRetryable(what)

    def checkpoint(self, state: Any, secrets: Secrets | None) -> None:
        """Write the state. RQ has no attempt ids that could be compared."""
        self._redis.set(keys.CHECKPOINT + self._job.id, self._state_document(state, secrets))

    def state(self) -> Any:
        """Read the state."""
        return json_of(self._redis.get(keys.CHECKPOINT + self._job.id))

    def add_node(self, name: str, given: tuple[Any, ...], after: Any, options: Mapping[str, Any]) -> Any:
        """Refuse it. Raises: NonRetryable."""
        raise NonRetryable(CANT_ADD)

    def add_map(self, name: str, specs: Iterable[TaskSpec], after: Any) -> Any:
        """Refuse it. Raises: NonRetryable."""
        raise NonRetryable(CANT_ADD)

    def commit(self) -> None:
        """There is nothing to commit."""

    def edges(self) -> tuple[Edge, ...]:
        """What the task depends on."""
        return edges_of(*self._redis.hmget(self._job.key, "dependency_ids", "edges"))

    def carry_out(self, plan: Plan[T]) -> T:
        """Carry out a plan on the RQ worker's connection."""
        try:
            calls = next(plan)
            while True:
                calls = plan.send([call.read(self._redis.execute_command(*call.command)) for call in calls])
        except StopIteration as end:
            value: T = end.value
            return value


# --- a claim ----------------------------------------------------------------------------------------------------------

# How long RQ keeps jobs that don't say, and so do we when they call an RQ function.
RQ_TTL_S: Final = 500
RQ_FAILURE_TTL_S: Final = 31_536_000


def restore_claimed(reply: Sequence[Any], worker: str, foreign: ForeignJobs) -> RunningTask:
    """The claimed task. A job that isn't one of ours, and calls no RQ function to run, has a `refusal`."""
    id, queue, type, data, attempt, max_attempts, timeout, result_ttl, failure_ttl, enqueued_at, *more = reply
    (
        started_ms,
        parents,
        timeout_ms,
        backoff,
        snoozes,
        hidden,
        trace,
        on_lost_lease,
        suspect,
        edges,
        occurrence,
        workflow,
        retries_left,
        retry_intervals,
        attempt_id,
    ) = more
    payload: Any = None
    secrets = refusal = None
    try:
        name, payload = call_of(data or b"", foreign.functions)
        secrets = None if hidden is None else Secrets.restore(hidden)
    except (Refused, ValueError, RecursionError) as error:
        name = text_of(type) or UNKNOWN_TYPE
        refusal = str(error) if isinstance(error, Refused) else "its secret fields can't be read"
    of_rq = name in foreign.functions and refusal is None
    retries = number_of(retries_left, 0) if of_rq else 0
    backoff_s, backoff_max_s = backoff_of(backoff) if backoff else (None, None)
    traceparent, tracestate = trace_of(text_of(trace)) if trace else (None, None)
    return RunningTask(
        id=id.decode(),
        type=name,
        payload=payload,
        queue=queue.decode(),
        attempt=attempt,
        attempt_id=attempt_id.decode(),
        worker=worker,
        max_attempts=attempt + retries if of_rq else number_of(max_attempts, 0) or 1,
        timeout_s=limit_s(timeout_ms, timeout),
        result_ttl_s=number_of(result_ttl, RQ_TTL_S if of_rq else types.DEFAULT_RESULT_TTL_S),
        failure_ttl_s=number_of(failure_ttl, RQ_FAILURE_TTL_S if of_rq else types.DEFAULT_FAILURE_TTL_S),
        enqueued_at=(enqueued_at or b"").decode("ascii", "replace"),
        started_ms=int(started_ms),
        edges=edges_of(parents, edges) if parents or edges else (),
        backoff_s=backoff_s,
        backoff_max_s=backoff_max_s,
        on_lost_lease="kill" if on_lost_lease == b"kill" else "continue",
        snoozes=number_of(snoozes, 0) if snoozes else 0,
        is_suspect=suspect is not None,
        occurrence_ms=number_of(occurrence) if occurrence else None,
        workflow=text_of(workflow) if workflow else None,
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
    enqueued = time_of(running.enqueued_at)
    return 0 if enqueued is None else max(running.started_ms - round(enqueued.timestamp() * 1000), 0)


def _interval_s(intervals: bytes | None, retries_left: int) -> float:
    """How long RQ waits for the next retry: the last ones of its intervals in order, before that the first one."""
    found = json_of(intervals)
    if not isinstance(found, list) or not found:
        return 0.0
    interval = found[max(len(found) - retries_left, 0)]
    return float(interval) if isinstance(interval, int | float) and 0 <= interval <= LONGEST_S else 0.0
