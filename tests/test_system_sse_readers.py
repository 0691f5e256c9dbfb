"""Streams of events as other people's readers see them: httpx-sse, the npm package `eventsource`, and a browser.

Each must see exactly the events: none that is empty, none twice, none missing, also when the connection is cut.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import httpx
import httpx_sse
import pytest

from benchmarks.ports import free_port
from taskpool.redis import keys
from taskpool.redis.embedded import RedisServer
from taskpool.redis.scripts import log
from taskpool.tasks.log_lines import LogLine, encode_line
from taskpool.types import DEFAULT_LIMITS
from tests.api_client import ROOT, environment
from tests.chromium import INSTALL, Page, browser, find_chromium
from tests.states import World
from tests.support import PATIENCE_S, eventually

NAMES: Final = ("snapshot", "message", "resync", "gone", "end")
COMMENT: Final = b": keep-alive\n"
NODE: Final = Path(__file__).parent / "eventsource"
ODD: Final = [
    "plain", "", " ", "\u2028", "a\u2029b\x85c", "\ufeff", "\x00", "a\rb", "a\r\nb", "data: x\n\nid: 1\n\n",
    "\x0b\x0c\x1c\x1d", ": comment", "retry: 1", "event: gone", "\u00e9\U0001f600", "\\u2028", "\x7f", "\t", "id: \x00",
]  # fmt: skip
"""Lines of a log that would end a line or a message somewhere, were they sent as they are."""


class Received(NamedTuple):
    """One message as a reader sees it. The last one of an `EventSource` that comes back no more is called "closed"."""

    type: str
    id: str
    data: str


class Reader(Protocol):
    """Something that reads a stream, and comes back when it is cut."""

    def read(self, url: str) -> None:
        """Begin to read."""

    def received(self) -> list[Received]:
        """What it received so far."""


class HttpxSse:
    """httpx-sse, which leaves it to its user to connect again. It ends with the connection, once the stack does."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._is_over = stack, False
        self._received: list[Received] = []

    def read(self, url: str) -> None:
        thread = threading.Thread(target=self._read, args=(url,))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(setattr, self, "_is_over", True)

    def received(self) -> list[Received]:
        return list(self._received)

    def _read(self, url: str) -> None:
        last: dict[str, str] = {}
        while not self._is_over:
            with (
                suppress(httpx.TransportError),
                httpx.Client(timeout=PATIENCE_S) as client,
                httpx_sse.connect_sse(client, "GET", url, headers=last) as source,
            ):
                if source.response.status_code == 204:
                    self._received.append(Received("closed", "", "204"))
                    return
                for message in source.iter_sse():
                    self._received.append(Received(message.event, message.id, message.data))
                    last = {"Last-Event-ID": message.id}


class Npm:
    """The npm package `eventsource`, in Node. It ends with the stack."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._received: list[Received] = []

    def read(self, url: str) -> None:
        process = subprocess.Popen(
            ["node", "read.js", url, *NAMES], cwd=self._folder, stdout=subprocess.PIPE, text=True
        )
        thread = threading.Thread(target=self._read, args=(process,))
        thread.start()
        for end in (thread.join, process.wait, process.kill):
            self._stack.callback(end)

    def received(self) -> list[Received]:
        return list(self._received)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            self._received += (Received(**json.loads(line)) for line in process.stdout)


class Browser:
    """The `EventSource` of a page that the API serves."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def read(self, url: str) -> None:
        origin = "/".join(url.split("/")[:3])
        self._page.open(f"{origin}/docs")
        self._page.run(
            f"""
            window.received = [];
            const source = new EventSource({json.dumps(url)});
            for (const name of {json.dumps(NAMES)}) source.addEventListener(
                name, ({{ type, lastEventId, data }}) => received.push([type, lastEventId, data]));
            source.onerror = () => source.readyState === EventSource.CLOSED && received.push(["closed", "", "204"]);
            0
            """
        )

    def received(self) -> list[Received]:
        return [Received(*each) for each in self._page.run("received")]


def install_npm(folder: Path) -> Callable[[ExitStack], Reader]:
    """Makes readers of the npm package, which is put into `folder`."""
    if not shutil.which("npm"):
        pytest.skip("npm isn't installed; on Debian: apt-get install nodejs npm")
    shutil.copytree(NODE, folder)
    made = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"the npm package `eventsource` can't be had here: {made.stderr.strip()[-300:]}")
    return lambda stack: Npm(folder, stack)


class Tap:
    """Passes connections on to an API. It counts the comments that come through, and can cut all connections."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.comments = 0
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """End all connections."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in self._open:
            each.close()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self._upstream))
                self._open += [client, upstream]
                self._start(self._pass_on, client, upstream)
                self._start(self._pass_on, upstream, client)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self.comments += piece.count(COMMENT)
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def port(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an API that sends a comment every 50 ms."""
    port, text = free_port(), tmp_path_factory.mktemp("api") / "log"
    variables = {"TASKPOOL_PORT": str(port), "TASKPOOL_AUTH": "off"}
    with text.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.impatient_api", "300"],
            env=environment(redis_server.url, **variables),
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )

    def answers() -> bool:
        assert process.poll() is None, text.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(answers)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def tap(port: int) -> Iterator[Tap]:
    """The way to the API."""
    tap = Tap(port)
    yield tap
    tap.close()


@pytest.fixture(scope="module", params=["httpx-sse", "eventsource of npm", "browser"])
def make_reader(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[ExitStack], Reader]]:
    """What makes a reader, of each kind in turn."""
    folder = tmp_path_factory.mktemp("reader") / "files"
    if request.param == "httpx-sse":
        yield HttpxSse
    elif request.param == "eventsource of npm":
        yield install_npm(folder)
    elif not find_chromium():
        pytest.skip(f"Chromium isn't installed; {INSTALL}")
    else:
        with browser(folder) as page:
            yield lambda stack: Browser(page)


@pytest.fixture
def reader(make_reader: Callable[[ExitStack], Reader]) -> Iterator[Reader]:
    with ExitStack() as stack:
        yield make_reader(stack)


def await_comments(tap: Tap) -> None:
    """Let three comments pass."""
    seen = tap.comments
    eventually(lambda: tap.comments >= seen + 3)


def test_a_reader_sees_the_events_and_nothing_else(reader: Reader, tap: Tap, world: World) -> None:
    world.add("a")
    reader.read(f"{tap.url}/tasks/a/events")
    eventually(reader.received)
    await_comments(tap)
    running = world.claim()
    eventually(lambda: len(reader.received()) == 2)
    await_comments(tap)

    tap.cut()
    await_comments(tap)
    world.finish(running)
    eventually(lambda: reader.received()[-1].type == "closed")

    *received, _ = reader.received()
    ids = [id.decode() for id, _ in world.redis.xrange(keys.EVENTS)]
    assert [(each.type, each.id) for each in received] == list(
        zip(["snapshot", "message", "message"], ids, strict=True)
    )
    assert [json.loads(each.data)["seq"] for each in received] == [1, 2, 3]


def test_a_reader_of_all_events_sees_none_before_the_first(reader: Reader, tap: Tap, world: World) -> None:
    reader.read(f"{tap.url}/events")
    await_comments(tap)
    assert reader.received() == []

    world.end("a")
    eventually(lambda: len(reader.received()) == 3)
    await_comments(tap)

    assert [(each.type, json.loads(each.data)["seq"]) for each in reader.received()] == [
        ("message", n) for n in (1, 2, 3)
    ]


def test_a_reader_of_a_log_sees_its_lines_as_they_are(reader: Reader, tap: Tap, world: World) -> None:
    world.add("a")
    running = world.claim()
    reader.read(f"{tap.url}/tasks/a/logs?follow=1&format=events")
    await_comments(tap)

    lines = [encode_line(LogLine(at_ms=1_795_435_200_123, text=text, attempt=1)) for text in ODD]
    assert world.run(log("a", running.attempt_id, lines, DEFAULT_LIMITS)) == "ok"
    eventually(lambda: len(reader.received()) == len(ODD))
    tap.cut()
    await_comments(tap)
    world.finish(running)
    eventually(lambda: reader.received()[-1].type == "closed")

    *received, end, _ = reader.received()
    assert [json.loads(each.data)["text"] for each in received] == ODD
    assert {each.type for each in received} == {"message"}
    assert len({each.id for each in received}) == len(ODD)
    assert (end.type, json.loads(end.data)) == ("end", {"status": "done"})
