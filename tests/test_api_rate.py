"""Limits on requests: who shares one, what answers say of it, and what it costs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.access import rate
from api.app import create_app
from taskpool.access.apikey import Scope
from taskpool.settings import Settings
from tests.api_client import api, api_process
from tests.keys import bearer, make_key

TEN: dict[str, Any] = {"rate_limit": 6, "rate_burst_s": 100}
"""Ten requests at once, and one more every ten seconds."""
UNTOUCHED = "/asyncapi.json"
"""A path whose handler asks Redis for nothing."""


def left_of(response: httpx.Response) -> tuple[int, int]:
    """What an answer says is left, and the seconds beside it."""
    found = re.fullmatch(r'"requests";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    assert found is not None
    return int(found[1]), int(found[2])


def scripts_run(redis: Any) -> int:
    return int(redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


async def statuses(client: httpx.AsyncClient, count: int, **options: Any) -> list[int]:
    """Of so many requests, one after the other."""
    return [(await client.get(UNTOUCHED, **options)).status_code for _ in range(count)]


async def test_without_a_limit_nothing_is_counted_and_nothing_said(redis_url: str, redis: Redis) -> None:
    async with api(redis_url, auth="off") as client:
        response = await client.get(UNTOUCHED)

    assert response.status_code == 200
    assert not {"ratelimit", "ratelimit-policy"} & response.headers.keys()
    assert redis.dbsize() == 0


async def test_every_answer_says_what_is_left(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        first = await client.get(UNTOUCHED)
        second = await client.get("/tasks/nope")
        third = await client.post("/tasks/nope/stop")

    assert [each.status_code for each in (first, second, third)] == [200, 404, 404]
    assert {each.headers["ratelimit-policy"] for each in (first, second, third)} == {'"requests";q=10;w=100'}
    assert [left_of(first), left_of(second), left_of(third)] == [(9, 10), (8, 20), (7, 30)]


async def test_one_too_many_is_429_and_told_when_to_come_back(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        assert await statuses(client, 10) == [200] * 10

        refused = await client.get(UNTOUCHED)

    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (429, "urn:taskpool:problem:rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert left_of(refused) == (0, int(refused.headers["retry-after"]))
    assert problem["detail"].startswith("there may be 6 requests a minute; the next one in ")


async def test_who_comes_back_then_is_let_in(redis_url: str) -> None:
    async with api(redis_url, rate_limit=60, rate_burst_s=1) as client:
        while (await client.get(UNTOUCHED)).status_code == 200:
            pass

        async with asyncio.timeout(30):
            while (refused := await client.get(UNTOUCHED)).status_code == 429:
                assert refused.headers["retry-after"] == "1"
                await asyncio.sleep(0.01)

    assert refused.status_code == 200


async def test_of_many_at_once_only_so_many_get_in(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        answers = await asyncio.gather(*[client.get(UNTOUCHED) for _ in range(40)])

    assert sorted(each.status_code for each in answers) == [200] * 10 + [429] * 30


async def test_a_process_that_stands_still_for_a_while_keeps_the_tokens_of_those_who_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "KEPT_S", 0.0)  # whenever somebody wakes, a second has gone by

    async with api(redis_url, **TEN) as client:
        answers = await asyncio.gather(*[client.get(UNTOUCHED) for _ in range(12)])

    assert sorted(each.status_code for each in answers) == [200] * 10 + [429] * 2


async def test_all_api_processes_share_a_callers_bucket(redis_url: str) -> None:
    async with api(redis_url, **TEN) as one, api(redis_url, **TEN) as other:
        assert await statuses(one, 6) == [200] * 6
        assert await statuses(other, 6) == [200] * 4 + [429] * 2
        assert await statuses(one, 1) == [429]


async def test_each_key_has_a_bucket_of_its_own(redis_url: str) -> None:
    a, b = bearer(make_key(redis_url)), bearer(make_key(redis_url))

    async with api(redis_url, **TEN) as client:
        assert await statuses(client, 11, headers=a) == [200] * 10 + [429]
        assert await statuses(client, 1, headers=b) == [200]


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, [200] * 10 + [429] * 2), (0, [200] * 12), (3, [200] * 5 + [429] * 7)]
)
async def test_a_keys_own_limit_comes_before_the_setting(
    redis_url: str, limit: int | None, expected: list[int]
) -> None:
    key = bearer(make_key(redis_url, rate_limit=limit))

    async with api(redis_url, **TEN) as client:
        assert await statuses(client, 12, headers=key) == expected


async def test_a_keys_own_limit_holds_where_there_is_no_other(redis_url: str) -> None:
    limited, free = bearer(make_key(redis_url, rate_limit=6)), bearer(make_key(redis_url))

    async with api(redis_url) as client:  # bursts of 10 s: one request
        assert await statuses(client, 2, headers=limited) == [200, 429]
        assert await statuses(client, 2, headers=free) == [200, 200]


async def test_a_refusal_for_want_of_a_scope_counts_too(redis_url: str) -> None:
    key = bearer(make_key(redis_url, "reader", Scope.READ))

    async with api(redis_url, **TEN) as client:
        answers = [await client.get("/keys", headers=key) for _ in range(11)]

    assert [each.status_code for each in answers] == [403] * 10 + [429]


async def test_who_shows_a_wrong_key_takes_nothing_from_its_holder(redis_url: str) -> None:
    text = make_key(redis_url)

    async with api(redis_url, **TEN) as client:
        wrong = await statuses(client, 11, headers=bearer(text[:-8] + "AAAAAAAA"))
        right = await statuses(client, 10, headers=bearer(text))

    assert (wrong, right) == ([401] * 11, [200] * 10)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
async def test_without_keys_each_address_has_a_bucket(redis_url: str, one: str, other: str, share: bool) -> None:
    app = create_app(Settings(redis_url=redis_url, auth="off", **TEN))
    async with app.router.lifespan_context(app):
        clients = [
            httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://localhost")
            for address in (one, other)
        ]
        assert await statuses(clients[0], 10) == [200] * 10
        assert await statuses(clients[1], 1) == [429 if share else 200]


async def test_what_asks_nobody_is_not_counted(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        answers = [await client.get(path) for path in ("/", "/livez", "/readyz", "/docs") for _ in range(3)]

    assert {each.status_code for each in answers} == {200}
    assert "ratelimit" not in answers[0].headers


async def test_a_busy_caller_costs_a_script_for_many_requests(redis_url: str, redis: Redis) -> None:
    async with api(redis_url, auth="off", rate_limit=60_000) as client:
        before = scripts_run(redis)
        assert set(await statuses(client, 200)) == {200}

    assert 1 <= scripts_run(redis) - before <= 50


async def test_those_who_wait_for_a_token_at_one_moment_share_a_round_trip(redis_url: str, redis: Redis) -> None:
    async with api(redis_url, auth="off", rate_limit=60, rate_burst_s=100) as client:
        before = scripts_run(redis)
        answers = await asyncio.gather(*[client.get(UNTOUCHED) for _ in range(50)])

    assert {each.status_code for each in answers} == {200}
    assert scripts_run(redis) - before <= 10


async def test_one_process_leaves_tokens_for_the_others(redis_url: str) -> None:
    fast: dict[str, Any] = {"auth": "off", "rate_limit": 6_000, "rate_burst_s": 0.1}  # ten at once
    async with api(redis_url, **fast) as one, api(redis_url, **fast) as other:
        assert await statuses(one, 1) == [200]
        assert await statuses(other, 1) == [200]


async def test_without_redis_nobody_who_is_limited_gets_in() -> None:
    async with api("redis://127.0.0.1:1", auth="off", **TEN) as client:
        answers = await asyncio.gather(*[client.get(UNTOUCHED) for _ in range(3)])

    assert [each.status_code for each in answers] == [503] * 3
    assert all(int(each.headers["retry-after"]) >= 1 for each in answers)


async def test_a_key_made_over_http_has_the_limit_asked_for(redis_url: str) -> None:
    admin = bearer(make_key(redis_url, "admin", Scope.ADMIN))

    async with api(redis_url) as client:
        made = await client.post("/keys", headers=admin, json={"name": "k", "rate_limit": 600})
        wrong = await client.post("/keys", headers=admin, json={"name": "k", "rate_limit": -1})
        listed = (await client.get("/keys", headers=admin)).json()["keys"]

    assert (made.status_code, made.json()["rate_limit"]) == (201, 600)
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/rate_limit")
    assert [each.get("rate_limit") for each in listed] == [None, 600]


async def test_a_page_of_a_listed_origin_may_read_the_limit(redis_url: str) -> None:
    origin = "https://app.example.org"
    async with api(redis_url, cors_origins=(origin,), **TEN) as client:
        response = await client.get(UNTOUCHED, headers={"origin": origin})

    assert {"RateLimit", "RateLimit-Policy", "Retry-After"} <= set(
        response.headers["access-control-expose-headers"].split(", ")
    )
    assert left_of(response)[0] == 9


def test_a_socket_too_many_is_refused_as_http_and_not_worth_a_line_in_the_log(redis_url: str, tmp_path: Path) -> None:
    key = bearer(make_key(redis_url, rate_limit=1))

    with api_process(redis_url, tmp_path / "log") as (_, url):
        path = url.replace("http", "ws") + "/ws"
        with connect(path, additional_headers=key, proxy=None):
            pass
        with pytest.raises(InvalidStatus) as refused:
            connect(path, additional_headers=key, proxy=None)

    assert refused.value.response.status_code == 429
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert "ERROR" not in (tmp_path / "log").read_text()
