"""A proxy in front of an API that passes a request on and ends the connection in place of the answer.

It reads no more of HTTP than the first line of what a client sends at once, which is enough for ours.
"""

from __future__ import annotations

import selectors
import socket
import threading
from urllib.parse import urlsplit

CHUNK = 65536


class HttpProxy:
    """Listens on a port of 127.0.0.1 until it is closed. `seen` are the first lines of what came through."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._cuts: list[str] = []
        self._threads: list[threading.Thread] = []
        self.seen: list[str] = []
        self.connections = 0
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self, method: str, times: int = 1) -> None:
        """Let the answers to the next requests with this method be lost."""
        self._cuts += [method] * times

    def close(self) -> None:
        """End it; all clients have left by now."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._pass_on, args=(client,)))
            self._threads[-1].start()

    def _pass_on(self, client: socket.socket) -> None:
        is_cut = False
        with client, socket.socket() as upstream, selectors.DefaultSelector() as selector:
            try:
                upstream.connect(self._upstream)
                for side in (client, upstream):
                    selector.register(side, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        received = key.fileobj.recv(CHUNK)  # type: ignore[union-attr]
                        if not received or (key.fileobj is upstream and is_cut):
                            return
                        if key.fileobj is client:
                            is_cut = self._note(received) or is_cut
                            upstream.sendall(received)
                        else:
                            client.sendall(received)
            except OSError:  # one side is gone: so is the other
                return

    def _note(self, request: bytes) -> bool:
        """Note a request; whether its answer is to be lost."""
        line = request.partition(b"\r\n")[0].decode("latin-1")
        if not line.endswith("HTTP/1.1"):  # a body that came by itself
            return False
        self.seen.append(line.removesuffix(" HTTP/1.1"))
        method = line.partition(" ")[0]
        if method not in self._cuts:
            return False
        self._cuts.remove(method)
        return True
