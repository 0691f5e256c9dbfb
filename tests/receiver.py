"""A receiver of webhooks on this machine: notes what it is sent, and answers by the path."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec


@dataclass(frozen=True)
class Received:
    """One request. The names of its headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> dict[str, Any]:
        document: dict[str, Any] = msgspec.json.decode(self.body)
        return document


@dataclass
class Receiver:
    """`answers` are the statuses of the next requests, 200 when there are none left; `release` ends what hangs."""

    port: int = 0
    requests: list[Received] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    hanging: int = 0

    def url(self, path: str = "/in", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def at(self, path: str) -> list[Received]:
        """What was sent to this path."""
        return [each for each in self.requests if each.path == path]


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver until the block ends."""
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers.get("content-length", 0))
            body = self.rfile.read(size)
            if len(body) < size:  # the sender was killed in the middle
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.requests.append(Received(self.path, headers, body))
            match self.path.split("?")[0]:
                case "/hang":
                    state.hanging += 1
                    state.release.wait(30)
                    state.hanging -= 1
                case "/hang-once" if len(state.at("/hang-once")) == 1:
                    state.hanging += 1
                    state.release.wait(30)
                case "/trickle-head":
                    self.trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 100_000)
                case "/trickle-body":
                    self.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000, at_once=45)
                case "/nonsense":
                    self.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")
                case "/endless":
                    self.send_response(200)
                    self.end_headers()
                    self.trickle(b"a" * (1 << 24), at_once=1 << 24)
                case _:
                    status, more = state.answers.pop(0) if state.answers else (200, {})
                    self.send_response(status)
                    for name, value in {"content-length": "0", **more}.items():
                        self.send_header(name, value)
                    self.end_headers()

        def do_GET(self) -> None:
            state.requests.append(Received("GET " + self.path, {}, b""))
            self.send_response(200)
            self.end_headers()

        def trickle(self, text: bytes, at_once: int = 1) -> None:
            try:
                self.wfile.write(text[:at_once])
                for at in range(at_once, len(text)):
                    if state.release.wait(0.02):
                        return
                    self.wfile.write(text[at : at + 1])
            except OSError:
                pass  # the sender has left

        def log_message(self, format: str, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        thread.join()
        server.server_close()
