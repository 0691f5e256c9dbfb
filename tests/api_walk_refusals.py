"""Refusals that any operation may answer with, and how they come about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from api.auth.caller import anonymous
from api.http import body
from taskpool.access.api_key import Scope
from taskpool.errors import RedisUnavailable
from taskpool.webhooks import store as webhook_store
from tests.api_walk import Walk, of_any
from tests.keys import bearer, make_key


@of_any("unauthorized")
async def nobody(walk: Walk, id: str) -> httpx.Response:
    make_key(walk.redis_url)
    return await walk.ask(id, await walk.server(max_streams=9))


@of_any("forbidden")
async def not_for_this_key(walk: Walk, id: str) -> httpx.Response:
    security = walk.contract.operations[id][2]["security"]
    scopes: list[str] = next((way["bearer"] for way in security if "bearer" in way), [])
    if not scopes:
        return await walk.ask(id, headers={"origin": "https://elsewhere.example"})
    other = Scope.READ if scopes != ["tasks:read"] else Scope.STOP
    return await walk.ask(id, headers=bearer(make_key(walk.redis_url, "k", other)))


@of_any("misdirected")
async def by_another_name(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, headers={"host": "elsewhere.example"})


@of_any("invalid-query")
async def unknown_parameter(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, params={"nonsense": "1"})


@of_any("invalid-json")
async def half_a_document(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, content=b"{", headers={"content-type": "application/json"})


@of_any("body-timeout")
async def half_a_body(walk: Walk, id: str) -> httpx.Response:
    async def half() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    with walk.patch.context() as patch:
        patch.setattr(body, "BODY_TIMEOUT_S", 0.01)
        return await walk.ask(id, content=half(), headers={"content-type": "application/json"})


@of_any("body-too-large")
async def a_large_body(walk: Walk, id: str) -> httpx.Response:
    small = await walk.server(max_body_bytes=10)
    return await walk.ask(id, small, content=b"[0,0,0,0,0]", headers={"content-type": "application/json"})


@of_any("unsupported-media-type")
async def not_said_to_be_json(walk: Walk, id: str) -> httpx.Response:
    await walk.ask(id, content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"})
    return await walk.ask(id, content=b"{}", headers={"content-type": "text/plain"})


@of_any("redis-unavailable")
async def redis_is_away(walk: Walk, id: str) -> httpx.Response:
    if "503" in walk.contract.operations[id][2]["responses"]:
        await walk.ask(id, await walk.server(broken=RedisUnavailable("it has just gone")))
    return await walk.ask(id, await walk.server(redis_url="unix:///nowhere/redis.sock"))


@of_any("internal-error")
async def a_bug(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, await walk.server(broken=RuntimeError("a bug")))


@of_any("invalid-body")
@of_any("invalid-task")
@of_any("invalid-key")
@of_any("invalid-webhook")
async def an_unknown_field(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, json={"nonsense": 1})


@of_any("not-found")
@of_any("task-not-found")
@of_any("key-not-found")
@of_any("webhook-not-found")
@of_any("delivery-not-found")
async def nothing_there(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id)


@of_any("invalid-header")
async def a_key_with_a_blank_and_two_that_ask(walk: Walk, id: str) -> httpx.Response:
    await walk.ask(id, headers={"idempotency-key": "a b"})
    return await walk.ask(id, headers=[("authorization", "Bearer a"), ("authorization", "Bearer b")])


@of_any("invalid-event-id")
async def not_the_id_of_an_event(walk: Walk, id: str) -> httpx.Response:
    return await walk.ask(id, headers={"last-event-id": "x"})


@of_any("rate-limited")
async def one_too_soon(walk: Walk, id: str) -> httpx.Response:
    hasty = await walk.server(rate_limit=1)
    await hasty.get("/types")
    return await walk.ask(id, hasty)


@of_any("too-many-streams")
async def a_stream_too_many(walk: Walk, id: str) -> httpx.Response:
    walk.world.start("a")
    full = await walk.server(max_streams=1)
    walk.apps[full].state.streams.admit(anonymous(""))
    return await walk.ask(id, full, at="a", params={"follow": "1"} if id == "task_logs" else {})


@of_any("webhook-conflict")
async def no_room_for_the_secret_of_callbacks(walk: Walk, id: str) -> httpx.Response:
    with walk.patch.context() as patch:
        patch.setattr(webhook_store, "MOST_CALLBACKS", 0)
        return await walk.ask(id, at="callback")
