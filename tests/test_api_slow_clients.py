"""Clients that take events slowly or not at all: they get a resync or are cut off, and others aren't delayed."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.app import create_app
from api.auth.caller import SCOPE_KEY, anonymous
from api.events.websocket import serve_socket
from taskpool.redis import scripts
from taskpool.settings import Settings
from taskpool.types import RunningTask
from tests.api_client import api_process
from tests.event_clients import StreamClient
from tests.listeners import Listener
from tests.states import World
from tests.support import PATIENCE_S, eventually, until

EVENTS = 2500
NOTE = "x" * 8000
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n"
)
IMPATIENT = {"TASKPOOL_WRITE_TIMEOUT_S": "1", "TASKPOOL_MAX_STREAMS": "1"}


@contextmanager
def small_socket(url: str) -> Iterator[socket.socket]:
    """A connection whose end here has little room for what isn't read."""
    where = urlsplit(url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_S)
        client.connect((where.hostname, where.port))
        yield client


def report(world: World, running: RunningTask, first: int, last: int) -> None:
    """Many large steps of a task."""
    for start in range(first, last, 50):
        documents = [{"done": start + n, "note": NOTE} for n in range(50)]
        world.store.run_many([scripts.progress(running, document) for document in documents])


async def test_a_stream_that_is_not_read_ends_with_the_id_to_continue_from_and_delays_no_other(
    redis_url: str, world: World, tmp_path: Path
) -> None:
    running = world.start("a")
    request = b"GET /tasks/a/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with api_process(redis_url, tmp_path / "log") as (_, url), small_socket(url) as client:
        client.sendall(request)
        assert client.recv(16).startswith(b"HTTP/1.1 200")
        quick = await StreamClient.follow(url, "/tasks/a/events")
        await until(lambda: "snapshot" in quick.notices)

        await asyncio.to_thread(report, world, running, 0, EVENTS)
        await until(lambda: len(quick.steps) == EVENTS)
        received = b"".join(await asyncio.to_thread(lambda: list(iter(lambda: client.recv(1 << 20), b""))))
        *_, before, last, _ = received.decode().split("\n\n")
        resync = dict(line.split(": ", 1) for line in last.splitlines() if ": " in line)
        after = json.loads(resync["data"])["after"]
        again = await StreamClient.follow(url, "/tasks/a/events", after=after)
        world.finish(running)
        await until(lambda: again.reading is not None and again.reading.done() and len(quick.steps) == EVENTS + 1)

    assert resync["event"] == "resync"
    assert json.loads(resync["data"])["reason"] == "slow"
    assert resync["id"] == after
    assert f"id: {after}\n" in before + "\n"
    assert received.count(b'"event":"progress"') + len(again.steps) == len(quick.steps)
    assert again.of("a")[-1] == quick.of("a")[-1] == EVENTS + 3
    assert "resync" not in quick.notices


@pytest.mark.parametrize("kind", ["stream", "socket"])
def test_one_that_reads_nothing_at_all_is_cut_and_its_place_is_free(
    redis_url: str, world: World, tmp_path: Path, kind: str
) -> None:
    running = world.start("a")

    def may_come() -> bool:
        with httpx.stream("GET", url + "/events") as answer:
            return answer.status_code == 200

    with api_process(redis_url, tmp_path / "log", **IMPATIENT) as (process, url), small_socket(url) as client:
        if kind == "stream":
            client.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert client.recv(16).startswith(b"HTTP/1.1 200")
        else:
            client.sendall(HANDSHAKE)
            assert client.recv(65536).startswith(b"HTTP/1.1 101")
            text = json.dumps({"op": "subscribe", "sub": "s", "task": "a"}).encode()
            client.sendall(bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text)  # masked, as RFC 6455 wants it
        eventually(lambda: world.redis.pubsub_numpat() + world.redis.pubsub_numsub("taskpool:task:a")[0][1])
        assert not may_come()
        report(world, running, 0, EVENTS)

        eventually(may_come)
        eventually(lambda: ends(client))
        assert process.poll() is None
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_a_socket_that_does_not_read_is_not_heard_when_it_asks_for_more_and_more(
    redis_url: str, world: World
) -> None:
    for n in range(100):
        world.add(f"t{n}")
    asked, received, reads = 0, 0, asyncio.Event()
    leaves = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked > 50:
            await leaves.wait()
            return {"type": "websocket.disconnect"}
        asked += 1
        text = json.dumps({"op": "subscribe", "sub": str(asked), "filter": {}})
        return {"type": "websocket.receive", "text": text}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal received
        if message["type"] == "websocket.send":
            await reads.wait()
            received += message["text"].startswith('{"op":"snapshot"')

    app = create_app(Settings(redis_url=redis_url))
    async with app.router.lifespan_context(app):
        scope = {"type": "websocket", SCOPE_KEY: anonymous("")}
        serving = asyncio.create_task(serve_socket(app.state.streams, scope, receive, send))
        await until(lambda: asked > 3)
        everybody = Listener(app.state.streams.hub)
        await everybody.open()
        await everybody.until(lambda each: "live" in each.received)
        asked_unread = asked
        reads.set()
        await until(lambda: received == 51)
        leaves.set()
        await serving

    assert asked_unread < 10


def ends(client: socket.socket) -> bool:
    """Whether the other side has reset it, whatever is still to be read."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7  # TCP_CLOSE
