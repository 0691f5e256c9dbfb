"""Workflows with as many tasks as may be: no request keeps the event loop for long (tests/loop_watch.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api_client import api, publish_types

ECHO: dict[str, Any] = {"type": "echo", "payload": {"message": "hi"}}
MOST = 10_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


@pytest.mark.long(about_s=5)
@pytest.mark.parametrize("shape", ["chain", "map"])
async def test_a_large_workflow_is_submitted_and_read(client: httpx.AsyncClient, shape: str) -> None:
    nodes: list[dict[str, Any]] = [{"name": "rows", "map": [ECHO] * MOST}]
    if shape == "chain":
        nodes = [{"name": f"n{at}", "task": ECHO, "after": [f"n{at - 1}"] if at else []} for at in range(MOST)]

    submitted = await client.post("/workflows", json={"name": "large", "nodes": nodes})
    id = submitted.json()["id"]
    read = await client.get(f"/workflows/{id}")

    assert (submitted.status_code, read.json()["total"], len(read.json()["nodes"])) == (202, MOST, len(nodes))


async def test_the_faults_of_a_large_workflow_are_found(client: httpx.AsyncClient) -> None:
    good = [{"name": f"n{at}", "task": ECHO} for at in range(MOST - 1)]

    by_type = await client.post("/workflows", json={"name": "large", "nodes": [*good, {"name": "x", "task": {}}]})
    by_cycle = await client.post(
        "/workflows", json={"name": "large", "nodes": [*good, {"name": "x", "task": ECHO, "after": ["x"]}]}
    )
    by_payload = await client.post(
        "/workflows", json={"name": "large", "nodes": [*good, {"name": "x", "task": {"type": "echo", "payload": 1}}]}
    )

    assert [each.status_code for each in (by_type, by_cycle, by_payload)] == [422] * 3
    assert by_type.json()["errors"][0]["pointer"] == f"/nodes/{MOST - 1}/task/type"
    assert by_cycle.json()["errors"][0]["pointer"] == f"/nodes/{MOST - 1}/after/0"
    assert by_payload.json()["errors"][0]["pointer"].startswith(f"/nodes/{MOST - 1}/task/payload")
