"""Server-Sent Events: what one client is told, as the text that browsers' `EventSource` reads.

A step costs no timer: one that goes off too early is set again, and clients that take nothing are cut by `connections`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.answers import Resynced, TaskGone
from api.events.framing import KEEP_ALIVE, KEEP_ALIVE_S, RETRY, message, stream_headers
from api.events.outlet import Beat, Gone, Item, Resync, Snapshot, Steps
from api.events.streams import Streams
from api.events.subscription import Subscription
from taskpool.errors import TaskNotFound


class EventStream(Response):
    """The events of one subscription until its task has ended (`ends`), the client leaves or the server stops.

    `first` is what was taken for it already.
    """

    def __init__(self, streams: Streams, subscription: Subscription, *, first: Sequence[Item] = ()) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = stream_headers()
        self._streams, self._subscription, self._first = streams, subscription, first
        self._loop = asyncio.get_running_loop()
        self._sent_mono = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        telling = asyncio.create_task(self._tell(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        except OSError:  # it has left
            pass
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
            telling.cancel()
            leaving.cancel()
            self._streams.release(self._subscription.outlet, self._subscription)

    async def _tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        items = self._worth_telling(self._first)
        text = RETRY + b"".join(map(_text, items))
        await send({"type": "http.response.body", "body": text, "more_body": True})
        self._beat()
        while not self._is_over(items):
            items = self._worth_telling(await self._subscription.outlet.take())
            if not items:
                break
            if text := _text(items[0]) if len(items) == 1 else b"".join(map(_text, items)):
                await send({"type": "http.response.body", "body": text, "more_body": True})
                self._sent_mono = self._loop.time()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _beat(self) -> None:
        """Say something if nothing was said for a while, so that proxies keep the connection; look again in time."""
        rest_s = self._sent_mono + KEEP_ALIVE_S - self._loop.time()
        if rest_s <= 0:
            if self._alarm is not None:
                self._subscription.outlet.put(Beat())
            self._sent_mono, rest_s = self._loop.time(), KEEP_ALIVE_S
        self._alarm = self._loop.call_later(rest_s, self._beat)

    def _worth_telling(self, items: Sequence[Item]) -> Sequence[Item]:
        """These, but not that a task is gone behind its end."""
        if items and isinstance(items[-1], Gone) and self._is_over(items[:-1]):
            return items[:-1]
        return items

    def _is_over(self, items: Sequence[Item]) -> bool:
        """Whether the last of these says that the task has ended, or that the client has to come again."""
        for item in reversed(items):
            if isinstance(item, Resync):
                return item.reason == "slow"
            if isinstance(item, Gone):
                return True
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
        self.raw_headers = stream_headers()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _text(item: Item) -> bytes:
    if isinstance(item, Steps):
        steps = item.steps
        return steps[0].message if len(steps) == 1 else b"".join([step.message for step in steps])
    if isinstance(item, Snapshot):
        return message(str(item.at), item.documents[0], "snapshot")
    if isinstance(item, Resync):
        return message(str(item.at), Resynced(after=str(item.at), reason=item.reason), "resync")
    if isinstance(item, Gone):
        return gone_text(str(item.to.after), TaskNotFound(item.to.wanted.task))
    return KEEP_ALIVE if isinstance(item, Beat) else b""


def gone_text(id: str, error: TaskNotFound) -> bytes:
    """The last message of a stream whose task isn't there any more."""
    return message(id, TaskGone(kind="task-not-found", detail=str(error)), "gone")
