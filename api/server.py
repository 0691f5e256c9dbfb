"""One API process: its listening socket, uvicorn's settings, and the limits of WebSockets."""

from __future__ import annotations

import gc
import os
import socket
from asyncio import BaseTransport
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from taskpool.errors import ConfigurationError

from .connections import Connections, LimitedProtocol
from .events.websocket import MAX_MESSAGE_BYTES

DRAIN_S = 10
"""How long requests may take after the process was asked to stop. Long polls are answered at once."""
PING_S = 20.0
"""How often a WebSocket gets a ping: proxies close one that is silent for 50 to 60 s."""
PONG_S = 20.0
"""How long a client may take to answer a ping or a close."""
PIECE_BYTES = 4096
"""How many bytes of a WebSocket are parsed in one turn of the event loop."""
MAX_FRAMES = 1000
"""Frames of one message."""
BACKLOG = 2048
TICKS_A_SECOND = 10
"""How often uvicorn calls `on_tick`."""
MIDDLE_COLLECTIONS_A_FULL_ONE = 50
"""Python's default is 10. With a thousand clients, a full garbage collection stops the process for 0.1 s. Fewer
collections leave about 20 objects of each client that has left in memory for longer."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to this address, not listening yet. Port 0 takes a free one. Raises: ConfigurationError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"can't listen on {host}: {error.strerror}; set TASKPOOL_HOST") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also if old connections linger
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = f"{host}:{port}: {os.strerror(error.errno or 0).lower()}"
        raise ConfigurationError(f"can't listen on {reason}; set TASKPOOL_PORT or TASKPOOL_HOST") from None
    return listener


def serve(app: Starlette, listener: socket.socket, connections: Connections) -> None:
    """Serve until SIGTERM or SIGINT, answer the requests in work, and return."""
    protocol: Any = partial(LimitedProtocol, registry=connections)
    config = uvicorn.Config(
        app,
        access_log=False,
        backlog=BACKLOG,
        http=protocol,
        lifespan="on",
        log_config=None,  # __main__ configures logging
        log_level="warning",
        proxy_headers=False,  # see `Prefixes`
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        ws=LimitedSocket,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PONG_S,
        ws_per_message_deflate=False,  # costs memory for each socket, and messages are small
    )
    _Server(config, app, connections).run(sockets=[listener])


class LimitedSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with limits. `connections` explains what overriding it needs."""

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for the answer to a close for PONG_S."""
        super().connection_made(transport)
        self.close_timeout = PONG_S
        self._unparsed = bytearray()
        self._is_scheduled = False

    def data_received(self, data: bytes) -> None:
        """Parse one piece in each turn of the event loop, and the next one after the handler has taken all messages of
        the last. Frames may be tiny, and each costs some microseconds."""
        is_first = not self._unparsed
        self._unparsed += data
        if is_first:
            self._parse_piece()

    def _parse_piece(self) -> None:
        self._is_scheduled = False
        size = PIECE_BYTES if self.handshake_initiated else len(self._unparsed)  # the handshake came in one piece
        piece = bytes(self._unparsed[:size])
        del self._unparsed[:size]
        super().data_received(piece)
        if self.transport.is_closing():
            self._unparsed.clear()
        elif self._unparsed:
            self.transport.pause_reading()
            self._parse_next()
        elif not self.read_paused:
            self.transport.resume_reading()

    def _parse_next(self) -> None:
        if self._unparsed and not self._is_scheduled and (self.queue.empty() or self.close_sent):
            self._is_scheduled = True
            self.loop.call_soon(self._parse_piece)

    async def receive(self) -> Any:
        """The next message. Parsing and reading continue when the last one is taken."""
        message = await self.queue.get()
        self._parse_next()
        if not self._unparsed and self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection no longer counts."""
        super().connection_lost(exc)
        transport: Any = self.transport
        transport.lost()

    def handle_ping(self) -> None:
        """Answer, unless the client doesn't read the answers."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

    def handle_cont(self, event: Frame) -> None:
        """Limit the number of frames: empty ones don't count for the limit in bytes."""
        if len(self.frames) < MAX_FRAMES:
            super().handle_cont(event)
            return
        self.frames = []
        if not self.close_sent:
            self.conn.fail(1008, "too many parts of one message")
            self.handle_parser_exception()

    def shutdown(self) -> None:
        """Refuse a handshake that isn't answered yet with a reason."""
        if not self.handshake_complete and not self.transport.is_closing():
            self.conn.send_response(self.conn.reject(503, "The server stops; connect again.\n"))
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        else:
            super().shutdown()

    def send_500_response(self) -> None:
        """Answer, unless the connection is closing."""
        if not self.transport.is_closing():
            super().send_500_response()

    async def send(self, message: Any) -> None:
        """Send, unless the server has closed the socket because of the client's messages, or has answered the handshake
        as HTTP. Neither is an error to log."""
        is_over = self.close_sent and message["type"] in ("websocket.send", "websocket.close")
        if is_over or self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)
        self._parse_next()
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Starlette, connections: Connections) -> None:
        super().__init__(config)
        self._app, self._connections = app, connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Exclude the objects that exist by now from garbage collections: they stay."""
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, MIDDLE_COLLECTIONS_A_FULL_ONE)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Once a second, enforce the limits of connections."""
        if counter % TICKS_A_SECOND == 0:
            self._connections.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End long polls and streams first: uvicorn would wait for them."""
        self._app.state.long_polls.end()
        self._app.state.streams.end()
        await super().shutdown(sockets)
