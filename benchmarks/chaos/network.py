"""A network that can be made bad: one TCP proxy in front of Redis for each pool, for the API and for the client.

All of them live on one event loop in a thread of its own. A link's weather is changed from any thread; what it
does to a connection is decided chunk by chunk as the bytes pass.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 65536


class Weather(Enum):
    """What happens to what passes.

    CUT_BEFORE loses requests with their connection, CUT_AFTER replies: whether a request was carried out is then
    unknown. STALL holds everything back until it is over; BLACK_HOLE swallows it, and nobody is told, ever.
    """

    CLEAR = "clear"
    DELAY = "delay"
    CUT_BEFORE = "cut_before"
    CUT_AFTER = "cut_after"
    STALL = "stall"
    BLACK_HOLE = "black_hole"


class Link:
    """One proxy. `url` is what its client connects to."""

    def __init__(self, network: Network, seed: int) -> None:
        self._network = network
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._random = random.Random(seed)
        self._weather = Weather.CLEAR
        self._delay_s = 0.0
        self._chance = 0.0
        self._cleared = asyncio.Event()
        self._connections: set[_Connection] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def set(self, weather: Weather, *, delay_s: float = 0.0, chance: float = 1.0) -> None:
        """Changes the weather; `chance` is that of each chunk to be cut."""

        def change() -> None:
            self._weather, self._delay_s, self._chance = weather, delay_s, chance
            if weather is Weather.BLACK_HOLE:
                for connection in self._connections:
                    connection.is_deaf = True
            self._cleared.set()
            self._cleared = asyncio.Event()

        self._network.call(change)

    def cut(self) -> None:
        """Cuts every connection there is, once."""

        def cut() -> None:
            for connection in tuple(self._connections):
                connection.abort()

        self._network.call(cut)

    async def serve(self) -> None:
        """Accepts connections until it is cancelled."""
        server = await asyncio.start_server(self._forward, sock=self._listener)
        async with server:
            await server.serve_forever()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, is_deaf=self._weather is Weather.BLACK_HOLE)
        self._connections.add(connection)
        try:
            redis_reader, connection.upstream = await asyncio.open_unix_connection(self._network.redis_socket)
            pumps = (
                self._pump(connection, reader, connection.upstream, is_request=True),
                self._pump(connection, redis_reader, writer, is_request=False),
            )
            await asyncio.gather(*pumps)
        except OSError:  # either end is gone, Redis isn't there, or it was cut: its client sees a closed connection
            pass
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._weather is Weather.DELAY:
                await asyncio.sleep(self._delay_s * self._random.random())
            while self._weather is Weather.STALL:
                await self._cleared.wait()
            cuts = Weather.CUT_BEFORE if is_request else Weather.CUT_AFTER
            if self._weather is cuts and self._random.random() < self._chance:
                break
            if not connection.is_deaf:
                writer.write(data)
                await writer.drain()
        connection.abort()


class _Connection:
    """Both ends of one forwarded connection. A deaf one stays open and forwards nothing any more."""

    def __init__(self, client: asyncio.StreamWriter, *, is_deaf: bool) -> None:
        self.client, self.is_deaf = client, is_deaf
        self.upstream: asyncio.StreamWriter | None = None

    def abort(self) -> None:
        for end in (self.client, self.upstream):
            if end is not None:
                end.transport.abort()


class Network:
    """The links, on a loop in a thread: started by the first link, ended by `close`."""

    def __init__(self, redis_socket: Path) -> None:
        self.redis_socket = str(redis_socket)
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-network", daemon=True)
        self._thread.start()

    def link(self, seed: int) -> Link:
        """A new link to Redis, in clear weather."""
        link = Link(self, seed)
        self.call(lambda: self._tasks.append(self._loop.create_task(link.serve())))
        return link

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function on the loop, soon."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Ends all links."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
