"""The API below a path prefix: whatever it tells clients to ask for next has the prefix that they use."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from api.app import create_app
from taskpool import Client
from taskpool.access.api_key import Scope
from taskpool.errors import ConfigurationError
from taskpool.settings import Settings
from taskpool.validation import path_prefix
from tests.api_client import api_process, publish_types
from tests.instances import taskpool
from tests.keys import bearer, make_key
from tests.states import World

ECHO = {"type": "echo", "payload": {"message": "hi"}}
PROXY = ("127.0.0.1", 1)
STRANGER = ("192.0.2.9", 1)
BAD_PREFIXES = [
    "//evil.example", "/a//b", "/a/../b", "/..", "/.", "/./a", "https://evil.example/a", "evil", "a/b", "/a?b", "/a#b",
    "/a b", "/a%2e%2e", "/a\\b", "/a;b", "/a,/b", "/\u00e9", "/a\x00", "/a\r\nx-evil: 1", "/a\n", "javascript:alert(1)",
    "/<script>", '/">', "/" + "a" * 255,
]  # fmt: skip


@asynccontextmanager
async def api_for(redis_url: str, peer: tuple[str, int] = PROXY, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client at this address of an application with these settings, which needs no key."""
    app = create_app(Settings(redis_url=redis_url, auth="off", **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=peer)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def every_path(client: httpx.AsyncClient, world: World, base: str = "", **headers: str) -> dict[str, str]:
    """Every path or URL that the API emits, by where; `base` stands before the paths that are asked for."""
    world.add("unique", unique_key="u")
    world.end("ended")
    for name in ("x", "y"):
        world.add(name)
    found: dict[str, str] = {}

    async def ask(method: str, path: str, **how: Any) -> httpx.Response:
        answer = await client.request(method, base + path, headers=headers, **how)
        for name in ("location", "link", "content-location"):
            if name in answer.headers:
                value = answer.headers[name]
                found[f"{method} {path} {name}"] = re.sub(r"^<([^>?]*)[^>]*>; rel=.*$", r"\1", value)
        return answer

    index = (await ask("GET", "/")).json()["links"]
    found.update({f"link {name}": path for name, path in index.items()})
    await ask("POST", "/tasks", json=ECHO)
    held = await ask("POST", "/tasks", json={**ECHO, "unique_key": "u"})
    found["task"] = held.json()["task"]
    in_batch = await ask("POST", "/tasks/batch", json={"tasks": [{**ECHO, "unique_key": "u"}]})
    found["task in a batch"] = in_batch.json()["task"]
    await ask("GET", "/tasks?limit=1")
    await ask("GET", "/queues/default?limit=1")
    await ask("POST", "/keys", json={"name": "k", "scopes": ["admin"]})
    await ask("GET", "/audit?limit=1")
    hook = (await ask("POST", "/webhooks", json={"url": "https://a.example/"})).json()["id"]
    for _ in range(2):
        await ask("POST", f"/webhooks/{hook}/test")
    await ask("GET", f"/webhooks/{hook}/deliveries?limit=1")
    found["openapi"] = (await ask("GET", "/openapi.json")).json()["servers"][0]["url"].rstrip("/") + "/"
    found["asyncapi"] = (await ask("GET", "/asyncapi.json")).json()["servers"]["this"].get("pathname", "") + "/"
    return found


@pytest.mark.parametrize("base", ["", "/jobs"], ids=["the proxy strips it", "the proxy leaves it"])
@pytest.mark.parametrize("how", ["setting", "header"])
async def test_every_path_in_an_answer_has_the_prefix(world: World, redis_url: str, base: str, how: str) -> None:
    publish_types(redis_url)
    settings: dict[str, Any] = {"root_path": "/jobs"} if how == "setting" else {"trusted_proxies": ("127.0.0.1",)}
    headers = {} if how == "setting" else {"x-forwarded-prefix": "/jobs"}

    async with api_for(redis_url, **settings) as client:
        found = await every_path(client, world, base, **headers)

    assert len(found) > 25
    assert {where: path for where, path in found.items() if not path.startswith("/jobs/")} == {}
    assert not [path for path in found.values() if "/jobs/jobs" in path]


async def test_without_a_prefix_the_paths_are_plain(world: World, redis_url: str) -> None:
    publish_types(redis_url)
    async with api_for(redis_url) as client:
        found = await every_path(client, world)

    assert not [path for path in found.values() if not path.startswith("/") or "jobs" in path]


async def test_what_stands_in_the_way_of_a_removal_has_the_prefix(world: World, redis_url: str) -> None:
    world.add("a")
    world.claim()
    async with api_for(redis_url, root_path="/jobs") as client:
        refused = (await client.delete("/tasks/a")).json()

        assert refused["stop"] == "/jobs/tasks/a/stop"
        assert (await client.post(refused["stop"])).status_code == 202


async def test_a_log_links_to_its_next_page(world: World, redis_url: str) -> None:
    world.add("a")
    async with api_for(redis_url, root_path="/jobs") as client:
        for how in ({}, {"accept": "text/plain"}):
            page = await client.get("/tasks/a/logs?limit=5", headers=how)

            assert page.headers["link"].startswith("</jobs/tasks/a/logs?cursor=")
            assert (await client.get(page.links["next"]["url"])).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs/tasks", 200), ("/tasks", 200), ("/jobs/", 200), ("/jobs", 200), ("/", 200), ("/jobs/docs", 200),
        ("/jobsx/tasks", 404), ("/jobs/jobs/tasks", 404), ("/other/tasks", 404), ("/jobs//tasks", 404),
        ("/jobs/x", 404),
        ("/jobs/livez", 200), ("/livez", 200), ("/jobs/tasks/", 404),
    ],
)  # fmt: skip
async def test_paths_are_found_with_the_prefix_and_without(redis_url: str, path: str, status: int) -> None:
    async with api_for(redis_url, root_path="/jobs") as client:
        assert (await client.get(path)).status_code == status


async def test_a_prefix_that_begins_as_a_path_of_the_api_is_for_the_proxy_to_strip(redis_url: str) -> None:
    publish_types(redis_url)
    async with api_for(redis_url, root_path="/tasks") as client:
        made = await client.post("/tasks", json=ECHO)
        batch = await client.post("/tasks/batch", json={"tasks": [ECHO]})

    assert (made.status_code, batch.status_code) == (202, 202)
    assert made.headers["location"] == f"/tasks/tasks/{made.json()['id']}"


@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)])
async def test_the_prefix_of_a_peer_that_isnt_trusted_is_ignored(redis_url: str, trusted: tuple[str, ...]) -> None:
    publish_types(redis_url)
    headers = {"x-forwarded-prefix": "/evil"}
    async with api_for(redis_url, STRANGER, trusted_proxies=trusted) as client:
        made = await client.post("/tasks", json=ECHO, headers=headers)

        assert made.headers["location"] == f"/tasks/{made.json()['id']}"
        assert (await client.get("/evil/tasks", headers=headers)).status_code == 404
        assert "evil" not in (await client.get("/", headers=headers)).text
        assert "evil" not in (await client.get("/openapi.json", headers=headers)).text


async def test_a_trusted_peer_isnt_known_by_what_it_forwards(redis_url: str) -> None:
    publish_types(redis_url)
    headers = {"x-forwarded-prefix": "/jobs", "x-forwarded-for": "127.0.0.1"}
    async with api_for(redis_url, STRANGER, trusted_proxies=("127.0.0.1",)) as client:
        assert (await client.get("/", headers=headers)).json()["links"]["tasks"] == "/tasks"
    async with api_for(redis_url, PROXY, trusted_proxies=("127.0.0.1",)) as client:
        headers["x-forwarded-for"] = "203.0.113.7"
        assert (await client.get("/", headers=headers)).json()["links"]["tasks"] == "/jobs/tasks"


async def test_what_a_proxy_says_goes_before_the_setting(redis_url: str) -> None:
    async with api_for(redis_url, root_path="/set", trusted_proxies=("127.0.0.1",)) as client:
        said = [{}, *({"x-forwarded-prefix": prefix} for prefix in ("/said", "/said/", "/"))]
        answers = [await client.get("/", headers=headers) for headers in said]

    links = [answer.json()["links"]["tasks"] for answer in answers]
    assert links == ["/set/tasks", "/said/tasks", "/said/tasks", "/tasks"]


@pytest.mark.parametrize("prefix", BAD_PREFIXES)
async def test_a_hostile_prefix_is_never_shown(redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    publish_types(redis_url)
    headers = [(b"x-forwarded-prefix", prefix.encode())]
    async with api_for(redis_url, root_path="/set", trusted_proxies=("127.0.0.1",)) as client:
        made = await client.post("/tasks", json=ECHO, headers=headers)
        index = await client.get("/", headers=headers)

    assert made.headers["location"] == f"/set/tasks/{made.json()['id']}"
    assert index.json()["links"]["tasks"] == "/set/tasks"
    (said,) = [record.getMessage() for record in caplog.records if record.name == "api"]
    assert "X-Forwarded-Prefix" in said
    assert said.isprintable()


async def test_a_prefix_that_comes_twice_is_ignored(redis_url: str) -> None:
    async with api_for(redis_url, trusted_proxies=("127.0.0.1",)) as client:
        headers = [("x-forwarded-prefix", "/a"), ("x-forwarded-prefix", "/b")]

        assert (await client.get("/", headers=headers)).json()["links"]["tasks"] == "/tasks"


@given(st.text(max_size=300))
def test_a_prefix_is_a_plain_path_or_refused(text: str) -> None:
    try:
        prefix = path_prefix(text)
    except ValueError:
        return

    assert re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", prefix)
    assert not {".", ".."} & set(prefix.split("/"))
    assert len(prefix) <= 255


@pytest.mark.parametrize("text", [text for text in BAD_PREFIXES if text == text.strip()])
def test_a_setting_that_is_no_prefix_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load({"TASKPOOL_ROOT_PATH": text})

    assert str(refused.value).startswith("TASKPOOL_ROOT_PATH: ")
    assert "is not a path like /jobs" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "prefix"), [("/jobs", "/jobs"), ("/a/b.c/", "/a/b.c"), ("/", ""), ("", "")])
def test_a_setting_loses_the_slash_at_its_end(text: str, prefix: str) -> None:
    assert Settings.load({"TASKPOOL_ROOT_PATH": text}).root_path == prefix
    assert Settings.load({}, root_path=text).root_path == prefix


async def test_an_application_mounted_below_a_path_names_it(redis_url: str) -> None:
    publish_types(redis_url)
    inner = create_app(Settings(redis_url=redis_url, auth="off", root_path="/outer"))
    app = Starlette(routes=[Mount("/inner", inner)])
    async with inner.router.lifespan_context(inner):
        transport = httpx.ASGITransport(app, client=PROXY)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            made = await client.post("/inner/tasks", json=ECHO)

            assert made.headers["location"] == f"/outer/inner/tasks/{made.json()['id']}"


def test_clients_and_commands_work_below_a_prefix(redis_url: str, tmp_path: Path) -> None:
    admin = make_key(redis_url, "a", Scope.ADMIN)
    publish_types(redis_url)
    with api_process(redis_url, tmp_path / "log", TASKPOOL_ROOT_PATH="/jobs") as (_, url):
        base = url + "/jobs"
        with Client(base + "/", admin) as client:
            made = client.add_task("echo", {"message": "hi"})
            assert client.get(made.id).status == "queued"
            assert next(client.events(made.id)).event == "snapshot"
        shown = taskpool(tmp_path, "get", made.id, "--server", base, "--json", TASKPOOL_API_KEY=admin)
        answer = httpx.post(base + "/tasks", json=ECHO, headers=bearer(admin))
        read = httpx.get(httpx.URL(base + "/tasks").join(answer.headers["location"]), headers=bearer(admin))

    assert json.loads(shown.stdout)["id"] == made.id
    assert read.json()["id"] == answer.json()["id"]


def test_sockets_and_streams_are_found_with_the_prefix_and_without(redis_url: str, tmp_path: Path) -> None:
    variables = {"TASKPOOL_TRUSTED_PROXIES": "127.0.0.1", "TASKPOOL_AUTH": "off"}
    forwarded = {"x-forwarded-prefix": "/jobs"}
    with api_process(redis_url, tmp_path / "log", **variables) as (_, url):
        for base in (url, url + "/jobs"):
            with connect(base.replace("http", "ws") + "/ws", additional_headers=forwarded, proxy=None) as socket:
                socket.send('{"op": "ping", "nonce": "1"}')
                assert json.loads(socket.recv(10)) == {"op": "pong", "nonce": "1"}
            with httpx.stream("GET", base + "/events", headers=forwarded) as stream:
                assert next(stream.iter_lines()) == "retry: 2000"
        with pytest.raises(InvalidStatus), connect(url.replace("http", "ws") + "/jobs/ws", proxy=None):
            pass


@pytest.mark.parametrize("root_path", ["/jobs/", "jobs"])
async def test_settings_that_werent_read_are_checked_too(redis_url: str, root_path: str) -> None:
    settings = Settings(redis_url=redis_url, root_path=root_path)
    if root_path == "jobs":
        with pytest.raises(ConfigurationError, match="TASKPOOL_ROOT_PATH: 'jobs' is not a path"):
            create_app(settings)
    else:
        async with api_for(redis_url, root_path=root_path) as client:
            assert (await client.get("/")).json()["links"]["tasks"] == "/jobs/tasks"


def test_an_api_with_a_wrong_prefix_doesnt_start(tmp_path: Path) -> None:
    said = taskpool(tmp_path, "api", "--root-path", "jobs", "--redis-url", "redis://127.0.0.1:1")

    assert said.returncode == 2
    assert "--root-path: 'jobs' is not a path like /jobs" in said.stderr
