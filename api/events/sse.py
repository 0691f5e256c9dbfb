"""Streams over HTTP: events as Server-Sent Events, and the log of a task as text or as Server-Sent Events.

Parsers differ in what they take for a message. Browsers dispatch none without data; httpx-sse and others dispatch one
at each blank line. So blank lines stand only after messages: `RETRY` opens the first message's block, and a comment
is one line.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from taskpool.errors import RedisUnavailable, TaskNotFound
from taskpool.operations.documents import log_line_document
from taskpool.operations.task_logs import LogStep, cursor_of
from taskpool.tasks.log_lines import plain_text

from ..answers import LogEnded, Resynced, TaskGone
from .client_queue import Beat, ClientQueue, Gone, Item, Resync, Snapshot, Step, Steps
from .streams import Streams
from .subscriptions import Subscription

EVENT_STREAM: Final = b"text/event-stream"
TEXT: Final = b"text/plain; charset=utf-8"
RETRY_MS: Final = 2000
RETRY: Final = b"retry: %d\n" % RETRY_MS
"""The start of a stream. Without a blank line it belongs to the first message."""
KEEP_ALIVE: Final = b": keep-alive\n"
"""A comment. It may stand between two messages, not inside one."""
KEEP_ALIVE_S: Final = 15.0
"""After this time without a message: proxies close a connection that is silent for 30 to 60 s."""
SEND_TIMEOUT_S: Final = 30.0
"""A reader of a log that takes nothing for this time is disconnected."""

_encode: Final = msgspec.json.Encoder().encode
_LINE_ENDS: Final = re.compile(b"\xc2\x85|\xe2\x80[\xa8\xa9]")
_ESCAPED: Final = {b"\xc2\x85": rb"\u0085", b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029"}


# --- messages -----------------------------------------------------------------------------------------------------


def message(id: str, document: Any, event: str = "") -> bytes:
    """One message. Without a name for its `event`, browsers hand it to `onmessage`."""
    return encoded_message(id, _encode(document), event)


def encoded_message(id: str, json: bytes, event: str = "") -> bytes:
    """As `message`, for a document that is JSON already.

    JSON holds no CR or LF. Three more characters end a line for some parsers (Python's `splitlines`), but not by the
    standard: they are escaped.
    """
    if _LINE_ENDS.search(json):
        json = _LINE_ENDS.sub(lambda found: _ESCAPED[found[0]], json)
    name = b"event: %s\n" % event.encode() if event else b""
    return b"id: %s\n%sdata: %s\n\n" % (id.encode(), name, json)


def gone_message(id: str, error: TaskNotFound) -> bytes:
    """The last message of a stream whose task doesn't exist any more."""
    return message(id, TaskGone(kind="task-not-found", detail=str(error)), "gone")


def _step_message(step: Step) -> bytes:
    """An event. It has no `event:` field, so that `onmessage` gets all of them."""
    if step.sse is None:
        step.sse = encoded_message(step.event.stream, step.json())
    return step.sse


def _text(item: Item) -> bytes:
    if isinstance(item, Steps):
        return b"".join(map(_step_message, item.steps))
    if isinstance(item, Snapshot):
        return message(str(item.at), item.documents[0], "snapshot")
    if isinstance(item, Resync):
        return message(str(item.at), Resynced(after=str(item.at), reason=item.reason), "resync")
    if isinstance(item, Gone):
        return gone_message(str(item.to.after), TaskNotFound(item.to.wanted.task))
    return KEEP_ALIVE if isinstance(item, Beat) else b""


# --- events -------------------------------------------------------------------------------------------------------


def stream_headers(media_type: bytes = EVENT_STREAM) -> list[tuple[bytes, bytes]]:
    """The headers of a stream: proxies must neither buffer nor compress it."""
    return [
        (b"content-type", media_type),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),  # nginx
    ]


class StreamHead(Response):
    """The answer to HEAD for a stream."""

    def __init__(self, media_type: bytes = EVENT_STREAM) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.raw_headers = stream_headers(media_type)


class EventStream(Response):
    """The events of one subscription until its task has ended, the client leaves or the server stops.

    `first` are items that were taken from its queue already. A message sets no timer: `_beat` looks at the time of the
    last one. `connections` disconnects clients that don't read.
    """

    def __init__(self, streams: Streams, subscription: Subscription, *, first: Sequence[Item] = ()) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = stream_headers()
        self._streams, self._subscription, self._first = streams, subscription, first
        self._loop = asyncio.get_running_loop()
        self._sent_mono = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:  # the client has left
            pass
        finally:
            if self._timer is not None:
                self._timer.cancel()
            sending.cancel()
            leaving.cancel()
            self._streams.release(self._subscription.queue, self._subscription)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        items = self._without_late_gone(self._first)
        text = RETRY + b"".join(map(_text, items))
        await send({"type": "http.response.body", "body": text, "more_body": True})
        self._beat()
        while not self._is_over(items):
            items = self._without_late_gone(await self._subscription.queue.take())
            if not items:
                break
            if text := b"".join(map(_text, items)):
                await send({"type": "http.response.body", "body": text, "more_body": True})
                self._sent_mono = self._loop.time()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _beat(self) -> None:
        """Queue a keep-alive comment if nothing was sent for a while, and look again in time."""
        rest_s = self._sent_mono + KEEP_ALIVE_S - self._loop.time()
        if rest_s <= 0:
            if self._timer is not None:
                self._subscription.queue.put(Beat())
            self._sent_mono, rest_s = self._loop.time(), KEEP_ALIVE_S
        self._timer = self._loop.call_later(rest_s, self._beat)

    def _without_late_gone(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items, without a `Gone` after the end of the task."""
        if items and isinstance(items[-1], Gone) and self._is_over(items[:-1]):
            return items[:-1]
        return items

    def _is_over(self, items: Sequence[Item]) -> bool:
        """Whether the last of these ends the stream: the task has ended, or the client must reconnect."""
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


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- logs ---------------------------------------------------------------------------------------------------------


def _log_events(step: LogStep) -> bytes:
    messages = [message(cursor_of(line.id), log_line_document(line)) for line in step.lines]
    if step.is_over:
        messages.append(message(cursor_of(step.after), LogEnded(status=step.status), "end"))
    return b"".join(messages)


@dataclass(frozen=True)
class LogForm:
    """How a log is written: a step, the first bytes, a keep-alive, and the message if its task doesn't exist any more
    (given the cursor)."""

    media_type: bytes
    step: Callable[[LogStep], bytes]
    head: bytes = b""
    keep_alive: bytes = b""
    gone: Callable[[str, TaskNotFound], bytes] = lambda cursor, error: b""


AS_TEXT: Final = LogForm(TEXT, lambda step: plain_text(step.lines).encode())
AS_EVENTS: Final = LogForm(EVENT_STREAM, _log_events, head=RETRY, keep_alive=KEEP_ALIVE, gone=gone_message)


class LogStream(Response):
    """The steps of a log, `first` and the rest, until there are no more, the client leaves, or the server stops.

    Only the step that is being sent is in memory: the next one is read after the client has taken it. `place` is the
    client's queue among the streams, for a log that is followed.
    """

    def __init__(
        self,
        form: LogForm,
        first: LogStep,
        steps: AsyncGenerator[LogStep],
        *,
        place: tuple[Streams, ClientQueue] | None = None,
    ) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = stream_headers(form.media_type)
        self._form, self._first, self._steps, self._place = form, first, steps, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        sending = asyncio.create_task(self._send_all(send))
        others = [asyncio.create_task(_disconnect(receive))]
        if self._place is not None:
            others.append(asyncio.create_task(_ended(self._place[1])))
        try:
            await asyncio.wait((sending, *others), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()
                await asyncio.wait((sending,))
            elif not sending.cancelled():
                sending.result()
            if not others[0].done():
                await _send(send, b"", more=False)
        except (OSError, TimeoutError):  # the client has left, or doesn't read
            pass
        finally:
            for task in (sending, *others):
                task.cancel()
            with suppress(RuntimeError):  # it is being closed already
                await self._steps.aclose()
            if self._place is not None:
                streams, queue = self._place
                streams.release(queue)

    async def _send_all(self, send: Send) -> None:
        form = self._form
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        step = self._first
        await _send(send, form.head + form.step(step))
        sent_mono = time.monotonic()
        coming: asyncio.Future[LogStep] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(self._steps))
                await asyncio.wait((coming,), timeout=KEEP_ALIVE_S)
                text = b""
                if coming.done():
                    step, coming = coming.result(), None
                    text = form.step(step)
                if not text and form.keep_alive and time.monotonic() - sent_mono >= KEEP_ALIVE_S:
                    text = form.keep_alive
                if text:
                    await _send(send, text)
                    sent_mono = time.monotonic()
        except StopAsyncIteration:
            pass
        except TaskNotFound as error:
            await _send(send, form.gone(cursor_of(step.after), error))
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait((coming,))


async def written_steps(step: LogStep, more: AsyncGenerator[LogStep]) -> AsyncGenerator[LogStep]:
    """The steps after this one, as far as they are written already."""
    try:
        while step.is_full:
            step = await anext(more)
            yield step
    except (StopAsyncIteration, RedisUnavailable):
        return
    finally:
        await more.aclose()


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    if body or not more:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _ended(queue: ClientQueue) -> None:
    """Returns when the server stops, or the client's key isn't valid any more."""
    while await queue.take():
        pass
