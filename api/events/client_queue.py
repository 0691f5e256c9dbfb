"""The queue of one client: bounded, so that a client that doesn't read costs little memory and delays no one.

A client that is too slow loses the events in its queue and gets a `Resync` with the position from which it can resume.
Events that a client missed and asks for again are read from Redis as fast as the client reads them: see `has_room`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from taskpool.operations.documents import EventDocument, Shown
from taskpool.operations.status import Attributes, Position
from taskpool.types import Event

from .metrics import Reason, StreamKind

MOST_WAITING: Final = 1000
"""A client with this many queued messages is too slow."""
MOST_REPLIES: Final = 100
"""A client with this many more unread replies to its own messages is disconnected."""

_encode: Final = msgspec.json.Encoder().encode


class Step:
    """One event on its way to many clients. `document` and `sse` are encoded once for all of them."""

    __slots__ = ("at", "attributes", "document", "event", "sse")

    def __init__(self, event: Event) -> None:
        # Lines of a log aren't in events for clients, and slow clients would keep them in memory.
        self.event = replace(event, aside={}) if event.aside else event
        self.at = Position.parse(event.stream)
        self.attributes: Attributes | None = None
        self.document: bytes | None = None
        self.sse: bytes | None = None

    def json(self) -> bytes:
        """The event as JSON."""
        if self.document is None:
            self.document = _encode(EventDocument.of(self.event))
        return self.document


class Steps(msgspec.Struct, frozen=True, gc=False):
    """Events for a subscription, in order."""

    to: Any
    steps: Sequence[Step]


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The state of the tasks, or of a workflow, at a position. The events after it follow."""

    to: Any
    at: Position
    documents: Sequence[Shown]


class Resync(msgspec.Struct, frozen=True, gc=False):
    """A subscription lost events. ``trimmed``: it continues at this position. ``slow``: it has ended, and the client
    can resume from this position."""

    to: Any
    at: Position
    reason: Reason


class Live(msgspec.Struct, frozen=True, gc=False):
    """A subscription has caught up: events follow as they happen."""

    to: Any


class Gone(msgspec.Struct, frozen=True, gc=False):
    """The task of a subscription doesn't exist any more, and the subscription has ended."""

    to: Any


class Beat(msgspec.Struct, frozen=True, gc=False):
    """Nothing has happened for a while."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The reply to a message of the client."""

    text: bytes


Item = Steps | Snapshot | Resync | Live | Gone | Beat | Reply


class ClientQueue:
    """The messages waiting for one client. `on_slow` ends a subscription that lost this many events; `on_room` is
    called when there is room again."""

    def __init__(
        self,
        on_slow: Callable[[Any, int], None],
        on_room: Callable[[], None] = lambda: None,
        most: int = MOST_WAITING,
        kind: StreamKind = "events",
    ) -> None:
        self._on_slow, self._on_room, self._most = on_slow, on_room, most
        self.kind = kind
        self._items: deque[Item] = deque()
        self._waiting = 0
        self._filled, self._taken = asyncio.Event(), asyncio.Event()
        self.ended: str | None = None
        """Why nothing more follows; None while more may."""
        self.is_cut = False
        """Whether messages that were taken but not sent yet must not be sent either."""

    @property
    def has_room(self) -> bool:
        """Whether there is room for events read from the stream."""
        return self._waiting < self._most // 4

    def put(self, item: Item) -> None:
        """Queue this, however full the queue is."""
        if self.ended is not None:
            return
        if isinstance(item, Reply) and self._waiting >= self._most + MOST_REPLIES:
            self.end("flooded")
            return
        self._items.append(item)
        self._waiting += _size(item)
        self._filled.set()

    def offer(self, steps: Steps) -> None:
        """Queue these events; if the queue is full, drop all events in it."""
        if self._waiting < self._most:
            self.put(steps)
        elif self.ended is None:
            self._drop_events(steps)

    def end(self, reason: str, *, at_once: bool = False) -> None:
        """Queue nothing more. With `at_once`, messages in the queue aren't sent either."""
        self.ended = self.ended or reason
        if at_once:
            self.is_cut = True
            self._items.clear()
        self._filled.set()
        self._taken.set()

    async def take(self) -> list[Item]:
        """Wait for messages and take all; empty if nothing more follows."""
        await self._filled.wait()
        items = list(self._items)
        had_room, self._waiting = self.has_room, 0
        self._items.clear()
        if self.ended is None:
            self._filled.clear()
        if not had_room:
            self._taken.set()
            self._on_room()
        for item in items:
            if isinstance(item, Steps):
                item.to.sent = item.steps[-1].at
            elif isinstance(item, Snapshot | Resync):
                item.to.sent = item.at
        return items

    async def room(self) -> None:
        """Wait until there is room, or nothing more follows."""
        while not self.has_room and self.ended is None:
            self._taken.clear()
            await self._taken.wait()

    def _drop_events(self, refused: Steps) -> None:
        lost: dict[Any, int] = {}
        for item in (*self._items, refused):
            if isinstance(item, Steps):
                lost[item.to] = lost.get(item.to, 0) + len(item.steps)
        kept = [item for item in self._items if not isinstance(item, Steps)]
        self._items = deque(kept)
        self._waiting = sum(_size(item) for item in kept)
        for subscription, events in lost.items():
            places = [item.at for item in kept if isinstance(item, Snapshot | Resync) and item.to is subscription]
            self._on_slow(subscription, events)
            self.put(Resync(subscription, max([subscription.sent, *places]), "slow"))


def _size(item: Item) -> int:
    if isinstance(item, Steps):
        return len(item.steps)
    return 1 + len(item.documents) if isinstance(item, Snapshot) else 1
