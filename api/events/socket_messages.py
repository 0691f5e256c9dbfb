"""What is said over the WebSocket, both ways: the types that parse and render it, and of which its description is made.

`op` tells messages apart, `sub` is the name that the client gave a subscription.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from taskpool.document_types import EventDocument, TaskDocument
from taskpool.types import TaskStatus

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
