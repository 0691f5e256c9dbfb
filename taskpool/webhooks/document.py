"""The JSON form of webhooks and their deliveries, as `document` has it of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from taskpool.document import time_text
from taskpool.document_types import Count, Document, Id, Time
from taskpool.types import utc
from taskpool.webhooks.delivery import Delivery, SendAttempt
from taskpool.webhooks.endpoint import DeliveryStatus, Webhook


class WebhookDocument(Document, frozen=True, kw_only=True):
    """A standing endpoint. A filter that isn't there lets everything through."""

    id: Annotated[str, Meta(examples=["wh_d217r8m2n3aolstf2ch5"])]
    url: str
    events: Sequence[str]
    types: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    statuses: Sequence[str] | None = None
    description: str | None = None
    enabled: bool
    disabled_reason: str | None = None
    project: Annotated[str | None, Meta(description="it is told of this project's tasks alone")] = None
    created_at: Time
    updated_at: Time
    secret: Annotated[str | UnsetType, Meta(description="when it was just made")] = UNSET


class SecretDocument(Document, frozen=True, kw_only=True):
    """The secrets that sign now."""

    secret: Annotated[str, Meta(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]
    previous_secret: str | None = None
    previous_until: Annotated[Time | None, Meta(description="until when that one signs too")] = None


class SendAttemptDocument(Document, frozen=True, kw_only=True):
    """How one attempt to send went: delivered, failed (it is tried again) or dead."""

    at: Time
    duration_ms: Count
    outcome: str
    status_code: Annotated[int | None, Meta(description="what was answered, if anything")] = None
    error: Annotated[str | None, Meta(description="what went wrong, for who may see the URL")] = None


class DeliveryDocument(Document, frozen=True, kw_only=True):
    """One message to one endpoint; the id is its `webhook-id`. The last 20 attempts are told."""

    id: str
    webhook: str
    task: Id | None = None
    event: Annotated[str, Meta(examples=["taskpool.task.done"])]
    url: Annotated[str | None, Meta(description="where to, for who may see it")] = None
    status: DeliveryStatus
    attempts: Sequence[SendAttemptDocument]
    created_at: Time
    next_at: Annotated[Time | None, Meta(description="when it is tried next; not while it is being sent")] = None
    body: Annotated[msgspec.Raw | UnsetType, Meta(description="what is sent, where one delivery is read")] = UNSET


def webhook_document(webhook: Webhook, *, with_secret: bool = False) -> WebhookDocument:
    """An endpoint."""
    return WebhookDocument(
        id=webhook.id,
        url=webhook.url,
        events=webhook.events,
        types=webhook.types or None,
        queues=webhook.queues or None,
        tags=webhook.tags or None,
        statuses=webhook.statuses or None,
        description=webhook.description or None,
        enabled=webhook.enabled,
        disabled_reason=webhook.disabled_reason,
        project=webhook.project,
        created_at=time_text(utc(webhook.created_ms)),
        updated_at=time_text(utc(webhook.updated_ms)),
        secret=webhook.secret if with_secret else UNSET,
    )


def secret_document(webhook: Webhook) -> SecretDocument:
    """The secrets of an endpoint."""
    return SecretDocument(
        secret=webhook.secret,
        previous_secret=webhook.previous_secret,
        previous_until=None if webhook.previous_secret is None else time_text(utc(webhook.previous_until_ms)),
    )


def delivery_document(delivery: Delivery, *, with_url: bool = True, with_body: bool = False) -> DeliveryDocument:
    """A delivery. Without its URL nothing says where it was sent, errors included: they may name the host."""
    return DeliveryDocument(
        id=delivery.id,
        webhook=delivery.webhook,
        task=delivery.task,
        event=delivery.event,
        url=delivery.url if with_url else None,
        status=delivery.status,
        attempts=[_attempt(each, with_error=with_url) for each in delivery.attempts],
        created_at=time_text(utc(delivery.created_ms)),
        next_at=None if delivery.next_ms is None else time_text(utc(delivery.next_ms)),
        body=msgspec.Raw(delivery.body) if with_body else UNSET,
    )


def _attempt(attempt: SendAttempt, *, with_error: bool) -> SendAttemptDocument:
    return SendAttemptDocument(
        at=time_text(utc(attempt.at_ms)),
        duration_ms=attempt.duration_ms,
        outcome=attempt.outcome,
        status_code=attempt.status_code,
        error=attempt.error if with_error else None,
    )
