"""Follows a task's log to its end: what is there, and what comes, each line once, also across an outage of Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Final

from taskpool.errors import RedisUnavailable
from taskpool.listen import AWAY_RETRY_S, LOOK_AGAIN_S, AsyncListener
from taskpool.logs.pages import LogStep, log_step, place_of
from taskpool.store import AsyncStore, Store

LOOK_S: Final = 0.25
"""How often one who blocks looks: workers send lines about as often."""


def follow_log(store: Store, id: str, cursor: str | None = None) -> Iterator[LogStep]:
    """The steps of a task's log from the cursor on, the first at once, the last when the task has ended.

    Raises:
        TaskNotFound
        InvalidTask: the cursor isn't one of a log.
        RedisUnavailable: at the first look; later ones wait for Redis.
    """
    after, has_begun = place_of(cursor), False
    while True:
        try:
            step = store.carry_out(log_step(id, after))
        except RedisUnavailable:
            if not has_begun:
                raise
            time.sleep(AWAY_RETRY_S)
            continue
        has_begun, after = True, step.after
        yield step
        if step.is_over:
            return
        if not step.is_full:
            time.sleep(LOOK_S)


async def follow_log_async(
    store: AsyncStore, listener: AsyncListener, id: str, cursor: str | None = None
) -> AsyncGenerator[LogStep]:
    """As `follow_log`; it looks when the task tells of something, and now and then, because messages get lost."""
    after, has_begun = place_of(cursor), False
    told = await listener.subscribe(id, every=True)
    try:
        while True:
            told.clear()  # before the look, so that nothing is missed; a lost connection sets it too
            try:
                step = await store.carry_out(log_step(id, after))
            except RedisUnavailable:
                if not has_begun:
                    raise
                await asyncio.sleep(AWAY_RETRY_S)
                continue
            has_begun, after = True, step.after
            yield step
            if step.is_over:
                return
            if not step.is_full:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):  # Python 3.11's wait_for may miss a cancellation
                        await told.wait()
    finally:
        with suppress(RedisUnavailable):  # then the subscription has ended with its connection
            await listener.unsubscribe(id, told)
