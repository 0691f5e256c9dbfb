"""Server-Sent Events: what one client is told, as the text that browsers' `EventSource` reads.

A step costs no timer: one that goes off too early is set again, and clients that take nothing are cut by `connections`.

A task's log on its way to one client, as text or as Server-Sent Events: what is there, or until the task has ended.

Nothing is kept for a client but the step that is being sent: one that reads slowly is waited for, one that doesn't read
is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from taskpool.errors import RedisUnavailable, TaskNotFound
from taskpool.operations.documents import log_line_document
from taskpool.operations.task_logs import LogStep, cursor_of
from taskpool.tasks.log_lines import plain_text

from ..answers import LogEnded, Resynced, TaskGone
from .client_queue import (
    EVENT_STREAM,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    RETRY,
    Beat,
    Gone,
    Item,
    Outlet,
    Resync,
    Snapshot,
    Steps,
    message,
    stream_headers,
)
from .streams import Streams
from .subscriptions import Subscription


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


SEND_TIMEOUT_S: Final = 30.0
"""A client that takes nothing for so long is given up."""

TEXT: Final = b"text/plain; charset=utf-8"


class Form:
    """How a log is written: its media type, what stands first, how a step looks, what is sent when nothing is, and what
    when its task is gone."""

    def __init__(
        self,
        media_type: bytes,
        step: Callable[[LogStep], bytes],
        *,
        head: bytes = b"",
        keep_alive: bytes = b"",
        gone: Callable[[str, TaskNotFound], bytes] = lambda cursor, error: b"",
    ) -> None:
        self.media_type, self.step, self.head, self.keep_alive = media_type, step, head, keep_alive
        self.gone = gone


def _as_text(step: LogStep) -> bytes:
    return plain_text(step.lines).encode()


def _as_events(step: LogStep) -> bytes:
    messages = [message(cursor_of(line.id), log_line_document(line)) for line in step.lines]
    if step.is_over:
        messages.append(message(cursor_of(step.after), LogEnded(status=step.status), "end"))
    return b"".join(messages)


AS_TEXT: Final = Form(TEXT, _as_text)
AS_EVENTS: Final = Form(EVENT_STREAM, _as_events, head=RETRY, keep_alive=KEEP_ALIVE, gone=gone_text)


class LogStream(Response):
    """The steps of a log, after the `first`, until there are no more, the client leaves, or the server stops."""

    def __init__(
        self, form: Form, first: LogStep, steps: AsyncGenerator[LogStep], *, place: tuple[Streams, Outlet] | None = None
    ) -> None:
        self.status_code, self.background = 200, None
        self.raw_headers = stream_headers(form.media_type)
        self._form, self._first, self._steps, self._place = form, first, steps, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        telling = asyncio.create_task(self._tell(send))
        others = [asyncio.create_task(_disconnect(receive))]
        if self._place is not None:
            others.append(asyncio.create_task(_end_of(self._place[1])))
        try:
            await asyncio.wait((telling, *others), return_when=asyncio.FIRST_COMPLETED)
            if not telling.done():
                telling.cancel()
                await asyncio.wait((telling,))
            elif not telling.cancelled():
                telling.result()
            if not others[0].done():
                await _send(send, b"", more=False)
        except (OSError, TimeoutError):  # it has left, or doesn't read
            pass
        finally:
            for task in (telling, *others):
                task.cancel()
            with suppress(RuntimeError):  # it is being closed already
                await self._steps.aclose()
            if self._place is not None:
                streams, outlet = self._place
                streams.release(outlet)

    async def _tell(self, send: Send) -> None:
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


class LogHead(Response):
    """What HEAD gets of a log as a stream."""

    def __init__(self, form: Form) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.raw_headers = stream_headers(form.media_type)


async def there(step: LogStep, more: AsyncGenerator[LogStep]) -> AsyncGenerator[LogStep]:
    """The steps behind this one as far as they are there already."""
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


async def _end_of(outlet: Outlet) -> None:
    """Returns when the server stops, or the client's key isn't good any more."""
    while await outlet.take():
        pass
