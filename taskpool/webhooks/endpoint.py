"""Webhooks as values: endpoints with their filters, faults in them, messages and their signatures.

The body of a message is a CloudEvents 1.0 document about one step of a task, made from an event in the outbox. The
outbox holds the task as it was at that step, so a message doesn't change with what happens to the task later.

Signatures follow Standard Webhooks: HMAC-SHA256 over id, timestamp and body, one for each secret that is valid. A
holder of the secret can forge messages, so only the document made for it shows one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from taskpool.access.api_key import PROJECT, PROJECT_TAKES
from taskpool.errors import FieldError
from taskpool.types import ENDS, WEBHOOK_EVENTS, WORKFLOW_EVENTS, Count, Id, OpenEnum, TaskStatus, Time, utc
from taskpool.url_guard import Allowed, parse_target
from taskpool.validation import QUEUE_NAME, QUEUE_TAKES, TAG, TAG_TAKES, TYPE_NAME, TYPE_TAKES, Field, faults_of

PREFIX: Final = "whsec_"
_FOUR: Final = "[A-Za-z0-9+/]{4}"
SECRET: Final = re.compile(
    f"{PREFIX}(({_FOUR}){{8,20}}([A-Za-z0-9+/]{{3}}=)?|({_FOUR}){{8,21}}([A-Za-z0-9+/]{{2}}==)?)"
)
"""24 to 64 bytes in base64."""


def new_secret() -> str:
    """A secret of 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_fault(secret: str) -> str | None:
    """What is wrong with a secret; None when it is fine. The text doesn't show it."""
    return None if SECRET.fullmatch(secret) else f"must be {PREFIX!r} and 24 to 64 bytes in base64"


def signed_headers(id: str, timestamp_s: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """The three headers of a message; its signature is made with each of the secrets `keys`."""
    content = b"%s.%d.%s" % (id.encode(), timestamp_s, body)
    signatures = [base64.b64encode(hmac.digest(_key(key), content, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)


# What an endpoint is sent that names statuses and no events.
STEPS: Final = tuple(event for event in WEBHOOK_EVENTS if event != "progress")
ENDPOINT_EVENTS: Final = (*WEBHOOK_EVENTS, *WORKFLOW_EVENTS)
CALLBACK: Final = "callback"  # the built-in endpoint behind all callback URLs: it has their secret and deliveries


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

    id: Annotated[str, Field(examples=["wh_d217r8m2n3aolstf2ch5"])]
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
    project: Annotated[str | None, Field("It receives messages about tasks of this project only.")] = None
    created_ms: int = 0
    updated_ms: int = 0
    revision: int = 1

    def keys(self, now_ms: float) -> list[str]:
        """The secrets that sign at this moment, the newest first: two while the older one is still valid."""
        if self.previous_secret is None or now_ms >= self.previous_until_ms:
            return [self.secret]
        return [self.secret, self.previous_secret]


def callback_events(url: str | None, events: Sequence[str] | None) -> tuple[str, ...]:
    """The events that a submission's callback gets."""
    if url is None:
        return ()
    return ENDS if events is None else tuple(dict.fromkeys(events))


_TARGET: Final = Field("The target. The server's settings say which targets are allowed.", is_url=True)
_Names = Sequence[str] | UnsetType
_names = partial(Field, default="all, also if empty", most=50)


class WebhookFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of an endpoint. A field that isn't given stays as it is."""

    url: Annotated[str | UnsetType, _TARGET] = UNSET
    events: Annotated[
        _Names,
        Field(
            "The events to send.",
            default="the ends of tasks; with `statuses`, all except `progress`",
            least=1,
            most=len(ENDPOINT_EVENTS),
            choices=ENDPOINT_EVENTS,
        ),
    ] = UNSET
    types: Annotated[_Names, _names("Only for tasks of these types.", pattern=TYPE_NAME, takes=TYPE_TAKES)] = UNSET
    queues: Annotated[_Names, _names("Only for tasks in these queues.", pattern=QUEUE_NAME, takes=QUEUE_TAKES)] = UNSET
    tags: Annotated[_Names, _names("Only for tasks with one of these tags.", pattern=TAG, takes=TAG_TAKES)] = UNSET
    statuses: Annotated[_Names, _names("Only for these statuses of the task.", choices=tuple(TaskStatus))] = UNSET
    description: Annotated[
        str | UnsetType, Field("A description for people.", most=500, takes="at most 500 characters")
    ] = UNSET
    enabled: Annotated[bool | UnsetType, Field("Whether events are sent.")] = UNSET

    def given(self) -> dict[str, Any]:
        """The fields that are there."""
        pairs = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: value for name, value in pairs if value is not UNSET}


class NewWebhook(WebhookFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new endpoint is to be. A field that isn't given has its default; a secret is made."""

    url: Annotated[str, _TARGET]
    project: Annotated[
        str | UnsetType,
        Field("The only project whose events are sent.", default="all", pattern=PROJECT, takes=PROJECT_TAKES),
    ] = UNSET
    secret: str | UnsetType = UNSET


def field_faults(given: dict[str, Any], allowed: Allowed) -> Iterator[FieldError]:
    """What is wrong with these fields; the types of their values are right already."""
    yield from (FieldError(pointer, fault) for pointer, fault in faults_of(NewWebhook, given))
    if "secret" in given and (fault := secret_fault(given["secret"])):
        yield FieldError("/secret", fault)
    if "url" in given:
        try:
            parse_target(given["url"], allowed)
        except ValueError as error:
            yield FieldError("/url", str(error))


# --- messages ---------------------------------------------------------------------------------------------------------

TYPE_PREFIX: Final = "taskpool.task."
WORKFLOW_PREFIX: Final = "workflow_"  # of the events of workflows; their messages have the types `taskpool.workflow.*`
TEST_EVENT: Final = "test"
SOURCE: Final = "urn:taskpool"
_HEAD: Final = frozenset({"id", "seq", "event", "status", "at_ms"})
_OF_THE_EVENT: Final = ("id", "seq", "status", "error", "reason", "progress", "text", "question")
_OF_THE_TASK: Final = ("type", "queue", "attempt", "max_attempts", "created_at", "started_at", "ended_at")
"""The members of an event, and the fields beside it in the outbox, that a message shows."""
MOST_RESULT_BYTES: Final = 16 * 1024  # results up to this size stand in the message; larger ones are left to be read


def message_type(event: str) -> str:
    """The type of the message about an event."""
    if event.startswith(WORKFLOW_PREFIX):
        return f"taskpool.workflow.{event.removeprefix(WORKFLOW_PREFIX)}"
    return TYPE_PREFIX + event


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
    text: Annotated[str | None, Meta(description="What a person is asked.")] = None
    question: Annotated[str | None, Meta(description="The name of what it asks in the middle.")] = None
    answer_by: Annotated[Time | None, Meta(description="When the default answer counts.")] = None


class Message(msgspec.Struct, kw_only=True):
    """The body of a webhook. `type` is `taskpool.task.` and the event, and `subject` the task's id; of a workflow,
    `taskpool.workflow.` and its id, and `progress` says how many of its tasks have ended."""

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
        fields = {name: h[name] for name in _OF_THE_TASK if h[name]} | {name: event.get(name) for name in _OF_THE_EVENT}
        if "total" in event:
            fields["progress"] = {"done": event.get("ended", 0), "total": event["total"]}
        if isinstance(until_ms := event.get("answer_by_ms"), int):
            fields["answer_by"] = time_text(until_ms)
        fields["tags"] = h["tags"].split(",") if h["tags"] else ()
        data = msgspec.convert(fields, TaskData, strict=False)
        project, callback_url = h["project"] or None, h["callback_url"] or None
        return OutboxEntry(id=id, event=event, data=data, project=project, callback_url=callback_url)
    except (KeyError, ValueError, AttributeError, RecursionError):
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


def time_text(ms: float) -> str:
    """A time in ms since 1970 as messages have it."""
    return utc(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encode(data: TaskData, event: str, at_ms: float, id: str) -> bytes:
    time = time_text(at_ms)
    return msgspec.json.encode(Message(id=id, type=message_type(event), time=time, subject=data.id, data=data))
