"""Error replies in the place of Redis's own: what a server answers that can't take writes, or any command, right now.

A refused command never reaches Redis: a PING is sent in its place, so that the replies keep their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.proxy import split

NEVER: Final = frozenset(
    {b"HELLO", b"AUTH", b"SELECT", b"CLIENT", b"QUIT", b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE"}
)
"""They belong to the connection."""
READS: Final = frozenset(
    {b"PING", b"INFO", b"TIME", b"GET", b"MGET", b"EXISTS", b"HGET", b"HMGET", b"HGETALL", b"HLEN", b"LLEN", b"LRANGE"}
    | {b"ZCARD", b"ZSCORE", b"ZRANGE", b"ZRANGEBYSCORE", b"ZRANGEBYLEX", b"ZCOUNT", b"SMEMBERS", b"SCARD", b"SISMEMBER"}
    | {b"XRANGE", b"XREVRANGE", b"XREAD", b"XLEN", b"XINFO", b"TTL", b"PTTL", b"TYPE", b"CONFIG", b"SCAN", b"HSCAN"}
    | {b"EVAL_RO", b"EVALSHA_RO", b"SCRIPT", b"COMMAND"}
)
SUBSCRIBES: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE"})


@dataclass(frozen=True, slots=True)
class Refusals:
    """The error, and what it is for: writes, all commands, or new connections (and all that there are end)."""

    error: str
    writes_only: bool = False
    connections: bool = False

    def reply(self) -> bytes:
        """As it is sent."""
        return f"-{self.error}\r\n".encode()

    def concerns(self, command: bytes) -> bool:
        """Whether this command is refused."""
        return command not in NEVER and not (self.writes_only and command in READS)


class Refusing:
    """What goes over one connection. One that subscribes is only passed on from then on."""

    def __init__(self, present: Callable[[], Refusals | None]) -> None:
        self._present = present
        self._unread = {True: b"", False: b""}
        self._sent: deque[bytes | None] = deque()
        """For each command that isn't answered yet: the error in the place of its answer."""
        self._passes_on = False

    def requests(self, data: bytes) -> bytes:
        """What is sent on of the client's bytes."""
        if self._passes_on:
            return data
        commands, self._unread[True] = split(self._unread[True] + data)
        out = []
        for command in commands:
            verb = command.split(b"\r\n", 3)[2].upper()
            if verb in SUBSCRIBES:
                self._passes_on = True
            refusals = self._present()
            refused = refusals is not None and refusals.concerns(verb) and not self._passes_on
            self._sent.append(refusals.reply() if refusals is not None and refused else None)
            out.append(b"*1\r\n$4\r\nPING\r\n" if refused else command)
        if self._passes_on:
            out.append(self._unread[True])
            self._unread[True] = b""
        return b"".join(out)

    def replies(self, data: bytes) -> bytes:
        """What is sent back of Redis's bytes."""
        replies, self._unread[False] = split(self._unread[False] + data)
        out = []
        for reply in replies:
            error = self._sent.popleft() if self._sent and not reply.startswith(b">") else None
            out.append(error or reply)
        return b"".join(out)
