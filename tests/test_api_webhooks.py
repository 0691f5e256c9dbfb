"""/webhooks over HTTP: endpoints, their secrets and deliveries; who may see whose; and all with real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from redis import Redis

from api.auth import gate
from taskpool.access.api_key import Scope
from taskpool.redis import keys
from taskpool.webhooks import delivery
from taskpool.webhooks import store as webhook_store
from taskpool.webhooks.delivery import NewDelivery, SendAttempt, settle, take
from tests.api_client import api, publish_types
from tests.keys import bearer, make_key
from tests.states import World

URL = "https://hooks.example/in"
FIRST = {"type": "echo", "payload": {"message": "hi"}, "callback_url": URL}


@pytest.fixture
async def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(gate, "FRESH_S", 0.0)
    monkeypatch.setattr("api.auth.gate.FRESH_S", 0.0)
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


async def create(client: httpx.AsyncClient, headers: Any = None, **fields: Any) -> Any:
    response = await client.post("/webhooks", json={"url": URL, **fields}, headers=headers)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/webhooks/{response.json()['id']}"
    return response.json()


async def test_an_endpoint_is_made_read_changed_and_removed(client: httpx.AsyncClient) -> None:
    made = await create(client, types=["echo"], tags=["x", "x"], description="mine")
    path = f"/webhooks/{made['id']}"

    secret = made.pop("secret")
    read = (await client.get(path)).json()
    changed = await client.patch(path, json={"enabled": False, "types": [], "events": ["failed"]})
    listed = (await client.get("/webhooks")).json()["webhooks"]
    secrets = (await client.get(path + "/secret")).json()
    removed = await client.delete(path)

    assert read == made
    assert made.items() >= {
        "url": URL, "events": ["done", "failed", "stopped", "canceled"], "types": ["echo"], "tags": ["x"],
        "description": "mine", "enabled": True,
    }.items()  # fmt: skip
    assert changed.json().items() >= {
        "enabled": False, "disabled_reason": "disabled by hand", "events": ["failed"], "tags": ["x"],
    }.items()  # fmt: skip
    assert "types" not in changed.json()
    assert [each["id"] for each in listed] == [made["id"]]
    assert secrets == {"secret": secret}
    assert secret not in str(listed) + str(read) + changed.text
    assert removed.status_code == 204
    assert [(await client.get(path)).status_code, (await client.delete(path)).status_code] == [404, 404]


async def test_statuses_without_events_stand_for_every_step_there(client: httpx.AsyncClient) -> None:
    made = await create(client, statuses=["in_progress", "queued"])

    assert {"queued", "started", "retry"} <= set(made["events"])
    assert "progress" not in made["events"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"),
        ({"url": None}, "/url"),
        ({"url": "http://127.0.0.1/"}, "/url"),
        ({"url": "http://2130706433/"}, "/url"),
        ({"url": "https://user:pw@a.example/"}, "/url"),
        ({"url": "https://a.example/" + "x" * 2048}, "/url"),
        ({"url": URL, "events": []}, "/events"),
        ({"url": URL, "events": ["done", "log"]}, "/events/1"),
        ({"url": URL, "types": ["a b"]}, "/types/0"),
        ({"url": URL, "queues": [""]}, "/queues/0"),
        ({"url": URL, "tags": ["a,b"]}, "/tags/0"),
        ({"url": URL, "statuses": ["ended"]}, "/statuses/0"),
        ({"url": URL, "types": ["a"] * 1 + [f"t{n}" for n in range(50)]}, "/types"),
        ({"url": URL, "description": "x" * 501}, "/description"),
        ({"url": URL, "secret": "short"}, "/secret"),
        ({"url": URL, "enabled": "yes"}, "/enabled"),
        ({"url": URL, "project": "a b"}, "/project"),
        ({"url": URL, "event": ["done"]}, "/event"),
        ([], ""),
    ],
)
async def test_what_can_be_no_endpoint_is_refused_by_field(
    client: httpx.AsyncClient, redis: Redis, body: Any, pointer: str
) -> None:
    response = await client.post("/webhooks", json=body)

    assert response.status_code == 422
    assert response.json()["type"] == "urn:taskpool:problem:invalid-webhook"
    assert [fault["pointer"] for fault in response.json()["errors"]] == [pointer]
    assert not redis.exists(keys.WEBHOOKS)


async def test_a_secret_may_be_given_and_is_replaced_only_at_its_own_path(client: httpx.AsyncClient) -> None:
    given = "whsec_" + "QUJD" * 11
    path = f"/webhooks/{(await create(client, secret=given))['id']}"

    changed = await client.patch(path, json={"secret": given})
    rotated = await client.post(path + "/secret")
    again = await client.post(path + "/secret", json={"secret": given, "overlap_s": 0})
    wrong = await client.post(path + "/secret", json={"secret": "x"})

    assert changed.status_code == 422
    assert rotated.json()["previous_secret"] == given
    assert rotated.json()["previous_until"].endswith("Z")
    assert rotated.json()["secret"] != given
    assert again.json() == {"secret": given}
    assert wrong.json()["errors"][0]["pointer"] == "/secret"


async def test_the_secret_of_callbacks_is_read_and_replaced_and_nothing_else(client: httpx.AsyncClient) -> None:
    first = (await client.get("/webhooks/callback/secret")).json()
    again = (await client.get("/webhooks/callback/secret")).json()
    rotated = (await client.post("/webhooks/callback/secret")).json()

    assert first == again
    assert rotated["previous_secret"] == first["secret"]
    assert (await client.get("/webhooks")).json() == {"webhooks": []}
    for id in ("callback", "callback.us"):
        assert (await client.patch(f"/webhooks/{id}", json={"url": URL})).status_code == 409
        assert (await client.delete(f"/webhooks/{id}")).status_code == 409
        assert (await client.post(f"/webhooks/{id}/test")).status_code == 409


async def test_a_test_message_is_a_delivery_that_can_be_read_listed_and_replayed(client: httpx.AsyncClient) -> None:
    webhook = (await create(client))["id"]
    path = f"/webhooks/{webhook}/deliveries"

    tests = [(await client.post(f"/webhooks/{webhook}/test")).json() for _ in range(3)]
    one = (await client.get(f"/webhooks/deliveries/{tests[0]['id']}")).json()
    page = await client.get(path, params={"limit": 2})
    rest = await client.get(page.headers["link"].partition(">")[0][1:])
    replayed = await client.post(f"/webhooks/deliveries/{tests[0]['id']}/replay")

    assert one["body"]["type"] == one["event"] == "taskpool.task.test"
    assert one.items() >= {"webhook": webhook, "url": URL, "status": "pending", "attempts": []}.items()
    ids = [each["id"] for answer in (page, rest) for each in answer.json()["deliveries"]]
    assert sorted(ids) == sorted(each["id"] for each in tests)
    assert replayed.status_code == 202
    assert len((await client.get(path, params={"status": "pending"})).json()["deliveries"]) == 3
    assert (await client.get(path, params={"status": "dead"})).json() == {"deliveries": []}


async def test_a_delivery_that_is_being_sent_is_not_replayed(client: httpx.AsyncClient, world: World) -> None:
    webhook = (await create(client))["id"]
    delivery = (await client.post(f"/webhooks/{webhook}/test")).json()["id"]
    world.run(take("t", lease_ms=60_000, limit=1, lane_most=9, failing_most=9))

    refused = await client.post(f"/webhooks/deliveries/{delivery}/replay")

    assert (refused.status_code, refused.json()["type"]) == (409, "urn:taskpool:problem:delivery-busy")


async def test_an_endpoint_shows_how_its_last_attempt_failed_until_one_is_good(
    client: httpx.AsyncClient, world: World
) -> None:
    webhook = (await create(client))["id"]
    delivery = (await client.post(f"/webhooks/{webhook}/test")).json()["id"]
    take_all = take("t", lease_ms=60_000, limit=1, lane_most=9, failing_most=9)
    bad = SendAttempt(at_ms=1_795_000_000_000, duration_ms=7, outcome="failed", status_code=503)

    world.run(take_all)
    world.run(settle(delivery, "t", "failed", delay_ms=0, attempt=bad))
    (listed,) = (await client.get("/webhooks")).json()["webhooks"]
    world.run(take_all)
    world.run(settle(delivery, "t", "delivered", attempt=replace(bad, outcome="delivered", status_code=200)))
    read = (await client.get(f"/webhooks/{webhook}")).json()

    assert listed["last_failure"] == {
        "at": "2026-11-18T11:06:40.000Z", "duration_ms": 7, "outcome": "failed", "status_code": 503,
    }  # fmt: skip
    assert "last_failure" not in read


async def test_dead_deliveries_and_those_of_a_task_come_in_pages(client: httpx.AsyncClient, world: World) -> None:
    webhook = (await create(client))["id"]
    for _ in range(3):
        await client.post(f"/webhooks/{webhook}/test")
    _, taken = world.run(take("t", lease_ms=60_000, limit=9, lane_most=9, failing_most=9))
    world.add("a")
    for each in taken:
        assert world.run(settle(each.id, "t", "dead")) == "ok"
        world.redis.zadd(f"{keys.DELIVERIES_OF_TASK}a", {each.id: 0})

    for path in ("/webhooks/dead", "/tasks/a/deliveries"):
        first = await client.get(path, params={"limit": 2})
        rest = await client.get(first.headers["link"].partition(">")[0][1:])
        ids = [each["id"] for page in (first, rest) for each in page.json()["deliveries"]]
        assert sorted(ids) == sorted(each.id for each in taken)


async def test_one_project_too_many_with_a_secret_for_callbacks_is_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_store, "MOST_CALLBACKS", 0)

    for method, path in (("GET", ""), ("GET", "/secret"), ("POST", "/secret"), ("GET", "/deliveries")):
        refused = await client.request(method, "/webhooks/callback" + path)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:taskpool:problem:webhook-conflict")


async def test_an_endpoint_that_is_disabled_is_sent_no_test(client: httpx.AsyncClient) -> None:
    path = f"/webhooks/{(await create(client, enabled=False))['id']}"

    refused = await client.post(path + "/test")
    enabled = await client.patch(path, json={"enabled": True})

    assert refused.json()["type"] == "urn:taskpool:problem:webhook-conflict"
    assert "disabled_reason" not in enabled.json()
    assert (await client.post(path + "/test")).status_code == 202


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/webhooks/wh_none", "webhook-not-found"),
        ("PATCH", "/webhooks/wh_none", "webhook-not-found"),
        ("DELETE", "/webhooks/wh_none", "webhook-not-found"),
        ("GET", "/webhooks/wh_none/secret", "webhook-not-found"),
        ("POST", "/webhooks/wh_none/secret", "webhook-not-found"),
        ("POST", "/webhooks/wh_none/test", "webhook-not-found"),
        ("GET", "/webhooks/wh_none/deliveries", "webhook-not-found"),
        ("GET", "/webhooks/deliveries/msg_none", "delivery-not-found"),
        ("POST", "/webhooks/deliveries/msg_none/replay", "delivery-not-found"),
        ("GET", "/tasks/none/deliveries", "task-not-found"),
    ],
)
async def test_what_is_not_there_is_404(client: httpx.AsyncClient, method: str, path: str, kind: str) -> None:
    response = await client.request(method, path, json={} if method == "PATCH" else None)

    assert (response.status_code, response.json()["type"]) == (404, f"urn:taskpool:problem:{kind}")


async def test_a_wrong_status_or_cursor_of_a_listing_is_400(client: httpx.AsyncClient) -> None:
    path = f"/webhooks/{(await create(client))['id']}/deliveries"

    status = await client.get(path, params={"status": "ded"})
    cursor = await client.get(path, params={"cursor": "nonsense"})

    assert status.json()["detail"] == "status: no such word; did you mean 'dead'?"
    assert (status.status_code, cursor.status_code) == (400, 400)


async def test_a_submission_may_name_a_callback_and_a_wrong_one_is_422(client: httpx.AsyncClient) -> None:
    taken = await client.post("/tasks", json={**FIRST, "callback_events": ["started", "done"]})
    inside = await client.post("/tasks", json={**FIRST, "callback_url": "http://169.254.169.254/latest"})
    batch = await client.post("/tasks/batch", json={"tasks": [FIRST, {**FIRST, "callback_events": ["end"]}]})

    task = (await client.get(taken.headers["location"])).json()
    assert (task["callback_url"], task["callback_events"]) == (URL, ["started", "done"])
    assert inside.json()["errors"] == [
        {"pointer": "/callback_url", "detail": "the address isn't public; TASKPOOL_WEBHOOK_ALLOW names exceptions"}
    ]
    assert [fault["pointer"] for fault in batch.json()["errors"]] == ["/tasks/1/callback_events/0"]


async def test_endpoints_are_for_admins_and_a_caller_who_sees_a_task_sees_its_deliveries(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    admin = bearer(make_key(redis_url, "admin", Scope.ADMIN))
    ours, theirs = (bearer(make_key(redis_url, name, Scope.WRITE, Scope.READ, project=name)) for name in ("us", "they"))

    made = await create(client, admin, project="us", events=["queued"])
    task = (await client.post("/tasks", json=FIRST, headers=ours)).json()["id"]

    assert made["project"] == "us"
    assert (await client.patch(f"/webhooks/{made['id']}", json={"project": "they"}, headers=admin)).status_code == 422
    for path in ("/webhooks", f"/webhooks/{made['id']}", "/webhooks/callback/secret", "/webhooks/deliveries/x"):
        assert (await client.get(path, headers=ours)).status_code == 403
    for caller, status in ((ours, 200), (admin, 200), (theirs, 404)):
        assert (await client.get(f"/tasks/{task}/deliveries", headers=caller)).status_code == status


async def test_each_project_has_a_secret_of_callbacks(client: httpx.AsyncClient) -> None:
    secrets = [
        (await client.get(f"/webhooks/{id}/secret")).json()["secret"]
        for id in ("callback", "callback.us", "callback.they", "callback.us")
    ]

    assert len(set(secrets)) == 3
    assert secrets[1] == secrets[3]
    assert (await client.get("/webhooks/callback.a b/secret")).status_code == 404
    assert (await client.get("/webhooks")).json() == {"webhooks": []}


async def test_the_audit_has_changes_of_endpoints_and_reads_of_their_secrets(client: httpx.AsyncClient) -> None:
    id = (await create(client))["id"]
    await client.patch(f"/webhooks/{id}", json={"enabled": False})
    await client.post(f"/webhooks/{id}/secret")
    await client.get(f"/webhooks/{id}/secret")
    await client.get("/webhooks/callback/secret")
    await client.get("/webhooks/nobody/secret")
    await client.delete(f"/webhooks/{id}")

    entries = (await client.get("/audit")).json()["entries"]

    assert [(each["what"], each["about"]) for each in entries] == [
        ("webhook.removed", id), ("webhook.secret_read", "callback"), ("webhook.secret_read", id),
        ("webhook.rotated", id), ("webhook.changed", id), ("webhook.created", id),
    ]  # fmt: skip


async def test_the_deliveries_of_a_task_do_not_say_where_standing_endpoints_are(
    client: httpx.AsyncClient, world: World
) -> None:
    endpoint = (await create(client, events=["queued"]))["id"]
    task = (await client.post("/tasks", json={**FIRST, "callback_events": ["queued"]})).json()["id"]
    for id in (endpoint, "callback"):
        world.run(delivery.deliver("", [NewDelivery(f"msg_{id}", id, id, task, "taskpool.task.queued", URL, b"{}")]))
    world.run(delivery.take("t", lease_ms=60_000, limit=10, lane_most=8, failing_most=1))
    attempt = SendAttempt(at_ms=1, duration_ms=1, outcome="dead", error="the host hooks.example can't be resolved")
    for id in (endpoint, "callback"):
        assert world.run(delivery.settle(f"msg_{id}", "t", "dead", attempt=attempt)) == "ok"

    shown = (await client.get(f"/tasks/{task}/deliveries")).json()["deliveries"]
    of_endpoint = await client.get(f"/webhooks/{endpoint}/deliveries")

    assert {each["webhook"]: "hooks.example" in str(each) for each in shown} == {endpoint: False, "callback": True}
    assert {each["attempts"][0]["outcome"] for each in shown} == {"dead"}
    assert "hooks.example can't be resolved" in of_endpoint.text


async def test_what_became_of_webhooks_is_in_the_metrics(client: httpx.AsyncClient, redis: Redis) -> None:
    redis.hset(keys.COUNTERS, mapping={"webhooks|dead": 3, "webhooks|lost": 1})
    await client.post("/tasks", json={**FIRST, "callback_events": ["queued"]})

    text = (await client.get("/metrics")).text

    assert 'taskpool_webhooks_total{outcome="dead"} 3.0' in text
    assert 'taskpool_webhooks_total{outcome="lost"} 1.0' in text
    assert 'taskpool_webhooks_total{outcome="delivered"} 0.0' in text
    assert "taskpool_webhook_outbox 1.0" in text
