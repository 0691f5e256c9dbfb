"""Sends requests over connections that stay open, each the next one as soon as it is answered, and times them.

It runs in a process of its own (`python -m benchmarks.web.load`), takes a `Load` as JSON on stdin and answers with an
`Outcome` on stdout. It does as little as it can for a request, because it shares the machine with what it measures.
"""

from __future__ import annotations

import select
import socket
import sys
import time

import msgspec

CLOSED = "the server closed a connection"


class Load(msgspec.Struct):
    """`total` requests over `connections` to a port of this machine: `requests`, in turn, as they go over the wire."""

    port: int
    connections: int
    total: int
    requests: list[bytes]
    status: bytes


class Outcome(msgspec.Struct):
    """How long all took and each of them, and the first answers' bodies."""

    seconds: float
    milliseconds: list[float]
    bodies: list[bytes]


class Connection:
    """One connection with one request under way."""

    __slots__ = ("received", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self, status: bytes) -> bytes | None:
        """The body of the answer once it is all there.

        Raises:
            ConnectionError: it was closed.
            ValueError: the answer has another status.
        """
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError(CLOSED)
        self.received += chunk
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        if self.received[9:12] != status:
            raise ValueError(f"not {status.decode()}: {self.received[:2000]!r}")
        head = self.received[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at : head.find(b"\r", at) if head.find(b"\r", at) > 0 else end])
        if len(self.received) < end + 4 + length:
            return None
        body = self.received[end + 4 :]
        self.received = b""
        return body


def run(load: Load) -> Outcome:
    """Send it all."""
    poll = select.epoll()
    connections = {}
    for _ in range(load.connections):
        connection = Connection(load.port)
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket.fileno(), select.EPOLLIN)
    requests, kinds = load.requests, len(load.requests)
    taken: list[float] = []
    bodies: list[bytes] = []
    start = time.perf_counter()
    sent = 0
    for connection in connections.values():
        connection.send(requests[sent % kinds])
        sent += 1
    while len(taken) < load.total:
        for number, _ in poll.poll():
            connection = connections[number]
            body = connection.receive(load.status)
            if body is None:
                continue
            taken.append((time.perf_counter() - connection.sent_at) * 1000)
            if len(bodies) < kinds or len(bodies) < load.connections:
                bodies.append(body)
            if sent < load.total:
                connection.send(requests[sent % kinds])
                sent += 1
    seconds = time.perf_counter() - start
    for connection in connections.values():
        connection.socket.close()
    return Outcome(seconds, taken, bodies)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Load))))
