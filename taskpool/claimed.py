"""From what `claim.lua` answers to the `RunningTask` that an attempt runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from taskpool import rqjob
from taskpool.hash_fields import backoff_part_s, ids_of, json_of, limit_s, number_of, text_of, time_of
from taskpool.seconds import LONGEST_S
from taskpool.secret import Secrets
from taskpool.trace import trace_of
from taskpool.types import ForeignJobs, RunningTask

DEFAULT_TTL_S: Final = 86_400
DEFAULT_FAILURE_TTL_S: Final = 604_800
"""How long jobs are kept that call our entry point and don't say."""

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
        name, payload = rqjob.call_of(data or b"", foreign.functions)
        secrets = None if hidden is None else _secrets(hidden)
    except rqjob.Refused as error:
        name, refusal = text_of(type) or rqjob.UNKNOWN_TYPE, str(error)
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
        result_ttl_s=number_of(result_ttl, RQ_TTL_S if of_rq else DEFAULT_TTL_S),
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
        raise rqjob.Refused("its secret fields can't be read") from error
