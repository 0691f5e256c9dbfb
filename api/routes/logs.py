"""/tasks/{id}/logs: what a task has written, as JSON pages or as text, and what it writes, as it comes."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from api.access.caller import caller_of
from api.answers import LogEnded, LogPage, TaskGone
from api.events.log_stream import AS_EVENTS, AS_TEXT, TEXT, Form, LogHead, LogStream, there
from api.events.streams import Streams
from api.openapi.operation import EVENTS, JSON, Answer, operation
from api.prefix import next_link
from api.problems import Problem
from api.query import LogFormat, LogQuery, read_query, wrong_parameter
from api.responses import Json, NoContent
from api.routes.tasks import check_affected, task_id
from taskpool.access.rights import Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.document import log_line_document
from taskpool.document_types import LogLineDocument
from taskpool.errors import InvalidTask
from taskpool.logs.follow import follow_log_async
from taskpool.logs.line import plain_text

FORMATS: Final = {
    "application/json": LogFormat.JSON,
    "text/plain": LogFormat.TEXT,
    "text/event-stream": LogFormat.EVENTS,
}
PAGE: Final = 100


class LogRoutes:
    """Handlers of tasks' logs."""

    def __init__(self, pool: AsyncTaskPool, streams: Streams) -> None:
        self._pool = pool
        self._streams = streams

    @operation(
        "task_logs",
        tag="tasks",
        query=LogQuery,
        headers=["Accept", "Last-Event-ID"],
        answers={
            200: Answer(
                LogPage,
                headers=("Link",),
                media_types=(JSON, "text/plain", EVENTS),
                events={"message": LogLineDocument, "end": LogEnded, "gone": TaskGone},
            ),
            204: None,
        },
        problems=["task-not-found", "too-many-streams"],
    )
    async def logs(self, request: Request) -> Response:
        """GET /tasks/{id}/logs: read a task's log, or follow it until the task has ended.

        Pages of JSON, or text as it was written (`Accept: text/plain` or `format=text`): all of it, unless there is a
        `limit`. With `follow` the lines come as text when they are written, or as Server-Sent Events
        (`Accept: text/event-stream` or `format=events`); 204 to who comes back for more of a log that has ended.
        """
        query = read_query(request.scope["query_string"], LogQuery)
        await check_affected(self._pool, request, Effect.READ)
        form = query.format or _accepted(request, follows=query.follow)
        try:
            if form is LogFormat.JSON:
                return await self._page(request, query)
            return await self._stream(request, query, AS_EVENTS if form is LogFormat.EVENTS else AS_TEXT)
        except InvalidTask as error:
            raise wrong_parameter(error) from None

    async def _page(self, request: Request, query: LogQuery) -> Response:
        if query.follow:
            raise _wrong("format", "a log that is followed comes as text or as events")
        id, limit = task_id(request), query.limit or PAGE
        page = await self._pool.logs(id, cursor=query.cursor, limit=limit)
        document = LogPage(lines=[log_line_document(line) for line in page.items], next_cursor=page.next_cursor)
        return Json(document, headers=_link(request, id, query, page.next_cursor))

    async def _stream(self, request: Request, query: LogQuery, form: Form) -> Response:
        id, cursor = task_id(request), request.headers.get("last-event-id") or query.cursor
        if form is AS_EVENTS and not query.follow:
            raise _wrong("format", "events are for a log that is followed: add follow=1")
        if query.limit is not None:
            if query.follow:
                raise _wrong("limit", "a log that is followed has no pages")
            page = await self._pool.logs(id, cursor=cursor, limit=query.limit)
            headers = dict(_link(request, id, query, page.next_cursor))
            return Response(
                plain_text(page.items),
                media_type=TEXT.decode(),
                headers={
                    "cache-control": "no-store",
                    **{name.decode(): text.decode() for name, text in headers.items()},
                },
            )
        if request.method == "HEAD":
            await self._pool.logs(id, cursor=cursor, limit=1)
            return LogHead(form)
        steps = follow_log_async(self._pool.store, self._pool.listener, id, cursor)
        if not query.follow:
            first = await anext(steps)
            return LogStream(form, first, there(first, steps))
        outlet = self._streams.admit(caller_of(request.scope))
        try:
            first = await anext(steps)
            if first.is_over and not first.lines and form is AS_EVENTS and cursor:
                self._streams.release(outlet)
                return NoContent()
        except BaseException:
            self._streams.release(outlet)
            await steps.aclose()
            raise
        return LogStream(form, first, steps, place=(self._streams, outlet))


def _accepted(request: Request, *, follows: bool) -> LogFormat:
    """The first form of a log that the caller names, else text for one that is followed, else JSON."""
    accept = request.headers.get("accept", "")
    named = [FORMATS.get(part.partition(";")[0].strip().lower()) for part in accept.split(",")]
    possible = (LogFormat.TEXT, LogFormat.EVENTS) if follows else (LogFormat.JSON, LogFormat.TEXT)
    return next((form for form in named if form in possible), possible[0])


def _link(request: Request, id: str, query: LogQuery, cursor: str | None) -> list[tuple[bytes, bytes]]:
    if cursor is None:
        return []
    given = {"cursor": cursor, "limit": query.limit, "format": query.format}
    parameters = urlencode({name: value for name, value in given.items() if value is not None})
    return [next_link(request.scope, f"/tasks/{quote(id)}/logs", parameters)]


def _wrong(parameter: str, detail: str) -> Problem:
    return Problem("invalid-query", f"{parameter}: {detail}", errors=[{"parameter": parameter, "detail": detail}])
