"""Plain sockets to the API, for tests of what no HTTP library would send."""

from __future__ import annotations

import socket
from contextlib import suppress
from urllib.parse import urlsplit

from tests.support import PATIENCE_S


def connect(url: str, *, buffer_bytes: int | None = None) -> socket.socket:
    """A connection to the server of this URL. `buffer_bytes`: how much the kernel may receive before it is read."""
    parts = urlsplit(url)
    client = socket.socket()
    if buffer_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    client.settimeout(PATIENCE_S)
    client.connect((parts.hostname, parts.port))
    return client


def rest(client: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    received = b""
    with suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            received += chunk
    return received
