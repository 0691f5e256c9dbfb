"""/keys, /tickets and /audit: who may come in, how browsers do, and who did what."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

import msgspec
from msgspec import Meta
from starlette.requests import Request

from taskpool.access import keyring
from taskpool.access.api_key import ROTATION_GRACE_S, KeySpec
from taskpool.access.audit import AuditFilter, read_audit
from taskpool.errors import InvalidTask
from taskpool.operations.documents import KeyDocument, audit_document, key_document, time_text
from taskpool.redis.async_store import AsyncStore
from taskpool.validation import LONGEST_S

from ..answers import AuditPage, Keys, Ticket
from ..auth import gate
from ..auth.caller import caller_of
from ..http.body import read_json, read_optional_json
from ..http.prefix import next_link, public_path
from ..http.query import AuditQuery, NoQuery, read_query, wrong_parameter
from ..http.responses import Json, NoContent
from ..http.submission import read_as
from ..openapi.declarations import Answer, operation


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /keys/{key}/rotate: for how long the old secret stays good."""

    grace_s: Annotated[float, Meta(ge=0, le=LONGEST_S)] = ROTATION_GRACE_S


class KeyRoutes:
    """Handlers of keys and tickets, and of the audit."""

    def __init__(self, store: AsyncStore, max_body_bytes: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes

    @operation(
        "create_key",
        tag="keys",
        body=KeySpec,
        body_fault="invalid-key",
        answers={201: Answer(KeyDocument, headers=("Location",))},
    )
    async def create(self, request: Request) -> Json:
        """POST /keys: make an API key; 201 with it, its text for this once. The first must have the scope admin."""
        read_query(request.scope["query_string"], NoQuery)
        document = await read_json(request.scope, request.receive, self._max_body_bytes)
        by = caller_of(request.scope).actor()
        spec = read_as(document, KeySpec, "invalid-key")
        key, text = await self._store.carry_out(keyring.create(spec, by, admin_first=True))
        location = (b"location", public_path(request.scope, f"/keys/{key.id}").encode())
        return Json(key_document(key, text=text), status=201, headers=(location,))

    @operation("list_keys", tag="keys", answers={200: Keys})
    async def list(self, request: Request) -> Json:
        """GET /keys: list the API keys, without their secrets."""
        read_query(request.scope["query_string"], NoQuery)
        found = await self._store.carry_out(keyring.listed())
        return Json(Keys(keys=[key_document(each.key, each.used_ms) for each in found]))

    @operation(
        "rotate_key",
        tag="keys",
        body=Rotation,
        body_optional=True,
        body_fault="invalid-key",
        answers={200: KeyDocument},
        problems=["key-not-found"],
    )
    async def rotate(self, request: Request) -> Json:
        """POST /keys/{key}/rotate: give a key a new secret; 200 with its new text."""
        read_query(request.scope["query_string"], NoQuery)
        asked = await read_optional_json(request.scope, request.receive, self._max_body_bytes)
        grace_s = read_as(asked, Rotation, "invalid-key").grace_s
        by = caller_of(request.scope).actor()
        key, text = await self._store.carry_out(keyring.rotate(request.path_params["key"], by, grace_s=grace_s))
        return Json(key_document(key, text=text))

    @operation("revoke_key", tag="keys", answers={204: None}, problems=["key-not-found"])
    async def revoke(self, request: Request) -> NoContent:
        """DELETE /keys/{key}: revoke a key; 204, it opens nothing from now on."""
        read_query(request.scope["query_string"], NoQuery)
        await self._store.carry_out(keyring.revoke(request.path_params["key"], caller_of(request.scope).actor()))
        return NoContent()

    @operation("create_ticket", tag="keys", answers={201: Ticket})
    async def ticket(self, request: Request) -> Json:
        """POST /tickets: get a ticket for one socket or stream."""
        read_query(request.scope["query_string"], NoQuery)
        ticket, expires_at = await gate.issue(self._store, caller_of(request.scope).key_id)
        return Json(Ticket(ticket=ticket, expires_at=time_text(expires_at)), status=201)

    @operation("read_audit", tag="keys", query=AuditQuery, answers={200: Answer(AuditPage, headers=("Link",))})
    async def audit(self, request: Request) -> Json:
        """GET /audit: read who did what, the newest first."""
        query = read_query(request.scope["query_string"], AuditQuery)
        wanted = AuditFilter(query.what, query.key, query.project, query.since, query.until)
        try:
            page = await self._store.carry_out(read_audit(wanted, cursor=query.cursor, limit=query.limit))
        except InvalidTask as error:
            raise wrong_parameter(error) from None
        document = AuditPage(entries=[audit_document(each) for each in page.items], next_cursor=page.next_cursor)
        if page.next_cursor is None:
            return Json(document)
        given = {**msgspec.to_builtins(query), "cursor": page.next_cursor}
        parameters = urlencode({name: value for name, value in given.items() if value is not None})
        return Json(document, headers=[next_link(request.scope, "/audit", parameters)])
