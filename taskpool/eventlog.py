"""The stream of all events, as listeners read it: where they stand in it, what came after, whose event it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskpool import keys
from taskpool.calls import Call
from taskpool.status import read_event
from taskpool.types import Event

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
