"""From what `claim.lua` answers to the `RunningTask` that an attempt runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from taskpool import rqjob
from taskpool.hash_fields import backoff_part_s, ids_of, limit_s, number_of, text_of, time_of
from taskpool.secret import Secrets
from taskpool.trace import trace_of
from taskpool.types import RunningTask

DEFAULT_TTL_S: Final = 86_400
DEFAULT_FAILURE_TTL_S: Final = 604_800
"""How long RQ jobs are kept that don't say."""


def restore_claimed(reply: Sequence[Any], worker: str, attempt_id: str) -> RunningTask:
    """The claimed task. A job that isn't one of ours is told by its `refusal`."""
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
        name, refusal = text_of(type) or rqjob.UNKNOWN_TYPE, str(error)
    traceparent, tracestate = trace_of(text_of(trace)) if trace else (None, None)
    return RunningTask(
        id=id.decode(),
        type=name,
        payload=payload,
        queue=queue.decode(),
        attempt=attempt,
        attempt_id=attempt_id,
        worker=worker,
        max_attempts=number_of(max_attempts, 0) or 1,
        timeout_s=limit_s(timeout_ms, timeout),
        result_ttl_s=number_of(result_ttl, DEFAULT_TTL_S),
        failure_ttl_s=number_of(failure_ttl, DEFAULT_FAILURE_TTL_S),
        enqueued_at=(enqueued_at or b"").decode("ascii", "replace"),
        started_ms=int(started_ms),
        depends_on=ids_of(parents) if parents else (),
        backoff_s=backoff_part_s(backoff, 0) if backoff else None,
        backoff_max_s=backoff_part_s(backoff, 1) if backoff else None,
        snoozes=number_of(snoozes, 0) if snoozes else 0,
        secrets=secrets,
        refusal=refusal,
        traceparent=traceparent,
        tracestate=tracestate,
    )


def waited_ms(running: RunningTask) -> int:
    """How long a claimed task had been queued, as far as its record tells. (Read when the task is over: it takes longer
    than all the rest.)"""
    enqueued = time_of(running.enqueued_at.encode())
    return 0 if enqueued is None else max(running.started_ms - round(enqueued.timestamp() * 1000), 0)


def _secrets(hidden: bytes) -> Secrets:
    try:
        return Secrets.restore(hidden)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise rqjob.Refused("its secret fields can't be read") from error
