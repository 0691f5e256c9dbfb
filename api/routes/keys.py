"""/keys, /tickets and /audit: API keys, tickets for browsers, and the audit log."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request

from taskpool.access import keyring
from taskpool.access.api_key import ROTATION_GRACE_S, KeySpec
from taskpool.access.audit import AuditFilter, read_audit
from taskpool.operations.documents import KeyDocument, audit_document, key_document, time_text
from taskpool.redis.async_store import AsyncStore
from taskpool.validation import LONGEST_S

from ..answers import AuditPage, Keys, Ticket
from ..auth import gate
from ..auth.caller import caller_of
from ..http.declarations import Answer, operation
from ..http.query import AuditQuery
from ..http.responses import Json, location, page


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /keys/{key}/rotate: how long the old secret stays valid."""

    grace_s: Annotated[float, Meta(ge=0, le=LONGEST_S)] = ROTATION_GRACE_S


class KeyRoutes:
    """Handlers of keys and tickets, and of the audit."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store

    @operation(
        "create_key", tag="keys", body_fault="invalid-key", answers={201: Answer(KeyDocument, headers=("Location",))}
    )
    async def create(self, request: Request, body: KeySpec) -> Json:
        """POST /keys: create an API key; 201 with its text, shown only once. The first must have the scope admin."""
        by = caller_of(request.scope)
        key, text = await self._store.carry_out(keyring.create(body, by, admin_first=True))
        return Json(key_document(key, text=text), status=201, headers=[location(request.scope, f"/keys/{key.id}")])

    @operation("list_keys", tag="keys", answers={200: Keys})
    async def list(self, request: Request) -> Json:
        """GET /keys: list the API keys, without their secrets."""
        found = await self._store.carry_out(keyring.listed())
        return Json(Keys(keys=[key_document(each.key, each.used_ms) for each in found]))

    @operation(
        "rotate_key",
        tag="keys",
        body_optional=True,
        body_fault="invalid-key",
        answers={200: KeyDocument},
        problems=["key-not-found"],
    )
    async def rotate(self, request: Request, body: Rotation) -> Json:
        """POST /keys/{key}/rotate: give a key a new secret; 200 with its new text."""
        by = caller_of(request.scope)
        key, text = await self._store.carry_out(keyring.rotate(request.path_params["key"], by, grace_s=body.grace_s))
        return Json(key_document(key, text=text))

    @operation("revoke_key", tag="keys", answers={204: None}, problems=["key-not-found"])
    async def revoke(self, request: Request) -> Json:
        """DELETE /keys/{key}: revoke a key; 204."""
        await self._store.carry_out(keyring.revoke(request.path_params["key"], caller_of(request.scope)))
        return Json(status=204)

    @operation("create_ticket", tag="keys", answers={201: Ticket})
    async def ticket(self, request: Request) -> Json:
        """POST /tickets: get a ticket for one socket or stream."""
        ticket, expires_at = await gate.issue(self._store, caller_of(request.scope).key)
        return Json(Ticket(ticket=ticket, expires_at=time_text(expires_at)), status=201)

    @operation("read_audit", tag="keys", answers={200: AuditPage})
    async def audit(self, request: Request, query: AuditQuery) -> Json:
        """GET /audit: read the audit log, the newest entries first."""
        wanted = AuditFilter(query.what, query.key, query.project, query.since, query.until, query.about)
        found = await self._store.carry_out(read_audit(wanted, cursor=query.cursor, limit=query.limit))
        document = AuditPage(entries=[audit_document(each) for each in found.items], next_cursor=found.next_cursor)
        return page(document, request.scope, query)
