"""The JSON form of API keys and of the audit, as `document` has it of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from taskpool.access.apikey import ApiKey, Scope
from taskpool.access.audit import Audited
from taskpool.document import time_text
from taskpool.document_types import Count, Document, Time
from taskpool.types import utc


class KeyDocument(Document, frozen=True, kw_only=True):
    """An API key, without anything of its secret."""

    id: Annotated[str, Meta(examples=["k3v0h5m8t2qa"])]
    name: str
    scopes: Sequence[Scope]
    project: Annotated[str | None, Meta(description="it sees the tasks of this project alone")] = None
    types: Annotated[
        Sequence[str] | None, Meta(description="the types whose tasks it may start and stop, if not any")
    ] = None
    queues: Annotated[
        Sequence[str] | None, Meta(description="the queues whose tasks it may start and stop, if not any")
    ] = None
    rate_limit: Annotated[Count | None, Meta(description="requests a minute, if not as the setting says")] = None
    created_at: Time
    rotated_at: Time | None = None
    old_secret_until: Annotated[Time | None, Meta(description="until when the secret before is good")] = None
    expires_at: Time | None = None
    last_used_at: Annotated[Time | None, Meta(description="to about a minute")] = None
    key: Annotated[str | UnsetType, Meta(description="the key itself, this once")] = UNSET


class ActorDocument(Document, frozen=True, kw_only=True):
    """Who did something; without `key` where none was asked for."""

    key: str | None = None
    name: str
    project: str | None = None
    address: str


class AuditEntryDocument(Document, frozen=True, kw_only=True):
    """One change. Of a batch, `about` is the first of `count` tasks and `last` the last one."""

    at: Time
    what: Annotated[str, Meta(examples=["task.submitted", "key.revoked"])]
    about: str
    count: Count = 1
    last: str | None = None
    by: ActorDocument


def key_document(key: ApiKey, used_ms: int | None = None, *, text: str | None = None) -> KeyDocument:
    """An API key; with its text when it was just made."""
    return KeyDocument(
        id=key.id,
        name=key.name,
        scopes=key.scopes,
        project=key.project,
        types=key.types,
        queues=key.queues,
        rate_limit=key.rate_limit,
        created_at=time_text(utc(key.created_ms)),
        rotated_at=_moment(key.rotated_ms),
        old_secret_until=_moment(key.old_until_ms or None),
        expires_at=_moment(key.expires_ms),
        last_used_at=_moment(used_ms),
        key=UNSET if text is None else text,
    )


def audit_document(audited: Audited) -> AuditEntryDocument:
    """An entry of the audit."""
    entry = audited.entry
    return AuditEntryDocument(
        at=time_text(utc(audited.at_ms)),
        what=entry.what,
        about=entry.about,
        count=entry.count,
        last=entry.last,
        by=ActorDocument(key=entry.key, name=entry.name, project=entry.project, address=entry.address),
    )


def _moment(ms: int | None) -> str | None:
    return None if ms is None else time_text(utc(ms))
