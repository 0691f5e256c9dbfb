"""A proxy in front of Redis that can stop forwarding, like a pulled cable: nothing is closed, nothing arrives."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path
from urllib.parse import quote

CHUNK = 65536


class BlackHole:
    """Listens on a unix socket in `directory` and forwards to the one at `upstream`."""

    def __init__(self, directory: Path, upstream: Path) -> None:
        self._path, self._upstream = directory / "hole.sock", upstream
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(128)
        self._kept: list[socket.socket] = []
        self._swallowed = 0
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return "unix://" + quote(str(self._path))

    def swallow(self) -> None:
        """From now on the connections there are stay open and silent for ever; new ones are forwarded."""
        self._swallowed = len(self._kept)

    def cut(self) -> None:
        """From now on nothing arrives, on new connections either, and nothing is closed."""
        self._is_cut = True
        self.swallow()

    def mend(self) -> None:
        """New connections are forwarded again. The old ones are closed."""
        self._is_cut = False
        for side in tuple(self._kept):
            _end(side)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for side in self._kept:
            side.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._is_cut:
                self._kept.append(client)
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._upstream))
            number = len(self._kept)
            self._kept += [client, server]
            threading.Thread(target=self._forward, args=(number, client, server), daemon=True).start()

    def _forward(self, number: int, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            for side, other in ((client, server), (server, client)):
                selector.register(side, selectors.EVENT_READ, other)
            try:
                while True:
                    for key, _ in selector.select():
                        received = key.fileobj.recv(CHUNK)  # type: ignore[union-attr]
                        if number < self._swallowed:
                            return  # both sides stay open
                        if not received:
                            client.shutdown(socket.SHUT_RDWR)
                            server.shutdown(socket.SHUT_RDWR)
                            return
                        key.data.sendall(received)
            except OSError:  # one side is gone: so is the other
                for side in (client, server):
                    side.close()


def _end(side: socket.socket) -> None:
    try:
        side.shutdown(socket.SHUT_RDWR)
    except OSError:  # its other end is closed already
        pass
