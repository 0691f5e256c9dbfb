"""Clients of the API's events, for tests with real processes: each notes what it receives, over Server-Sent Events or a
WebSocket, in the same words."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.api_contract import ANSWERS, Answer


class EventClient:
    """One client. `steps`: the events it received, as (task, number); `shown`: up to which number tasks were shown as
    they stand; `last`: from where it would go on; `notices`: the names of what else it received; `problem`: the kind of
    the problem among it."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.shown: dict[str, int] = {}
        self.notices: list[str] = []
        self.problem = ""
        self.last = ""
        self.reading: asyncio.Task[None] | None = None

    def of(self, id: str) -> list[int]:
        """The numbers of this task's events, as they came."""
        return [seq for of, seq in self.steps if of == id]

    async def end(self) -> None:
        """Leave."""
        if self.reading is not None:
            self.reading.cancel()
            with suppress(asyncio.CancelledError, ConnectionError, ConnectionClosed):
                await self.reading

    def note_step(self, event: dict[str, Any]) -> None:
        self.steps.append((event["id"], event["seq"]))
        self.last = event["stream"]


class StreamClient(EventClient):
    """Server-Sent Events."""

    @classmethod
    async def follow(cls, url: str, path: str, after: str = "") -> Self:
        """Connected, and read from in the background."""
        client, where = cls(), urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1 << 20)
        last = f"last-event-id: {after}\r\n" if after else ""
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{last}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        headers = Headers(dict(line.lower().split(": ", 1) for line in head.decode().splitlines()[1:-1]))
        client.reading = asyncio.create_task(client._read(reader, writer, urlsplit(path).path, headers))
        return client

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, headers: Headers
    ) -> None:
        fields: dict[str, str] = {}
        body = ""
        try:
            while line := (await reader.readline()).decode():
                body += line if line == "\n" or ": " in line else ""  # without the sizes of chunks
                name, _, value = line.rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    self._note(fields)
                    fields = {}
        finally:
            writer.close()
            ANSWERS.append(Answer("GET", path, 200, headers, body.encode()))

    def _note(self, fields: dict[str, str]) -> None:
        if "event" in fields:
            self.notices.append(fields["event"])
            self.last = fields["id"]
            self.problem = json.loads(fields["data"]).get("kind", "")
            if fields["event"] == "snapshot":
                task = json.loads(fields["data"])
                self.shown[task["id"]] = task["seq"]
        else:
            self.note_step(json.loads(fields["data"]))
            assert self.last == fields["id"]


class SocketClient(EventClient):
    """A WebSocket."""

    connection: ClientConnection
    closed_with: int | None = None

    @classmethod
    async def follow(cls, url: str, **wanted: Any) -> Self:
        """Connected, subscribed to what is wanted and read from in the background."""
        client = cls()
        client.connection = await connect(url.replace("http", "ws") + "/ws", proxy=None)
        await client.connection.send(json.dumps({"op": "subscribe", "sub": "s", **wanted}))
        client.reading = asyncio.create_task(client._read())
        return client

    async def _read(self) -> None:
        try:
            while True:
                self._note(json.loads(await self.connection.recv()))
        except ConnectionClosed as closed:
            self.closed_with = closed.rcvd.code if closed.rcvd else None
        finally:
            await self.connection.close()

    def _note(self, message: dict[str, Any]) -> None:
        if message["op"] == "event":
            self.note_step(message["event"])
            return
        self.notices.append(message["op"])
        self.problem = message.get("kind", "")
        self.shown |= {task["id"]: task["seq"] for task in message.get("tasks", ())}
        self.last = message.get("at") or message.get("after") or self.last
