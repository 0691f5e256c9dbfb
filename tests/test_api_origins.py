"""Where requests come from: names made to point here, pages of other origins, CORS, and what every answer tells."""

from __future__ import annotations

import httpx
import pytest

from api.app import create_app
from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.validation import names_this_machine
from tests.api_client import api, publish_types
from tests.keys import bearer, make_key

APP = "https://app.example.org"
PAGE = {"origin": "https://evil.example.org"}
ECHO = {"type": "echo", "payload": {"message": "hi"}}


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "127.0.0.1:80", "127.9.9.9", "[::1]:8080", "::1", "a.localhost"]
)
def test_names_that_only_this_machine_answers_to(host: str) -> None:
    assert names_this_machine(host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "0.0.0.0:8080", "::", "[::]:80", "8080", "", "evil.org", "127.0.0.1.evil.org"),
        *("localhost.evil.org", "[::1].evil.org", "[::1]evil.org", "[::1", "[::1]:80.evil.org", "[[::1]]", "[::1]:"),
        *("localhost:evil.org", "localhost:80:80", "localhost:80@evil.org", "127.0.0.1:x", "evil.org/.localhost"),
        *("[localhost]", "evil.org@localhost", "localhost\n", "[::1%eth0]", ":80"),
    ],
)
def test_names_that_others_answer_to_or_reach(host: str) -> None:
    assert not names_this_machine(host)


async def test_without_keys_no_name_made_to_point_here_is_served(redis_url: str) -> None:
    async with api(redis_url) as client:
        answers = [await client.get("/tasks", headers={"host": host}) for host in ("evil.org", "127.0.0.1.evil.org:80")]
        own = await client.get("/tasks", headers={"host": "127.0.0.1:8080"})

    assert [(answer.status_code, answer.json()["title"]) for answer in answers] == [(421, "Unknown host name")] * 2
    assert own.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        *("x-forwarded-for", "X-Forwarded-Host", "x-real-ip", "x-client-ip", "x-cluster-client-ip"),
        *("true-client-ip", "CF-Connecting-IP"),
    ],
)
@pytest.mark.parametrize(("forwarded", "status"), [("203.0.113.7", 421), ("203.0.113.7, ::1", 421), ("127.0.0.1", 200)])
async def test_without_keys_a_proxy_on_this_machine_lets_no_other_machine_in(
    redis_url: str, header: str, forwarded: str, status: int
) -> None:
    async with api(redis_url) as client:
        response = await client.get("/tasks", headers={header: forwarded})

    assert response.status_code == status


MARKS = {
    "Forwarded": "for=127.0.0.1",
    "Via": "1.1 somebody",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Server": "localhost",
    "X-Forwarded-Port": "443",
}


@pytest.mark.parametrize("header", MARKS)
async def test_without_keys_nothing_that_bears_the_mark_of_a_proxy_is_served(redis_url: str, header: str) -> None:
    async with api(redis_url) as client:
        response = await client.get("/tasks", headers={"x-forwarded-for": "127.0.0.1", header: MARKS[header]})

    assert response.status_code == 421
    assert "not through a proxy" in response.json()["detail"]


async def test_with_a_key_any_name_is_served_also_through_a_proxy(redis_url: str) -> None:
    text = make_key(redis_url)
    async with api(redis_url) as client:
        response = await client.get("/tasks", headers={"host": "tasks.example.org", **MARKS, **bearer(text)})

    assert response.status_code == 200


async def test_without_keys_a_page_of_another_origin_changes_nothing(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        id = (await client.post("/tasks", json=ECHO)).json()["id"]
        answers = [
            await client.post(f"/tasks/{id}/stop", headers=PAGE),
            await client.delete(f"/tasks/{id}", headers=PAGE),
            await client.post("/tasks", json=ECHO, headers=PAGE),
            await client.post("/tasks", json=ECHO, headers={"origin": "null"}),
            await client.post("/tickets", headers=PAGE),
        ]
        own = await client.post(f"/tasks/{id}/stop", headers={"origin": "http://localhost"})

    assert {answer.status_code for answer in answers} == {403}
    assert own.status_code == 202


async def test_cors_is_closed_unless_it_is_set(redis_url: str) -> None:
    preflight = {
        "origin": APP,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    async with api(redis_url) as client:
        asked = await client.options("/tasks", headers=preflight)
        got = await client.get("/tasks", headers={"origin": APP})

    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers
    assert "access-control-allow-origin" not in got.headers


async def test_cors_is_open_for_the_listed_origins_alone(redis_url: str) -> None:
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,idempotency-key",
    }
    text = make_key(redis_url)
    async with api(redis_url, cors_origins=(APP,)) as client:
        asked = await client.options("/tasks", headers={"origin": APP, **preflight})
        got = await client.get("/tasks", headers={"origin": APP, **bearer(text)})
        refused = await client.get("/tasks", headers={"origin": APP})
        other = await client.options("/tasks", headers={**PAGE, **preflight})
        elsewhere = await client.get("/tasks", headers={**PAGE, **bearer(text)})

    assert asked.status_code == 200
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert [answer.headers["access-control-allow-origin"] for answer in (asked, got, refused)] == [APP] * 3
    assert {"Location", "ETag", "RateLimit", "Retry-After"} <= set(
        got.headers["access-control-expose-headers"].split(", ")
    )
    assert refused.status_code == 401
    assert other.status_code == 400
    assert "access-control-allow-origin" not in elsewhere.headers
    assert "access-control-allow-credentials" not in got.headers


@pytest.mark.parametrize(
    "origin", ["*", "app.example.org", "https://app.example.org/", "https://*.example.org", "null"]
)
def test_what_is_no_exact_origin_is_a_wrong_setting(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an origin"):
        create_app(Settings(redis_url="redis://nowhere", cors_origins=(origin,)))


async def test_the_headers_of_every_answer_forbid_scripts_and_frames(redis_url: str) -> None:
    publish_types(redis_url)
    async with api(redis_url) as client:
        answers = [
            await client.get(path) for path in ("/", "/tasks", "/tasks/none", "/nowhere", "/metrics", "/tasks?x=1")
        ]
        answers += [await client.post("/tasks", json=ECHO), await client.post("/tasks"), await client.put("/tasks")]
        make_key(redis_url)

    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers.get_list("content-security-policy") == ["default-src 'none'; frame-ancestors 'none'"]


async def test_an_answer_to_a_bug_has_them_too(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(redis_url=redis_url))

    async def break_down(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("api.auth.gate.Gate.admit", break_down)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get("/tasks")

    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"
