"""The web page as the API serves it: its HTML, its files, and its sessions."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any, Final

import httpx
import pytest

from api.auth.rate_limit import FAILED_AT_ONCE
from api.routes.dashboard import MEDIA_TYPES, POLICY
from taskpool.access import keyring
from taskpool.access.api_key import Scope
from taskpool.redis.store import Store
from tests.api_client import ROOT, api
from tests.keys import ME, id_of, make_key, revoke_key
from tests.states import World

HTML: Final = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGE: Final = {"taskpool-page": "1", "origin": "http://localhost"}
FOLDER: Final = ROOT / "dashboard"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with api(redis_url) as client:
        yield client


def base_of(html: str) -> str:
    """The URL of the folder with the page's files."""
    (base,) = {
        str(each) for each in re.findall(r'(?:src|href)="([^"]+)/(?:app.js|icon.svg|[a-zA-Z]+/[a-zA-Z]+.css)"', html)
    }
    return base


# --- files ----------------------------------------------------------------------------------------------------------


async def test_browsers_get_the_page_and_programs_the_document(client: httpx.AsyncClient) -> None:
    page, document = await client.get("/", headers=HTML), await client.get("/")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert document.headers["content-type"] == "application/json"
    assert "Accept" in page.headers["vary"]
    assert "Accept" in document.headers["vary"]
    assert page.headers["content-security-policy"] == POLICY
    assert re.findall(r"<script(?! type=\"module\" src)|<style| style=| on\w+=|https?://", page.text) == []


@pytest.mark.parametrize(
    "name", [path.relative_to(FOLDER).as_posix() for path in sorted(FOLDER.rglob("*")) if path.suffix in MEDIA_TYPES]
)
async def test_a_file_comes_compressed_once_and_then_not_at_all(name: str, client: httpx.AsyncClient) -> None:
    raw = (FOLDER / name).read_bytes()
    path = f"/{base_of((await client.get('/', headers=HTML)).text)}/{name}"

    plain = await client.get(path, headers={"accept-encoding": "identity"})
    packed = await client.get(path, headers={"accept-encoding": "gzip"})
    again = await client.get(path, headers={"if-none-match": plain.headers["etag"]})
    of_another_release = await client.get(f"/page/0/{name}")

    assert plain.content == packed.content == raw
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(gzip.compress(raw, mtime=0))
    assert (again.status_code, again.content) == (304, b"")
    assert "immutable" in plain.headers["cache-control"]
    assert of_another_release.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "name", ["index.html", "__init__.py", "vendor/README.md", "..%2fapi/app.py", "%2e%2e/x.js", "%00"]
)
async def test_there_are_no_other_files(name: str, client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/page/0/{name}")).status_code == 404


async def test_the_page_is_sent_once_too(client: httpx.AsyncClient) -> None:
    for headers in (HTML, {}):
        etag = (await client.get("/", headers=headers)).headers["etag"]

        assert (await client.get("/", headers={**headers, "if-none-match": etag})).status_code == 304


async def test_below_a_prefix_the_page_finds_its_files(redis_url: str) -> None:
    async with api(redis_url, root_path="/jobs") as client:
        for path in ("/jobs", "/jobs/"):
            base = base_of((await client.get(path, headers=HTML)).text)

            assert base.startswith("/jobs/page/")
            assert (await client.get(f"{base}/app.js")).status_code == 200


def test_no_file_of_ours_makes_html_from_text() -> None:
    ours = [path for path in FOLDER.rglob("*.js") if path.parent.name != "vendor"]

    assert [
        path.name
        for path in ours
        if re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", path.read_text())
    ] == []


# --- sessions -------------------------------------------------------------------------------------------------------


async def sign_in(client: httpx.AsyncClient, key: str, **headers: str) -> httpx.Response:
    return await client.post("/session", json={"key": key}, headers=PAGE | headers)


def cookie_of(answer: httpx.Response) -> Any:
    """The one cookie that an answer sets, with its attributes."""
    (cookie,) = SimpleCookie(answer.headers["set-cookie"]).values()
    return cookie


async def test_a_key_starts_a_session_that_may_do_what_the_key_may(client: httpx.AsyncClient, redis_url: str) -> None:
    key = make_key(redis_url, "ann", Scope.READ, project="shop", queues=["c", "b"])

    before = (await client.get("/session")).json()
    answer = await sign_in(client, key)
    after = (await client.get("/session")).json()

    nobody: dict[str, Any] = {"key": None, "name": None, "scopes": [], "project": None, "types": None, "queues": None}
    assert before == {**nobody, "needs_key": True, "read_only": True}
    assert (answer.status_code, answer.content) == (204, b"")
    ann = {"key": id_of(key), "name": "ann", "scopes": ["tasks:read"], "project": "shop", "queues": ["b", "c"]}
    assert after == {**before, **ann}
    assert (await client.get("/queues")).status_code == 200
    assert (await client.get("/keys")).status_code == 403
    assert (await client.post("/tasks", json={"type": "echo"}, headers=PAGE)).status_code == 403


async def test_without_keys_the_page_may_do_everything(client: httpx.AsyncClient) -> None:
    session = (await client.get("/session")).json()

    assert (session["needs_key"], session["read_only"], session["name"]) == (False, False, None)
    assert (await client.post("/session", json={"key": "none"}, headers=PAGE)).status_code in (204, 401)


@pytest.mark.parametrize(
    ("settings", "url", "cookie_as"),
    [
        ({}, "http://localhost", ("taskpool_session", "/", "")),
        ({"root_path": "/jobs"}, "http://localhost/jobs", ("taskpool_session", "/jobs", "")),
        ({}, "https://localhost", ("__Host-taskpool", "/", True)),
        ({"root_path": "/jobs"}, "https://localhost/jobs", ("taskpool_session", "/jobs", True)),
    ],
)
async def test_a_cookie_has_every_protection(
    redis_url: str, settings: dict[str, Any], url: str, cookie_as: tuple[str, str, object]
) -> None:
    key = make_key(redis_url)
    async with api(redis_url, **settings) as client:
        cookie = cookie_of(await client.post(f"{url}/session", json={"key": key}, headers=PAGE))

    assert (cookie.key, cookie["path"], cookie["secure"]) == cookie_as
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Strict", str(12 * 3600))
    assert cookie["domain"] == ""


async def test_redis_has_neither_the_cookie_nor_the_key(
    client: httpx.AsyncClient, redis_url: str, world: World
) -> None:
    key = make_key(redis_url)

    cookie = cookie_of(await sign_in(client, key)).value

    (name,) = world.redis.scan_iter("taskpool:session:*")
    value = world.redis.get(name)
    assert cookie.encode() not in name + (value or b"")
    assert key.split("_", 2)[2].encode() not in (value or b"")
    assert 0 < world.redis.ttl(name) <= 12 * 3600


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost"},
        {"taskpool-page": "1"},
        {"taskpool-page": "1", "origin": "null"},
        {"taskpool-page": "1", "origin": "http://evil.example"},
        {"taskpool-page": "1", "origin": "http://localhost:8081"},
        {"taskpool-page": "1", "origin": "http://listed.example"},
    ],
)
async def test_no_other_page_changes_anything_with_the_cookie(redis_url: str, headers: dict[str, str]) -> None:
    key = make_key(redis_url, "k", Scope.ADMIN)
    async with api(redis_url, cors_origins=("http://listed.example",)) as client:
        await sign_in(client, key)

        for method, path in [("POST", "/keys"), ("DELETE", "/tasks/x"), ("DELETE", "/session")]:
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 403, (method, path)
        assert (await client.post("/session", json={"key": key}, headers=headers)).status_code == 403
        assert (await client.get("/keys")).status_code == 200


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
)
async def test_other_sites_read_nothing_with_the_cookie(
    client: httpx.AsyncClient, redis_url: str, site: str, status: int
) -> None:
    await sign_in(client, make_key(redis_url))

    for path in ("/queues", "/session"):
        assert (await client.get(path, headers={"sec-fetch-site": site})).status_code == status


async def test_a_session_is_never_the_one_that_a_client_brings(client: httpx.AsyncClient, redis_url: str) -> None:
    brought = "a" * 43
    client.cookies.set("taskpool_session", brought)

    first = cookie_of(await sign_in(client, make_key(redis_url))).value
    client.cookies.clear()
    second = cookie_of(await sign_in(client, make_key(redis_url))).value

    assert len({brought, first, second}) == 3
    client.cookies.clear()
    assert (await client.get("/queues", headers={"cookie": f"taskpool_session={brought}"})).status_code == 401


async def test_signing_in_again_ends_the_session_before(client: httpx.AsyncClient, redis_url: str) -> None:
    first = cookie_of(await sign_in(client, make_key(redis_url))).value
    await sign_in(client, make_key(redis_url, "another"))
    client.cookies.clear()

    assert (await client.get("/queues", headers={"cookie": f"taskpool_session={first}"})).status_code == 401


async def test_two_cookies_are_none(client: httpx.AsyncClient, redis_url: str) -> None:
    """A page of another host name of the same domain can set one, but not read ours."""
    cookie = cookie_of(await sign_in(client, make_key(redis_url))).value
    client.cookies.clear()

    one = await client.get("/queues", headers={"cookie": f"x=1; taskpool_session={cookie}"})
    two = await client.get("/queues", headers={"cookie": f"taskpool_session={cookie}; taskpool_session={'a' * 43}"})

    assert (one.status_code, two.status_code) == (200, 401)


async def test_signing_out_ends_the_session_everywhere(client: httpx.AsyncClient, redis_url: str) -> None:
    cookie = cookie_of(await sign_in(client, make_key(redis_url))).value

    answer = await client.delete("/session", headers=PAGE)

    assert (answer.status_code, cookie_of(answer).value, cookie_of(answer)["max-age"]) == (204, "", "0")
    async with api(redis_url) as other:
        for each in (client, other):
            answer = await each.get("/queues", headers={"cookie": f"taskpool_session={cookie}"})
            assert answer.status_code == 401


@pytest.mark.parametrize("end", ["revoked", "rotated"])
async def test_a_session_ends_with_the_secret_that_started_it(redis_url: str, end: str) -> None:
    key = make_key(redis_url)
    async with api(redis_url) as client:
        cookie = cookie_of(await sign_in(client, key)).value

    if end == "revoked":
        make_key(redis_url, "another")
        revoke_key(redis_url, key)
    else:
        store = Store(redis_url)
        store.carry_out(keyring.rotate(id_of(key), ME, grace_s=0))
        store.close()

    async with api(redis_url) as client:  # which has read neither yet
        answer = await client.get("/queues", headers={"cookie": f"taskpool_session={cookie}"})
        assert answer.status_code == 401


async def test_wrong_keys_are_refused_and_after_many_not_even_looked_up(
    client: httpx.AsyncClient, redis_url: str
) -> None:
    right = make_key(redis_url)
    wrong = right[:-4] + "AAAA"

    answers = [(await sign_in(client, wrong)).status_code for _ in range(FAILED_AT_ONCE + 1)]

    assert set(answers) == {401, 429}
    assert answers[-1] == 429
    assert (await client.get("/session")).status_code == 200
    client.cookies.set("taskpool_session", "a" * 43)
    assert (await client.get("/session")).status_code == 429
    client.cookies.clear()
    assert (await sign_in(client, right)).status_code == 204


async def test_a_cookie_opens_no_socket_and_a_bad_body_nothing(client: httpx.AsyncClient, redis_url: str) -> None:
    make_key(redis_url)

    for body in ({}, {"key": 1}, {"key": "x" * 201}, {"key": "x", "more": 1}):
        assert (await client.post("/session", json=body, headers=PAGE)).status_code == 422
    assert (await sign_in(client, "x")).status_code == 401


async def test_a_full_redis_stores_no_session_but_knows_the_key(
    client: httpx.AsyncClient, redis_url: str, world: World
) -> None:
    key = make_key(redis_url)
    world.redis.config_set("maxmemory", 1)
    try:
        answer = await sign_in(client, key)
    finally:
        world.redis.config_set("maxmemory", 0)

    assert (answer.status_code, answer.json()) == (200, {"is_stored": False})
    assert "set-cookie" not in answer.headers
    with_key = await client.get("/session", headers={"authorization": f"Bearer {key}"})
    assert with_key.json()["name"] == "k"
