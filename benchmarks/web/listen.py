"""Many subscribers to one task's events in one process, which notes how old each report is when it arrives.

It runs in a process of its own (`python -m benchmarks.web.listen`), takes an `Audience` as JSON on stdin, says `ready`
on stderr once all are subscribed, and answers with `Ages` on stdout when the task has ended. It parses as little as it
can, because it shares the machine with what it measures.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time
from typing import Final, Literal

import msgspec

Channel = Literal["sse", "ws"]

_report: Final = re.compile(rb'"note":"([0-9]+)"').findall
_KEY: Final = b"x3JJHMbDL1EzLkh9GBhXDw=="  # any 16 bytes will do
_MASK: Final = b"\0\0\0\0"


class Audience(msgspec.Struct):
    """`size` subscribers to a task, at a port of this machine."""

    port: int
    size: int
    channel: Channel
    task: str


class Ages(msgspec.Struct):
    """Of each report at each subscriber, in milliseconds from when it was made; and by report, when the last had it."""

    milliseconds: list[float]
    last_ms: list[float]


class Subscriber:
    """One connection. `is_ready`: subscribed; `is_over`: told of the task's end."""

    def __init__(self, audience: Audience) -> None:
        self.socket = socket.create_connection(("127.0.0.1", audience.port))
        self.is_ready = self.is_over = False
        self._rest = b""
        self._ready_at = b"event: snapshot\n" if audience.channel == "sse" else b'{"op":"live"'
        head = "Host: 127.0.0.1\r\n"
        if audience.channel == "sse":
            self.socket.sendall(f"GET /tasks/{audience.task}/events HTTP/1.1\r\n{head}\r\n".encode())
            return
        head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        self.socket.sendall(f"GET /ws HTTP/1.1\r\n{head}Sec-WebSocket-Key: {_KEY.decode()}\r\n\r\n".encode())
        answer = self.socket.recv(65536)
        if not answer.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(answer.decode())
        text = msgspec.json.encode({"op": "subscribe", "sub": "s", "task": audience.task})
        self.socket.sendall(bytes((0x81, 0x80 | len(text))) + _MASK + text)

    def receive(self) -> list[float]:
        """The ages of the reports that have arrived."""
        data = self.socket.recv(65536)
        now = time.monotonic_ns()
        if not data:
            raise ConnectionError("the server closed a connection")
        data = self._rest + data
        if not self.is_ready:
            self.is_ready = self._ready_at in data
        self.is_over = b'"event":"done"' in data
        found = _report(data)
        # What may be half a report is looked at once more.
        self._rest = data[data.rindex(b'"note"') + 6 :] if found else data[-200:]
        return [(now - int(at)) / 1e6 for at in found]


def run(audience: Audience) -> Ages:
    """Subscribe, and listen until the task has ended."""
    poll = select.epoll()
    subscribers = {}
    for _ in range(audience.size):
        subscriber = Subscriber(audience)
        subscribers[subscriber.socket.fileno()] = subscriber
        poll.register(subscriber.socket.fileno(), select.EPOLLIN)
    waiting, listening = audience.size, audience.size
    ages: list[list[float]] = []
    heard = dict.fromkeys(subscribers, 0)
    while listening:
        for number, _ in poll.poll():
            subscriber = subscribers[number]
            was_ready = subscriber.is_ready
            for age in subscriber.receive():
                if heard[number] == len(ages):
                    ages.append([])
                ages[heard[number]].append(age)
                heard[number] += 1
            if subscriber.is_ready and not was_ready:
                waiting -= 1
                if not waiting:
                    print("ready", file=sys.stderr, flush=True)
            if subscriber.is_over:
                poll.unregister(number)
                listening -= 1
    if any(len(each) != audience.size for each in ages):
        raise AssertionError(f"of {audience.size} subscribers, reports reached {[len(each) for each in ages]}")
    return Ages([age for each in ages for age in each], [max(each) for each in ages])


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Audience))))
