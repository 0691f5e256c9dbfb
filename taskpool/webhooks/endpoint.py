"""Webhooks as values: which events are told, what a task's callback may ask for, a standing endpoint and its filters.

Whoever has a webhook's secret can forge its messages: no document but the one made for it shows one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from taskpool.openenum import OpenEnum
from taskpool.types import ENDS
from taskpool.webhooks.target import Allowed, parse_target

TOLD: Final = (
    "queued", "scheduled", "waiting", "started", "progress", "retry", "snoozed", "crashed", "lease_lost",
    "stopping", "done", "failed", "stopped", "canceled",
)  # fmt: skip
"""The events that webhooks can be sent for: all but a log's lines."""
STEPS: Final = tuple(event for event in TOLD if event != "progress")
"""What an endpoint is sent that names statuses and no events."""

CALLBACK: Final = "callback"
"""The built-in endpoint behind all callback URLs: it has their secret and lists their deliveries."""


def is_callback(id: str) -> bool:
    """Whether this is the id of a built-in endpoint: `callback`, or `callback.` and a project."""
    return id == CALLBACK or id.startswith(CALLBACK + ".")


class DeliveryStatus(OpenEnum):
    """Where a message to an endpoint is: still to be sent, arrived, or given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """A standing endpoint. Each filter that isn't empty must hold: the task's type, queue, status at the event, or one
    of its tags, is among those named. `revision` grows with each change. Times in ms."""

    id: str
    url: str
    secret: str
    events: tuple[str, ...] = ENDS
    types: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    disabled_reason: str | None = None
    previous_secret: str | None = None
    previous_until_ms: int = 0
    project: str | None = None
    created_ms: int = 0
    updated_ms: int = 0
    revision: int = 1

    def keys(self, now_ms: float) -> list[str]:
        """The secrets that sign at this moment, the newest first: two while the older one is still valid."""
        if self.previous_secret is None or now_ms >= self.previous_until_ms:
            return [self.secret]
        return [self.secret, self.previous_secret]


def callback_events(url: str | None, events: Sequence[str] | None) -> tuple[str, ...]:
    """The events that a submission's callback is told of."""
    if url is None:
        return ()
    return ENDS if events is None else tuple(dict.fromkeys(events))


def callback_faults(url: object, events: object, allowed: Allowed) -> Iterator[tuple[str, str]]:
    """What is wrong with a submission's callback: the fields at fault, and why."""
    if url is None:
        yield "callback_events", "there is no callback_url to tell them to"
        return
    try:
        parse_target(url, allowed)
    except ValueError as fault:
        yield "callback_url", str(fault)
    if events is not None:
        yield from events_faults("callback_events", events)


def events_faults(field: str, events: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the events that a webhook is to be sent for."""
    if not isinstance(events, list | tuple) or not 1 <= len(events) <= len(TOLD):
        yield field, f"must be a list of 1 to {len(TOLD)}"
        return
    for at, event in enumerate(events):
        if event not in TOLD:
            yield f"{field}/{at}", f"must be one of {', '.join(TOLD)}"
