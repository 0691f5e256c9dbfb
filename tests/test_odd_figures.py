"""What another program writes into the keys of counts, times, pools and failures: no reader fails or loses the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis import Redis

from taskpool import TaskPool
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis import keys
from taskpool.redis.store import Store
from taskpool.types import FIRST_TIME, LAST_TIME, utc
from tests.api_client import api, publish_types

READERS = [
    "/pools",
    "/workers",
    "/types",
    "/queues",
    "/findings",
    "/findings?installation=1",
    "/stats",
    "/stats?range=24h&by=type",
    "/stats?range=90d&by=build",
    "/types/echo/durations",
    "/queues/default/load",
    "/storage",
    "/failures",
    "/failures/0123456789ab",
    "/failures/0123456789ab/redrive",
    "/operations",
    "/schedules",
    "/schedules/odd",
    "/tasks",
    "/tasks/odd",
    "/tasks/odd/why",
    "/metrics",
    "/readyz",
    "/openapi.json",
]
WIDE = ["/findings?installation=1", "/metrics", "/tasks", "/operations", "/schedules", "/pools"]
"""Those that read the most."""
ODD = [
    "",
    "abc",
    "-1",
    "9" * 15,
    "-" + "9" * 15,
    "9" * 19,
    "9" * 5000,
    "1e400",
    "nan",
    b"\xff\xfe",
    '{"a":1}',
    "[" * 500,
]
SCORES = ["+inf", "-inf", "1e300", "-1e300", "1.5", "-1"]
SETS = {
    keys.POOLS: "pool-2",
    keys.POOLS_KNOWN: "pool-3",
    keys.BUILDS: "b1",
    keys.TYPES_SEEN: "other",
    keys.FAILURES: "0123456789ab",
    keys.SCHEDULES_DUE: "odd",
    keys.CONFIRMATIONS: "odd",
    keys.WEBHOOKS_LANES: "odd",
    keys.WIP + "default": "odd:1",
    keys.SCHEDULED + "default": "odd",
    keys.OPERATIONS: "odd",
}


pytestmark = pytest.mark.undocumented  # what is shown of odd values may be odd


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    store = Store(redis_url)
    for name in ("pool-2", "pool-3"):
        info = PoolInfo(
            id=name, host="h", pid=1, queues=("default",), types=("echo",), workers=("w",), started_ms=10**17
        )
        store.run(publish(info, [], ttl_s=3600))
    store.close()
    with TaskPool(redis_url) as pool:
        pool.add_task("echo", {"message": 1})
    async with api(redis_url) as client:
        yield client


def write(redis: Redis, key: str, value: Any) -> None:
    """A hash in which every field that readers know has this value."""
    fields = [
        "status", "created_ms", "ended_ms", "undo_ms", "action", "filter", "matched", "skip:odd", "kind", "last_ms",
        "first_ms", "count", "t:echo", "h:1", "sample", "id", "steps", "step", "by", "retried", "timing", "task",
        "owner",
        "next_ms", "last_ms", "revision", "data", "created_at", "origin", "type", "expires_ms", "run_ms", "seq",
        "attempt", "history", "asked_ms", "edges", "dependency_ids", "seen_ms",
        "tasks|done|echo|default|b", "submitted|echo|default", "run_us_sum|echo|default|b",
        "run_bucket|echo|default|1|b", "echo|default",
    ]  # fmt: skip
    redis.hset(key, mapping=dict.fromkeys(fields, value))


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
async def test_odd_values_in_hashes_fail_no_reader(client: httpx.AsyncClient, redis: Redis, value: Any) -> None:
    now_min = int(redis.time()[0]) // 60
    redis.sadd(keys.STATS_OPEN, now_min, now_min - 1, value)
    redis.sadd(keys.TYPES_USED, value, "other")
    redis.sadd(keys.REDRIVES, "0123456789ab", value)
    redis.sadd(keys.OPERATIONS_RUNNING, "odd")
    redis.zadd(keys.BY_TYPE + "echo", {"odd": 0})
    redis.zadd(keys.BY_TYPE + "other", {"odd": 0})
    redis.zadd(keys.SCHEDULES, {"odd": 0})
    redis.zadd(keys.OPERATIONS, {"odd": 0})
    redis.zadd(keys.FAILURES, {"0123456789ab": now_min * 60_000})
    redis.zadd(keys.CONFIRMATIONS, {"odd": 1})
    for key in (
        keys.COUNTERS, keys.CLOCK, keys.OPERATION + "odd", keys.FAILURE + "0123456789ab", keys.REDRIVE + "0123456789ab",
        keys.SCHEDULE + "odd", keys.JOB + "odd", keys.SWITCHES, keys.TYPES, keys.WORKER + "odd",
        *[f"{prefix}{at}" for prefix in (keys.STATS_COUNTED, keys.STATS_SUBMITTED) for at in (now_min, now_min - 1)],
    ):  # fmt: skip
        write(redis, key, value)
    for key in (keys.STATS_MINUTES, keys.STATS_TENS, keys.STATS_HOURS, keys.STATS_DAYS):
        redis.hset(key, mapping={str(now_min // unit): value for unit in (1, 10, 60, 1440)})
    redis.sadd(keys.WORKERS, keys.WORKER + "odd")
    redis.set(keys.POOL + "pool-2", value)

    for path in READERS:
        response = await client.get(path)

        assert response.status_code in (200, 404), f"{path}: {response.text}"


@pytest.mark.parametrize("score", SCORES)
async def test_odd_scores_fail_no_reader_and_hide_nothing_else(
    client: httpx.AsyncClient, redis: Redis, score: str
) -> None:
    for key, member in SETS.items():
        redis.zadd(key, {member: score})

    for path in READERS:
        response = await client.get(path)
        assert response.status_code in (200, 404), f"{path}: {response.text}"
    pools = [pool["name"] for pool in (await client.get("/pools")).json()["pools"]]
    assert "pool-1" in pools
    assert "echo" in [each["name"] for each in (await client.get("/types")).json()["types"]]


@pytest.mark.parametrize("key", [*SETS, keys.COUNTERS, keys.CLOCK, keys.SWITCHES, keys.TYPES, keys.TYPES_USED,
                                 keys.STATS_OPEN, keys.STATS_MINUTES, keys.STATS_PAIRS, keys.REDRIVES, keys.OUTBOX,
                                 keys.OPERATIONS_RUNNING, keys.QUEUES, keys.WORKERS, keys.SCHEDULES, keys.UNIQUE,
                                 keys.FAILURE + "0123456789ab", keys.REDRIVE + "0123456789ab", keys.JOB + "odd",
                                 keys.SCHEDULE + "odd", keys.OCCURRENCES + "odd", keys.WEBHOOKS, keys.EVENTS,
                                 keys.WEBHOOKS_OUTBOX, keys.AUDIT_SUBMITTED, keys.BY_TYPE + "echo",
                                 keys.QUEUE + "default", keys.FOREIGN_QUEUES])  # fmt: skip
async def test_a_key_of_another_kind_fails_no_reader(client: httpx.AsyncClient, redis: Redis, key: str) -> None:
    redis.delete(key)
    redis.set(key, "another program's")

    for path in WIDE:
        response = await client.get(path)

        assert response.status_code in (200, 404), f"{path}: {response.text}"


def test_a_time_beyond_the_calendar_is_the_nearest_one() -> None:
    assert [utc(ms) for ms in (1e300, float("inf"), 10**17)] == [LAST_TIME] * 3
    assert [utc(ms) for ms in (-1e300, float("-inf"), -(10**17))] == [FIRST_TIME] * 3
