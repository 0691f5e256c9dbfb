"""Streams of events over HTTP: of one task, and of all that fit a filter."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from api.access.caller import Caller, caller_of
from api.answers import Resynced, TaskGone
from api.events.event_stream import EventStream, StreamHead
from api.events.outlet import Gone, Item, Live, Outlet
from api.events.streams import Streams
from api.events.subscription import Subscription, Wanted
from api.openapi.operation import EVENTS, Answer, operation
from api.problems import Problem
from api.query import EventsQuery, TaskEventsQuery, read_query
from api.responses import NoContent
from api.routes.tasks import affected, task_id
from taskpool.access.rights import Effect
from taskpool.async_pool import AsyncTaskPool
from taskpool.document_types import EventDocument, TaskDocument
from taskpool.eventlog import Position

OF_ALL: Final = Answer(str, media_types=(EVENTS,), events={"message": EventDocument, "resync": Resynced})
OF_ONE: Final = Answer(str, media_types=(EVENTS,), events={"snapshot": TaskDocument, **OF_ALL.events, "gone": TaskGone})


class EventRoutes:
    """Handlers of Server-Sent Events."""

    def __init__(self, pool: AsyncTaskPool, streams: Streams) -> None:
        self._pool = pool
        self._streams = streams

    @operation(
        "follow_task",
        tag="events",
        query=TaskEventsQuery,
        headers=["Last-Event-ID"],
        answers={200: OF_ONE, 204: None},
        problems=["task-not-found", "invalid-event-id", "too-many-streams"],
    )
    async def task(self, request: Request) -> Response:
        """GET /tasks/{id}/events: follow a task, as Server-Sent Events, until it has ended.

        First `snapshot` tells how it stands, then a message comes for each step; `gone`, if its record is deleted. With
        `Last-Event-ID` (or `last_event_id` in the query) there is no snapshot but all that came since; 204 if it has
        ended and nothing did.
        """
        query = read_query(request.scope["query_string"], TaskEventsQuery)
        after = _after(request, query.last_event_id)
        caller = caller_of(request.scope)
        wanted = Wanted(caller.project, task=task_id(request))
        record = await affected(self._pool, request, Effect.READ)
        if request.method == "HEAD":
            return StreamHead()
        subscription = await self._open(caller, wanted, after)
        first: list[Item] = []
        if after is not None and record.status.is_terminal:
            try:
                first = await _until_live(subscription.outlet)
            except BaseException:
                self._streams.release(subscription.outlet, subscription)
                raise
            if all(isinstance(item, Live) for item in first):
                self._streams.release(subscription.outlet, subscription)
                return NoContent()
        return EventStream(self._streams, subscription, first=first)

    @operation(
        "follow_tasks",
        tag="events",
        query=EventsQuery,
        headers=["Last-Event-ID"],
        answers={200: OF_ALL},
        problems=["invalid-event-id", "too-many-streams"],
    )
    async def all(self, request: Request) -> Response:
        """GET /events: follow all tasks that fit the filters, as Server-Sent Events.

        `status` is what the step led to; the other filters are the task's. It begins now, or after `Last-Event-ID`.
        """
        query = read_query(request.scope["query_string"], EventsQuery)
        after = _after(request, query.last_event_id)
        if request.method == "HEAD":
            return StreamHead()
        caller = caller_of(request.scope)
        wanted = Wanted(
            caller.project,
            status=query.status,
            queue=query.queue,
            type=query.type,
            tag=query.tag,
            snapshots=False,
        )
        return EventStream(self._streams, await self._open(caller, wanted, after))

    async def _open(self, caller: Caller, wanted: Wanted, after: Position | None) -> Subscription:
        outlet: Outlet = self._streams.admit(caller)
        try:
            return await self._streams.hub.open(wanted, outlet, after=after)
        except BaseException:
            self._streams.release(outlet)
            raise


async def _until_live(outlet: Outlet) -> list[Item]:
    """What there is to tell until the subscription has caught up, or ended."""
    items: list[Item] = []
    while outlet.ended is None and not any(isinstance(item, Live | Gone) for item in items):
        items += await outlet.take()
    return items


def _after(request: Request, in_query: str) -> Position | None:
    """Where to go on. A browser that connects again sends the header, and the address as it was at first."""
    text = request.headers.get("last-event-id") or in_query
    if not text:
        return None
    try:
        return Position.parse(text)
    except ValueError as error:
        raise Problem("invalid-event-id", f"{error}; take the `id` of the last message, like 1795435200000-0") from None
