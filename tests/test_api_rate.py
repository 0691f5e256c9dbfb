"""Limits on requests: who shares one, what answers say of it, and what it costs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.app import create_app
from api.auth import rate_limit
from api.auth.rate_limit import FAILED_AT_ONCE
from taskpool.access.api_key import Scope
from taskpool.settings import Settings
from tests.api_client import api, api_process, publish_types
from tests.keys import bearer, make_key
from tests.support import PATIENCE_S

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


async def test_answers_of_every_status_say_what_is_left(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url, rate_limit=600) as client:
        made = await client.post("/webhooks", json={"url": "https://a.example/"})
        deleted = await client.delete(made.headers["location"])
        refused = await client.delete("/webhooks/callback")
        wrong = await client.post("/tasks", json={})
        types = await client.get("/types")
        unchanged = await client.get("/types", headers={"if-none-match": types.headers["etag"]})

    answers = made, deleted, refused, wrong, unchanged
    assert [each.status_code for each in answers] == [201, 204, 409, 422, 304]
    assert all(left_of(each) for each in answers)


async def test_one_request_too_many_gets_429_with_a_time_to_retry(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        assert await statuses(client, 10) == [200] * 10

        refused = await client.get(UNTOUCHED)

    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (429, "urn:taskpool:problem:rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert left_of(refused) == (0, int(refused.headers["retry-after"]))
    assert problem["detail"].startswith("the rate limit is 6 requests a minute; try again in ")


async def test_a_client_that_retries_then_is_let_in(redis_url: str) -> None:
    async with api(redis_url, rate_limit=60, rate_burst_s=1) as client:
        while (await client.get(UNTOUCHED)).status_code == 200:
            pass

        async with asyncio.timeout(PATIENCE_S):
            while (refused := await client.get(UNTOUCHED)).status_code == 429:
                assert refused.headers["retry-after"] == "1"
                await asyncio.sleep(0.01)

    assert refused.status_code == 200


async def test_of_many_at_once_only_so_many_get_in(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        answers = await asyncio.gather(*[client.get(UNTOUCHED) for _ in range(40)])

    assert sorted(each.status_code for each in answers) == [200] * 10 + [429] * 30


async def test_a_process_that_stands_still_for_a_while_keeps_the_tokens_of_waiting_requests(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "KEPT_S", 0.0)  # whenever somebody wakes, a second has gone by

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


async def test_requests_with_a_wrong_secret_take_no_tokens_from_the_key(redis_url: str) -> None:
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


async def test_public_operations_are_not_counted(redis_url: str) -> None:
    async with api(redis_url, **TEN) as client:
        answers = [await client.get(path) for path in ("/", "/livez", "/readyz", "/docs") for _ in range(3)]

    assert {each.status_code for each in answers} == {200}
    assert "ratelimit" not in answers[0].headers


async def test_a_busy_caller_costs_a_script_for_many_requests(redis_url: str, redis: Redis) -> None:
    async with api(redis_url, auth="off", rate_limit=60_000) as client:
        before = scripts_run(redis)
        assert set(await statuses(client, 200)) == {200}

    assert 1 <= scripts_run(redis) - before <= 50


async def test_requests_that_wait_for_a_token_at_one_moment_share_a_round_trip(redis_url: str, redis: Redis) -> None:
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


async def test_without_redis_no_limited_caller_gets_in() -> None:
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


# --- batches -------------------------------------------------------------------------------------------------


def batch(tasks: int) -> dict[str, Any]:
    return {"tasks": [{"type": "echo", "payload": {"message": number}} for number in range(tasks)]}


async def test_a_batch_costs_as_much_as_its_tasks(redis_url: str, redis: Redis) -> None:
    publish_types(redis_url)

    async with api(redis_url, **TEN) as client:
        first = await client.post("/tasks/batch", json=batch(5))
        refused = await client.post("/tasks/batch", json=batch(6))
        smaller = await client.post("/tasks/batch", json=batch(4))
        single = await client.post("/tasks", json=batch(1)["tasks"][0])

    assert [each.status_code for each in (first, refused, smaller, single)] == [202, 429, 202, 429]
    assert (left_of(first)[0], left_of(refused)[0], left_of(smaller)[0]) == (5, 4, 0)
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert refused.json()["detail"].startswith("the rate limit is 6 requests a minute, and each task of a batch counts")
    assert redis.llen("rq:queue:default") == 9


async def test_a_batch_that_never_fits_is_refused_with_the_largest_possible_size(redis_url: str, redis: Redis) -> None:
    publish_types(redis_url)

    async with api(redis_url, **TEN) as client:
        refused = await client.post("/tasks/batch", json=batch(1000))
        fitting = await client.post("/tasks/batch", json=batch(9))

    assert (refused.status_code, fitting.status_code) == (429, 202)
    assert refused.json()["detail"].startswith("a batch may have at most 10 tasks here")
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert redis.llen("rq:queue:default") == 9


async def test_tokens_that_a_process_holds_already_count_for_a_batch(redis_url: str) -> None:
    publish_types(redis_url)

    async with api(redis_url, auth="off", rate_limit=60_000, rate_burst_s=0.5) as client:  # 500, 50 of them at a time
        answers = [await client.post("/tasks/batch", json=batch(480)), await client.get(UNTOUCHED)]

    assert [each.status_code for each in answers] == [202, 200]


# --- failed authentication -----------------------------------------------------------------------------------


@pytest.fixture
def no_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a test takes, what failed counts to its end."""
    monkeypatch.setattr(rate_limit, "FAILED_A_SECOND", 0.001)


WRONG: dict[str, str] = {"authorization": "Bearer tp_000000000000_" + "A" * 43}


@asynccontextmanager
async def clients_at(redis_url: str, *addresses: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of one API for each address."""
    app = create_app(Settings(redis_url=redis_url, host="0.0.0.0"))
    async with app.router.lifespan_context(app):
        yield [
            httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://localhost")
            for address in addresses
        ]


def hash_reads(redis: Any) -> int:
    stats = redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hget", "hkeys", "getdel"))


@pytest.mark.parametrize(
    "headers", [WRONG, {}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic QTpC"}], ids=str
)
@pytest.mark.usefixtures("no_refill")
async def test_an_address_that_fails_to_authenticate_too_often_gets_429(
    redis_url: str, headers: dict[str, str]
) -> None:
    make_key(redis_url)

    async with clients_at(redis_url, "192.0.2.1", "192.0.2.2") as (bad, good):
        failed = await statuses(bad, FAILED_AT_ONCE, headers=headers)
        refused = await bad.get(UNTOUCHED, headers=headers)
        elsewhere = await good.get(UNTOUCHED, headers=headers)

    assert set(failed) == {401}
    assert (refused.status_code, elsewhere.status_code) == (429, 401)
    assert refused.json()["type"] == "urn:taskpool:problem:rate-limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 1000


@pytest.mark.usefixtures("no_refill")
async def test_such_an_address_costs_redis_nothing_more(redis_url: str, redis: Redis) -> None:
    known = make_key(redis_url)
    wrong = bearer(known[:-8] + "AAAAAAAA")

    async with clients_at(redis_url, "192.0.2.1") as (client,):
        answers = await asyncio.gather(*[client.get(UNTOUCHED, headers=WRONG) for _ in range(500)])
        before = hash_reads(redis)
        more = [await client.get(UNTOUCHED, headers=each) for _ in range(200) for each in (WRONG, wrong)]

    assert sorted({each.status_code for each in answers}) == [401, 429]
    assert {each.status_code for each in more} <= {401, 429}
    assert sum(each.status_code == 401 for each in answers) == FAILED_AT_ONCE
    assert hash_reads(redis) - before <= 20  # those of the one key that exists, and of all ids


@pytest.mark.usefixtures("no_refill")
async def test_valid_keys_work_beside_wrong_ones_from_the_same_address(redis_url: str) -> None:
    used, unused = bearer(make_key(redis_url)), bearer(make_key(redis_url))

    async with clients_at(redis_url, "192.0.2.1") as (client,):
        assert await statuses(client, 1, headers=used) == [200]
        assert (await statuses(client, FAILED_AT_ONCE + 1, headers=WRONG))[-1] == 429

        assert await statuses(client, 3, headers=used) == [200] * 3
        assert await statuses(client, 3, headers=unused) == [200] * 3


async def test_valid_keys_and_probes_without_one_are_no_failures(redis_url: str) -> None:
    key = bearer(make_key(redis_url))

    async with clients_at(redis_url, "192.0.2.1") as (client,):
        assert set(await statuses(client, FAILED_AT_ONCE + 20, headers=key)) == {200}
        for _ in range(FAILED_AT_ONCE + 20):
            assert (await client.get("/readyz")).status_code == 200
        assert await statuses(client, 1) == [401]


@pytest.mark.usefixtures("no_refill")
async def test_wrong_tickets_are_counted_for_themselves(redis_url: str, redis: Redis) -> None:
    key = bearer(make_key(redis_url))

    async with clients_at(redis_url, "192.0.2.1") as (client,):
        for _ in range(FAILED_AT_ONCE):
            assert (await client.get(f"/events?ticket={'A' * 43}")).status_code == 401
        before = hash_reads(redis)
        refused = await client.get(f"/events?ticket={'A' * 43}")
        assert hash_reads(redis) == before
        assert await statuses(client, 1) == [401]
        assert await statuses(client, 1, headers=key) == [200]

    assert refused.status_code == 429


async def test_so_many_addresses_are_remembered_and_the_latest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MOST_CALLERS", 10)
    failed = rate_limit.FailedAttempts()

    for number in range(100):
        failed.note(f"192.0.2.{number}")
    for _ in range(FAILED_AT_ONCE):
        failed.note("192.0.2.99")

    assert failed.wait_s("192.0.2.99") > 0
    assert len(failed._paid_mono) == 10


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


def test_each_message_over_a_socket_counts_and_one_too_many_is_answered(redis_url: str, tmp_path: Path) -> None:
    text = make_key(redis_url, rate_limit=6)
    headers: dict[str, str] = bearer(text)

    with (
        api_process(redis_url, tmp_path / "log", TASKPOOL_RATE_BURST_S="100") as (_, url),
        connect(url.replace("http", "ws") + "/ws", additional_headers=headers, proxy=None) as socket,
    ):
        for number in range(16):
            socket.send(json.dumps({"op": "ping", "nonce": str(number)}))
        answers = [json.loads(socket.recv(timeout=PATIENCE_S)) for _ in range(16)]
        socket.send(json.dumps({"op": "subscribe", "sub": "s", "filter": {}}))
        last = json.loads(socket.recv(timeout=PATIENCE_S))  # the socket goes on

    pongs = [each for each in answers if each["op"] == "pong"]
    limited = [each for each in answers if each["op"] == "error"]
    assert 9 <= len(pongs) <= 12  # ten, of which the handshake was one, and one every ten seconds
    assert {each["kind"] for each in limited} == {"rate-limited"}
    assert all(1 <= each["retry_after_s"] <= 10 for each in limited)
    assert last["kind" if last["op"] == "error" else "op"] in ("rate-limited", "snapshot")
