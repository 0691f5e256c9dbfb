"""Answers that are given before a body has arrived reach a client that still sends it, with their `Retry-After`."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
import requests

from taskpool.access.api_key import Scope
from taskpool.redis.embedded import RedisServer
from tests.api_client import JSON, api_process, publish_types
from tests.keys import bearer, make_key
from tests.support import PATIENCE_S

SMALL, LARGE = 250_000, 5_000_000
TIMES = 2
IN_NODE = """
const asked = JSON.parse(require("fs").readFileSync(0));
(async () => {
  const answers = [];
  for (const [method, url, headers, size] of asked) {
    const answer = await fetch(url, {method, headers, body: Buffer.alloc(size, "x")});
    answers.push([answer.status, answer.headers.get("retry-after")]);
    await answer.text();
  }
  console.log(JSON.stringify(answers));
})();
"""


class Asked(NamedTuple):
    """A request with a body that isn't read before it is answered."""

    method: str
    url: str
    headers: dict[str, str]
    size: int


Seen = tuple[int, str | None]
"""The status and `Retry-After`."""


@pytest.fixture(scope="module")
def url(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with api_process(redis_server.url, tmp_path_factory.mktemp("api") / "log") as (_, url):
        yield url


@pytest.fixture(scope="module")
def full(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an API that has no room for another connection."""
    log = tmp_path_factory.mktemp("api") / "log"
    with api_process(redis_server.url, log, TASKPOOL_MAX_CONNECTIONS="1", TASKPOOL_AUTH="off") as (_, url):
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port)) as held:
            held.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert held.recv(4096).startswith(b"HTTP/1.1 200 ")
            yield url


def with_curl(asked: Asked) -> Seen:
    headers = [f"-H{name}: {value}" for name, value in asked.headers.items()]
    done = subprocess.run(
        ["curl", "-s", "-S", "-o", "/dev/null", "-w", "%{http_code} %header{retry-after}", "-X", asked.method,
         "--data-binary", "@-", *headers, asked.url],
        input=b"x" * asked.size, capture_output=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    status, _, retry_after = done.stdout.decode().partition(" ")
    return int(status), retry_after or None


def with_curl_that_expects_nothing(asked: Asked) -> Seen:
    return with_curl(asked._replace(headers={**asked.headers, "Expect": ""}))


def with_urllib(asked: Asked) -> Seen:
    request = urllib.request.Request(asked.url, b"x" * asked.size, asked.headers, method=asked.method)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    with refusal.value as answer:
        return answer.code, answer.headers["retry-after"]


def with_http_client(asked: Asked) -> Seen:
    parts = urlsplit(asked.url)
    client = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=PATIENCE_S)
    try:
        client.request(asked.method, parts.path, b"x" * asked.size, asked.headers)
        answer = client.getresponse()
        answer.read()
        return answer.status, answer.headers["retry-after"]
    finally:
        client.close()


def with_requests(asked: Asked) -> Seen:
    answer = requests.request(
        asked.method, asked.url, headers=asked.headers, data=b"x" * asked.size, timeout=PATIENCE_S
    )
    return answer.status_code, answer.headers.get("retry-after")


def with_fetch(asked: list[Asked]) -> list[Seen]:
    done = subprocess.run(
        ["node", "-e", IN_NODE], input=json.dumps(asked).encode(), capture_output=True, timeout=300, check=True
    )
    return [(status, retry_after) for status, retry_after in json.loads(done.stdout)]


CLIENTS = (with_curl, with_curl_that_expects_nothing, with_urllib, with_http_client, with_requests)


def everybody(asked: list[Asked], one_by_one: Callable[[Asked], Seen] | None) -> list[Seen]:
    """What a client receives; None: Node's fetch, which starts once for all of it."""
    return with_fetch(asked) if one_by_one is None else [one_by_one(each) for each in asked]


def skip_without(client: Callable[[Asked], Seen] | None) -> None:
    program = "node" if client is None else "curl" if "curl" in client.__name__ else None
    if program is not None and shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")


@pytest.mark.parametrize("client", [*CLIENTS, None])
def test_every_early_answer_is_seen_by(client: Callable[[Asked], Seen] | None, url: str, redis_url: str) -> None:
    skip_without(client)
    publish_types(redis_url)
    may = bearer(make_key(redis_url, "may", Scope.WRITE))
    may_not = bearer(make_key(redis_url, "may-not", Scope.READ))
    hasty = bearer(make_key(redis_url, "hasty", Scope.WRITE, rate_limit=1))
    httpx.post(url + "/tasks", headers=hasty)
    cases = [
        ("POST", "/tasks", JSON, 401),
        ("POST", "/tasks", {**JSON, **may_not}, 403),
        ("POST", "/nowhere", {**JSON, **may}, 404),
        ("PUT", "/tasks", {**JSON, **may}, 405),
        ("POST", "/tasks", {**JSON, **may}, 413),
        ("POST", "/tasks", {"content-type": "text/plain", **may}, 415),
        ("POST", "/tasks", {**JSON, **hasty}, 429),
    ]
    asked = [
        (Asked(method, url + path, headers, size), status)
        for method, path, headers, status in cases
        for size in ((LARGE,) if status == 413 else (SMALL,) if status == 415 else (SMALL, LARGE))
        for _ in range(TIMES)
    ]

    answers = everybody([request for request, _ in asked], client)

    assert [status for status, _ in answers] == [status for _, status in asked]
    assert all(retry_after is not None for status, retry_after in answers if status == 429)


@pytest.mark.parametrize("client", [*CLIENTS, None])
def test_that_there_is_no_room_is_seen_by(client: Callable[[Asked], Seen] | None, full: str) -> None:
    skip_without(client)
    asked = [Asked("POST", full + "/tasks", JSON, size) for size in (SMALL, LARGE) for _ in range(TIMES)]

    assert everybody(asked, client) == [(503, "1")] * len(asked)
