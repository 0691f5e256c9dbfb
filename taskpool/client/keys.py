"""/keys and /audit as requests, for holders of a key with the scope admin. None that changes anything is sent twice."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from taskpool.access.apikey import KEY_ID, KeySpec
from taskpool.access.audit_pages import EVERYTHING, AuditFilter
from taskpool.access.document import AuditEntryDocument, KeyDocument
from taskpool.client.request import About, Answer, Request
from taskpool.errors import KeyNotFound


class AuditPart(msgspec.Struct):
    """A page of the audit, newest first, and where to go on."""

    entries: Sequence[AuditEntryDocument]
    next_cursor: str | None = None


class _Keys(msgspec.Struct):
    keys: list[KeyDocument]


def create(spec: KeySpec) -> Request[KeyDocument]:
    """Make a key; it, with its text."""
    body = {name: value for name, value in msgspec.structs.asdict(spec).items() if value is not None}
    return _change("POST", "/keys", body)


def listed() -> Request[list[KeyDocument]]:
    """All keys, the oldest first."""
    return Request(method="GET", path="/keys", read=lambda answer: msgspec.json.decode(answer.body, type=_Keys).keys)


def rotate(id: str, grace_s: float) -> Request[KeyDocument]:
    """Give a key a new secret; it, with its new text. Raises: KeyNotFound, when that can't be an id."""
    return _change("POST", f"{_key(id)}/rotate", {"grace_s": grace_s}, id)


def revoke(id: str) -> Request[None]:
    """Take a key back. Raises: KeyNotFound, when that can't be an id."""
    return Request(method="DELETE", path=_key(id), read=lambda answer: None, again=False, about=About(id=id))


def audit(wanted: AuditFilter = EVERYTHING, cursor: str | None = None, limit: int = 100) -> Request[AuditPart]:
    """A page of those entries of the audit; it may be short, or empty, and have a `next_cursor` yet."""
    asked = {**msgspec.to_builtins(wanted), "cursor": cursor, "limit": limit}
    query = {name: str(value) for name, value in asked.items() if value is not None}

    def read(answer: Answer) -> AuditPart:
        return msgspec.json.decode(answer.body, type=AuditPart)

    return Request(method="GET", path="/audit", read=read, query=query)


def _change(method: str, path: str, body: object, id: str = "") -> Request[KeyDocument]:
    return Request(
        method=method,
        path=path,
        read=lambda answer: msgspec.json.decode(answer.body, type=KeyDocument),
        headers={"content-type": "application/json"},
        body=msgspec.json.encode(body),
        again=False,
        about=About(id=id),
    )


def _key(id: str) -> str:
    if not KEY_ID.fullmatch(id):
        raise KeyNotFound(id[:200])
    return f"/keys/{quote(id)}"
