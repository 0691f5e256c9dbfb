"""Tickets: how a browser opens a socket or a stream, where it can't send a key. Good once, and for 30 seconds.

Redis has the hash of a ticket and the id of the key that it stands for, so what the key may do is asked for when the
ticket is used: one of a key that was revoked meanwhile opens nothing.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Final

from taskpool import keys
from taskpool.access.apikey import digest_of
from taskpool.calls import Call
from taskpool.store import AsyncStore
from taskpool.types import utc

TICKET_S: Final = 30

NO_KEY: Final = b"-"
"""What stands in a key's place where none is needed."""


async def issue(store: AsyncStore, key_id: str | None) -> tuple[str, datetime]:
    """A new ticket for the holder of this key, and when it expires by Redis's clock."""
    ticket = secrets.token_urlsafe(32)
    value = NO_KEY.decode() if key_id is None else key_id
    _, now_ms = await store.run_many(
        (
            Call(("SET", keys.TICKET + digest_of(ticket), value, "EX", TICKET_S), lambda _: None, again=True),
            Call(("TIME",), lambda reply: int(reply[0]) * 1000 + int(reply[1]) // 1000, again=True),
        )
    )
    return ticket, utc(now_ms + TICKET_S * 1000)


async def redeem(store: AsyncStore, ticket: str) -> bytes | None:
    """What a ticket stands for, once: a key's id or `NO_KEY`; None when it isn't one, or isn't one any more."""
    # Not sent again when the answer is lost: it is gone then, and its holder asks for another.
    found: bytes | None = await store.run(Call(("GETDEL", keys.TICKET + digest_of(ticket)), lambda reply: reply))
    return found
