"""A proxy in front of Redis that ends a connection at the n-th command of somebody's, before or after it ran, or that
answers commands with errors instead of sending them on.

Each command and each reply passes as a whole. The name that a connection gives itself identifies it.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

When = Literal["before", "after"]
Refuse = Callable[[str, list[bytes]], str | None]
"""Gets a connection's name and the words of a command."""
CHUNK: Final = 65536


@dataclass
class Trap:
    """Closes at the `n`-th command on connections whose name `catches` says: before it reaches Redis, or after Redis
    carried it out and before the answer is passed on. `on_close` is called first, with the connection's name."""

    catches: Callable[[str], bool]
    when: When
    n: int
    on_close: Callable[[str], None] = lambda name: None
    passed: list[str] = field(default_factory=list)
    """The commands counted so far."""
    closed: threading.Event = field(default_factory=threading.Event)

    def closes(self, name: str, when: When, command: str) -> bool:
        if when != self.when or self.closed.is_set() or not self.catches(name):
            return False
        self.passed.append(command)
        if len(self.passed) < self.n:
            return False
        self.closed.set()
        self.on_close(name)
        return True


class Proxy:
    """Listens on a unix socket in `directory`, until it is closed."""

    def __init__(self, directory: Path, upstream: Path) -> None:
        self._upstream = upstream
        self._path = directory / "proxy.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        self._links: set[_Link] = set()
        self.trap: Trap | None = None
        self.traps: dict[str, Trap] = {}
        """By the name of a connection: its own, instead of `trap`."""
        self.refuse: Refuse | None = None
        """Asked for each command: the error that it is answered with, such as ``LOADING ...``; None: it is sent on."""
        self.refused: list[str] = []
        """The names of the connections and the commands that were refused."""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return "unix://" + quote(str(self._path))

    def close(self) -> None:
        """Close all connections, and take no new one."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in tuple(self._links):
            link.join()

    def closes(self, name: str, when: When, command: str) -> bool:
        """Whether the trap, if there is one, closes at this command."""
        with self._lock:
            trap = self.traps.get(name, self.trap)
            return trap is not None and trap.closes(name, when, command)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                break
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(str(self._upstream))
            except OSError:
                client.close()
                upstream.close()
                continue
            link = _Link(self, client, upstream)
            self._links.add(link)
            link.start()
        for link in tuple(self._links):
            link.end()

    def forget(self, link: _Link) -> None:
        self._links.discard(link)


class _Link(threading.Thread):
    """One client's connection."""

    def __init__(self, proxy: Proxy, client: socket.socket, upstream: socket.socket) -> None:
        super().__init__(daemon=True)
        self._proxy, self._client, self._upstream = proxy, client, upstream
        self._name = ""
        self._commands: list[tuple[str, str | None]] = []
        """Sent on, and not answered yet; and the error that the answer is replaced by."""

    def run(self) -> None:
        unread = {self._client: b"", self._upstream: b""}
        with selectors.DefaultSelector() as selector, self._client, self._upstream:
            for side in unread:
                selector.register(side, selectors.EVENT_READ)
            try:
                while True:
                    for key, _ in selector.select():
                        side = self._client if key.fileobj is self._client else self._upstream
                        received = side.recv(CHUNK)
                        if not received:
                            return
                        values, unread[side] = split(unread[side] + received)
                        if not all(map(self._send_on if side is self._client else self._send_back, values)):
                            return
            except OSError:  # one side is gone: so is the other
                pass
            finally:
                self._proxy.forget(self)

    def end(self) -> None:
        """Close it, from another thread."""
        try:
            self._client.shutdown(socket.SHUT_RDWR)
        except OSError:  # closed already
            pass

    def _send_on(self, command: bytes) -> bool:
        words = command.split(b"\r\n")[2::2]
        if words[:2] == [b"CLIENT", b"SETNAME"]:
            self._name = words[2].decode()
        verb = words[0].decode()
        if self._proxy.closes(self._name, "before", verb):
            return False
        error = self._proxy.refuse(self._name, words) if self._proxy.refuse else None
        self._commands.append((verb, error))
        # In the place of a refused command something harmless is sent, so that replies keep their order.
        self._upstream.sendall(b"*1\r\n$4\r\nPING\r\n" if error is not None else command)
        if error is not None:
            self._proxy.refused.append(f"{self._name} {verb}")
        return True

    def _send_back(self, reply: bytes) -> bool:
        is_pushed = reply[:1] in b">*" and reply.split(b"\r\n")[2:3] in ([b"message"], [b"pmessage"])
        verb, error = self._commands.pop(0) if self._commands and not is_pushed else ("(pushed)", None)
        if error is not None:
            reply = f"-{error}\r\n".encode()
        if self._proxy.closes(self._name, "after", verb):
            return False
        self._client.sendall(reply)
        return True


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole values at the start of a stream of RESP, and what is left."""
    values, start = [], 0
    while (end := _end(data, start)) is not None:
        values.append(data[start:end])
        start = end
    return values, data[start:]


def _end(data: bytes, start: int) -> int | None:
    """Where the value that begins at `start` ends; None: it isn't all there."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, size, at = data[start : start + 1], data[start + 1 : line_end], line_end + 2
    if kind in b"$=" and int(size) >= 0:
        end = at + int(size) + 2
        return end if end <= len(data) else None
    if kind in b"*>~%" and int(size) >= 0:
        for _ in range(int(size) * (2 if kind == b"%" else 1)):
            inner = _end(data, at)
            if inner is None:
                return None
            at = inner
    return at
