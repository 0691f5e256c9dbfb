"""What is said over the WebSocket, both ways: the types that parse and render it, and of which its description is made.

`op` tells messages apart, `sub` is the name that the client gave a subscription.

What a client says over the WebSocket, read: a request, or the message that answers what isn't one.

The WebSocket: a client subscribes to tasks and filters by messages and receives their events.

A wrong message gets an error and, within limits, keeps the connection open. Each message counts for its caller's rate
limit, and one is read in each turn of the event loop. Reading and writing are independent. A client that reads slowly
gets a message about what it missed (see `outlet`). `connections` cuts a client that reads nothing or floods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from taskpool.errors import FieldError, RedisUnavailable, TaskNotFound
from taskpool.operations.documents import EventDocument, TaskDocument
from taskpool.operations.status import Position
from taskpool.tasks.payload.faults import field_errors
from taskpool.types import TaskStatus, refuse_unknown

from ..auth.caller import Caller, caller_of
from ..http.problems import Problem, shortened
from ..routing import refuse
from .client_queue import Beat, Gone, Item, Live, Outlet, Reply, Resync, Snapshot, Steps
from .streams import Streams, TooManySubscriptions
from .subscriptions import Subscription, Wanted

Sub = Annotated[
    str, Meta(min_length=1, max_length=64, description="the client's name of a subscription", examples=["s1"])
]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
TaskId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,200}$", examples=["d217r8m2n3aolstf2ch5"])]
EventId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,15}-[0-9]{1,15}$",
        description="a place in the stream of all events: `event.stream`, or the `at` of a snapshot",
        examples=["1795435200000-0"],
    ),
]
Nonce = Annotated[str, Meta(max_length=64, description="comes back in the pong")]


# --- from the client ------------------------------------------------------------------------------------------


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """What a client says."""


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tasks: all that is given must hold. `status` is what a step leads to, the rest is the task's."""

    status: TaskStatus | None = None
    queue: Name | None = None
    type: Name | None = None
    tag: Name | None = None


class Subscribe(Asked, frozen=True, kw_only=True, tag="subscribe"):
    """Tell me of one task, or of all that fit a filter: how things stand and what follows, or with `after` all that
    came since then."""

    sub: Sub
    task: TaskId | None = None
    filter: Filter | None = None
    after: EventId | None = None


class Unsubscribe(Asked, frozen=True, kw_only=True, tag="unsubscribe"):
    """Tell me no more of it."""

    sub: Sub


class Ping(Asked, frozen=True, kw_only=True, tag="ping"):
    """Are you there?"""

    nonce: Nonce | None = None


Request = Subscribe | Unsubscribe | Ping
REQUESTS: Final = (Subscribe, Unsubscribe, Ping)


# --- to the client --------------------------------------------------------------------------------------------


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", gc=False):
    """What the server says."""


class SnapshotMessage(Told, frozen=True, kw_only=True, tag="snapshot"):
    """How the task stands, or the newest 100 that fit the filter; the events after `at` follow."""

    sub: Sub
    at: EventId
    tasks: Sequence[TaskDocument]


class EventMessage(Told, frozen=True, kw_only=True, tag="event"):
    """One step of a task."""

    sub: Sub
    event: EventDocument


class LiveMessage(Told, frozen=True, kw_only=True, tag="live"):
    """The subscription has caught up: what follows is told as it happens."""

    sub: Sub


class ResyncMessage(Told, frozen=True, kw_only=True, tag="resync"):
    """Events were lost to this subscription. `trimmed`: it was away for too long; a snapshot and the events after
    `after` follow. `slow`: the client didn't keep up and the subscription has ended; subscribe again with `after`."""

    sub: Sub
    after: EventId
    reason: Literal["trimmed", "slow"]


class Unsubscribed(Told, frozen=True, kw_only=True, tag="unsubscribed"):
    """A subscription has ended."""

    sub: Sub


class Pong(Told, frozen=True, kw_only=True, tag="pong"):
    """Here I am."""

    nonce: Nonce | None = None


class ErrorMessage(Told, frozen=True, kw_only=True, tag="error"):
    """Something that the client said can't be done; the socket goes on. `kind` is the kind of problem. As
    `task-not-found` it also ends a subscription whose task isn't there any more."""

    kind: Annotated[
        Literal[
            "invalid-json",
            "invalid-message",
            "task-not-found",
            "subscription-exists",
            "no-such-subscription",
            "too-many-subscriptions",
            "rate-limited",
            "redis-unavailable",
        ],
        Meta(description="the kind of problem"),
    ]
    detail: str
    pointer: Annotated[str, Meta(description="the JSON Pointer of the field at fault")] | None = None
    sub: Annotated[str, Meta(description="the subscription that it is about")] | None = None
    retry_after_s: Annotated[int, Meta(description="of `rate-limited`: say it again after so many seconds")] | None = (
        None
    )


MESSAGES: Final = (
    SnapshotMessage,
    EventMessage,
    LiveMessage,
    ResyncMessage,
    Unsubscribed,
    Pong,
    ErrorMessage,
)


_decoder: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_OPS: Final = {kind.__struct_config__.tag: kind for kind in REQUESTS}


def read_request(text: str | None) -> Request | ErrorMessage:
    """The request that a message is (None: it was bytes), or the error that names the subscription and the place at
    fault, as far as they can be told."""
    try:
        if text is None:
            raise msgspec.DecodeError("messages are text, not bytes")
        request = _decoder.decode(text)
        if isinstance(request, Subscribe) and request.filter is not None:
            refuse_unknown(request.filter.status, ".filter.status")
        return request
    except msgspec.ValidationError as error:
        return _refusal(text or "", error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return ErrorMessage(kind="invalid-json", detail=shortened(str(error)))


def _refusal(text: str, error: msgspec.ValidationError) -> ErrorMessage:
    said = _said(text)
    op = said.get("op")
    if "op" in said and (not isinstance(op, str) or op not in _OPS):
        fault = FieldError("/op", f"must be one of {', '.join(map(repr, _OPS))}")
    else:
        (fault,) = field_errors(error, "", _OPS.get(op, Any))
    return ErrorMessage(
        kind="invalid-message",
        detail=shortened(f"{fault.pointer or 'the message'}: {fault.detail}"),
        pointer=shortened(fault.pointer),
        sub=_name(said.get("sub")),
    )


def _said(text: str) -> dict[str, Any]:
    """The message as it stands, without a look at what it should be; empty when it is no object."""
    try:
        said = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):  # what is behind the fault
        return {}
    return said if isinstance(said, dict) else {}


def _name(given: Any) -> str | None:
    try:
        return msgspec.convert(given, Sub)
    except msgspec.ValidationError:
        return None


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
