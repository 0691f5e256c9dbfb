"""Clients that follow tasks over an API that is killed, frozen and cut off: what each was told, in order.

They connect again by themselves, with the last position that they were told.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from benchmarks.chaos.load import RECENT, Ledger
from taskpool.types import TERMINAL

ENDS: Final = frozenset(status.value for status in TERMINAL)
SILENT_S: Final = 3.0
"""After so long without a word they connect again. (They can't be told to end before that, either.)"""
RETRY_S: Final = 0.3
TURN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that a follower was told: an event, how a task stands (`snapshot`), or another word without a task."""

    what: str
    id: str = ""
    seq: int = 0
    status: str = ""


class Follower(threading.Thread):
    """One client, until it is asked to end. `told` is what it received about one task or all."""

    def __init__(self, name: str, api_url: str) -> None:
        super().__init__(name=f"chaos-{name}", daemon=True)
        self._url = api_url
        self.told: list[Told] = []
        self.connections = 0
        self.ending = threading.Event()
        self.ready = threading.Event()
        """It is connected for the first time: what happens from now on, it must hear."""
        self.fault: Exception | None = None
        self.last = ""

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                with suppress(httpx.TransportError, WebSocketException, OSError, TimeoutError):
                    self._follow()
                self.ending.wait(RETRY_S)
        except Exception as fault:  # the thread's outermost loop: the thread that joins it raises this
            self.fault = fault

    def _follow(self) -> None:
        """One connection."""
        raise NotImplementedError

    def _note(self, what: str, document: dict[str, Any]) -> None:
        self.told.append(Told(what, document.get("id", ""), document.get("seq", 0), document.get("status", "")))


class StreamFollower(Follower):
    """All tasks over Server-Sent Events."""

    def _follow(self) -> None:
        headers = {"last-event-id": self.last} if self.last else {}
        with (
            httpx.Client(timeout=httpx.Timeout(5, read=SILENT_S), trust_env=False) as http,
            http.stream("GET", f"{self._url}/events", headers=headers) as answer,
        ):
            if answer.status_code != 200:
                return
            self.connections += 1
            self.ready.set()
            for what, id, document in messages(answer):
                self.last = id
                self._note(what, document)
                if self.ending.is_set():
                    return


class SocketFollower(Follower):
    """All tasks over a WebSocket."""

    def _follow(self) -> None:
        with connect(
            self._url.replace("http", "ws") + "/ws", proxy=None, open_timeout=5, close_timeout=1, ping_timeout=20
        ) as socket:
            after = {"after": self.last} if self.last else {}
            socket.send(json.dumps({"op": "subscribe", "sub": "all", "filter": {}, **after}))
            self.connections += 1
            while not self.ending.is_set():
                try:
                    message = json.loads(socket.recv(timeout=TURN_S))
                except TimeoutError:
                    continue
                if message["op"] == "event":
                    self.last = message["event"]["stream"]
                    self._note("event", message["event"])
                    continue
                self.last = message.get("at") or message.get("after") or self.last
                if message["op"] == "live":
                    self.ready.set()
                elif message["op"] == "error" and message["kind"] == "service-unavailable":
                    return
                elif message["op"] != "snapshot":
                    self._note(message["op"], message)


class TaskFollower(Follower):
    """One task after the other over Server-Sent Events, each until its end."""

    def __init__(self, name: str, api_url: str, ledger: Ledger) -> None:
        super().__init__(name, api_url)
        self._ledger = ledger
        self._task = ""
        self.ready.set()

    def _follow(self) -> None:
        if not self._task:
            done = {told.id for told in self.told}
            fresh = [id for submission in self._ledger.submissions[-RECENT:] for id in submission.ids if id not in done]
            if not fresh:
                return
            self._task, self.last = fresh[-1], ""
        headers = {"last-event-id": self.last} if self.last else {}
        with (
            httpx.Client(timeout=httpx.Timeout(5, read=SILENT_S), trust_env=False) as http,
            http.stream("GET", f"{self._url}/tasks/{self._task}/events", headers=headers) as answer,
        ):
            if answer.status_code in (204, 404):  # it ended while the connection was lost, or is purged
                self._leave()
            if answer.status_code != 200:
                return
            self.connections += 1
            for what, id, document in messages(answer):
                self.last = id
                self._note(what, {"id": self._task, **document})
                if what == "gone" or document.get("status") in ENDS:
                    self._leave()
                    return
                if self.ending.is_set():
                    return

    def _leave(self) -> None:
        self._task = ""


def messages(answer: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The messages of a stream: their kind, their position and what they say."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("event", "event"), fields["id"], json.loads(fields["data"])
            fields = {}


def await_last(followers: list[Follower], last: dict[str, int], timeout_s: float) -> None:
    """Waits until those who follow all tasks have heard the last event of each, for a while at most."""
    deadline = time.monotonic() + timeout_s
    for follower in followers:
        if isinstance(follower, TaskFollower):
            continue
        while time.monotonic() < deadline:
            heard = {told.id: told.seq for told in tuple(follower.told)}
            if all(heard.get(id) == seq for id, seq in last.items()):
                break
            time.sleep(0.1)
