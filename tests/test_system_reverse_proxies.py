"""The API behind nginx, Caddy and HAProxy, as deploy/proxy configures them: at the root of a host, and below a path.

The proxies' time limits and the API's own times are a 15th of what they are in use. See `reverse_proxies`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from websockets.asyncio.client import connect
from websockets.typing import Origin

from benchmarks.ports import free_port
from taskpool.client.async_client import AsyncClient
from taskpool.client.client import Client
from taskpool.redis.embedded import RedisServer
from tests.api_client import ROOT, environment, publish_types
from tests.chromium import INSTALL as INSTALL_CHROMIUM
from tests.chromium import browser, find_chromium
from tests.reverse_proxies import NAMES, PREFIX, PREFIX_HOST, PROXIES, ROOT_HOST, Place, find, running
from tests.states import World
from tests.support import PATIENCE_S, eventually, until
from tests.tls import certificate

ECHO = {"type": "echo", "payload": {"message": "hi"}}
BASES = {"root": (ROOT_HOST, ""), "prefix": (PREFIX_HOST, PREFIX)}
INSTALL = "on Debian: apt-get install nginx-light caddy haproxy"
COMMENTS = 6
"""So many comments of a stream, one each second, take longer than the 5 s after which a proxy gives up."""

pytestmark = pytest.mark.long(about_s=25)


class Upstream:
    """The API that the proxies serve; it can be ended and started again."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.port = free_port()
        self._redis_url, self._log = redis_url, folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.newcomer = itertools.count(1).__next__

    def start(self) -> None:
        """Start it, and return once it answers."""
        variables = {
            "TASKPOOL_PORT": str(self.port),
            "TASKPOOL_AUTH": "off",
            "TASKPOOL_TRUSTED_PROXIES": "127.0.0.1",
            "TASKPOOL_RATE_LIMIT": "1000000",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.impatient_api", "15"],
                env=environment(self._redis_url, **variables),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        eventually(self._answers)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/livez").status_code == 200
        except httpx.TransportError:
            return False


class Front:
    """One proxy and the URL at which it serves the API; `prefix` is the path of that."""

    def __init__(self, kind: str, port: int, trusted: ssl.SSLContext) -> None:
        self.host, self.prefix = BASES[kind]
        self.origin = f"https://{self.host}:{port}"
        self.base = self.origin + self.prefix
        self.trusted = trusted

    def http(self, address: str = "127.0.0.2") -> httpx.AsyncClient:
        """A client at an address that isn't the proxy's."""
        transport = httpx.AsyncHTTPTransport(verify=self.trusted, local_address=address)
        return httpx.AsyncClient(base_url=self.base + "/", transport=transport, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def upstream(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    upstream = Upstream(redis_server.url, tmp_path_factory.mktemp("upstream"))
    upstream.start()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("certificate"), NAMES)


@pytest.fixture(scope="module")
def ports(upstream: Upstream, pem: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of those proxies that are installed."""
    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(running(name, Place(folder / name, upstream.port, pem)))
            for name in PROXIES
            if find(name)
        }


@pytest.fixture
def fronts(
    ports: dict[str, int], pem: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[str, str], Front]:
    """Every proxy that is installed, at each base; their names lead to this machine, and their certificate is good."""
    if not ports:
        pytest.skip(f"none of {', '.join(PROXIES)} is installed; {INSTALL}")
    find_address = socket.getaddrinfo

    def here(host: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return find_address("127.0.0.1" if name in (ROOT_HOST, PREFIX_HOST) else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    publish_types(redis_url)
    trusted = ssl.create_default_context(cafile=str(pem))
    return {(name, kind): Front(kind, port, trusted) for name, port in ports.items() for kind in BASES}


@pytest.fixture(params=[(name, kind) for name in PROXIES for kind in BASES], ids="-".join)
def front(request: pytest.FixtureRequest, fronts: dict[tuple[str, str], Front]) -> Front:
    """One proxy at one base."""
    name, _ = request.param
    if request.param not in fronts:
        pytest.skip(f"{name} isn't installed; {INSTALL}")
    return fronts[request.param]


async def test_what_an_answer_names_is_there(front: Front, redis_url: str) -> None:
    async with front.http() as client:
        made = await client.post("tasks", json=ECHO)
        second = await client.post("tasks", json=ECHO)
        page = await client.get("tasks?limit=1")
        index = (await client.get("")).json()["links"]
        socket_server = (await client.get("asyncapi.json")).json()["servers"]["this"]
        api_server = (await client.get("openapi.json")).json()["servers"][0]["url"]

        assert (made.status_code, second.status_code) == (202, 202)
        assert made.headers["location"] == f"{front.prefix}/tasks/{made.json()['id']}"
        for referred in (made.headers["location"], page.links["next"]["url"], index["queues"], index["docs"]):
            assert (await client.get(made.url.join(referred))).status_code == 200
        assert api_server == (front.prefix or "/")
        assert socket_server["protocol"] == "wss"
        assert f"https://{socket_server['host']}{socket_server.get('pathname', '')}" == front.base


def test_the_python_client_works_at_that_url(front: Front, redis_url: str) -> None:
    with Client(front.base) as client:
        task = client.add_task("echo", {"message": "hi"})

        assert client.get(task.id).status == "queued"
        assert next(client.events(task.id)).event == "snapshot"


async def test_the_path_without_a_slash_leads_to_the_one_with_it(front: Front) -> None:
    async with front.http() as client:
        answer = await client.get(front.base)

    if front.prefix:
        assert (answer.status_code, answer.headers["location"]) == (308, front.prefix + "/")
    else:
        assert answer.status_code == 200


async def test_the_clients_address_is_what_the_proxy_sees(front: Front, redis: Redis, upstream: Upstream) -> None:
    # One that this API hasn't met: it keeps what it has taken of a bucket for a moment.
    address = f"127.0.1.{upstream.newcomer()}"
    lies = {"x-forwarded-for": "203.0.113.7", "x-forwarded-prefix": "/evil", "x-forwarded-proto": "http"}
    async with front.http(address) as client:
        made = await client.post("tasks", json=ECHO, headers=lies)
        (entry,) = (await client.get("audit?what=task.submitted")).json()["entries"]

    assert made.headers["location"] == f"{front.prefix}/tasks/{made.json()['id']}"
    assert entry["by"]["address"] == address
    # On a busy machine the bucket is full again by now, and gone.
    assert set(redis.keys("taskpool:bucket:*")) <= {f"taskpool:bucket:address:{address}".encode()}


async def test_a_body_that_is_too_large_is_refused_by_the_api(front: Front) -> None:
    async with front.http() as client:
        answer = await client.post("tasks", content=b" " * 600_000, headers={"content-type": "application/json"})

    assert (answer.status_code, answer.json()["type"]) == (413, "urn:taskpool:problem:body-too-large")


async def test_a_wait_ends_before_any_proxy_gives_up(fronts: dict[tuple[str, str], Front], world: World) -> None:
    world.add("a")

    async def wait(front: Front) -> tuple[httpx.Response, httpx.Response]:
        async with front.http() as client:
            return await asyncio.gather(
                client.get("tasks/a?wait=3600"), client.post("tasks", json=ECHO, headers={"prefer": "wait=3600"})
            )

    for read, made in await asyncio.gather(*map(wait, fronts.values())):
        assert (read.status_code, made.status_code, made.json()["status"]) == (200, 202, "queued")
        assert read.headers["preference-applied"] == made.headers["preference-applied"] == "wait=3.33333"


class Stream:
    """A stream of events as it arrives, in a background task."""

    def __init__(self, front: Front, path: str, **headers: str) -> None:
        self.comments = 0
        self.messages: list[dict[str, str]] = []
        self.headers: httpx.Headers | None = None
        self._reading = asyncio.create_task(self._read(front, path, headers))

    @property
    def is_over(self) -> bool:
        """Whether it has ended; raises what went wrong."""
        return self._reading.done() and self._reading.result() is None

    def events(self) -> list[str]:
        """What it received."""
        return [message.get("event") or json.loads(message["data"])["event"] for message in self.messages]

    async def _read(self, front: Front, path: str, headers: dict[str, str]) -> None:
        # A client that takes compressed answers must get events all the same.
        accepts = {"accept": "text/event-stream", "accept-encoding": "gzip, br, zstd"}
        async with front.http() as client, client.stream("GET", path, headers=accepts | headers) as answer:
            assert answer.status_code == 200
            self.headers = answer.headers
            message: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name:
                    message[name] = value
                elif not line:
                    self.messages.append(message)
                    message = {}
                if line == ": keep-alive":
                    self.comments += 1
                    message.pop("", None)


async def test_events_arrive_at_once_and_silence_cuts_nothing(
    fronts: dict[tuple[str, str], Front], world: World
) -> None:
    world.add("a")
    streams = [Stream(front, "tasks/a/events") for front in fronts.values()]
    sockets = [
        await connect(
            front.base.replace("https", "wss") + "/ws", ssl=front.trusted, origin=Origin(front.origin), proxy=None
        )
        for front in fronts.values()
    ]
    for each in sockets:
        await each.send(json.dumps({"op": "subscribe", "sub": "s", "task": "a"}))
    await until(lambda: all(stream.events() == ["snapshot"] for stream in streams))

    await until(lambda: all(stream.comments >= COMMENTS or stream.is_over for stream in streams))
    running = world.claim()
    await until(lambda: all(stream.events()[1:] == ["started"] or stream.is_over for stream in streams))
    world.finish(running)
    await until(lambda: all(stream.is_over for stream in streams))

    for stream in streams:
        assert stream.events() == ["snapshot", "started", "done"]
        assert stream.headers is not None
        assert "content-encoding" not in stream.headers
        assert stream.headers["cache-control"] == "no-store, no-transform"
    for each in sockets:
        async with asyncio.timeout(PATIENCE_S):
            received = [json.loads(await each.recv()) for _ in range(4)]
        assert [one["op"] for one in received] == ["snapshot", "live", "event", "event"]
        await each.close()


async def test_a_stream_goes_on_after_the_last_message(front: Front, world: World) -> None:
    world.end("a")
    whole = Stream(front, "tasks/a/events", **{"last-event-id": "0-0"})
    await until(lambda: whole.is_over)

    rest = Stream(front, "tasks/a/events", **{"last-event-id": whole.messages[-3]["id"]})
    await until(lambda: rest.is_over)
    async with front.http() as client:
        over = await client.get("tasks/a/events", headers={"last-event-id": whole.messages[-1]["id"]})

    assert whole.events()[-3:] == ["queued", "started", "done"]
    assert rest.messages[-1] == whole.messages[-1]
    assert rest.events() == ["started", "done"]
    assert over.status_code == 204


EXECUTE = """
(async () => {
  const find = async (selector, within = document) => {
    for (;;) {
      const found = within.querySelector(selector);
      if (found) return found;
      await new Promise((go) => setTimeout(go, 20));
    }
  };
  const operation = await find("#operations-service-is_alive");
  (await find(".opblock-summary-control", operation)).click();
  (await find(".try-out__btn", operation)).click();
  (await find(".execute", operation)).click();
  const url = await find(".request-url pre", operation);
  const status = await find(".live-responses-table .response .response-col_status", operation);
  return [url.textContent.trim(), status.textContent.trim()];
})()
"""
"""Does in the page at /docs what a person does to ask GET /livez: what was asked, and the status of the answer."""


def test_execute_on_the_page_of_the_documentation_asks_this_api(
    fronts: dict[tuple[str, str], Front], tmp_path: Path
) -> None:
    if not find_chromium():
        pytest.skip(f"Chromium isn't installed; {INSTALL_CHROMIUM}")
    flags = ("--host-resolver-rules=MAP *.example.org 127.0.0.1", "--ignore-certificate-errors")
    front = next(front for front in fronts.values() if front.prefix)  # the page is the same behind all
    with browser(tmp_path / "browser", *flags) as page:
        page.open(f"{front.base}/docs")
        asked, status = page.run(EXECUTE)

    assert asked == f"{front.base}/livez"
    assert status.startswith("200")


async def test_an_api_that_restarts_is_away_for_a_moment(
    fronts: dict[tuple[str, str], Front], upstream: Upstream, world: World
) -> None:
    world.add("a")
    received: dict[tuple[str, str], list[str]] = {which: [] for which in fronts}

    async def follow(which: tuple[str, str]) -> None:
        async with AsyncClient(fronts[which].base) as client:
            async for event in client.events("a"):
                received[which].append(event.event)

    async def statuses() -> set[int]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_status(front)) for front in fronts.values()]
        return {each.result() for each in asked}

    followers = [asyncio.create_task(follow(which)) for which in fronts]
    await until(lambda: all(received.values()))
    await asyncio.to_thread(upstream.stop)
    try:
        while not await statuses() <= {502, 503}:
            await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(upstream.start)
    world.finish(world.claim())

    async with asyncio.timeout(PATIENCE_S):
        while await statuses() != {200}:
            await asyncio.sleep(0.05)
        await asyncio.gather(*followers)
    assert all(each[0] == "snapshot" and each[-2:] == ["started", "done"] for each in received.values())


async def _status(front: Front) -> int:
    async with front.http() as client:
        return (await client.get("livez")).status_code
