"""Keys over HTTP: which keys are accepted, why others are refused, tickets, and how admins manage keys."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis import Redis

from api.auth import gate
from taskpool.access.api_key import Scope
from tests.api_client import api, publish_types
from tests.keys import bearer, id_of, make_key, revoke_key
from tests.states import World

ECHO = {"type": "echo", "payload": {"message": "hi"}}


@pytest.fixture
async def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that looks every key up anew, and asks each time whether there is one."""
    monkeypatch.setattr(gate, "FRESH_S", 0.0)
    monkeypatch.setattr("api.auth.gate.FRESH_S", 0.0)
    publish_types(redis_url)
    async with api(redis_url) as client:
        yield client


def refused(response: httpx.Response, status: int, error: str | None) -> None:
    """Check a refusal, and how it challenges (RFC 6750)."""
    assert response.status_code == status, response.text
    challenge = response.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="taskpool"')
    assert ("error=" in challenge) == (error is not None)
    assert error is None or f'error="{error}"' in challenge


async def test_without_any_key_this_machine_is_let_in(client: httpx.AsyncClient) -> None:
    assert (await client.post("/tasks", json=ECHO)).status_code == 202


async def test_once_the_first_key_exists_every_request_needs_one(client: httpx.AsyncClient, redis_url: str) -> None:
    assert (await client.get("/tasks")).status_code == 200

    text = make_key(redis_url)

    refused(await client.get("/tasks"), 401, None)
    assert (await client.get("/tasks", headers=bearer(text))).status_code == 200


async def test_when_the_last_key_is_revoked_the_door_stays_shut(client: httpx.AsyncClient, redis_url: str) -> None:
    text = make_key(redis_url)
    assert (await client.get("/tasks")).status_code == 401

    revoke_key(redis_url, text)

    refused(await client.get("/tasks"), 401, None)


async def test_readyz_describes_redis_only_to_callers_who_may_see_all_tasks(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    opened = await client.get("/readyz")
    reader, bound = make_key(redis_url, "reader", Scope.READ), make_key(redis_url, "bound", project="shop")

    shown = await client.get("/readyz", headers=bearer(reader))
    others = [{}, bearer(bound), bearer(make_key(redis_url, "writer", Scope.WRITE)), {"authorization": "Bearer x"}]

    assert [answer.json()["redis"]["role"] for answer in (opened, shown)] == ["master", "master"]
    for headers in others:
        answer = await client.get("/readyz", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_probes_and_the_index_need_no_key(client: httpx.AsyncClient, redis_url: str) -> None:
    make_key(redis_url)

    assert [(await client.get(path)).status_code for path in ("/", "/livez", "/readyz")] == [200] * 3


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer x", "Basic dXNlcjpwYXNz", "Bearer tp_000000000000_" + "A" * 43, "Bearer \xff", "tp_a_b", ""],
)
async def test_what_is_no_key_of_ours_is_401(client: httpx.AsyncClient, redis_url: str, header: str) -> None:
    make_key(redis_url)

    response = await client.get("/tasks", headers=[(b"authorization", header.encode("latin-1"))])

    refused(response, 401, "invalid_token" if header else None)


async def test_a_wrong_secret_gets_the_same_401_as_an_unknown_key(client: httpx.AsyncClient, redis_url: str) -> None:
    text = make_key(redis_url)
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")

    answers = [
        await client.get("/tasks", headers=bearer(each)) for each in (wrong, wrong.replace(id_of(text), "0" * 12))
    ]

    assert [answer.json() for answer in answers] == [answers[0].json()] * 2
    refused(answers[0], 401, "invalid_token")


async def test_a_revoked_key_is_401(client: httpx.AsyncClient, redis_url: str) -> None:
    text = make_key(redis_url)
    assert (await client.get("/tasks", headers=bearer(text))).status_code == 200

    revoke_key(redis_url, text)

    refused(await client.get("/tasks", headers=bearer(text)), 401, "invalid_token")


async def test_an_expired_key_gets_401_with_the_reason(client: httpx.AsyncClient, redis: Redis, redis_url: str) -> None:
    text = make_key(redis_url, "guest", expires_in_s=60)
    document = redis.hget("taskpool:keys", id_of(text))
    assert isinstance(document, bytes)
    redis.hset("taskpool:keys", id_of(text), re.sub(rb'"expires_ms":\d+', b'"expires_ms":1', document))

    response = await client.get("/tasks", headers=bearer(text))

    refused(response, 401, "invalid_token")
    assert "'guest' has expired" in response.json()["detail"]


async def test_a_missing_scope_is_403_and_named(client: httpx.AsyncClient, redis_url: str) -> None:
    text = make_key(redis_url, "reader", Scope.READ)

    response = await client.post("/tasks", json=ECHO, headers=bearer(text))

    refused(response, 403, "insufficient_scope")
    assert 'scope="tasks:write"' in response.headers["www-authenticate"]
    assert response.json()["type"].endswith(":forbidden")


async def test_a_known_key_costs_no_look_at_redis(redis_url: str, redis: Redis) -> None:
    text = make_key(redis_url)
    async with api(redis_url) as client:
        await client.get("/tasks/none", headers=bearer(text))
        before = redis.info("commandstats")
        for _ in range(5):
            await client.get("/tasks/none", headers=bearer(text))
        after = redis.info("commandstats")

    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert {name: count for name, count in calls.items() if count} == {"cmdstat_hgetall": 5, "cmdstat_info": 1}


async def test_last_used_is_noted_but_not_each_time(client: httpx.AsyncClient, redis_url: str, redis: Redis) -> None:
    text = make_key(redis_url)
    await client.get("/tasks", headers=bearer(text))
    noted = redis.hgetall("taskpool:keys:used")
    redis.delete("taskpool:keys:used")

    for _ in range(3):
        await client.get("/tasks", headers=bearer(text))

    assert set(noted) == {id_of(text).encode()}
    assert not redis.exists("taskpool:keys:used")


async def test_the_rotated_secret_opens_and_the_old_one_until_the_grace_is_over(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    admin, old = make_key(redis_url, "a", Scope.ADMIN), make_key(redis_url)

    rotated = await client.post(f"/keys/{id_of(old)}/rotate", headers=bearer(admin))

    new = rotated.json()["key"]
    assert rotated.status_code == 200
    assert (await client.get("/tasks", headers=bearer(new))).status_code == 200
    assert (await client.get("/tasks", headers=bearer(old))).status_code == 200

    await client.post(f"/keys/{id_of(old)}/rotate", json={"grace_s": 0}, headers=bearer(admin))
    refused(await client.get("/tasks", headers=bearer(new)), 401, "invalid_token")
    wrong = await client.post(f"/keys/{id_of(old)}/rotate", json={"grace_s": -1}, headers=bearer(admin))
    assert (wrong.status_code, wrong.json()["type"]) == (422, "urn:taskpool:problem:invalid-key")


async def test_an_admin_makes_lists_and_revokes_keys(client: httpx.AsyncClient, redis_url: str) -> None:
    admin = make_key(redis_url, "a", Scope.ADMIN)
    asked = {"name": "shop", "scopes": ["tasks:read"], "project": "shop", "queues": ["mails"], "expires_in_s": 60}

    made = await client.post("/keys", json=asked, headers=bearer(admin))
    text = made.json()["key"]
    listed = await client.get("/keys", headers=bearer(admin))
    revoked = await client.delete(made.headers["location"], headers=bearer(admin))

    assert (made.status_code, revoked.status_code) == (201, 204)
    assert made.headers["location"] == f"/keys/{id_of(text)}"
    assert {name: made.json()[name] for name in ("name", "scopes", "project", "queues")} == {
        name: asked[name] for name in ("name", "scopes", "project", "queues")
    }
    assert {each["name"] for each in listed.json()["keys"]} == {"a", "shop"}
    assert text.split("_", 2)[2] not in listed.text
    assert "hash" not in listed.text
    assert (await client.delete(made.headers["location"], headers=bearer(admin))).status_code == 404


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({}, "/name"),
        ({"name": "x", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "x", "scope": ["admin"]}, "/scope"),
        ({"name": "x", "scopes": ["admin"], "project": "p"}, "/project"),
        ({"name": "x", "types": []}, "/types"),
    ],
)
async def test_a_wrong_key_is_refused_by_its_field(
    client: httpx.AsyncClient, document: dict[str, Any], pointer: str
) -> None:
    response = await client.post("/keys", json=document)

    assert (response.status_code, response.json()["type"]) == (422, "urn:taskpool:problem:invalid-key")
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


@pytest.mark.parametrize("settings", [{}, {"auth": "off"}])
async def test_the_first_key_made_over_http_must_be_an_admins(
    redis_url: str, world: World, settings: dict[str, Any]
) -> None:
    async with api(redis_url, **settings) as client:
        refused = [
            await client.post("/keys", json={"name": "k", **more})
            for more in ({}, {"scopes": ["tasks:read"]}, {"project": "shop"}, {"expires_in_s": 9})
        ]
        before = world.snapshot()
        first = await client.post("/keys", json={"name": "root", "scopes": ["tasks:read", "admin"]})
        admin = bearer(first.json()["key"])
        second = await client.post("/keys", json={"name": "k"}, headers=admin)

    assert {answer.status_code for answer in refused} == {422}
    assert {answer.json()["errors"][0]["pointer"] for answer in refused} == {"/scopes"}
    assert "taskpool keys create" in refused[0].json()["detail"]
    assert before == {}
    assert (first.status_code, second.status_code) == (201, 201)


async def test_no_answer_no_log_and_nothing_in_redis_shows_a_secret(
    client: httpx.AsyncClient, redis_url: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    admin = make_key(redis_url, "a", Scope.ADMIN)
    made = await client.post("/keys", json={"name": "b"}, headers=bearer(admin))
    text = made.json()["key"]

    answers = [await client.get(path, headers=bearer(admin)) for path in ("/keys", "/audit", "/tasks", "/metrics", "/")]
    answers += [await client.post("/tasks", json=ECHO, headers=bearer(text))]
    answers += [
        await client.get("/audit", headers=bearer(text)),
        await client.get("/tasks", headers=bearer(text + "x")),
    ]

    shown = "".join(answer.text + str(answer.headers) for answer in answers) + caplog.text
    shown += repr(world.snapshot())
    assert [secret for each in (admin, text) if (secret := each.split("_", 2)[2]) in shown] == []


async def test_the_audit_is_for_admins_and_records_key_action_and_address(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    admin, reader = make_key(redis_url, "root", Scope.ADMIN), make_key(redis_url, "reader")
    made = await client.post("/keys", json={"name": "b"}, headers=bearer(admin))

    response = await client.get("/audit", params={"limit": 1}, headers=bearer(admin))

    (entry,) = response.json()["entries"]
    assert entry.pop("at").endswith("Z")
    by = {"key": id_of(admin), "name": "root", "address": "127.0.0.1"}
    assert entry == {"what": "key.created", "about": made.json()["id"], "by": by}
    assert response.links["next"]["url"].startswith("/audit?cursor=")
    assert (await client.get(response.links["next"]["url"], headers=bearer(admin))).status_code == 200
    refused(await client.get("/audit", headers=bearer(reader)), 403, "insufficient_scope")
    assert (await client.get("/audit?cursor=x", headers=bearer(admin))).status_code == 400


async def test_the_audit_is_read_by_kind_caller_project_and_time(client: httpx.AsyncClient, redis_url: str) -> None:
    admin, shop = make_key(redis_url, "root", Scope.ADMIN), make_key(redis_url, "shop", project="shop")
    made = (await client.post("/keys", json={"name": "b"}, headers=bearer(admin))).json()["id"]
    await client.delete(f"/keys/{made}", headers=bearer(admin))
    await client.post("/tasks", json={"type": "echo", "payload": {"message": 1}}, headers=bearer(shop))

    async def found(**wanted: str) -> list[str]:
        response = await client.get("/audit", params=wanted, headers=bearer(admin))
        assert response.status_code == 200, response.text
        return [entry["what"] for entry in response.json()["entries"]]

    assert await found(what="key.revoked") == ["key.revoked"]
    assert await found(key=id_of(admin)) == ["key.revoked", "key.created"]
    assert await found(about=made) == ["key.revoked", "key.created"]
    assert await found(project="shop") == await found(key=id_of(shop)) == ["task.submitted"]
    assert await found(until="2020-01-01T00:00:00Z") == await found(since="2999-01-01T00:00:00+02:00") == []
    assert "task.submitted" in await found(since="2020-01-01T00:00:00Z", until="2999-01-01T00:00:00Z")


async def test_the_next_page_of_the_audit_is_of_the_same_filter(client: httpx.AsyncClient, redis_url: str) -> None:
    admin = make_key(redis_url, "root", Scope.ADMIN)
    for _ in range(3):
        await client.post("/keys", json={"name": "b"}, headers=bearer(admin))
    wanted = {"what": "key.created", "key": id_of(admin), "since": "2020-01-01T00:00:00+01:00", "limit": "2"}

    first = await client.get("/audit", params=wanted, headers=bearer(admin))
    second = await client.get(first.links["next"]["url"], headers=bearer(admin))

    assert [len(page.json()["entries"]) for page in (first, second)] == [2, 1]
    assert "next" not in second.links


@pytest.mark.parametrize(
    ("query", "parameter", "says"),
    [
        ("what=task.stoped", "what", "did you mean 'task.stopped'"),
        ("what=", "what", "known: task.submitted, "),
        ("key=nobody", "key", "regex"),
        ("project=", "project", "length >= 1"),
        ("since=yesterday", "since", "a time with its zone"),
        ("since=1795500000", "since", "a time with its zone"),
        ("until=2026-11-24T00:00:00", "until", "a time with its zone"),
        ("until=2026-11-24T00:00:00+01:00", "until", "%2B"),
        ("since=2026-11-24T00:00:00Z&until=2026-11-24T00:00:00Z", "until", "later than"),
        ("who=anna", "who", "known: cursor, limit, what, key, project, since, until"),
    ],
)
async def test_a_wrong_filter_of_the_audit_is_named(
    client: httpx.AsyncClient, redis_url: str, query: str, parameter: str, says: str
) -> None:
    admin = make_key(redis_url, "root", Scope.ADMIN)

    response = await client.get(f"/audit?{query}", headers=bearer(admin))

    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["parameter"] == parameter
    assert says in error["detail"]
