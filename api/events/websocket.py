"""The WebSocket at /ws: a client subscribes to tasks and filters with messages, and receives their events.

`op` is the kind of a message, `sub` the client's name of a subscription. The message types here parse, render and
describe the protocol (see `openapi.asyncapi`).

A wrong message gets an error and, up to a limit, leaves the socket open. Each message counts for its caller's rate
limit. Reading and writing are independent of each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from taskpool.errors import FieldError, RedisUnavailable, TaskNotFound, WorkflowNotFound
from taskpool.operations.documents import EventDocument, TaskDocument, WorkflowDocument
from taskpool.operations.status import Position
from taskpool.tasks.payload.faults import field_errors
from taskpool.types import refuse_unknown

from ..auth.caller import caller_of
from ..http.problems import Problem, shortened
from ..http.query import Filter
from .client_queue import ClientQueue, Gone, Item, Live, Reply, Resync, Snapshot, Steps
from .streams import Streams, TooManySubscriptions, until_one_ends
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
    """Follow one task, one workflow, or all tasks that match a filter: from the present state on, or with `after` from
    that position on."""

    sub: Sub
    task: TaskId | None = None
    workflow: TaskId | None = None
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
    """The state of the task, or of the newest 100 that match the filter; or of the workflow, without its nodes. The
    events after `at` follow."""

    sub: Sub
    at: EventId
    tasks: Sequence[TaskDocument]
    workflow: WorkflowDocument | None = None


class EventMessage(ServerMessage, frozen=True, kw_only=True, tag="event"):
    """One event of a task or a workflow."""

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
    """A message of the client was refused; the socket stays open. `task-not-found` and `workflow-not-found` also end a
    subscription whose task or workflow doesn't exist any more."""

    kind: Annotated[
        Literal[
            "invalid-json",
            "invalid-message",
            "task-not-found",
            "workflow-not-found",
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


MESSAGES: Final = (SnapshotMessage, EventMessage, LiveMessage, ResyncMessage, Unsubscribed, Pong, ErrorMessage)


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
    message: dict[str, Any] = {}
    sub: str | None = None
    with suppress(msgspec.DecodeError, RecursionError):  # the text after the fault isn't JSON, or not an object
        message = msgspec.json.decode(text, type=dict[str, Any])
        sub = msgspec.convert(message.get("sub"), Sub)
    op = message.get("op")
    if "op" in message and (not isinstance(op, str) or op not in _OPS):
        fault = FieldError("/op", f"must be one of {', '.join(map(repr, _OPS))}")
    else:
        (fault,) = field_errors(error, "", _OPS.get(op, Any))
    return ErrorMessage(
        kind="invalid-message",
        detail=shortened(f"{fault.pointer or 'the message'}: {fault.detail}"),
        pointer=shortened(fault.pointer),
        sub=sub,
    )


def _not_found(error: TaskNotFound | WorkflowNotFound, sub: str | None) -> ErrorMessage:
    kind: Literal["task-not-found", "workflow-not-found"]
    kind = "workflow-not-found" if isinstance(error, WorkflowNotFound) else "task-not-found"
    return ErrorMessage(kind=kind, detail=str(error), sub=sub)


def _snapshot(item: Snapshot) -> SnapshotMessage:
    name, at, documents = item.to.name, str(item.at), item.documents
    if item.to.wanted.is_workflow:
        return SnapshotMessage(sub=name, at=at, tasks=(), workflow=cast(WorkflowDocument, documents[0]))
    return SnapshotMessage(sub=name, at=at, tasks=cast(Sequence[TaskDocument], documents))


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


async def serve_socket(streams: Streams, scope: Scope, receive: Receive, send: Send) -> None:
    """The handler of /ws: serve one socket, from its handshake to its end. Raises: Problem, too many streams."""
    queue = streams.admit(caller_of(scope), "websocket")
    socket = _Socket(streams, queue, scope)
    try:
        with suppress(OSError):  # the client has left
            await send({"type": "websocket.accept"})
            await until_one_ends(socket.read(receive), socket.write(send))
    finally:
        streams.release(queue, *socket.subscriptions.values())


class _Refused(Exception):
    """A message of the client is wrong: the kind of the error, and its text."""


class _Socket:
    def __init__(self, streams: Streams, queue: ClientQueue, scope: Scope) -> None:
        self._streams, self._queue, self._scope = streams, queue, scope
        self.subscriptions: dict[str, Subscription] = {}
        self._bad = 0

    async def read(self, receive: Receive) -> None:
        """Carry out the client's messages until it leaves."""
        while (message := await receive())["type"] == "websocket.receive":
            await asyncio.sleep(0)  # one message in each turn of the event loop
            request = read_request(message.get("text"))
            sub: str | None = getattr(request, "sub", None)
            try:
                await self._streams.gate.charge(self._scope)
                await self._do(request)
            except Problem as problem:
                seconds = int(dict(problem.headers)[b"retry-after"])
                self._answer(ErrorMessage(kind="rate-limited", detail=problem.detail, sub=sub, retry_after_s=seconds))
                await asyncio.sleep(LIMITED_PAUSE_S)
            except RedisUnavailable:
                detail = "Redis doesn't answer; send the message again in a moment"
                self._answer(ErrorMessage(kind="redis-unavailable", detail=detail, sub=sub))
            except (TaskNotFound, WorkflowNotFound) as error:
                self._answer(_not_found(error, sub))
            except TooManySubscriptions as error:
                self._refuse(ErrorMessage(kind="too-many-subscriptions", detail=str(error), sub=sub))
            except _Refused as error:
                kind, detail = error.args
                self._refuse(ErrorMessage(kind=kind, detail=detail, sub=sub))

    async def write(self, send: Send) -> None:
        """Send the queue to the client until nothing more follows."""
        queue = self._queue
        while items := await queue.take():
            for item in items:
                for text in self._texts(item):
                    if not queue.is_cut:
                        await send({"type": "websocket.send", "text": text.decode()})
        code, reason = CLOSE_CODES[queue.ended or "left"]
        await send({"type": "websocket.close", "code": code, "reason": reason})

    async def _do(self, request: Request | ErrorMessage) -> None:
        if isinstance(request, ErrorMessage):
            self._refuse(request)
        elif isinstance(request, Ping):
            self._answer(Pong(nonce=request.nonce))
        elif isinstance(request, Subscribe):
            await self._queue.room()  # snapshots may be large: wait until earlier ones have left
            await self._subscribe(request)
        elif (subscription := self.subscriptions.get(request.sub)) is None:
            raise _Refused("no-such-subscription", f"nothing is subscribed as {request.sub!r}")
        else:
            self._forget(subscription)
            self._answer(Unsubscribed(sub=request.sub))

    async def _subscribe(self, request: Subscribe) -> None:
        name = request.sub
        project = caller_of(self._scope).project
        wanted: Wanted
        match request:
            case Subscribe(task=str(id), workflow=None, filter=None):
                wanted = Wanted(project=project, task=id)
            case Subscribe(task=None, workflow=str(id), filter=None):
                wanted = Wanted(project=project, task=id, is_workflow=True)
            case Subscribe(task=None, workflow=None, filter=Filter() as criteria):
                wanted = Wanted.of(project, criteria)
            case _:
                raise _Refused("invalid-message", "subscribe takes one of `task`, `workflow` and `filter`")
        if name in self.subscriptions:
            raise _Refused("subscription-exists", f"{name!r} is subscribed already; unsubscribe first")
        if len(self.subscriptions) >= MOST_SUBSCRIPTIONS:
            raise TooManySubscriptions(
                f"a socket has {MOST_SUBSCRIPTIONS} subscriptions at most; use a filter, or a second socket"
            )
        after = None if request.after is None else Position.parse(request.after)
        self.subscriptions[name] = await self._streams.subscribe(wanted, self._queue, name=name, after=after)

    def _forget(self, subscription: Subscription) -> None:
        if self.subscriptions.get(subscription.name) is subscription:
            self._streams.unsubscribe(self.subscriptions.pop(subscription.name))

    def _answer(self, message: ServerMessage) -> None:
        self._queue.put(Reply(_encode(message)))

    def _refuse(self, message: ErrorMessage) -> None:
        self._answer(message)
        self._bad += 1
        if self._bad > MOST_BAD_MESSAGES:
            self._queue.end("abuse")

    def _texts(self, item: Item) -> Iterable[bytes]:
        if isinstance(item, Reply):
            return [item.text]
        if isinstance(item, Steps) and self._follows(item.to):
            head = b'{"op":"event","sub":%s,"event":' % _encode(item.to.name)
            return (b"%s%s}" % (head, step.json()) for step in item.steps)  # one at a time: the client may be slow
        message = self._notice(item)
        return [] if message is None else [_encode(message)]

    def _notice(self, item: Item) -> ServerMessage | None:
        """The message of any other item; None if the subscription has ended meanwhile."""
        if isinstance(item, Gone):
            self._forget(item.to)
            return _not_found(item.to.wanted.not_found, item.to.name)
        if isinstance(item, Resync):
            if item.reason == "slow":
                self._forget(item.to)
            return ResyncMessage(sub=item.to.name, after=str(item.at), reason=item.reason)
        if isinstance(item, Snapshot) and self._follows(item.to):
            return _snapshot(item)
        if isinstance(item, Live) and self._follows(item.to):
            return LiveMessage(sub=item.to.name)
        return None

    def _follows(self, subscription: Subscription) -> bool:
        return self.subscriptions.get(subscription.name) is subscription
