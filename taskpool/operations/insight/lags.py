"""How far the service is behind: events that are to become webhooks, and schedules that are due."""

from __future__ import annotations

from typing import Any, NamedTuple

from taskpool.redis import keys
from taskpool.redis.calls import Call, Plan, redis_ms, tolerant
from taskpool.webhooks.delivery import outbox_length


class Lags(NamedTuple):
    """What waits. A lag is 0 if nothing does."""

    webhook_outbox: int
    webhook_lag_s: float
    schedule_lag_s: float


def lags() -> Plan[Lags]:
    """How far the service is behind now."""

    def since_event(reply: list[Any]) -> float | None:
        return int(reply[0][0].partition(b"-")[0]) / 1000 if reply else None

    def since_due(reply: list[Any]) -> float | None:
        first = reply[0] if reply and isinstance(reply[0], list) else reply
        return float(first[1]) if first else None

    now_ms, waiting, event_s, due_s = yield (
        redis_ms(),
        outbox_length(),
        tolerant(Call(("XRANGE", keys.WEBHOOKS_OUTBOX, "-", "+", "COUNT", 1), since_event, again=True), None),
        tolerant(Call(("ZRANGE", keys.SCHEDULES_DUE, 0, 0, "WITHSCORES"), since_due, again=True), None),
    )
    late = [0.0 if since_s is None else max(0.0, now_ms / 1000 - since_s) for since_s in (event_s, due_s)]
    return Lags(waiting, *late)
