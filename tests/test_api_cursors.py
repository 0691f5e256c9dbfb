"""Cursors that no listing made: refused, or harmless, never a failure."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api_client import api, publish_types

GOOD = {"type": "echo", "payload": {"message": 1}}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


def cursor(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


CURSORS = [
    "x", "AAAA", "%00", "é", cursor(), cursor(-1, ""), cursor(0, "x/y"), cursor(0, "1/-5"), cursor(0, "nan/1"),
    cursor(0, "[x"), cursor(2**70, ""), cursor(True, ""), cursor(0, "9" * 99), cursor(1.5), cursor(-5), cursor(2**63),
    cursor(-100, ""), cursor(0, "a b"), cursor(1, "abc"),
    cursor(0, []), cursor(2**52, []), cursor(2**52, ["a 0"]), cursor(0, ["* 0"]), cursor(0, ["a"]),
    cursor(0, ["a 0"] * 20), cursor(0, [1]), cursor(0, [["a 0"]]), cursor(0, ["a 0\n"]), cursor(0, {}), cursor(0, [""]),
    cursor("0-0", "0-0"), cursor("0-1", "+"), cursor("9" * 15 + "-" + "9" * 10, "+"), cursor("5-5", "-"),
    cursor("5", "+"),
]  # fmt: skip


async def test_a_cursor_nested_deeper_than_python_goes_is_refused(client: httpx.AsyncClient) -> None:
    id = (await client.post("/tasks", json=GOOD)).json()["id"]
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode()

    response = await client.get(f"/tasks/{id}/logs?follow=1&format=events", headers={"last-event-id": deep})

    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (400, "cursor")


@pytest.mark.parametrize(
    "path",
    [
        "/tasks?tag=x",
        "/tasks?status=queued",
        "/tasks?status=done",
        "/tasks?type=echo",
        "/tasks?queue=default",
        "/queues/default?",
        "/audit?",
        "/audit?what=task.submitted&until=2026-11-24T00:00:00Z",
    ],
)
async def test_a_forged_cursor_does_no_harm(path: str, client: httpx.AsyncClient) -> None:
    await client.post("/tasks", json={**GOOD, "tags": ["x"]})

    for text in CURSORS:
        response = await client.get(f"{path}&cursor={text}")

        assert response.status_code in (200, 400), f"{text}: {response.text}"
