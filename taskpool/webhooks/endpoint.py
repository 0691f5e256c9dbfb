"""Webhooks as values: events, endpoints and their filters, faults in them, and signatures.

Signatures follow Standard Webhooks: HMAC-SHA256 over id, timestamp and body, one for each secret that is valid. A
holder of the secret can forge messages, so only the document made for it shows one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from taskpool.access.api_key import PROJECT
from taskpool.errors import FieldError
from taskpool.types import ENDS, WEBHOOK_EVENTS, OpenEnum, TaskStatus
from taskpool.url_guard import Allowed, parse_target
from taskpool.validation import TAG, Field, queue_name_fault, type_name_fault

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
LEAST_BYTES: Final = 24
MOST_BYTES: Final = 64


def new_secret() -> str:
    """A secret of 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def secret_fault(secret: str) -> str | None:
    """What is wrong with a secret; None when it is fine. The text doesn't show it."""
    try:
        size = len(_key(secret)) if secret.startswith(PREFIX) else 0
    except (binascii.Error, ValueError):
        size = 0
    if LEAST_BYTES <= size <= MOST_BYTES:
        return None
    return f"must be {PREFIX!r} and {LEAST_BYTES} to {MOST_BYTES} bytes in base64"


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


STEPS: Final = tuple(event for event in WEBHOOK_EVENTS if event != "progress")
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


def events_faults(field: str, events: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the events that a webhook is to be sent for."""
    if not isinstance(events, list | tuple) or not 1 <= len(events) <= len(WEBHOOK_EVENTS):
        yield field, f"must be a list of 1 to {len(WEBHOOK_EVENTS)}"
        return
    for at, event in enumerate(events):
        if event not in WEBHOOK_EVENTS:
            yield f"{field}/{at}", f"must be one of {', '.join(WEBHOOK_EVENTS)}"


MOST_NAMES: Final = 50
LONGEST_DESCRIPTION: Final = 500
FILTERS: Final = ("types", "queues", "tags", "statuses")


class WebhookFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of an endpoint; what isn't given stays as it is."""

    url: str | UnsetType = UNSET
    events: list[str] | UnsetType = UNSET
    types: list[str] | UnsetType = UNSET
    queues: list[str] | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    statuses: list[str] | UnsetType = UNSET
    description: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """The fields that are there."""
        pairs = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: value for name, value in pairs if value is not UNSET}


class NewWebhook(WebhookFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new endpoint is to be. What isn't given has its default; a secret is made."""

    url: str
    project: str | UnsetType = UNSET
    secret: str | UnsetType = UNSET


def field_faults(given: dict[str, Any], allowed: Allowed) -> Iterator[FieldError]:
    """What can't be, in what was given; the types of the values are right already."""
    if "url" in given:
        try:
            parse_target(given["url"], allowed)
        except ValueError as error:
            yield FieldError("/url", str(error))
    if "events" in given:
        yield from (FieldError(f"/{field}", detail) for field, detail in events_faults("events", given["events"]))
    if len(given.get("description", "")) > LONGEST_DESCRIPTION:
        yield FieldError("/description", f"must have at most {LONGEST_DESCRIPTION} characters")
    if "secret" in given and (fault := secret_fault(given["secret"])):
        yield FieldError("/secret", fault)
    if "project" in given and not PROJECT.fullmatch(given["project"]):
        yield FieldError("/project", "must be 1 to 64 letters, digits, '_', '-' or '.'")
    for field in FILTERS:
        yield from _name_faults(field, given.get(field, ()))


def _name_faults(field: str, names: Sequence[str]) -> Iterator[FieldError]:
    if len(names) > MOST_NAMES:
        yield FieldError(f"/{field}", f"must be a list of at most {MOST_NAMES}")
        return
    statuses = [status.value for status in TaskStatus]
    for at, name in enumerate(names):
        fault = {
            "types": type_name_fault(name),
            "queues": queue_name_fault(name),
            "tags": None if re.fullmatch(TAG, name) else "must be a tag: 1 to 64 letters, digits, '_', '-', '.' or ':'",
            "statuses": None if name in statuses else f"must be one of {', '.join(statuses)}",
        }[field]
        if fault:
            yield FieldError(f"/{field}/{at}", fault)
