"""How Server-Sent Events are written: the headers of a stream, and its messages.

Readers differ in what they take for a message. Browsers dispatch none without data; httpx-sse and others dispatch one
at each blank line. So a blank line stands behind messages alone: `RETRY` opens the first message's block, and a
comment is one line.

What one client is still to be sent: bounded, so that a client that doesn't read costs no memory and delays nobody.

One that is too slow loses what it wasn't sent yet, and is told so with the position to resume from: never silently.
What it missed and asks for again comes as fast as it reads, however much that is: then `has_room` is waited for.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import msgspec

from taskpool.operations.documents import TaskDocument, event_document
from taskpool.operations.status import Attributes, Position
from taskpool.types import Event

EVENT_STREAM: Final = b"text/event-stream"
RETRY_MS: Final = 2000
RETRY: Final = b"retry: %d\n" % RETRY_MS
"""Begins a stream; no blank line, so that it belongs to the first message."""
KEEP_ALIVE: Final = b": keep-alive\n"
"""A comment. It may stand between two messages only, not inside one."""
KEEP_ALIVE_S: Final = 15.0
"""After so long without a message: proxies cut what is silent for 30 to 60 s."""

_encode: Final = msgspec.json.Encoder().encode
_LINE_ENDS: Final = re.compile(b"\xc2\x85|\xe2\x80[\xa8\xa9]")
_ESCAPED: Final = {b"\xc2\x85": rb"\u0085", b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029"}


def stream_headers(media_type: bytes = EVENT_STREAM) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that is read while it is written: proxies must neither hold it back nor compress it."""
    return [
        (b"content-type", media_type),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),  # nginx
    ]


def message(id: str, document: Any, event: str = "") -> bytes:
    """One message. Without a name for its `event`, browsers hand it to `onmessage`."""
    return encoded_message(id, _encode(document), event)


def encoded_message(id: str, json: bytes, event: str = "") -> bytes:
    """As `message`, of a document that is JSON already.

    JSON holds no CR or LF. Three more characters end a line for some readers (Python's `splitlines`), though not for
    the standard: they are escaped.
    """
    if _LINE_ENDS.search(json):
        json = _LINE_ENDS.sub(lambda found: _ESCAPED[found[0]], json)
    name = b"event: %s\n" % event.encode() if event else b""
    return b"id: %s\n%sdata: %s\n\n" % (id.encode(), name, json)


MOST_WAITING: Final = 1000
"""Messages that may wait for one client before it counts as too slow."""
MOST_REPLIES: Final = 100
"""Beyond that many unread answers to what it sent itself, a client is cut off."""


class Step:
    """One event on its way to many clients: encoded once for all."""

    __slots__ = ("_document", "_message", "at", "attributes", "event")

    def __init__(self, event: Event) -> None:
        # A log's lines aren't in events for clients, and would be kept for those that are slow.
        self.event = replace(event, aside={}) if event.aside else event
        self.at = Position.parse(event.stream)
        self.attributes: Attributes | None = None
        self._document: bytes | None = None
        self._message: bytes | None = None

    @property
    def document(self) -> bytes:
        """The event as JSON."""
        if self._document is None:
            self._document = _encode(event_document(self.event))
        return self._document

    @property
    def message(self) -> bytes:
        """The event as a Server-Sent Event. It has no `event:` field, so that `onmessage` hears all of them."""
        if self._message is None:
            self._message = encoded_message(self.event.stream, self.document)
        return self._message


class Steps(msgspec.Struct, frozen=True, gc=False):
    """Events for a subscription, in order."""

    to: Any
    steps: Sequence[Step]


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """How things stand at a position; the events after it follow."""

    to: Any
    at: Position
    documents: Sequence[TaskDocument]


class Resync(msgspec.Struct, frozen=True, gc=False):
    """Events were lost to a subscription. ``trimmed``: it goes on at this position. ``slow``: it has ended, and can be
    resumed from this position."""

    to: Any
    at: Position
    reason: Literal["trimmed", "slow"]


class Live(msgspec.Struct, frozen=True, gc=False):
    """A subscription has caught up: what follows is told as it happens."""

    to: Any


class Gone(msgspec.Struct, frozen=True, gc=False):
    """A subscription's task isn't there any more: the subscription has ended."""

    to: Any


class Beat(msgspec.Struct, frozen=True, gc=False):
    """Nothing has happened for a while."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer to what the client sent."""

    text: str


Item = Steps | Snapshot | Resync | Live | Gone | Beat | Reply


class Outlet:
    """The messages waiting for one client. `on_slow` ends the subscriptions that lost some; `on_room` is called when
    there is room again."""

    def __init__(
        self, on_slow: Callable[[Any], None], on_room: Callable[[], None] = lambda: None, most: int = MOST_WAITING
    ) -> None:
        self._on_slow, self._on_room = on_slow, on_room
        self._most = most
        self._items: deque[Item] = deque()
        self._waiting = 0
        self._filled, self._taken = asyncio.Event(), asyncio.Event()
        self.ended: str | None = None
        """Why nothing more comes; None while more may."""
        self.is_cut = False
        """Whether what was taken and isn't sent yet isn't to be sent either."""

    @property
    def has_room(self) -> bool:
        """Whether there is room for many more events, read from the stream."""
        return self._waiting < self._most // 4

    def put(self, item: Item) -> None:
        """Send this next."""
        if self.ended is not None:
            return
        if isinstance(item, Reply) and self._waiting >= self._most + MOST_REPLIES:
            self.end("flooded")
            return
        self._items.append(item)
        self._waiting += _size(item)
        self._filled.set()

    def offer(self, steps: Steps) -> None:
        """Send these events next, if the client keeps up."""
        if self._waiting < self._most:
            self.put(steps)
        elif self.ended is None:
            self._shed(steps)

    def end(self, reason: str, *, at_once: bool = False) -> None:
        """Nothing more comes, once what waits is sent; `at_once`: not even that."""
        self.ended = self.ended or reason
        if at_once:
            self.is_cut = True
            self._items.clear()
        self._filled.set()
        self._taken.set()

    async def take(self) -> list[Item]:
        """All that waits, as soon as something does; empty once nothing more comes."""
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
        """Return as soon as there is room, or nothing more comes."""
        while not self.has_room and self.ended is None:
            self._taken.clear()
            await self._taken.wait()

    def _shed(self, refused: Steps) -> None:
        slow = {id(item.to): item.to for item in [*self._items, refused] if isinstance(item, Steps)}
        kept = [item for item in self._items if not isinstance(item, Steps)]
        self._items.clear()
        self._items.extend(kept)
        self._waiting = sum(_size(item) for item in kept)
        for subscription in slow.values():
            places = [item.at for item in kept if isinstance(item, Snapshot | Resync) and item.to is subscription]
            self._on_slow(subscription)
            self.put(Resync(subscription, max([subscription.sent, *places]), "slow"))


def _size(item: Item) -> int:
    if isinstance(item, Steps):
        return len(item.steps)
    return 1 + len(item.documents) if isinstance(item, Snapshot) else 1
