"""A proxy in front of Redis that counts round trips: how often a client sends again after it was answered.

A pipeline counts once however many commands it holds, which is what a network would charge for.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16


@dataclass(eq=False)
class Side:
    """One end of a forwarded connection. `answered` is kept on the client's end: true when it is to speak next."""

    socket: socket.socket
    is_client: bool
    peer: Side | None = None
    answered: bool = True


class CountingProxy:
    """Forwards TCP connections to the Redis at `target_url`; `round_trips` counts, over all of them."""

    def __init__(self, target_url: str) -> None:
        self.target_url = target_url
        self.round_trips = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"

    def run(self) -> None:
        while not self.closing.is_set():
            for key, _ in self.selector.select(timeout=0.2):
                if key.data is None:
                    self.accept()
                else:
                    self.forward(key.data)

    def accept(self) -> None:
        client = Side(self.listener.accept()[0], is_client=True)
        server = Side(connect(self.target_url), is_client=False, peer=client)
        client.peer = server
        for side in (client, server):
            if side.socket.family != socket.AF_UNIX:
                side.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(side.socket, selectors.EVENT_READ, side)

    def forward(self, side: Side) -> None:
        peer = side.peer
        if peer is None or side.socket.fileno() < 0:
            return
        try:
            data = side.socket.recv(CHUNK_BYTES)
            if data:
                self.count(side, peer)
                peer.socket.sendall(data)
                return
        except OSError:
            pass  # either end is gone: the connection is closed below, and its client sees that
        for end in (side, peer):
            self.selector.unregister(end.socket)
            end.socket.close()

    def count(self, side: Side, peer: Side) -> None:
        if side.is_client:
            self.round_trips += side.answered
            side.answered = False
        else:
            peer.answered = True

    def close(self) -> None:
        self.closing.set()
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()


def connect(url: str) -> socket.socket:
    """A plain socket to the Redis at `url` (redis:// or unix://)."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(parts.path)
        return plain
    plain = socket.create_connection((parts.hostname, parts.port or 6379))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


@contextmanager
def counting_proxy(target_url: str) -> Iterator[CountingProxy]:
    proxy = CountingProxy(target_url)
    proxy.thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
