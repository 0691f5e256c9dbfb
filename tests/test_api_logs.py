"""GET /tasks/{id}/logs: pages and text; following it until the task has ended, the client leaves, the server stops."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from api.events.client_queue import ClientQueue
from api.events.sse import RETRY, log_texts
from taskpool import TaskPool
from taskpool.operations.waiting import LogStep
from taskpool.redis.embedded import RedisServer
from taskpool.redis.scripts import log
from taskpool.tasks.attempt import Outcome
from taskpool.tasks.log_lines import LogLine, encode_line
from taskpool.types import DEFAULT_LIMITS, RunningTask, TaskStatus
from tests.api_client import api, api_process, publish_types
from tests.support import PATIENCE_S, eventually

pytestmark = pytest.mark.anyio


class Writer:
    """A task that runs, and writes what the test says."""

    def __init__(self, redis_url: str) -> None:
        publish_types(redis_url)
        self.pool = TaskPool(redis_url)
        self.id = self.pool.add_task("echo", {"message": "hi"}).id
        running = self.pool.run_task(["default"], worker="w", attempt_id="1")
        assert running is not None
        self.running: RunningTask = running

    def write(self, *texts: str, **more: Any) -> None:
        lines = [encode_line(LogLine(at_ms=1_795_435_200_123, text=text, attempt=1, **more)) for text in texts]
        assert self.pool.store.run(log(self.id, "1", lines, DEFAULT_LIMITS)) == "ok"

    def end(self) -> None:
        assert self.pool.update_status(self.running, Outcome(TaskStatus.DONE, result=b"1")) == "ok"


@pytest.fixture
def writer(redis_url: str) -> Iterator[Writer]:
    writer = Writer(redis_url)
    yield writer
    writer.pool.close()


async def test_a_log_comes_in_pages_until_the_task_has_ended(redis_url: str, writer: Writer) -> None:
    writer.write("one", "two", stream="stdout")
    writer.write("three", stream="logging", level="info", logger="app")

    async with api(redis_url) as client:
        first = await client.get(f"/tasks/{writer.id}/logs", params={"limit": 2})
        second = await client.get(first.links["next"]["url"])
        third = await client.get(second.links["next"]["url"])
        writer.write("four")
        writer.end()
        last = await client.get(third.links["next"]["url"])

    line = {"at": "2026-11-23T12:00:00.123Z", "attempt": 1, "stream": "stdout", "text": "one"}
    assert first.json()["lines"] == [line, {**line, "text": "two"}]
    assert second.json()["lines"] == [{**line, "stream": "logging", "level": "info", "logger": "app", "text": "three"}]
    assert third.json()["lines"] == []
    assert [entry["text"] for entry in last.json()["lines"]] == ["four"]
    assert "next_cursor" not in last.json()
    assert "link" not in last.headers


@pytest.mark.parametrize(
    ("parameters", "headers"), [({"format": "text"}, {}), ({}, {"accept": "text/plain"})], ids=["format", "accept"]
)
async def test_text_is_as_it_was_written(
    redis_url: str, writer: Writer, parameters: dict[str, str], headers: dict[str, str]
) -> None:
    writer.write("\x1b[31mré\x1b[0m", stream="stdout")
    writer.write("a long ", continues=True)
    writer.write("line", *map(str, range(3000)))

    async with api(redis_url) as client:
        answer = await client.get(f"/tasks/{writer.id}/logs", params=parameters, headers=headers)
        page = await client.get(f"/tasks/{writer.id}/logs", params={"format": "text", "limit": 1})
        following = await client.get(page.links["next"]["url"])

    numbers = "".join(f"{n}\n" for n in range(3000))
    assert answer.text == "\x1b[31mré\x1b[0m\na long line\n" + numbers
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (page.text, following.text) == ("\x1b[31mré\x1b[0m\n", "a long ")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("cursor=x", "not a cursor of this listing"),
        ("cursor=WyI5OTk5OTk5OTk5OTk5OTk5OTk5OTktMCJd", "not a cursor of this listing"),
        ("format=xml", "no such word; known: json, text, events"),
        ("format=jsn", "did you mean 'json'?"),
        ("format=events", "add follow=1"),
        ("follow=1&format=json", "comes as text or as events"),
        ("follow=1&limit=3", "has no pages"),
        ("follow=perhaps", "must be true or false"),
        ("fellow=1", "did you mean 'follow'?"),
    ],
)
async def test_a_wrong_query_is_refused_with_the_reason(redis_url: str, writer: Writer, query: str, says: str) -> None:
    async with api(redis_url) as client:
        answer = await client.get(f"/tasks/{writer.id}/logs?{query}")

    assert (answer.status_code, answer.json()["type"]) == (400, "urn:taskpool:problem:invalid-query")
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("query", ["", "?format=text", "?follow=1", "?follow=1&format=events"])
async def test_an_unknown_task_is_a_404(redis_url: str, query: str) -> None:
    async with api(redis_url) as client:
        answer = await client.get(f"/tasks/nothing/logs{query}")

    assert (answer.status_code, answer.json()["type"]) == (404, "urn:taskpool:problem:task-not-found")


async def test_head_of_a_log_that_is_followed_does_not_wait(redis_url: str, writer: Writer) -> None:
    async with api(redis_url) as client:
        answer = await client.head(f"/tasks/{writer.id}/logs?follow=1")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log") as (_, url):
        yield url


def test_a_follower_reads_every_line_as_it_comes_and_then_the_end(served: str, writer: Writer) -> None:
    writer.write("before")
    seen = []

    with httpx.stream("GET", f"{served}/tasks/{writer.id}/logs?follow=1", timeout=PATIENCE_S) as answer:
        for number, line in enumerate(answer.iter_lines()):
            seen.append(line)
            if number < 3:
                writer.write(f"line {number}")
            else:
                writer.end()

    assert seen == ["before", "line 0", "line 1", "line 2"]


async def test_events_go_on_where_a_client_was_and_end(served: str, redis_url: str, writer: Writer) -> None:
    writer.write("one", "two")
    path, accept = f"/tasks/{writer.id}/logs?follow=1", {"accept": "text/event-stream"}
    ids: list[str] = []
    with httpx.stream("GET", served + path, headers=accept, timeout=PATIENCE_S) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for line in answer.iter_lines():
            ids += [line[4:]] if line.startswith("id: ") else []
            if ids:
                break

    writer.write("three")
    writer.end()
    async with api(redis_url) as client:
        rest = (await client.get(path, headers={**accept, "last-event-id": ids[0]})).text
        messages = [dict(line.split(": ", 1) for line in part.split("\n")) for part in rest.strip().split("\n\n")]
        again = await client.get(path, headers={**accept, "last-event-id": messages[-1]["id"]})

    assert [json.loads(message["data"])["text"] for message in messages[:-1]] == ["two", "three"]
    assert (messages[-1]["event"], messages[-1]["data"]) == ("end", '{"status":"done"}')
    assert again.status_code == 204


def test_a_client_that_left_leaves_no_subscription(served: str, writer: Writer, redis: Redis) -> None:
    channel = f"taskpool:task:{writer.id}"
    writer.write("one")

    with httpx.stream("GET", f"{served}/tasks/{writer.id}/logs?follow=1", timeout=PATIENCE_S) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "one"
        assert redis.pubsub_numsub(channel) == [(channel.encode(), 1)]

    eventually(lambda: redis.pubsub_numsub(channel) == [(channel.encode(), 0)])


def test_followers_share_the_connections_to_redis(served: str, writer: Writer, redis: Redis) -> None:
    writer.write("one")
    url = f"{served}/tasks/{writer.id}/logs?follow=1"
    with httpx.stream("GET", url, timeout=PATIENCE_S) as first:
        lines = [first.iter_lines()]
        assert next(lines[0]) == "one"
        before = len(redis.client_list())

        with ExitStack() as stack:
            for _ in range(20):
                answer = stack.enter_context(httpx.stream("GET", url, timeout=PATIENCE_S))
                lines.append(answer.iter_lines())
                assert next(lines[-1]) == "one"
            after = len(redis.client_list())
            writer.write("two")
            assert [next(each) for each in lines] == ["two"] * 21
            writer.end()
            assert [list(each) for each in lines] == [[]] * 21

    assert after == before


def test_a_server_that_stops_ends_a_log_in_order(redis_url: str, writer: Writer, tmp_path: Path) -> None:
    writer.write("one")

    with (
        api_process(redis_url, tmp_path / "log") as (process, url),
        httpx.stream("GET", f"{url}/tasks/{writer.id}/logs?follow=1", timeout=PATIENCE_S) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == "one"
        process.send_signal(signal.SIGTERM)
        assert list(lines) == []
        assert process.wait(PATIENCE_S) == 0


def test_a_log_goes_on_after_an_outage_of_redis(tmp_path: Path, redis_binary: str | None) -> None:
    server = RedisServer(tmp_path, binary=redis_binary, config={"appendonly": "yes", "appendfsync": "always"})
    server.start()
    try:
        writer = Writer(server.url)
        writer.write("one")
        with (
            api_process(server.url, tmp_path / "log") as (_, url),
            httpx.stream("GET", f"{url}/tasks/{writer.id}/logs?follow=1", timeout=PATIENCE_S) as answer,
        ):
            lines = answer.iter_lines()
            assert next(lines) == "one"
            server.kill()
            server.start()
            writer.pool.close()  # a write isn't sent twice, so not into a dead connection
            writer.write("two")
            writer.end()
            assert list(lines) == ["two"]
        writer.pool.close()
    finally:
        server.stop()


async def test_a_followed_log_ends_with_its_queue_while_redis_does_not_answer() -> None:
    closed = asyncio.Event()

    async def steps() -> AsyncGenerator[LogStep]:
        try:
            await asyncio.Event().wait()
            yield step
        finally:
            closed.set()

    step = LogStep((), "0-0", TaskStatus.IN_PROGRESS, is_full=False)
    queue = ClientQueue(on_slow=lambda *_: None)
    texts = log_texts(step, steps(), as_events=True, queue=queue)
    first = await anext(texts)
    asyncio.get_running_loop().call_later(0.01, queue.end, "shutdown")

    async with asyncio.timeout(PATIENCE_S):
        assert [first, *[text async for text in texts]] == [RETRY]
    assert closed.is_set()
