"""What the operations of webhooks answer, and refusals that only they have."""

from __future__ import annotations

import httpx

from taskpool.redis import keys
from taskpool.webhooks import store as webhook_store
from taskpool.webhooks.delivery import SendAttempt, settle, take
from tests.api_walk import BODIES, Walk, answers_of, refusal_of


async def _endpoint(walk: Walk) -> str:
    made = await walk.ask("create_webhook")
    id: str = made.json()["id"]
    return id


async def _delivery(walk: Walk) -> str:
    sent = await walk.ask("test_webhook", at=await _endpoint(walk))
    id: str = sent.json()["id"]
    return id


def _take(walk: Walk) -> str:
    _, taken = walk.world.run(take("t", lease_ms=60_000, limit=1, lane_most=9, failing_most=9))
    return taken[0].id


@answers_of("create_webhook", "list_webhooks")
async def of_any_form(walk: Walk, id: str) -> None:
    narrow = {"types": ["echo"], "queues": ["a"], "tags": ["b"], "statuses": ["done"], "description": "c"}
    await walk.ask("create_webhook", json={**BODIES["create_webhook"], **narrow, "project": "p", "enabled": False})
    await _endpoint(walk)
    await walk.ask(id)


@answers_of("get_webhook", "update_webhook", "remove_webhook", "test_webhook")
async def of_one_endpoint(walk: Walk, id: str) -> None:
    await walk.ask(id, at=await _endpoint(walk))


@answers_of("get_webhook_secret", "rotate_webhook_secret")
async def two_secrets(walk: Walk, id: str) -> None:
    endpoint = await _endpoint(walk)
    await walk.ask("rotate_webhook_secret", at=endpoint)
    assert "previous_secret" in (await walk.ask(id, at=endpoint)).json()


@answers_of("list_deliveries")
async def two_pages_of_deliveries(walk: Walk, id: str) -> None:
    endpoint = await _endpoint(walk)
    for _ in range(2):
        await walk.ask("test_webhook", at=endpoint)
    attempt = SendAttempt(at_ms=0, duration_ms=1, outcome="failed", status_code=500, error="500")
    assert walk.world.run(settle(_take(walk), "t", "failed", delay_ms=1000, attempt=attempt)) == "ok"
    first = await walk.ask(id, at=endpoint, params={"limit": "1"})
    await walk.ask(id, at=endpoint, params={"cursor": first.json()["next_cursor"]})


@answers_of("list_dead")
async def two_pages_of_dead_ones(walk: Walk, id: str) -> None:
    endpoint = await _endpoint(walk)
    for _ in range(2):
        await walk.ask("test_webhook", at=endpoint)
        assert walk.world.run(settle(_take(walk), "t", "dead")) == "ok"
    first = await walk.ask(id, params={"limit": "1"})
    await walk.ask(id, params={"cursor": first.json()["next_cursor"]})


@answers_of("list_task_deliveries")
async def a_full_page_about_a_task(walk: Walk, id: str) -> None:
    walk.world.add("a")
    walk.world.redis.rename(f"{keys.DELIVERIES}{await _with_a_delivery(walk)}", f"{keys.DELIVERIES_OF_TASK}a")
    assert (await walk.ask(id, at="a", params={"limit": "1"})).json()["deliveries"]


async def _with_a_delivery(walk: Walk) -> str:
    endpoint = await _endpoint(walk)
    await walk.ask("test_webhook", at=endpoint)
    return endpoint


@answers_of("get_delivery", "replay_delivery")
async def of_one_delivery(walk: Walk, id: str) -> None:
    await walk.ask(id, at=await _delivery(walk))


@refusal_of("delivery-busy", "replay_delivery")
async def while_it_is_sent(walk: Walk, id: str) -> httpx.Response:
    await _delivery(walk)
    return await walk.ask(id, at=_take(walk))


@refusal_of("webhook-conflict", "test_webhook")
async def to_a_lane_that_is_full(walk: Walk, id: str) -> httpx.Response:
    endpoint = await _endpoint(walk)
    walk.world.redis.zadd(f"{keys.WEBHOOKS_WAITING}{endpoint}", {str(number): 0 for number in range(10_000)})
    return await walk.ask(id, at=endpoint)


@refusal_of("webhook-conflict", "update_webhook", "remove_webhook")
async def while_others_change_it(walk: Walk, id: str) -> httpx.Response:
    endpoint = await _endpoint(walk)
    with walk.patch.context() as patch:
        patch.setattr(webhook_store, "RETRIES", 0)
        return await walk.ask(id, at=endpoint)
