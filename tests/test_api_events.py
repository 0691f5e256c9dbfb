"""Server-Sent Events: what a browser's EventSource reads, from where it goes on, and when it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.app import create_app
from api.events import sse
from api.events.sse import Stream
from taskpool.redis import keys, scripts
from taskpool.settings import Settings
from tests.api_client import api, api_process, publish_types
from tests.event_clients import StreamClient
from tests.states import World
from tests.support import PATIENCE_S, eventually, until


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """The application in this process: its transport hands over an answer when it has ended."""
    async with api(redis_url) as client:
        yield client


@pytest.fixture
def served(redis_url: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """An API process and its URL."""
    publish_types(redis_url)
    with api_process(redis_url, tmp_path / "log") as process_and_url:
        yield process_and_url
    assert "Traceback" not in (tmp_path / "log").read_text()


def read(text: str) -> list[tuple[str | None, str, Any]]:
    """The messages of a stream: id, event, data."""
    messages = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            messages.append((fields.get("id"), fields.get("event", "message"), json.loads(fields["data"])))
    return messages


def steps(text: str) -> list[int]:
    return [data["seq"] for _, event, data in read(text) if event == "message"]


async def test_the_stream_of_an_ended_task_is_a_snapshot_and_ends(client: httpx.AsyncClient, world: World) -> None:
    world.end("a")

    answer = await client.get("/tasks/a/events")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert answer.text.startswith("retry: 2000\nid: ")
    ((id, event, task),) = read(answer.text)
    assert (event, task["status"], task["result"], task["seq"]) == ("snapshot", "done", 42, 3)
    assert id == world.redis.xrevrange(keys.EVENTS, count=1)[0][0].decode()


@pytest.mark.parametrize("how", ["header", "query", "both"])
async def test_a_client_that_reconnects_gets_what_it_missed_and_then_204(
    client: httpx.AsyncClient, world: World, how: str
) -> None:
    world.end("a")
    world.end("b")
    ids = [id.decode() for id, _ in world.redis.xrange(keys.EVENTS)]

    async def get(after: str) -> httpx.Response:
        headers = {} if how == "query" else {"last-event-id": after}
        query = {} if how == "header" else {"last_event_id": after if how == "query" else "0-0"}
        return await client.get("/tasks/a/events", headers=headers, params=query)

    since, nothing = await get(ids[0]), await get(ids[2])

    empty = await client.get("/tasks/a/events", params={"last_event_id": ""})
    messages = read(since.text)
    assert [event for _, event, _ in read(empty.text)] == ["snapshot"]
    assert [(id, data["seq"], data["event"]) for id, _, data in messages] == [
        (ids[1], 2, "started"),
        (ids[2], 3, "done"),
    ]
    assert [data["stream"] for _, _, data in messages] == ids[1:3]
    assert (nothing.status_code, nothing.content) == (204, b"")


async def test_events_that_the_stream_no_longer_has_are_reported_with_a_snapshot(
    client: httpx.AsyncClient, world: World
) -> None:
    world.end("a")
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)

    answer = await client.get("/tasks/a/events", headers={"last-event-id": "5-5"})

    (at, resync, lost), (_, snapshot, task) = read(answer.text)
    assert (resync, lost) == ("resync", {"after": at, "reason": "trimmed"})
    assert (snapshot, task["status"]) == ("snapshot", "done")


@pytest.mark.parametrize("path", ["/tasks/a/events", "/events"])
@pytest.mark.parametrize("id", ["x", "1", "1-", "-1-1", "1-1 ", "9" * 40, "1-1-1", "١-١"])
async def test_an_id_that_is_none_is_refused(client: httpx.AsyncClient, world: World, path: str, id: str) -> None:
    world.add("a")

    answers = [await client.get(path, params={"last_event_id": id})]
    if id.isascii() and id == id.strip():
        answers.append(await client.get(path, headers={"last-event-id": id}))

    for answer in answers:
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (400, "urn:taskpool:problem:invalid-event-id")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tasks/missing/events", 404),
        ("/tasks/a*/events", 404),
        ("/events?statsu=done", 400),
        ("/events?status=x", 400),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_wrong_with_a_request_is_a_problem(
    client: httpx.AsyncClient, path: str, status: int, method: str
) -> None:
    answer = await client.request(method, path)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.parametrize("path", ["/tasks/a/events", "/events"])
async def test_head_is_answered_at_once(client: httpx.AsyncClient, world: World, path: str) -> None:
    world.add("a")

    answer = await client.head(path)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")


async def test_a_stream_beyond_the_limit_is_refused_with_a_time_to_come_back(redis_url: str, world: World) -> None:
    world.add("a")
    async with api(redis_url, max_streams=1, rate_limit=600) as client:
        first = asyncio.create_task(client.get("/tasks/a/events"))
        while not world.redis.pubsub_numsub("taskpool:task:a")[0][1]:
            await asyncio.sleep(0.01)

        refusals = [await client.get(path) for path in ("/events", "/tasks/a/events", "/tasks/a/logs?follow=1")]
        world.finish(world.claim())

        for refused in refusals:
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["type"] == "urn:taskpool:problem:too-many-streams"
        assert steps((await first).text) == [2, 3]
        assert (await client.get("/tasks/a/events")).status_code == 200


async def test_a_quiet_stream_sends_keep_alive_comments(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
    world.add("a")
    sent: list[bytes] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        return {}

    app = create_app(Settings(redis_url=redis_url))
    async with app.router.lifespan_context(app), asyncio.timeout(PATIENCE_S):
        scope = {"type": "http", "method": "GET", "path": "/tasks/a/events", "query_string": b"", "headers": []}
        stream = asyncio.create_task(app(scope, receive, send))
        while sent.count(b": keep-alive\n") < 3:
            await asyncio.sleep(0.01)
        world.finish(world.claim())
        await stream

    received = b"".join(sent).decode()
    assert received.startswith("retry: 2000\nid: ")
    assert received.count("\n\n") == received.count("data: ")
    assert steps(received) == [2, 3]


async def test_each_filter_keeps_what_its_name_says(world: World, served: tuple[subprocess.Popen[bytes], str]) -> None:
    filters = ["queue=q", "type=other", "tag=x", "status=canceled", "queue=q&type=other&tag=x&status=canceled"]
    clients = [await StreamClient.follow(served[1], f"/events?{each}") for each in filters]

    world.add("a", queue="q")
    world.add("b", type="other")
    world.add("c", tags=["x"])
    world.cancel("a")
    world.add("z", queue="q", type="other", tags=["x", "y"])
    world.cancel("z")
    await until(lambda: all(("z", 2) in client.steps for client in clients))
    world.redis.xtrim(keys.EVENTS, maxlen=1, approximate=False)
    late = await StreamClient.follow(served[1], "/events?queue=q", after="5-5")
    await until(lambda: late.notices == ["resync"])
    for client in (*clients, late):
        await client.end()

    whole = [("z", 1), ("z", 2)]
    assert [client.steps for client in clients] == [
        [("a", 1), ("a", 2), *whole],
        [("b", 1), *whole],
        [("c", 1), *whole],
        [("a", 2), ("z", 2)],
        [("z", 2)],
    ]


def test_a_stream_of_all_tasks_ends_when_the_server_stops(
    world: World, served: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, url = served
    world.add("old", queue="q")
    received: list[str] = []

    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, client.stream("GET", "/events?queue=q") as stream:
        chunks = stream.iter_text()
        received.append(next(chunks))
        eventually(world.redis.pubsub_numpat)
        world.add("other")
        world.add("new", queue="q")
        world.cancel("old")
        while "canceled" not in "".join(received):
            received.append(next(chunks))
        process.terminate()
        received += list(chunks)  # it ends

    assert [(data["id"], data["event"]) for _, _, data in read("".join(received))] == [
        ("new", "queued"),
        ("old", "canceled"),
    ]
    assert process.wait(PATIENCE_S) == 0


async def test_a_thousand_streams_of_one_process_share_one_subscription_and_each_gets_all_events(
    world: World, served: tuple[subprocess.Popen[bytes], str]
) -> None:
    world.add("a")
    where = urlsplit(served[1])
    begun = 0

    async def follow() -> str:
        nonlocal begun
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"GET /tasks/a/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        head = await reader.readuntil(b"event: snapshot\n")
        begun += 1
        text = head + await reader.read()
        writer.close()
        return text.decode()

    async with asyncio.timeout(PATIENCE_S):
        streams = [asyncio.create_task(follow()) for _ in range(1000)]
        while begun < 1000:
            await asyncio.sleep(0.01)
        running = world.claim()
        for done in range(3):
            world.run(scripts.progress(running, {"done": done}))
        connections = [each for each in world.redis.client_list() if each["name"] == "taskpool-wait"]
        world.finish(running)
        texts = await asyncio.gather(*streams)

    assert len(connections) == 1
    wanted = [f'"seq":{seq}' for seq in range(1, 7)]
    assert all([text.count(each) for each in wanted] == [1] * 6 for text in texts)


async def test_a_client_that_leaves_frees_its_place_before_its_source_is_closed() -> None:
    steps: list[str] = []

    async def texts() -> AsyncGenerator[bytes]:
        try:
            yield b"a"
        finally:
            steps.append("source")

    async def leave() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await Stream(texts(), lambda: steps.append("place"))({"type": "http"}, leave, send)

    assert steps == ["place", "source"]
