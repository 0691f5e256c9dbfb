"""The WebSocket: a client subscribes to tasks and filters by messages and receives their events.

A wrong message gets an error and, within limits, keeps the connection open. Each message counts for its caller's rate
limit, and one is read in each turn of the event loop. Reading and writing are independent. A client that reads slowly
gets a message about what it missed (see `outlet`). `connections` cuts a client that reads nothing or floods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from api.access.caller import Caller, caller_of
from api.events.outlet import Beat, Gone, Item, Live, Outlet, Reply, Resync, Snapshot, Steps
from api.events.socket_messages import (
    ErrorMessage,
    Filter,
    LiveMessage,
    Ping,
    Pong,
    Request,
    ResyncMessage,
    SnapshotMessage,
    Subscribe,
    Told,
    Unsubscribe,
    Unsubscribed,
)
from api.events.socket_requests import read_request
from api.events.streams import Streams, TooManySubscriptions
from api.events.subscription import Subscription, Wanted
from api.problems import Problem
from api.resource import refuse
from taskpool.errors import RedisUnavailable, TaskNotFound
from taskpool.eventlog import Position

MOST_SUBSCRIPTIONS: Final = 100
MOST_BAD_MESSAGES: Final = 20
MAX_MESSAGE_BYTES: Final = 16 * 1024
LIMITED_PAUSE_S: Final = 0.1
"""How long the next message waits behind one that was beyond the rate limit."""

CLOSE_CODES: Final = {
    "left": (1000, ""),
    "shutdown": (1012, "the server stops; connect again"),
    "flooded": (1008, "too many answers unread"),
    "abuse": (1008, "too many bad messages"),
    "revoked": (1008, "the key is no longer valid"),
}

_encode: Final = msgspec.json.Encoder().encode


class SocketRoute:
    """The handler of /ws."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One socket, from its handshake to its end."""
        await receive()  # websocket.connect
        try:
            outlet = self._streams.admit(caller_of(scope))
        except Problem as problem:
            await refuse(problem, scope, receive, send)
            return
        socket = _Socket(self._streams, outlet, scope)
        tasks: tuple[asyncio.Task[None], ...] = ()
        try:
            await send({"type": "websocket.accept"})
            tasks = (asyncio.create_task(socket.read(receive)), asyncio.create_task(socket.write(send)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except OSError:  # it has left
            pass
        finally:
            for task in tasks:
                task.cancel()
            self._streams.release(outlet, *socket.subscriptions.values())


class _Socket:
    def __init__(self, streams: Streams, outlet: Outlet, scope: Scope) -> None:
        self._streams, self._outlet, self._scope = streams, outlet, scope
        self._caller = caller_of(scope)
        self.subscriptions: dict[str, Subscription] = {}
        self._bad = 0

    async def read(self, receive: Receive) -> None:
        """Do what the client says, until it leaves."""
        while (message := await receive())["type"] == "websocket.receive":
            await asyncio.sleep(0)  # others have their turn, however many messages have come at once
            request = read_request(message.get("text"))
            if (limited := await self._charged(request)) is not None:
                self._answer(limited)
                await asyncio.sleep(LIMITED_PAUSE_S)
            elif isinstance(request, ErrorMessage):
                self._refuse(request)
            else:
                await self._do(request)

    async def _charged(self, request: Request | ErrorMessage) -> ErrorMessage | None:
        """What is answered to a message that the caller's rate limit doesn't allow."""
        sub = getattr(request, "sub", None)
        try:
            await self._streams.charge(self._scope)
        except Problem as problem:
            seconds = int(dict(problem.headers)[b"retry-after"])
            return ErrorMessage(kind="rate-limited", detail=problem.detail, sub=sub, retry_after_s=seconds)
        except RedisUnavailable:
            return _unavailable(sub)
        return None

    async def write(self, send: Send) -> None:
        """Tell the client what there is to tell, until nothing more comes."""
        outlet = self._outlet
        while items := await outlet.take():
            for item in items:
                for text in self._texts(item):
                    if not outlet.is_cut:
                        await send({"type": "websocket.send", "text": text})
        code, reason = CLOSE_CODES[self._outlet.ended or "left"]
        await send({"type": "websocket.close", "code": code, "reason": reason})

    async def _do(self, request: Request) -> None:
        if isinstance(request, Ping):
            self._answer(Pong(nonce=request.nonce))
        elif isinstance(request, Subscribe):
            await self._outlet.room()  # a snapshot may be large: it waits until those before it have left
            await self._subscribe(request)
        elif isinstance(request, Unsubscribe):
            self._unsubscribe(request)

    async def _subscribe(self, request: Subscribe) -> None:
        name = request.sub
        if (request.task is None) == (request.filter is None):
            self._answer_bad("invalid-message", "subscribe takes either `task` or `filter`", name)
        elif name in self.subscriptions:
            self._answer_bad("subscription-exists", f"{name!r} is subscribed already; unsubscribe first", name)
        elif len(self.subscriptions) >= MOST_SUBSCRIPTIONS:
            detail = f"a socket has {MOST_SUBSCRIPTIONS} subscriptions at most; use a filter, or a second socket"
            self._answer_bad("too-many-subscriptions", detail, name)
        else:
            wanted = _wanted(self._caller, request.task, request.filter)
            after = None if request.after is None else Position.parse(request.after)
            try:
                subscription = await self._streams.subscribe(wanted, self._outlet, name=name, after=after)
                self.subscriptions[name] = subscription
            except TooManySubscriptions as error:
                self._answer_bad("too-many-subscriptions", str(error), name)
            except TaskNotFound as error:
                self._answer(ErrorMessage(kind="task-not-found", detail=str(error), sub=name))
            except RedisUnavailable:
                self._answer(_unavailable(name))

    def _unsubscribe(self, request: Unsubscribe) -> None:
        subscription = self.subscriptions.pop(request.sub, None)
        if subscription is None:
            self._answer_bad("no-such-subscription", f"nothing is subscribed as {request.sub!r}", request.sub)
            return
        self._streams.unsubscribe(subscription)
        self._answer(Unsubscribed(sub=request.sub))

    def _forget(self, subscription: Subscription) -> None:
        if self.subscriptions.get(subscription.name) is subscription:
            self._streams.unsubscribe(self.subscriptions.pop(subscription.name))

    def _answer(self, message: Told) -> None:
        self._outlet.put(Reply(_encode(message).decode()))

    def _answer_bad(self, kind: str, detail: str, sub: str) -> None:
        self._refuse(ErrorMessage(kind=kind, detail=detail, sub=sub))  # type: ignore[arg-type]

    def _refuse(self, message: ErrorMessage) -> None:
        self._answer(message)
        self._bad += 1
        if self._bad > MOST_BAD_MESSAGES:
            self._outlet.end("abuse")

    def _texts(self, item: Item) -> Iterator[str]:
        if isinstance(item, Reply):
            yield item.text
            return
        if isinstance(item, Beat):
            return
        name = item.to.name
        if isinstance(item, Gone):
            self._forget(item.to)
            detail = str(TaskNotFound(item.to.wanted.task))
            yield _encode(ErrorMessage(kind="task-not-found", detail=detail, sub=name)).decode()
        elif isinstance(item, Resync):
            if item.reason == "slow":
                self._forget(item.to)
            yield _encode(ResyncMessage(sub=name, after=str(item.at), reason=item.reason)).decode()
        elif self.subscriptions.get(name) is not item.to:  # unsubscribed meanwhile
            return
        elif isinstance(item, Steps):
            head = b'{"op":"event","sub":%s,"event":' % _encode(name)
            for step in item.steps:
                yield (b"%s%s}" % (head, step.document)).decode()
        elif isinstance(item, Snapshot):
            yield _encode(SnapshotMessage(sub=name, at=str(item.at), tasks=item.documents)).decode()
        elif isinstance(item, Live):
            yield _encode(LiveMessage(sub=name)).decode()


def _unavailable(sub: str | None) -> ErrorMessage:
    detail = "Redis doesn't answer; say it again in a moment"
    return ErrorMessage(kind="redis-unavailable", detail=detail, sub=sub)


def _wanted(caller: Caller, task: str | None, filter: Filter | None) -> Wanted:
    if filter is None:
        return Wanted(caller.project, task=task)
    return Wanted(caller.project, status=filter.status, queue=filter.queue, type=filter.type, tag=filter.tag)
