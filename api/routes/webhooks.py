"""/webhooks and below: endpoints, their secrets, and the deliveries to them.

A caller that belongs to a project sees only the endpoints and deliveries of that project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace
from starlette.requests import Request
from starlette.types import Scope

from taskpool.errors import DeliveryNotFound, WebhookNotFound
from taskpool.operations.documents import (
    DeliveryDocument,
    SecretDocument,
    SendAttemptDocument,
    WebhookDocument,
    delivery_document,
    secret_document,
)
from taskpool.redis.async_store import AsyncStore
from taskpool.url_guard import Allowed
from taskpool.webhooks import delivery
from taskpool.webhooks import store as webhook_store
from taskpool.webhooks.delivery import Delivery
from taskpool.webhooks.endpoint import DeliveryStatus, NewWebhook, Webhook, WebhookFields
from taskpool.webhooks.store import MOST_OVERLAP_S, OVERLAP_S

from ..answers import DeliveryPage, Webhooks
from ..auth.caller import Caller, caller_of
from ..http.declarations import Answer, operation
from ..http.query import DeliveriesQuery, PageQuery
from ..http.responses import Json, location, page

OF_ONE: Final = ("webhook-not-found", "webhook-conflict")
"""The problems of an endpoint in the path. That of callbacks is created when it is first used, so it can conflict."""


class NewSecret(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /webhooks/{webhook}/secret: the new secret (if not given, a random one), and how long the old
    one still signs."""

    secret: str | UnsetType = UNSET
    overlap_s: Annotated[float, Meta(ge=0, le=MOST_OVERLAP_S)] = OVERLAP_S


class WebhookRoutes:
    """Handlers of endpoints and deliveries."""

    def __init__(self, store: AsyncStore, allowed: Allowed, *, most: int) -> None:
        self._store, self._allowed, self._most = store, allowed, most

    @operation("list_webhooks", tag="webhooks", answers={200: Webhooks})
    async def list(self, request: Request) -> Json:
        """GET /webhooks: list the endpoints, without their secrets."""
        caller = caller_of(request.scope)
        found = await self._store.carry_out(webhook_store.list_webhooks(caller.project))
        return Json(Webhooks(webhooks=await self._shown(found)))

    @operation(
        "create_webhook",
        tag="webhooks",
        body_fault="invalid-webhook",
        answers={201: Answer(WebhookDocument, headers=("Location",))},
        problems=["cap-reached"],
    )
    async def create(self, request: Request, body: NewWebhook) -> Json:
        """POST /webhooks: create an endpoint; 201 with its secret."""
        caller = caller_of(request.scope)
        plan = webhook_store.create_webhook(body, self._allowed, caller, most=self._most)
        webhook = await self._store.carry_out(plan)
        headers = [location(request.scope, f"/webhooks/{webhook.id}")]
        return Json(replace(WebhookDocument.of(webhook), secret=webhook.secret), status=201, headers=headers)

    @operation("get_webhook", tag="webhooks", answers={200: WebhookDocument}, problems=OF_ONE)
    async def get(self, request: Request) -> Json:
        """GET /webhooks/{webhook}: read an endpoint, without its secret."""
        caller = caller_of(request.scope)
        found = await self._store.carry_out(webhook_store.get_webhook(_id(request), caller.project))
        return Json((await self._shown([found]))[0])

    @operation(
        "update_webhook", tag="webhooks", body_fault="invalid-webhook", answers={200: WebhookDocument}, problems=OF_ONE
    )
    async def update(self, request: Request, body: WebhookFields) -> Json:
        """PATCH /webhooks/{webhook}: change the given fields of an endpoint.

        The project can't be changed, and the secret has a path of its own. Waiting deliveries go to the new URL.
        """
        caller = caller_of(request.scope)
        plan = webhook_store.update_webhook(_id(request), body, self._allowed, caller)
        return Json(WebhookDocument.of(await self._store.carry_out(plan)))

    @operation("remove_webhook", tag="webhooks", answers={204: None}, problems=OF_ONE)
    async def remove(self, request: Request) -> Json:
        """DELETE /webhooks/{webhook}: delete an endpoint and its deliveries; 204."""
        caller = caller_of(request.scope)
        await self._store.carry_out(webhook_store.remove_webhook(_id(request), caller))
        return Json(status=204)

    @operation("get_webhook_secret", tag="webhooks", answers={200: SecretDocument}, problems=OF_ONE)
    async def secret(self, request: Request) -> Json:
        """GET /webhooks/{webhook}/secret: get the signing secret; the endpoint `callback` has that of callbacks."""
        caller = caller_of(request.scope)
        plan = webhook_store.read_secret(_id(request), caller)
        return Json(secret_document(await self._store.carry_out(plan)))

    @operation(
        "rotate_webhook_secret",
        tag="webhooks",
        body_optional=True,
        body_fault="invalid-webhook",
        answers={200: SecretDocument},
        problems=OF_ONE,
    )
    async def rotate(self, request: Request, body: NewSecret) -> Json:
        """POST /webhooks/{webhook}/secret: set a new secret; for a while, the old one signs too."""
        caller = caller_of(request.scope)
        secret = None if body.secret is UNSET else body.secret
        plan = webhook_store.rotate_secret(_id(request), caller, secret=secret, overlap_s=body.overlap_s)
        return Json(secret_document(await self._store.carry_out(plan)))

    @operation(
        "test_webhook",
        tag="webhooks",
        answers={202: Answer(DeliveryDocument, headers=("Location",), made="/webhooks/deliveries")},
        problems=OF_ONE,
    )
    async def test(self, request: Request) -> Json:
        """POST /webhooks/{webhook}/test: send a test message to the endpoint."""
        caller = caller_of(request.scope)
        sent = await self._store.carry_out(webhook_store.send_test(_id(request), caller.project))
        headers = [location(request.scope, f"/webhooks/deliveries/{sent.id}")]
        return Json(delivery_document(sent), status=202, headers=headers)

    @operation("list_deliveries", tag="webhooks", answers={200: DeliveryPage}, problems=OF_ONE)
    async def deliveries(self, request: Request, query: DeliveriesQuery) -> Json:
        """GET /webhooks/{webhook}/deliveries: list the last deliveries to an endpoint, the newest first."""
        webhook = await self._store.carry_out(webhook_store.get_webhook(_id(request), caller_of(request.scope).project))
        return await list_deliveries(self._store, request.scope, query, webhook=webhook.id)

    @operation("list_dead", tag="webhooks", answers={200: DeliveryPage})
    async def dead(self, request: Request, query: PageQuery) -> Json:
        """GET /webhooks/dead: list the deliveries that were given up, the newest first."""
        return await list_deliveries(self._store, request.scope, query)

    @operation("get_delivery", tag="webhooks", answers={200: DeliveryDocument}, problems=["delivery-not-found"])
    async def delivery(self, request: Request) -> Json:
        """GET /webhooks/deliveries/{delivery}: read a delivery with its body and its attempts."""
        found = await self._delivery(request, caller_of(request.scope))
        return Json(delivery_document(found, with_body=True))

    @operation(
        "replay_delivery",
        tag="webhooks",
        answers={202: DeliveryDocument},
        problems=["delivery-not-found", "delivery-busy"],
    )
    async def replay(self, request: Request) -> Json:
        """POST /webhooks/deliveries/{delivery}/replay: send a delivery again now, with all its attempts."""
        caller = caller_of(request.scope)
        found = await self._delivery(request, caller)
        again = await self._store.carry_out(delivery.replay(found.id, caller))
        return Json(delivery_document(again), status=202)

    async def _shown(self, found: Sequence[Webhook]) -> Sequence[WebhookDocument]:
        """Endpoints, each with how its last attempt failed, if it did."""
        failures = await self._store.carry_out(webhook_store.last_failures([each.id for each in found]))
        return [
            replace(
                WebhookDocument.of(each),
                last_failure=SendAttemptDocument.of(failures[each.id]) if each.id in failures else None,
            )
            for each in found
        ]

    async def _delivery(self, request: Request, caller: Caller) -> Delivery:
        """The delivery in the path, if the caller may see its endpoint."""
        found = await self._store.carry_out(delivery.get_delivery(request.path_params["delivery"]))
        try:
            await self._store.carry_out(webhook_store.get_webhook(found.webhook, caller.project))
        except WebhookNotFound:
            raise DeliveryNotFound(found.id) from None
        return found


def _id(request: Request) -> str:
    id: str = request.path_params["webhook"]
    return id


async def list_deliveries(
    store: AsyncStore, scope: Scope, query: PageQuery, *, webhook: str = "", task: str = ""
) -> Json:
    """One page of the deliveries to an endpoint, about a task, or of all dead ones.

    Any caller that may read a task sees the page about it, so that page shows only the URL of the task's own callback.
    Raises: Problem 400, an invalid cursor."""
    status = query.status if isinstance(query, DeliveriesQuery) else DeliveryStatus.DEAD
    listing = delivery.list_deliveries(
        webhook=webhook, task=task, status=status, cursor=query.cursor, limit=query.limit
    )
    found = await store.carry_out(listing)
    deliveries = [delivery_document(each, with_url=not task or each.is_callback) for each in found.items]
    return page(DeliveryPage(deliveries=deliveries, next_cursor=found.next_cursor), scope, query)
