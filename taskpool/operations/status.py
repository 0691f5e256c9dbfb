"""How an attempt changes the status of its task, writes its log, and how events are published and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.errors import AttemptLost
from taskpool.redis import keys, people_scripts, scripts
from taskpool.redis.calls import Call, Plan, one, tolerant
from taskpool.redis.rq_job import is_too_deep
from taskpool.tasks.attempt import Outcome, asked_too_often, stopped
from taskpool.tasks.log_lines import LogLine, encode
from taskpool.text import hidden
from taskpool.types import DEFAULT_LIMITS, TERMINAL, Event, LogLimits, RunningTask, TaskStatus

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
ASIDE: Final[Mapping[str, Sequence[str]]] = {"log": ("lines",), "done": ("attempt", "started_at", "worker", "result")}
"""By event: the members that only listeners get when it happens; the stream doesn't keep them."""

RELEASE_STEPS: Final = 20
RELEASED_AT_ONCE: Final = 10
"""Calls in one round trip: each of them holds Redis for a few milliseconds."""


def update_status(running: RunningTask, outcome: Outcome) -> Call[str]:
    """End an attempt with this outcome. The answer is

    - ``ok``;
    - ``children``: other tasks wait for this one, and `release_dependents` releases them;
    - ``stopping``: a stop was requested meanwhile, so the task can't run again; end it as stopped;
    - ``too_many``: it has asked too many questions; end it as failed;
    - ``lost``: the attempt no longer holds the lease, and nothing changed.
    """
    if outcome.status is TaskStatus.SCHEDULED:
        delay_ms = round(outcome.delay_s * 1000)
        if not outcome.counts:
            return scripts.snooze(running, delay_ms=delay_ms, message=outcome.error)
        return scripts.retry(running, delay_ms=delay_ms, error=outcome.error, failure=outcome.failure)
    if outcome.status is TaskStatus.WAITING_CONFIRMATION:
        return people_scripts.ask(running, outcome.question)
    return scripts.finish(
        running,
        outcome.status,
        result=outcome.result,
        error=outcome.error,
        failure=outcome.failure or None,
        traceback=outcome.traceback,
    )


def release_dependents(id: str, steps: int = RELEASE_STEPS) -> Plan[None]:
    """Release the tasks that wait for an ended one. If it ended badly, cancel them and their own dependents, level by
    level.

    Each step is a round trip. After `steps` of them, the rest stays in the outbox for housekeeping. So does what can't
    be released because of a damaged record: what has ended has ended all the same.
    """
    ids = [id]
    for _ in range(steps):
        left = yield [tolerant(scripts.release(each), []) for each in ids[:RELEASED_AT_ONCE]]
        ids = [*(each for found in left for each in found), *ids[RELEASED_AT_ONCE:]]
        if not ids:
            return


INSTEAD: Final[Mapping[str, Callable[[RunningTask], Outcome]]] = {
    "stopping": lambda running: stopped(),
    "too_many": asked_too_often,
}
"""By the answer to an outcome: the outcome that is written instead."""


def follow_up(running: RunningTask, word: str, steps: int = RELEASE_STEPS) -> Plan[str]:
    """Do what the answer to an outcome asks for: write another outcome, release the tasks that depend on it. Returns
    the last answer."""
    if word in INSTEAD:
        word = yield from one(update_status(running, INSTEAD[word](running)))
    if word == "children":
        yield from release_dependents(running.id, steps)
    return word


def refuse_lost(running: RunningTask, word: str) -> None:
    """Raises: AttemptLost, if that was the answer to a report of an attempt."""
    if word == "lost":
        raise AttemptLost(f"attempt {running.attempt} of task {running.id} no longer holds its lease")


def log_task(running: RunningTask, lines: Sequence[tuple[int, str]], limits: LogLimits = DEFAULT_LIMITS) -> Call[str]:
    """Append lines ``(ms since 1970, text)`` to a running task's log. The answer is ``ok``, or ``lost`` as above."""
    documents = [
        encode(LogLine(at_ms=at_ms, text=hidden(text, running.secrets), attempt=running.attempt))
        for at_ms, text in lines
    ]
    return scripts.log(running.id, running.attempt_id, documents, limits)


def stop_grace_s(id: str, default: float) -> Call[float]:
    """The seconds that a task has to end by itself after a stop request; `default` if its record has none."""

    def read(reply: bytes | None) -> float:
        try:
            return max(float(reply), 0.0) if reply else default
        except ValueError:
            return default

    return Call(("HGET", keys.JOB + id, "stop_grace_s"), read, again=True)


def notify_websocket(event: Event) -> Call[int]:
    """Publish an event again on its task's channel. The answer is the number of API processes that listen.

    The script of a transition publishes the event of that transition itself.
    """
    head = {name: getattr(event, name) for name in _HEAD}
    message = {**head, **event.data, "stream": event.stream, **event.aside}
    return Call(("PUBLISH", keys.CHANNEL + event.id, msgspec.json.encode(message)), int)


_HEAD: Final = ("id", "seq", "event", "status", "at_ms")


def read_event(document: bytes, stream: str = "") -> Event:
    """The event in a message of a task's channel, or in the field ``e`` of the entry `stream` of the stream.

    A message has more than an entry: its id in the stream, and behind that the members of `Event.aside`.
    Raises: msgspec.DecodeError, KeyError, ValueError: the document isn't an event."""
    if is_too_deep(document):
        raise ValueError("nested too deep")
    data = _decode(document)
    id, seq, name, status, at_ms = [data.pop(member) for member in _HEAD]
    stream = data.pop("stream", stream)
    if not (type(id) is type(name) is type(stream) is str and type(seq) is type(at_ms) is int):
        raise ValueError("not an event")
    aside = {member: data.pop(member) for member in ASIDE.get(name, ()) if member in data}
    return Event(id, seq, name, TaskStatus(status), at_ms, data, stream, aside)


class _Step(msgspec.Struct):
    status: str


_decode_step: Final = msgspec.json.Decoder(_Step).decode


def tells_end(message: bytes) -> bool:
    """Whether a message of a task's channel is about the end of the task."""
    try:
        return _decode_step(message).status in TERMINAL
    except (msgspec.MsgspecError, RecursionError):
        return False


class _Moved(msgspec.Struct):
    id: str
    moved_to: str


_decode_moved: Final = msgspec.json.Decoder(_Moved).decode


def moved_task(message: bytes) -> str | None:
    """The task that a message of its channel tells was moved to another queue; None: the message is something else."""
    try:
        return _decode_moved(message).id
    except (msgspec.MsgspecError, RecursionError):
        return None


_ID: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")


class Position(NamedTuple):
    """The id of an event in the stream of all events. Positions compare in the order of the events."""

    ms: int
    n: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.n}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that an id stands for. Raises: ValueError: the text isn't an id."""
        found = _ID.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:40]!r} is not the id of an event")
        return cls(int(found[1]), int(found[2]))


START: Final = Position(0, 0)


class Attributes(NamedTuple):
    """What subscriptions filter by; the first event of a task has it. Only the queue may change, see `moved_task`."""

    type: str
    queue: str
    tags: frozenset[str]
    project: str | None = None


UNKNOWN: Final = Attributes("", "", frozenset())
"""The attributes of a task that is gone."""


class Chunk(NamedTuple):
    """A part of the stream, oldest event first, and the position of its end. `is_last`: the stream ends there."""

    events: list[Event]
    end: Position
    is_last: bool


def events_after(position: Position, limit: int) -> Call[Chunk]:
    """The events after a position, at most `limit` entries."""

    def read(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> Chunk:
        end = Position.parse(reply[-1][0].decode()) if reply else position
        return Chunk(_events(reply), end, len(reply) < limit)

    return Call(("XRANGE", keys.EVENTS, f"({position}", "+", "COUNT", limit), read, again=True)


def oldest() -> Call[Position | None]:
    """The position of the oldest event; None if the stream is empty."""
    return Call(("XRANGE", keys.EVENTS, "-", "+", "COUNT", 1), _position, again=True)


def newest() -> Call[Position]:
    """The position of the newest event."""
    command = ("XREVRANGE", keys.EVENTS, "+", "-", "COUNT", 1)
    return Call(command, lambda reply: _position(reply) or START, again=True)


def holds(position: Position) -> Call[bool]:
    """Whether the stream still has the event at this position. If not, later events may be missing as well, or Redis
    has lost data, or a replica took over that hadn't received everything."""
    command = ("XRANGE", keys.EVENTS, str(position), str(position), "COUNT", 1)
    return Call(command, bool, again=True)


def reaches_back(first: Position | None, position: Position) -> bool:
    """Whether a stream that begins at `first` still has every event after `position`."""
    return position == START or (first is not None and first <= position)


def attributes_of(id: str) -> Call[Attributes | None]:
    """The attributes in a task's record; None if there is no such task."""

    def read(reply: Sequence[bytes | None]) -> Attributes | None:
        data, type, queue, tags, project = [None if each is None else each.decode("utf-8", "replace") for each in reply]
        if data is None:
            return None
        return Attributes(type or "", queue or "", frozenset(tags.split(",") if tags else ()), project)

    return Call(("HMGET", keys.JOB + id, "created_at", "type", "origin", "tags", "project"), read, again=True)


def is_there(id: str) -> Call[bool]:
    """Whether the task still exists. A late write by RQ may leave a hash without `data`, which isn't a task."""
    return Call(("HEXISTS", keys.JOB + id, "data"), bool, again=True)


def attributes_told(event: Event) -> Attributes | None:
    """The attributes in a task's first event; None for a later event."""
    data = event.data
    if event.seq != 1 or "queue" not in data:
        return None
    return Attributes(data["type"], data["queue"], frozenset(data.get("tags", ())), data.get("project"))


def is_of_workflow(event: Event) -> bool:
    """Whether it is a step of a workflow, not of a task."""
    return event.event.startswith("workflow_")


def _events(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Event]:
    events = []
    for id, fields in reply:
        try:
            events.append(read_event(fields[1], id.decode()))
        except (msgspec.DecodeError, KeyError, ValueError):  # another program wrote it
            continue
    return events


def _position(reply: Sequence[tuple[bytes, Any]]) -> Position | None:
    return Position.parse(reply[0][0].decode()) if reply else None
