"""How things stand when a subscription begins, and from which position of the stream its events follow."""

from __future__ import annotations

from typing import Final

from api.events.outlet import Snapshot
from api.events.subscription import Subscription
from taskpool.async_pool import AsyncTaskPool
from taskpool.document import task_document
from taskpool.eventlog import newest
from taskpool.listing import Filter, list_tasks
from taskpool.record import fetch

MOST_TASKS: Final = 100
"""How many tasks the snapshot of a filter shows, the newest."""


async def take_snapshot(pool: AsyncTaskPool, subscription: Subscription) -> None:
    """Tell a subscription how its task stands, or its tasks; it is behind at that position then.

    Raises:
        TaskNotFound: there is no such task any more.
        RedisUnavailable
    """
    wanted = subscription.wanted
    # The position first: what happened before it is in what is read after it. What happened in between is seen there
    # and told once more, which `seen` keeps back.
    if wanted.task is not None:
        at, record = await pool.store.run_many([newest(), fetch(wanted.task)])
        subscription.seen = {record.id: record.seq}
        documents = [task_document(record)]
    else:
        at = await pool.store.run(newest())
        if wanted.snapshots:
            filter = Filter(wanted.status, wanted.queue, wanted.type, wanted.tag, wanted.project)
            page = await pool.store.carry_out(list_tasks(filter, limit=MOST_TASKS))
            subscription.seen = {record.id: record.seq for record in page.items}
            documents = [task_document(record) for record in page.items]
    subscription.after = subscription.sent = at
    if wanted.snapshots:
        subscription.outlet.put(Snapshot(subscription, at, documents))
