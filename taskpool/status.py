"""How a task stands and what is told of it: the one way an attempt changes a status, its log, its events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from taskpool import keys, scripts
from taskpool.attempt import Outcome
from taskpool.calls import Call, Plan
from taskpool.hash_fields import is_too_deep
from taskpool.logs.line import DEFAULT_LIMITS, LogLimits, LogLine, encode
from taskpool.secret import hidden
from taskpool.types import Event, RunningTask, TaskStatus

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_EVENT_FIELDS: Final = 5
_HEAD: Final = frozenset({"id", "seq", "event", "status", "at_ms"})
"""Every event begins with these, in this order."""

RELEASE_STEPS: Final = 20
RELEASED_AT_ONCE: Final = 10
"""Calls in one round trip: each of them holds Redis for a few milliseconds."""


def update_status(running: RunningTask, outcome: Outcome) -> Call[str]:
    """End an attempt as `outcome` says. The answer is

    - ``ok``;
    - ``children``: tasks wait for this one, `release_dependents` releases them;
    - ``stopping``: it was asked to stop meanwhile, so it can't run again: end it as stopped;
    - ``lost``: it no longer holds the lease, and nothing changed.
    """
    if outcome.status is TaskStatus.SCHEDULED:
        delay_ms = round(outcome.delay_s * 1000)
        if not outcome.counts:
            return scripts.snooze(running, delay_ms=delay_ms, message=outcome.error)
        return scripts.retry(running, delay_ms=delay_ms, error=outcome.error, failure=outcome.failure)
    return scripts.finish(
        running,
        outcome.status,
        result=outcome.result,
        error=outcome.error,
        failure=outcome.failure or None,
        traceback=outcome.traceback,
    )


def release_dependents(id: str, steps: int = RELEASE_STEPS) -> Plan[None]:
    """Release the tasks that wait for an ended one. If it did not end well, cancel them and all that wait for them,
    level by level.

    It stops after so many `steps`, a round trip each. Housekeeping does the rest: what is left is in the outbox.
    """
    ids = [id]
    for _ in range(steps):
        left = yield [scripts.release(each) for each in ids[:RELEASED_AT_ONCE]]
        ids = [*(each for found in left for each in found), *ids[RELEASED_AT_ONCE:]]
        if not ids:
            return


def log_task(running: RunningTask, lines: Sequence[tuple[int, str]], limits: LogLimits = DEFAULT_LIMITS) -> Call[str]:
    """Append lines ``(ms since 1970, text)`` to a running task's log: ``ok``, or ``lost`` and nothing was kept."""
    documents = [
        encode(LogLine(at_ms=at_ms, text=hidden(text, running.secrets), attempt=running.attempt))
        for at_ms, text in lines
    ]
    return scripts.log(running.id, running.attempt_id, documents, limits)


def stop_grace_s(id: str, default: float) -> Call[float]:
    """How many seconds a task that was asked to stop gets to end by itself; `default` if the record doesn't say."""

    def read(reply: bytes | None) -> float:
        try:
            return max(float(reply), 0.0) if reply else default
        except ValueError:
            return default

    return Call(("HGET", keys.JOB + id, "stop_grace_s"), read, again=True)


def notify_websocket(event: Event) -> Call[int]:
    """Publish an event on its task's channel, to every API process that has a listener; how many there are.

    Transitions publish their own events in the same script; this one is for telling an event again.
    """
    document = {"id": event.id, "seq": event.seq, "event": event.event, "status": event.status, "at_ms": event.at_ms}
    told = {**document, **event.data, "stream": event.stream, **event.aside}
    return Call(("PUBLISH", keys.CHANNEL + event.id, msgspec.json.encode(told)), int)


def read_event(document: bytes, stream: str = "") -> Event:
    """The event in a message of a task's channel, or in the field ``e`` of the entry `stream` of the stream.

    Raises:
        msgspec.DecodeError, KeyError, ValueError: it isn't one, whoever wrote it.
    """
    if is_too_deep(document):
        raise ValueError("nested too deep")
    fields = list(_decode(document).items())
    names = [name for name, _ in fields]
    end = names.index("stream") if "stream" in names else len(fields)
    head, data, told = dict(fields[:_EVENT_FIELDS]), dict(fields[_EVENT_FIELDS:end]), dict(fields[end:])
    if head.keys() != _HEAD:  # a newer release may write members between ours
        data = {name: value for name, value in fields[:end] if name not in _HEAD}
        head = {name: value for name, value in fields[:end] if name in _HEAD}
    stream = told.pop("stream", stream)
    id, seq, name, at_ms = head["id"], head["seq"], head["event"], head["at_ms"]
    if not (type(id) is type(name) is type(stream) is str and type(seq) is type(at_ms) is int):
        raise ValueError("not an event")
    return Event(id, seq, name, TaskStatus(head["status"]), at_ms, data, stream, told)
