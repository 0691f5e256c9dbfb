"""Server-Sent Events: what one client is told, as the text that browsers' `EventSource` reads.

Steps have no `event:` field, so that `onmessage` hears them all; `snapshot` and `resync` have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.outlet import Item, Resync, Snapshot, Steps
from api.streams import Streams
from api.subscription import Subscription
from taskpool.eventlog import Position

MEDIA_TYPE: Final = b"text/event-stream"
RETRY_MS: Final = 2000
KEEP_ALIVE_S: Final = 15.0
SEND_TIMEOUT_S: Final = 60.0
"""A client that takes nothing for so long is given up."""

_HEADERS: Final = [
    (b"content-type", MEDIA_TYPE),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
_encode: Final = msgspec.json.Encoder().encode


class EventStream(Response):
    """The events of one subscription until its task has ended (`ends`), the client leaves or the server stops.

    `first` is what was taken for it already.
    """

    def __init__(self, streams: Streams, subscription: Subscription, *, first: Sequence[Item] = ()) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = list(_HEADERS)
        self._streams, self._subscription, self._first = streams, subscription, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        telling = asyncio.create_task(self._tell(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        except (OSError, TimeoutError):  # it has left, or doesn't read
            pass
        finally:
            telling.cancel()
            leaving.cancel()
            self._streams.release(self._subscription.outlet, self._subscription)

    async def _tell(self, send: Send) -> None:
        outlet = self._subscription.outlet
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send(send, b"retry: %d\n\n" % RETRY_MS)
        items: Sequence[Item] = self._first
        while True:
            text = b"".join(message for item in items for message in _messages(item))
            if text:
                await _send(send, text)
            if self._is_over(items):
                break
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    items = await outlet.take()
            except TimeoutError:
                items = ()
                await _send(send, b": keep-alive\n\n")
            else:
                if not items:
                    break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _is_over(self, items: Sequence[Item]) -> bool:
        """Whether the last of these says that the task has ended, or that the client has to come again."""
        for item in reversed(items):
            if isinstance(item, Resync):
                return item.reason == "slow"
            if self._subscription.wanted.task is not None:
                if isinstance(item, Steps):
                    return item.steps[-1].event.status.is_terminal
                if isinstance(item, Snapshot):
                    return bool(item.documents[0].status.is_terminal)
        return False


class StreamHead(Response):
    """What HEAD gets of a stream."""

    def __init__(self) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.raw_headers = list(_HEADERS)


async def _send(send: Send, body: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _messages(item: Item) -> Iterator[bytes]:
    if isinstance(item, Steps):
        for step in item.steps:
            yield b"id: %s\ndata: %s\n\n" % (step.event.stream.encode(), step.document)
    elif isinstance(item, Snapshot):
        yield _named("snapshot", item.at, item.documents[0])
    elif isinstance(item, Resync):
        yield _named("resync", item.at, {"after": str(item.at), "reason": item.reason})


def _named(name: str, at: Position, document: Any) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(at).encode(), name.encode(), _encode(document))
