"""Sockets and streams: who may open one and how, whose events it tells of, and that it ends with its key."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from redis import Redis
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from api.app import create_app
from api.auth import gate
from taskpool.access.api_key import Scope
from taskpool.settings import Settings
from tests.api_client import publish_types
from tests.keys import bearer, make_key, revoke_key
from tests.support import PATIENCE_S, eventually

ECHO = {"type": "echo", "payload": {"message": "hi"}}
LISTED = "https://app.example.org"


@dataclass
class Served:
    """A served application: its address, and the Redis behind it."""

    url: str
    redis_url: str

    def ticket(self, key: str) -> str:
        """A ticket of a key's holder."""
        response = httpx.post(self.url + "/tickets", headers=bearer(key))
        assert response.status_code == 201, response.text
        return str(response.json()["ticket"])

    def add(self, key: str) -> str:
        """Submit a task; its id."""
        return str(httpx.post(self.url + "/tasks", json=ECHO, headers=bearer(key)).json()["id"])

    def socket(self, key: str = "", *, ticket: str = "", origin: str = "") -> ClientConnection:
        """Open a socket."""
        url = self.url.replace("http", "ws") + "/ws" + (f"?ticket={ticket}" if ticket else "")
        headers = bearer(key) if key else {}
        return connect(url, additional_headers=headers, origin=Origin(origin) if origin else None, proxy=None)

    @contextmanager
    def stream(self, path: str, key: str) -> Iterator[Iterator[str]]:
        """The lines of a stream."""
        with httpx.stream("GET", self.url + path, headers=bearer(key), timeout=PATIENCE_S) as response:
            assert response.status_code == 200
            yield response.iter_lines()


@pytest.fixture
def served(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An application that asks after keys all the time."""
    monkeypatch.setattr(gate, "FRESH_S", 0.0)
    publish_types(redis_url)
    app = create_app(Settings(redis_url=redis_url, cors_origins=(LISTED,)))
    monkeypatch.setattr(app.state.streams, "_check_keys_s", 0.05)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="on", ws="websockets-sansio", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started)
    yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", redis_url)
    server.should_exit = True
    thread.join(PATIENCE_S)


def status_of(refused: pytest.ExceptionInfo[InvalidStatus]) -> int:
    return refused.value.response.status_code


def test_a_ticket_opens_one_socket_once(served: Served, redis: Redis) -> None:
    ticket = served.ticket(make_key(served.redis_url))

    with served.socket(ticket=ticket) as first:
        first.send(json.dumps({"op": "ping"}))
        assert json.loads(first.recv(10))["op"] == "pong"
    with pytest.raises(InvalidStatus) as again:
        served.socket(ticket=ticket)

    assert status_of(again) == 401
    assert redis.keys("taskpool:ticket:*") == []


def test_a_ticket_opens_a_stream_and_nothing_else(served: Served) -> None:
    key = make_key(served.redis_url)
    id = served.add(key)

    with httpx.stream("GET", f"{served.url}/tasks/{id}/events?ticket={served.ticket(key)}") as response:
        lines = response.iter_lines()
        assert any(line.startswith("event: snapshot") for line in lines)
    other = httpx.get(f"{served.url}/tasks/{id}?ticket={served.ticket(key)}")
    both = httpx.get(f"{served.url}/tasks/{id}?ticket={served.ticket(key)}", headers=bearer(key))

    assert other.status_code == 401
    assert both.status_code == 400


def test_a_ticket_does_not_outlive_half_a_minute_nor_its_key(served: Served, redis: Redis) -> None:
    key = make_key(served.redis_url)
    make_key(served.redis_url, "another")
    ticket = served.ticket(key)
    (stored,) = redis.keys("taskpool:ticket:*")
    assert isinstance(stored, bytes)
    assert ticket.encode() not in stored
    assert 0 < int(str(redis.ttl(stored))) <= 30

    revoke_key(served.redis_url, key)

    with pytest.raises(InvalidStatus) as refused:
        served.socket(ticket=ticket)
    assert status_of(refused) == 401


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", LISTED + ".evil.org"])
def test_a_page_of_another_origin_opens_no_socket(served: Served, origin: str) -> None:
    key = make_key(served.redis_url)

    with pytest.raises(InvalidStatus) as refused:
        served.socket(ticket=served.ticket(key), origin=origin)

    assert status_of(refused) == 403


def test_pages_of_this_origin_and_listed_ones_and_programs_open_sockets(served: Served) -> None:
    key = make_key(served.redis_url)

    for origin in (served.url, LISTED, ""):
        with served.socket(key, origin=origin) as opened:
            opened.send(json.dumps({"op": "ping"}))
            assert json.loads(opened.recv(10))["op"] == "pong"


@pytest.mark.parametrize("shown", ["", "tp_000000000000_" + "A" * 43])
def test_without_a_key_that_is_known_no_socket_opens(served: Served, shown: str) -> None:
    make_key(served.redis_url)

    with pytest.raises(InvalidStatus) as refused:
        served.socket(shown)

    assert status_of(refused) == 401
    assert refused.value.response.headers["www-authenticate"].startswith("Bearer")


def test_a_key_without_the_scope_opens_no_socket(served: Served) -> None:
    writer = make_key(served.redis_url, "writer", Scope.WRITE)

    with pytest.raises(InvalidStatus) as refused:
        served.socket(writer)

    assert status_of(refused) == 403


def messages(opened: ClientConnection, last: str) -> list[dict[str, Any]]:
    """What comes up to the first message that names this task."""
    found: list[dict[str, Any]] = []
    while not found or last not in json.dumps(found[-1]):
        found.append(json.loads(opened.recv(10)))
    return found


def test_a_socket_sends_events_of_the_callers_project_only(served: Served) -> None:
    shop = make_key(served.redis_url, "shop", project="shop")
    bank = make_key(served.redis_url, "bank", project="bank")
    theirs, mine = served.add(bank), served.add(shop)

    with served.socket(shop) as opened:
        opened.send(json.dumps({"op": "subscribe", "sub": "one", "task": theirs}))
        refusal = json.loads(opened.recv(10))
        opened.send(json.dumps({"op": "subscribe", "sub": "all", "filter": {}}))
        shown = messages(opened, mine)
        later = [served.add(bank), served.add(shop)]
        received = messages(opened, later[1])

    assert (refusal["op"], refusal["kind"]) == ("error", "task-not-found")
    assert [id for id in (theirs, later[0]) if id in json.dumps([shown, received])] == []


def test_a_stream_sends_events_of_the_callers_project_only(served: Served) -> None:
    shop = make_key(served.redis_url, "shop", project="shop")
    bank = make_key(served.redis_url, "bank", project="bank")

    with served.stream("/events", shop) as lines:
        assert next(lines).startswith("retry")
        ids = [served.add(bank), served.add(shop)]
        received = next(line for line in lines if line.startswith("data"))

    assert [id in received for id in ids] == [False, True]


def test_a_revoked_key_ends_its_sockets_and_streams_and_no_others(served: Served) -> None:
    key, other = make_key(served.redis_url), make_key(served.redis_url, "other")
    id = served.add(key)

    with (
        served.socket(key) as mine,
        served.socket(other) as another,
        served.stream("/events", key) as events,
        served.stream(f"/tasks/{id}/events", key) as steps,
        served.stream(f"/tasks/{id}/logs?follow=1&format=events", key) as log,
    ):
        mine.send(json.dumps({"op": "ping"}))
        assert json.loads(mine.recv(10))["op"] == "pong"
        revoke_key(served.redis_url, key)

        with pytest.raises(ConnectionClosed) as closed:
            mine.recv(20)
        for lines in (events, steps, log):
            list(lines)  # to its end, which comes by itself
        another.send(json.dumps({"op": "ping"}))
        assert json.loads(another.recv(10))["op"] == "pong"

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
