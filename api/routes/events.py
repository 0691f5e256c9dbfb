"""Streams over HTTP: the events of one task, the events of all tasks that match a filter, and the log of a task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from taskpool.access.api_key import Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.operations.documents import EventDocument, LogLineDocument, TaskDocument, WorkflowDocument
from taskpool.operations.status import Position
from taskpool.operations.waiting import follow_log_async
from taskpool.tasks.log_lines import plain_text

from ..answers import LogEnded, LogPage, Resynced, TaskGone, WorkflowGone
from ..auth.caller import Caller, caller_of
from ..events.client_queue import ClientQueue, Gone, Item, Live
from ..events.sse import EVENT_STREAM as EVENTS
from ..events.sse import TEXT, Stream, StreamHead, event_texts, log_texts
from ..events.streams import Streams
from ..events.subscriptions import Subscription, Wanted
from ..http.declarations import EVENT_STREAM, JSON, Answer, operation
from ..http.problems import Problem
from ..http.query import EventsQuery, LogFormat, LogQuery, TaskEventsQuery
from ..http.responses import Json, next_page, page
from .tasks import affected, check_affected, task_id
from .workflows import seen_workflow

OF_ALL: Final = Answer(str, media_types=(EVENT_STREAM,), events={"message": EventDocument, "resync": Resynced})
OF_ONE: Final = Answer(
    str, media_types=(EVENT_STREAM,), events={"snapshot": TaskDocument, **OF_ALL.events, "gone": TaskGone}
)
OF_A_WORKFLOW: Final = Answer(
    str, media_types=(EVENT_STREAM,), events={"snapshot": WorkflowDocument, **OF_ALL.events, "gone": WorkflowGone}
)

FORMATS: Final = {
    "application/json": LogFormat.JSON,
    "text/plain": LogFormat.TEXT,
    "text/event-stream": LogFormat.EVENTS,
}
PAGE: Final = 100


class EventRoutes:
    """Handlers of events and logs."""

    def __init__(self, pool: AsyncTaskPool, streams: Streams) -> None:
        self._pool = pool
        self._streams = streams

    @operation(
        "follow_task",
        tag="events",
        headers=["Last-Event-ID"],
        answers={200: OF_ONE, 204: None},
        problems=["task-not-found", "invalid-event-id", "too-many-streams"],
    )
    async def task(self, request: Request, query: TaskEventsQuery) -> Response:
        """GET /tasks/{id}/events: follow a task, as Server-Sent Events, until it has ended.

        First comes a `snapshot` of its state, then a message for each event, and `gone` if its record is deleted. With
        `Last-Event-ID` (or `last_event_id` in the query) there is no snapshot but all events since then; 204 if the
        task has ended and there are none.
        """
        after = _after(request, query.last_event_id)
        wanted = Wanted(project=caller_of(request.scope).project, task=task_id(request))
        record = await affected(self._pool, request, Effect.READ)
        return await self._of_one(request, wanted, after, has_ended=record.status.is_terminal)

    async def _of_one(self, request: Request, wanted: Wanted, after: Position | None, *, has_ended: bool) -> Response:
        """The events of one task or workflow; 204 if it has ended and nothing has happened since `after`."""
        if request.method == "HEAD":
            return StreamHead()
        subscription = await self._open(caller_of(request.scope), wanted, after)
        first: list[Item] = []
        if after is not None and has_ended:
            try:
                first = await _until_live(subscription.queue)
            except BaseException:
                self._streams.release(subscription.queue, subscription)
                raise
            if all(isinstance(item, Live) for item in first):
                self._streams.release(subscription.queue, subscription)
                return Json(status=204)
        return self._stream(subscription, first)

    @operation(
        "follow_workflow",
        tag="events",
        headers=["Last-Event-ID"],
        answers={200: OF_A_WORKFLOW, 204: None},
        problems=["workflow-not-found", "invalid-event-id", "too-many-streams"],
    )
    async def workflow(self, request: Request, query: TaskEventsQuery) -> Response:
        """GET /workflows/{workflow}/events: follow a workflow, as Server-Sent Events, until it has ended.

        First comes a `snapshot` of its state without its nodes, then a message for each of its events (at most one
        `workflow_progress` per percent), and `gone` if it is removed. `Last-Event-ID` as for a task.
        """
        after = _after(request, query.last_event_id)
        record = await self._pool.store.carry_out(seen_workflow(request, with_nodes=False))
        wanted = Wanted(project=caller_of(request.scope).project, task=record.id, is_workflow=True)
        return await self._of_one(request, wanted, after, has_ended=record.status.is_terminal)

    @operation(
        "follow_tasks",
        tag="events",
        headers=["Last-Event-ID"],
        answers={200: OF_ALL},
        problems=["invalid-event-id", "too-many-streams"],
    )
    async def all(self, request: Request, query: EventsQuery) -> Response:
        """GET /events: follow all tasks that match the filters, as Server-Sent Events.

        `status` is the status after an event. The stream starts now, or after `Last-Event-ID`.
        """
        after = _after(request, query.last_event_id)
        if request.method == "HEAD":
            return StreamHead()
        caller = caller_of(request.scope)
        wanted = Wanted.of(caller.project, query, snapshots=False)
        return self._stream(await self._open(caller, wanted, after))

    async def _open(self, caller: Caller, wanted: Wanted, after: Position | None) -> Subscription:
        queue: ClientQueue = self._streams.admit(caller)
        try:
            return await self._streams.hub.open(wanted, queue, after=after)
        except BaseException:
            self._streams.release(queue)
            raise

    def _stream(self, subscription: Subscription, first: Sequence[Item] = ()) -> Stream:
        return Stream(
            event_texts(subscription, first), partial(self._streams.release, subscription.queue, subscription)
        )

    @operation(
        "task_logs",
        tag="tasks",
        headers=["Accept", "Last-Event-ID"],
        answers={
            200: Answer(
                LogPage,
                media_types=(JSON, "text/plain", EVENT_STREAM),
                events={"message": LogLineDocument, "end": LogEnded, "gone": TaskGone},
            ),
            204: None,
        },
        problems=["task-not-found", "too-many-streams"],
    )
    async def logs(self, request: Request, query: LogQuery) -> Response:
        """GET /tasks/{id}/logs: read a task's log, or follow it until the task has ended.

        Pages of JSON, or text as it was written (`Accept: text/plain` or `format=text`), complete if there is no
        `limit`. With `follow`, new lines follow as text, or as Server-Sent Events (`Accept: text/event-stream` or
        `format=events`). A client that reconnects after the end of a log gets 204.
        """
        await check_affected(self._pool, request, Effect.READ)
        form = query.format or _accepted(request, follows=query.follow)
        if form is LogFormat.JSON:
            return await self._page(request, query)
        return await self._log(request, query, as_events=form is LogFormat.EVENTS)

    async def _page(self, request: Request, query: LogQuery) -> Response:
        if query.follow:
            raise _wrong("format", "a log that is followed comes as text or as events")
        id, limit = task_id(request), query.limit or PAGE
        found = await self._pool.logs(id, cursor=query.cursor, limit=limit)
        document = LogPage(lines=[LogLineDocument.of(line) for line in found.items], next_cursor=found.next_cursor)
        return page(document, request.scope, query)

    async def _log(self, request: Request, query: LogQuery, *, as_events: bool) -> Response:
        id, cursor = task_id(request), request.headers.get("last-event-id") or query.cursor
        if as_events and not query.follow:
            raise _wrong("format", "events are for a log that is followed: add follow=1")
        if query.limit is not None:
            if query.follow:
                raise _wrong("limit", "a log that is followed has no pages")
            found = await self._pool.logs(id, cursor=cursor, limit=query.limit)
            link = next_page(request.scope, query, found.next_cursor)
            response = Response(
                plain_text(found.items), media_type=TEXT.decode(), headers={"cache-control": "no-store"}
            )
            response.raw_headers += link
            return response
        media_type = EVENTS if as_events else TEXT
        if request.method == "HEAD":
            await self._pool.logs(id, cursor=cursor, limit=1)
            return StreamHead(media_type)
        queue = self._streams.admit(caller_of(request.scope), "log") if query.follow else None

        def close() -> None:
            if queue is not None:
                self._streams.release(queue)

        steps = follow_log_async(self._pool.store, self._pool.listener, id, cursor)
        try:
            first = await anext(steps)
        except BaseException:
            close()
            raise
        if first.is_over and not first.lines and as_events and cursor:
            await steps.aclose()
            close()
            return Json(status=204)
        return Stream(log_texts(first, steps, as_events=as_events, queue=queue), close, media_type=media_type)


async def _until_live(queue: ClientQueue) -> list[Item]:
    """The items until the subscription has caught up or ended."""
    items: list[Item] = []
    while queue.ended is None and not any(isinstance(item, Live | Gone) for item in items):
        items += await queue.take()
    return items


def _after(request: Request, in_query: str) -> Position | None:
    """The position to resume from. A browser that reconnects sends the header, and the URL of its first request."""
    text = request.headers.get("last-event-id") or in_query
    if not text:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise Problem("invalid-event-id", f"{error}; take the `id` of the last message, like 1795435200000-0") from None


def _accepted(request: Request, *, follows: bool) -> LogFormat:
    """The first form that `Accept` names and that is possible; else text for a log that is followed, else JSON."""
    accept = request.headers.get("accept", "")
    named = [FORMATS.get(part.partition(";")[0].strip().lower()) for part in accept.split(",")]
    possible = (LogFormat.TEXT, LogFormat.EVENTS) if follows else (LogFormat.JSON, LogFormat.TEXT)
    return next((form for form in named if form in possible), possible[0])


def _wrong(parameter: str, detail: str) -> Problem:
    return Problem("invalid-query", f"{parameter}: {detail}", errors=[{"parameter": parameter, "detail": detail}])
