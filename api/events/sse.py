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
from typing import Any, Final

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from taskpool.errors import TaskNotFound, WorkflowNotFound
from taskpool.operations.documents import LogLineDocument
from taskpool.operations.waiting import LogStep
from taskpool.redis.calls import encode_cursor
from taskpool.tasks.log_lines import plain_text

from ..answers import LogEnded, Resynced, TaskGone, WorkflowGone
from .client_queue import Beat, ClientQueue, Gone, Item, Resync, Snapshot, Step, Steps
from .streams import until_one_ends
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

_encode: Final = msgspec.json.Encoder().encode
_LINE_ENDS: Final = re.compile(b"\xc2\x85|\xe2\x80[\xa8\xa9]")
_ESCAPED: Final = {b"\xc2\x85": rb"\u0085", b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029"}


# --- messages -----------------------------------------------------------------------------------------------------


def message(id: str, document: Any, event: str = "") -> bytes:
    """One message. Without a name for its `event`, browsers hand it to `onmessage`."""
    return _message(id, _encode(document), event)


def _message(id: str, json: bytes, event: str = "") -> bytes:
    # JSON holds no CR or LF. Three more characters end a line for some parsers (Python's `splitlines`), but not by the
    # standard: they are escaped.
    if _LINE_ENDS.search(json):
        json = _LINE_ENDS.sub(lambda found: _ESCAPED[found[0]], json)
    name = b"event: %s\n" % event.encode() if event else b""
    return b"id: %s\n%sdata: %s\n\n" % (id.encode(), name, json)


def gone_message(id: str, error: TaskNotFound | WorkflowNotFound) -> bytes:
    """The last message of a stream whose task or workflow doesn't exist any more."""
    if isinstance(error, WorkflowNotFound):
        return message(id, WorkflowGone(kind="workflow-not-found", detail=str(error)), "gone")
    return message(id, TaskGone(kind="task-not-found", detail=str(error)), "gone")


def _step_message(step: Step) -> bytes:
    """An event. It has no `event:` field, so that `onmessage` gets all of them."""
    if step.sse is None:
        step.sse = _message(step.event.stream, step.json())
    return step.sse


def _text(item: Item) -> bytes:
    if isinstance(item, Steps):
        return b"".join(map(_step_message, item.steps))
    if isinstance(item, Snapshot):
        return message(str(item.at), item.documents[0], "snapshot")
    if isinstance(item, Resync):
        return message(str(item.at), Resynced(after=str(item.at), reason=item.reason), "resync")
    if isinstance(item, Gone):
        return gone_message(str(item.to.after), item.to.wanted.not_found)
    return KEEP_ALIVE if isinstance(item, Beat) else b""


# --- responses ----------------------------------------------------------------------------------------------------


class Stream(StreamingResponse):
    """A response that goes on until `texts` end or the client leaves; `close` is called then. `connections` disconnects
    clients that don't read."""

    def __init__(
        self, texts: AsyncGenerator[bytes], close: Callable[[], object], *, media_type: bytes = EVENT_STREAM
    ) -> None:
        super().__init__(texts)
        self.raw_headers = stream_headers(media_type)
        self._texts, self._close = texts, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            with suppress(OSError):  # the client has left
                await until_one_ends(self.stream_response(send), self.listen_for_disconnect(receive))
        finally:
            self._close()  # first: closing the texts may wait for Redis
            with suppress(RuntimeError):  # cancelled twice: they are being closed already
                await self._texts.aclose()


class StreamHead(Response):
    """The answer to HEAD for a stream."""

    def __init__(self, media_type: bytes = EVENT_STREAM) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.raw_headers = stream_headers(media_type)


def stream_headers(media_type: bytes) -> list[tuple[bytes, bytes]]:
    """The headers of a stream: proxies must neither buffer nor compress it."""
    return [
        (b"content-type", media_type),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),  # nginx
    ]


# --- events -------------------------------------------------------------------------------------------------------


async def event_texts(subscription: Subscription, items: Sequence[Item] = ()) -> AsyncGenerator[bytes]:
    """The messages of one subscription until its task has ended or the server stops. `items` were taken from its queue
    already."""
    queue, loop = subscription.queue, asyncio.get_running_loop()
    text, sent_mono = RETRY, loop.time()
    timer: asyncio.TimerHandle

    def beat() -> None:
        """Queue a keep-alive if nothing was sent for a while, and look again in time: no message sets a timer."""
        nonlocal timer
        rest_s = sent_mono + KEEP_ALIVE_S - loop.time()
        if rest_s <= 0:
            queue.put(Beat())
        timer = loop.call_later(rest_s if rest_s > 0 else KEEP_ALIVE_S, beat)

    timer = loop.call_later(KEEP_ALIVE_S, beat)
    try:
        while True:
            if items and isinstance(items[-1], Gone) and _is_over(items[:-1]):  # its record was deleted after its end
                items = items[:-1]
            if text := text + b"".join(map(_text, items)):
                yield text
                text, sent_mono = b"", loop.time()
            if _is_over(items):
                return
            items = await queue.take()
            if not items:
                return
    finally:
        timer.cancel()


def _is_over(items: Sequence[Item]) -> bool:
    """Whether the last of these ends the stream: the task has ended, or the client must reconnect."""
    for item in reversed(items):
        if isinstance(item, Resync):
            return item.reason == "slow"
        if isinstance(item, Gone):
            return True
        if isinstance(item, Steps | Snapshot) and item.to.wanted.task is not None:
            last = item.steps[-1].event if isinstance(item, Steps) else item.documents[0]
            return bool(last.status.is_terminal)
    return False


# --- logs ---------------------------------------------------------------------------------------------------------


async def log_texts(
    step: LogStep, steps: AsyncGenerator[LogStep], *, as_events: bool, queue: ClientQueue | None
) -> AsyncGenerator[bytes]:
    """A log, as text or as messages: this step and the others. Without a queue, only as far as it is written already;
    else until the task or the queue has ended.

    Only the step that is being sent is in memory: the next one is read after the client has taken it."""
    text, sent_mono = RETRY if as_events else b"", time.monotonic()
    following: LogStep | None = step
    ending = None if queue is None else asyncio.ensure_future(queue.take())  # nothing is put into it: it ends
    try:
        while following is not None:
            step = following
            text += _log_messages(step) if as_events else plain_text(step.lines).encode()
            if not text and as_events and time.monotonic() - sent_mono >= KEEP_ALIVE_S:
                text = KEEP_ALIVE
            if text:
                yield text
                text, sent_mono = b"", time.monotonic()
            following = await _next(steps, ending) if queue is not None or step.is_full else None
    except TaskNotFound as error:
        if as_events:
            yield gone_message(encode_cursor(step.after), error)
    finally:
        if ending is not None:
            ending.cancel()
        with suppress(RuntimeError):  # cancelled twice: they are being closed already
            await steps.aclose()


async def _next(steps: AsyncGenerator[LogStep], ending: asyncio.Future[Any] | None) -> LogStep | None:
    """The next step; None if there is none, or at `ending`, also while Redis doesn't answer."""
    coming = asyncio.ensure_future(anext(steps, None))
    try:
        await asyncio.wait([coming, *([] if ending is None else [ending])], return_when=asyncio.FIRST_COMPLETED)
        return await coming if coming.done() else None
    finally:
        if not coming.done():
            coming.cancel()
            await asyncio.wait([coming])


def _log_messages(step: LogStep) -> bytes:
    messages = [message(encode_cursor(line.id), LogLineDocument.of(line)) for line in step.lines]
    if step.is_over:
        messages.append(message(encode_cursor(step.after), LogEnded(status=step.status), "end"))
    return b"".join(messages)
