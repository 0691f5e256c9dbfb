"""The body of a webhook: a CloudEvents 1.0 document about one step of a task, made from an event in the outbox.

The outbox holds the task as it was at that step, so a message doesn't change with what happens to the task later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from taskpool.types import Count, Id, TaskStatus, Time, utc
from taskpool.webhooks.endpoint import Webhook

TYPE_PREFIX: Final = "taskpool.task."
TEST_EVENT: Final = "test"
SOURCE: Final = "urn:taskpool"
_HEAD: Final = frozenset({"id", "seq", "event", "status", "at_ms"})
MOST_RESULT_BYTES: Final = 16 * 1024
"""Results up to this size stand in the message; larger ones are left to be read."""


class TaskData(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The task in short, as it was at the event. `result` is there when it is done and the result isn't too large."""

    id: Id
    status: TaskStatus
    seq: Count
    type: str = ""
    queue: str = ""
    tags: Sequence[str] = ()
    attempt: Count = 0
    max_attempts: Count = 1
    created_at: Time | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    result: msgspec.Raw | UnsetType = UNSET
    error: str | None = None
    reason: str | None = None
    progress: Mapping[str, Any] | None = None


class Message(msgspec.Struct, kw_only=True):
    """The body of a webhook. `type` is `taskpool.task.` and the event; `subject` is the task's id."""

    specversion: str = "1.0"
    id: str
    source: str = SOURCE
    type: str
    time: Time
    subject: Id
    datacontenttype: str = "application/json"
    data: TaskData


class OutboxEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A wanted event in the outbox, and the task as it was then. `callback_url` is set when the callback wants it."""

    id: str
    event: Mapping[str, Any]
    data: TaskData
    project: str | None
    callback_url: str | None

    @property
    def task(self) -> str:
        """The task's id."""
        return self.data.id


def read_entry(id: str, flat: Sequence[bytes]) -> OutboxEntry | None:
    """The event in an entry of the outbox, read as a flat list of fields and values; None when it can't be read."""
    h = {name.decode(): value.decode("utf-8", "replace") for name, value in zip(flat[::2], flat[1::2], strict=True)}
    try:
        event = msgspec.json.decode(h["event"])
        if not event.keys() >= _HEAD:
            return None
        data = TaskData(
            id=event["id"],
            status=TaskStatus(event["status"]),
            seq=event["seq"],
            type=h["type"],
            queue=h["queue"],
            tags=tuple(h["tags"].split(",")) if h["tags"] else (),
            attempt=int(h["attempt"] or 0),
            max_attempts=int(h["max_attempts"] or 1),
            created_at=h["created_at"] or None,
            started_at=h["started_at"] or None,
            ended_at=h["ended_at"] or None,
            error=event.get("error"),
            reason=event.get("reason"),
            progress=event.get("progress"),
        )
        project, callback_url = h["project"] or None, h["callback_url"] or None
        return OutboxEntry(id=id, event=event, data=data, project=project, callback_url=callback_url)
    except (msgspec.DecodeError, KeyError, ValueError, AttributeError, RecursionError):
        return None


def is_wanted(entry: OutboxEntry, webhook: Webhook) -> bool:
    """Whether an endpoint wants this event. An endpoint with a project gets events of that project's tasks only."""
    return (
        webhook.enabled
        and entry.event["event"] in webhook.events
        and webhook.project in (None, entry.project)
        and (not webhook.types or entry.data.type in webhook.types)
        and (not webhook.queues or entry.data.queue in webhook.queues)
        and (not webhook.tags or not set(webhook.tags).isdisjoint(entry.data.tags))
        and (not webhook.statuses or entry.event["status"] in webhook.statuses)
    )


def message_body(entry: OutboxEntry, result: bytes | None) -> bytes:
    """The body of the message about an event. `result` is the task's as JSON, if the message shows it."""
    event = entry.event
    data = entry.data if result is None else replace(entry.data, result=msgspec.Raw(result))
    return _encode(data, event["event"], event["at_ms"], f"{entry.task}.{event['seq']}")


def trial_body(webhook: Webhook, now_ms: int) -> bytes:
    """The body of a message that only tries whether an endpoint hears."""
    data = TaskData(id="test", status=TaskStatus.DONE, seq=1)
    return _encode(data, TEST_EVENT, now_ms, f"{webhook.id}.{now_ms}")


def _encode(data: TaskData, event: str, at_ms: float, id: str) -> bytes:
    time = utc(at_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode(Message(id=id, type=TYPE_PREFIX + event, time=time, subject=data.id, data=data))
