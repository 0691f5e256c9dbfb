"""How a task stands and what is told of it: the one way an attempt changes a status, its log, its events.

The stream of all events, as listeners read it: where they stand in it, what came after, whose event it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call, Plan
from taskpool.redis.rq_job import is_too_deep
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.log_lines import LogLine, encode
from taskpool.text import hidden
from taskpool.types import DEFAULT_LIMITS, Event, LogLimits, RunningTask, TaskStatus

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


_ID: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")


class Position(NamedTuple):
    """A place in the stream: the id of an event. Positions compare as events followed each other."""

    ms: int
    n: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.n}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position in an id.

        Raises:
            ValueError: it isn't one.
        """
        found = _ID.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:40]!r} is not the id of an event")
        return cls(int(found[1]), int(found[2]))


START: Final = Position(0, 0)


class Attributes(NamedTuple):
    """What listeners filter by and what never changes: the first event of a task tells it."""

    type: str
    queue: str
    tags: frozenset[str]
    project: str | None = None


UNKNOWN: Final = Attributes("", "", frozenset())
"""Of a task that is gone."""


class Chunk(NamedTuple):
    """A part of the stream, oldest first. `end`: where it ends; `is_last`: there was no more."""

    events: list[Event]
    end: Position
    is_last: bool


def events_after(position: Position, limit: int) -> Call[Chunk]:
    """The events after a position, `limit` entries at most."""

    def read(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> Chunk:
        end = Position.parse(reply[-1][0].decode()) if reply else position
        return Chunk(_events(reply), end, len(reply) < limit)

    return Call(("XRANGE", keys.EVENTS, f"({position}", "+", "COUNT", limit), read, again=True)


def oldest() -> Call[Position | None]:
    """Where the stream begins now; None: it is empty."""
    return Call(("XRANGE", keys.EVENTS, "-", "+", "COUNT", 1), _position, again=True)


def newest() -> Call[Position]:
    """Where the stream ends now."""
    command = ("XREVRANGE", keys.EVENTS, "+", "-", "COUNT", 1)
    return Call(command, lambda reply: _position(reply) or START, again=True)


def holds(position: Position) -> Call[bool]:
    """Whether the event at this position is still there. If it isn't, what came after it may not be either; or the
    stream is another one: Redis lost data, or a replica took over that hadn't received all."""
    command = ("XRANGE", keys.EVENTS, str(position), str(position), "COUNT", 1)
    return Call(command, bool, again=True)


def reaches_back(first: Position | None, position: Position) -> bool:
    """Whether a stream that begins at `first` still has every event after `position`."""
    return position == START or (first is not None and first <= position)


def attributes_of(id: str) -> Call[Attributes | None]:
    """What a task's record says of it; None: there is no such task."""

    def read(reply: Sequence[bytes | None]) -> Attributes | None:
        data, type, queue, tags, project = [None if each is None else each.decode("utf-8", "replace") for each in reply]
        if data is None:
            return None
        return Attributes(type or "", queue or "", frozenset(tags.split(",") if tags else ()), project)

    return Call(("HMGET", keys.JOB + id, "created_at", "type", "origin", "tags", "project"), read, again=True)


def is_there(id: str) -> Call[bool]:
    """Whether there is still such a task. A late write of RQ's may leave a hash without its data: that isn't one."""
    return Call(("HEXISTS", keys.JOB + id, "data"), bool, again=True)


def attributes_told(event: Event) -> Attributes | None:
    """What a task's first event says of it; None for its later ones."""
    told = event.data
    if event.seq != 1 or "queue" not in told:
        return None
    return Attributes(told["type"], told["queue"], frozenset(told.get("tags", ())), told.get("project"))


def _events(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Event]:
    events = []
    for id, fields in reply:
        try:
            events.append(read_event(fields[1], id.decode()))
        except (msgspec.DecodeError, KeyError, ValueError):  # not one of ours
            continue
    return events


def _position(reply: Sequence[tuple[bytes, Any]]) -> Position | None:
    return Position.parse(reply[0][0].decode()) if reply else None
