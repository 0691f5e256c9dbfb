"""A network that can be made bad: one TCP proxy in front of Redis for each pool, for each API and for the client, and
one in front of each API.

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
from typing import Final

from benchmarks.chaos.refusals import Refusals, Refusing

CHUNK_BYTES: Final = 65536

Upstream = str | tuple[str, int]
"""The path of a unix socket, or a host and a port."""


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

    def __init__(self, network: Network, seed: int, upstream: Upstream, *, reads_commands: bool) -> None:
        self._network, self._upstream, self._reads_commands = network, upstream, reads_commands
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._random = random.Random(seed)
        self._weather = Weather.CLEAR
        self._delay_s = 0.0
        self._chance = 0.0
        self._refusals: Refusals | None = None
        self._cleared = asyncio.Event()
        self._connections: set[_Connection] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Of Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def refuse(self, refusals: Refusals | None) -> None:
        """From now on answers commands of Redis with errors; None: no more."""
        assert self._reads_commands

        def change() -> None:
            self._refusals = refusals
            if refusals is not None and refusals.connections:
                for connection in tuple(self._connections):
                    connection.abort()

        self._network.call(change)

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
        if self._refusals is not None and self._refusals.connections:
            writer.write(self._refusals.reply())
            writer.close()
            return
        connection = _Connection(writer, is_deaf=self._weather is Weather.BLACK_HOLE)
        self._connections.add(connection)
        try:
            if isinstance(self._upstream, str):
                upstream_reader, connection.upstream = await asyncio.open_unix_connection(self._upstream)
            else:
                upstream_reader, connection.upstream = await asyncio.open_connection(*self._upstream)
            refusing = Refusing(lambda: self._refusals) if self._reads_commands else None
            pumps = (
                self._pump(connection, reader, connection.upstream, refusing, is_request=True),
                self._pump(connection, upstream_reader, writer, refusing, is_request=False),
            )
            await asyncio.gather(*pumps)
        except OSError:  # either end is gone, nothing listens, or it was cut: its client sees a closed connection
            pass
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        refusing: Refusing | None,
        *,
        is_request: bool,
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._weather is Weather.DELAY:
                await asyncio.sleep(self._delay_s * self._random.random())
            while self._weather is Weather.STALL:
                await self._cleared.wait()
            cuts = Weather.CUT_BEFORE if is_request else Weather.CUT_AFTER
            if self._weather is cuts and self._random.random() < self._chance:
                break
            if refusing is not None:
                data = refusing.requests(data) if is_request else refusing.replies(data)
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

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-network", daemon=True)
        self._thread.start()

    def link(self, seed: int, upstream: Upstream, *, reads_commands: bool = False) -> Link:
        """A new link, in clear weather. One that reads commands can refuse them."""
        link = Link(self, seed, upstream, reads_commands=reads_commands)
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
