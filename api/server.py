"""One API process: its socket, how it serves, how it ends."""

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

from .connections import Connections, LimitedProtocol, Limits
from .events.websocket import MAX_MESSAGE_BYTES

DRAIN_S = 10
"""How long requests under way may take once the process was asked to end. Those that wait for a task end at once."""
PING_S = 20.0
"""How often a WebSocket gets a ping: proxies cut one that is silent for 50 to 60 s."""
PONG_S = 20.0
"""How long a WebSocket may take to answer a ping, or a close."""
PIECE_BYTES = 4096
"""How much of a WebSocket is read in one turn of the loop, if more has come."""
MOST_PARTS = 1000
"""Frames of one message: they may be empty, and so no way past its bound in bytes."""
BACKLOG = 2048
TICKS_A_SECOND = 10
"""How often uvicorn calls `on_tick`."""
MIDDLE_COLLECTIONS_A_FULL_ONE = 50
"""Python's is 10. A full collection stops this process for 0.1 s for a thousand clients, and while more come they were
most of the longest waits; what the later ones would have freed is some 20 objects of each client that has left."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to this address, which listens only once it is served; port 0 takes a free one.

    Raises:
        ConfigurationError: the port is in use, or the address isn't one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"can't listen on {host}: {error.strerror}; set TASKPOOL_HOST") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last connections linger is free
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno or 0).lower()
        raise ConfigurationError(
            f"can't listen on {host}:{port}: {reason}; set TASKPOOL_PORT or TASKPOOL_HOST"
        ) from None
    return listener


def serve(app: Starlette, listener: socket.socket, limits: Limits, *, log_level: str) -> None:
    """Serve until SIGTERM or SIGINT; then answer what is under way and return."""
    connections = Connections(limits)
    protocol: Any = partial(LimitedProtocol, among=connections)
    config = uvicorn.Config(
        app,
        access_log=False,
        backlog=BACKLOG,
        http=protocol,
        lifespan="on",
        log_config=None,  # the process's logging is its own
        log_level=log_level,
        proxy_headers=False,  # the application has its own: see `Prefixes`
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        ws=_SocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PONG_S,
        ws_per_message_deflate=False,  # small messages, and memory for each socket
    )
    _Server(config, app, connections).run(sockets=[listener])


class _SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with bounds for what it leaves unbounded."""

    def connection_made(self, transport: BaseTransport) -> None:
        """As always, with our time for the answer to a close."""
        super().connection_made(transport)
        self.close_timeout = PONG_S
        self._unread = bytearray()
        self._is_going_on = False

    def data_received(self, data: bytes) -> None:
        """As always, but a piece in each turn of the loop, and the next one only when all messages of the last were
        taken: frames may be tiny, and each takes Python some microseconds."""
        is_first = not self._unread
        self._unread += data
        if is_first:
            self._read_piece()

    def _read_piece(self) -> None:
        self._is_going_on = False
        size = PIECE_BYTES if self.handshake_initiated else len(self._unread)  # the handshake is here as a whole
        piece = bytes(self._unread[:size])
        del self._unread[:size]
        super().data_received(piece)
        if self.transport.is_closing():
            self._unread.clear()
        elif self._unread:
            self.transport.pause_reading()
            self._go_on()
        elif not self.read_paused:
            self.transport.resume_reading()

    def _go_on(self) -> None:
        if self._unread and not self._is_going_on and (self.queue.empty() or self.close_sent):
            self._is_going_on = True
            self.loop.call_soon(self._read_piece)

    async def receive(self) -> Any:
        """As always; but reading goes on where it was stopped."""
        message = await self.queue.get()
        self._go_on()
        if not self._unread and self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """As always; and it no longer counts as open."""
        super().connection_lost(exc)
        transport: Any = self.transport
        transport.lost()

    def handle_ping(self) -> None:
        """As always; but one that doesn't read the answers gets no more of them."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

    def handle_cont(self, event: Frame) -> None:
        """As always; but the parts of a message are bounded in number, too: they may be empty."""
        if len(self.frames) >= MOST_PARTS:
            self._fail("too many parts of one message")
        else:
            super().handle_cont(event)

    def _fail(self, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(1008, reason)
            self.handle_parser_exception()

    def shutdown(self) -> None:
        """As always; but a handshake that isn't answered yet is told why it won't be."""
        if not self.handshake_complete and not self.transport.is_closing():
            self.conn.send_response(self.conn.reject(503, "The server stops; connect again.\n"))
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        else:
            super().shutdown()

    def send_500_response(self) -> None:
        """As always, unless the connection is closing: then no handshake can be answered any more."""
        if not self.transport.is_closing():
            super().send_500_response()

    async def send(self, message: Any) -> None:
        """As always; but a handshake that was answered as HTTP is over, and so is a socket that was closed because of
        what the client sent: neither is an error to log."""
        is_over = self.close_sent and message["type"] in ("websocket.send", "websocket.close")
        if is_over or self.transport.is_closing():
            raise ClientDisconnected
        await super().send(message)
        self._go_on()
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Starlette, connections: Connections) -> None:
        super().__init__(config)
        self._app, self._connections = app, connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As always; but what is there by now stays, and is never looked through for garbage again."""
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, MIDDLE_COLLECTIONS_A_FULL_ONE)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """As always; and once a second a look at the connections."""
        if counter % TICKS_A_SECOND == 0:
            self._connections.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As always, but nobody waits for a task or its events any more: uvicorn would wait for them."""
        self._app.state.long_polls.end()
        self._app.state.streams.end()
        await super().shutdown(sockets)
