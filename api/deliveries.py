"""A page of deliveries as an answer: those of an endpoint, and those about a task."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec
from starlette.types import Scope

from api.answers import DeliveryPage
from api.prefix import next_link
from api.query import DeadQuery, DeliveriesQuery, wrong_parameter
from api.responses import Json
from taskpool.errors import InvalidTask
from taskpool.store import AsyncStore
from taskpool.webhooks import delivery
from taskpool.webhooks.document import delivery_document
from taskpool.webhooks.endpoint import DeliveryStatus


async def list_deliveries(
    store: AsyncStore, scope: Scope, query: DeliveriesQuery | DeadQuery, path: str, *, webhook: str = "", task: str = ""
) -> Json:
    """One page of the deliveries to an endpoint or about a task, or of neither the dead ones of all. A page about a
    task, which is for who may read it, doesn't say where standing endpoints are, only where its own callback is.

    Raises:
        Problem: 400 the cursor isn't one of this listing.
    """
    status = query.status if isinstance(query, DeliveriesQuery) else DeliveryStatus.DEAD
    listing = delivery.list_deliveries(
        webhook=webhook, task=task, status=status, cursor=query.cursor, limit=query.limit
    )
    try:
        page = await store.carry_out(listing)
    except InvalidTask as error:
        raise wrong_parameter(error) from None
    deliveries = [delivery_document(each, with_url=not task or each.is_callback) for each in page.items]
    document = DeliveryPage(deliveries=deliveries, next_cursor=page.next_cursor)
    if page.next_cursor is None:
        return Json(document)
    given = {**msgspec.structs.asdict(query), "cursor": page.next_cursor}
    parameters = urlencode({name: value for name, value in given.items() if value is not None})
    return Json(document, headers=[next_link(scope, path, parameters)])
