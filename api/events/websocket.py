"""The WebSocket at /ws: a client subscribes to tasks and filters with messages, and receives their events.

`op` is the kind of a message, `sub` the client's name of a subscription. The message types here parse, render and
describe the protocol (see `openapi.asyncapi`).

A wrong message gets an error and, up to a limit, leaves the socket open. Each message counts for its caller's rate
limit. Reading and writing are independent of each other.
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
from taskpool.types import refuse_unknown

from ..auth.caller import caller_of
from ..http.problems import Problem, shortened
from ..http.query import Filter
from .client_queue import Beat, ClientQueue, Gone, Item, Live, Reply, Resync, Snapshot, Steps
from .streams import Streams, TooManySubscriptions
from .subscriptions import Subscription, Wanted

Sub = Annotated[
    str, Meta(min_length=1, max_length=64, description="the client's name of a subscription", examples=["s1"])
]
TaskId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,200}$", examples=["d217r8m2n3aolstf2ch5"])]
EventId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,15}-[0-9]{1,15}$",
        description="a position in the stream of all events: `event.stream`, or the `at` of a snapshot",
        examples=["1795435200000-0"],
    ),
]
Nonce = Annotated[str, Meta(max_length=64, description="the pong repeats it")]


# --- from the client ------------------------------------------------------------------------------------------


class ClientMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """A message from the client."""


class Subscribe(ClientMessage, frozen=True, kw_only=True, tag="subscribe"):
    """Follow one task, or all that match a filter: from the present state on, or with `after` from that position on."""

    sub: Sub
    task: TaskId | None = None
    filter: Filter | None = None
    after: EventId | None = None


class Unsubscribe(ClientMessage, frozen=True, kw_only=True, tag="unsubscribe"):
    """End a subscription."""

    sub: Sub


class Ping(ClientMessage, frozen=True, kw_only=True, tag="ping"):
    """Check the connection."""

    nonce: Nonce | None = None


Request = Subscribe | Unsubscribe | Ping
REQUESTS: Final = (Subscribe, Unsubscribe, Ping)


# --- to the client --------------------------------------------------------------------------------------------


class ServerMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="op", gc=False):
    """A message from the server."""


class SnapshotMessage(ServerMessage, frozen=True, kw_only=True, tag="snapshot"):
    """The state of the task, or of the newest 100 that match the filter. The events after `at` follow."""

    sub: Sub
    at: EventId
    tasks: Sequence[TaskDocument]


class EventMessage(ServerMessage, frozen=True, kw_only=True, tag="event"):
    """One event of a task."""

    sub: Sub
    event: EventDocument


class LiveMessage(ServerMessage, frozen=True, kw_only=True, tag="live"):
    """The subscription has caught up: events follow as they happen."""

    sub: Sub


class ResyncMessage(ServerMessage, frozen=True, kw_only=True, tag="resync"):
    """The subscription has lost events. `trimmed`: the stream doesn't reach back that far; a snapshot and the events
    after `after` follow. `slow`: the client was too slow and the subscription has ended; subscribe again with `after`.
    """

    sub: Sub
    after: EventId
    reason: Literal["trimmed", "slow"]


class Unsubscribed(ServerMessage, frozen=True, kw_only=True, tag="unsubscribed"):
    """A subscription has ended."""

    sub: Sub


class Pong(ServerMessage, frozen=True, kw_only=True, tag="pong"):
    """The answer to a ping."""

    nonce: Nonce | None = None


class ErrorMessage(ServerMessage, frozen=True, kw_only=True, tag="error"):
    """A message of the client was refused; the socket stays open. `task-not-found` also ends a subscription whose task
    doesn't exist any more."""

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
    sub: Annotated[str, Meta(description="the subscription concerned")] | None = None
    retry_after_s: Annotated[int, Meta(description="for `rate-limited`: the seconds to wait")] | None = None


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
    """The request in a message (None: it was bytes), or the error, with the subscription and the field at fault if they
    are known."""
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
    message = _object(text)
    op = message.get("op")
    if "op" in message and (not isinstance(op, str) or op not in _OPS):
        fault = FieldError("/op", f"must be one of {', '.join(map(repr, _OPS))}")
    else:
        (fault,) = field_errors(error, "", _OPS.get(op, Any))
    return ErrorMessage(
        kind="invalid-message",
        detail=shortened(f"{fault.pointer or 'the message'}: {fault.detail}"),
        pointer=shortened(fault.pointer),
        sub=_name(message.get("sub")),
    )


def _object(text: str) -> dict[str, Any]:
    """The message as any JSON object; empty if it isn't one."""
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):  # the text after the fault isn't JSON
        return {}
    return message if isinstance(message, dict) else {}


def _name(given: Any) -> str | None:
    try:
        return msgspec.convert(given, Sub)
    except msgspec.ValidationError:
        return None


MOST_SUBSCRIPTIONS: Final = 100
MOST_BAD_MESSAGES: Final = 20
MAX_MESSAGE_BYTES: Final = 16 * 1024
LIMITED_PAUSE_S: Final = 0.1
"""The pause after a message over the rate limit."""

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
        """Serve one socket, from its handshake to its end."""
        await receive()  # websocket.connect
        try:
            queue = self._streams.admit(caller_of(scope))
        except Problem as problem:
            await problem.refuse_socket(scope, receive, send)
            return
        socket = _Socket(self._streams, queue, scope)
        tasks: tuple[asyncio.Task[None], ...] = ()
        try:
            await send({"type": "websocket.accept"})
            tasks = (asyncio.create_task(socket.read(receive)), asyncio.create_task(socket.write(send)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except OSError:  # the client has left
            pass
        finally:
            for task in tasks:
                task.cancel()
            self._streams.release(queue, *socket.subscriptions.values())


class _Socket:
    def __init__(self, streams: Streams, queue: ClientQueue, scope: Scope) -> None:
        self._streams, self._queue, self._scope = streams, queue, scope
        self._caller = caller_of(scope)
        self.subscriptions: dict[str, Subscription] = {}
        self._bad = 0

    async def read(self, receive: Receive) -> None:
        """Carry out the client's messages until it leaves."""
        while (message := await receive())["type"] == "websocket.receive":
            await asyncio.sleep(0)  # one message in each turn of the event loop
            request = read_request(message.get("text"))
            if (limited := await self._rate_error(request)) is not None:
                self._answer(limited)
                await asyncio.sleep(LIMITED_PAUSE_S)
            elif isinstance(request, ErrorMessage):
                self._refuse(request)
            else:
                await self._do(request)

    async def _rate_error(self, request: Request | ErrorMessage) -> ErrorMessage | None:
        """The error if the caller's rate limit refuses a message."""
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
        """Send the queue to the client until nothing more follows."""
        queue = self._queue
        while items := await queue.take():
            for item in items:
                for text in self._texts(item):
                    if not queue.is_cut:
                        await send({"type": "websocket.send", "text": text})
        code, reason = CLOSE_CODES[self._queue.ended or "left"]
        await send({"type": "websocket.close", "code": code, "reason": reason})

    async def _do(self, request: Request) -> None:
        if isinstance(request, Ping):
            self._answer(Pong(nonce=request.nonce))
        elif isinstance(request, Subscribe):
            await self._queue.room()  # snapshots may be large: wait until earlier ones have left
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
            wanted = Wanted.of(self._caller.project, request.filter, task=request.task)
            after = None if request.after is None else Position.parse(request.after)
            try:
                subscription = await self._streams.subscribe(wanted, self._queue, name=name, after=after)
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

    def _answer(self, message: ServerMessage) -> None:
        self._queue.put(Reply(_encode(message).decode()))

    def _answer_bad(self, kind: str, detail: str, sub: str) -> None:
        self._refuse(ErrorMessage(kind=kind, detail=detail, sub=sub))  # type: ignore[arg-type]

    def _refuse(self, message: ErrorMessage) -> None:
        self._answer(message)
        self._bad += 1
        if self._bad > MOST_BAD_MESSAGES:
            self._queue.end("abuse")

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
                yield (b"%s%s}" % (head, step.json())).decode()
        elif isinstance(item, Snapshot):
            yield _encode(SnapshotMessage(sub=name, at=str(item.at), tasks=item.documents)).decode()
        elif isinstance(item, Live):
            yield _encode(LiveMessage(sub=name)).decode()


def _unavailable(sub: str | None) -> ErrorMessage:
    detail = "Redis doesn't answer; send the message again in a moment"
    return ErrorMessage(kind="redis-unavailable", detail=detail, sub=sub)
