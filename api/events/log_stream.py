"""A task's log on its way to one client, as text or as Server-Sent Events: what is there, or until the task has ended.

Nothing is kept for a client but the step that is being sent: one that reads slowly is waited for, one that doesn't read
is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.answers import LogEnded
from api.events.event_stream import gone_text
from api.events.framing import EVENT_STREAM, KEEP_ALIVE, KEEP_ALIVE_S, RETRY, message, stream_headers
from api.events.outlet import Outlet
from api.events.streams import Streams
from taskpool.document import log_line_document
from taskpool.errors import RedisUnavailable, TaskNotFound
from taskpool.logs.line import plain_text
from taskpool.logs.pages import LogStep, cursor_of

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


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end_of(outlet: Outlet) -> None:
    """Returns when the server stops, or the client's key isn't good any more."""
    while await outlet.take():
        pass
