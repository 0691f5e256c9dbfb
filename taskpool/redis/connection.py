"""A blocking connection to Redis: sends packed commands, and returns raw replies.

hiredis packs and parses. redis-py's client costs more CPU per task than our whole task (see docs/decisions.md).
A connection that fails in any way is closed; the next exchange opens a new one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import hiredis

from taskpool.errors import RedisUnavailable
from taskpool.lifecycle import MAX_CONNECTIONS, ConnectionPool
from taskpool.redis.address import Address
from taskpool.redis.calls import Part

CONNECT_TIMEOUT_S: Final = 5.0
GREETING_ERROR_S: Final = 1.0
CHUNK_BYTES: Final = 65536
CLOSED: Final = "Redis closed the connection"
_TEXTS: Final = frozenset({str, bytes})


def pack(commands: Sequence[Sequence[Part]]) -> bytes:
    """Commands as Redis reads them. hiredis gets no numbers: 3.5.0 ends the process if a signal handler raises, as for
    Ctrl-C, while it turns one into text."""
    texts = [tuple([part if type(part) in _TEXTS else str(part) for part in command]) for command in commands]
    return b"".join(map(hiredis.pack_command, texts))  # type: ignore[arg-type]


class Wire:
    """One connection, opened when first used. It serves one thread at a time."""

    def __init__(self, address: Address, *, name: str, protocol: int = 2) -> None:
        self._address = address
        self._name = name
        self._protocol = protocol
        self._socket: socket.socket | None = None
        self._timeout_s: float | None = None
        self._reader = hiredis.Reader()

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        """Send the commands together and return their raw replies in order; an error reply is a value here.

        Raises:
            RedisUnavailable: no connection, or no reply in time. Whether the commands ran is then unknown.
        """
        try:
            connection = self._socket or self._connect()
            if timeout_s != self._timeout_s:
                self._set_timeout(connection, timeout_s)
            connection.sendall(pack(commands))
            return [self._read(connection, timeout_s) for _ in commands]
        except OSError as error:
            self.close()
            raise unreachable(self._address, error) from error
        except BaseException:  # an interrupted task: replies are left unread
            self.close()
            raise

    def send(self, commands: Sequence[Sequence[Part]]) -> None:
        """Send commands whose replies are read later, by `next_reply`.

        Raises:
            RedisUnavailable
        """
        try:
            connection = self._socket or self._connect()
            packed = pack(commands)
            if (
                len(packed) > CHUNK_BYTES and self._timeout_s != CONNECT_TIMEOUT_S
            ):  # a smaller one doesn't wait: the kernel takes it
                self._set_timeout(connection, CONNECT_TIMEOUT_S)
            connection.sendall(packed)
        except OSError as error:
            self.close()
            raise unreachable(self._address, error) from error

    def next_reply(self, timeout_s: float) -> Any:
        """The next reply or, on a RESP 3 connection, the next message pushed; None when none came within `timeout_s`.

        Raises:
            RedisUnavailable
        """
        try:
            if self._socket is None:
                raise ConnectionResetError("not connected")
            return self._read(self._socket, timeout_s)
        except TimeoutError:
            return None
        except OSError as error:
            self.close()
            raise unreachable(self._address, error) from error

    @property
    def closed(self) -> bool:
        """Whether there is no connection now."""
        return self._socket is None

    def close(self) -> None:
        """Close the connection; the next exchange opens a new one."""
        connection, self._socket = self._socket, None
        if connection is not None:
            with suppress(OSError):  # a task has closed its descriptor
                connection.close()

    def __del__(self) -> None:
        if "_socket" in self.__dict__:
            self.close()

    def _set_timeout(self, connection: socket.socket, timeout_s: float) -> None:
        """Costs a system call, so it is only called for another timeout than the last one."""
        connection.settimeout(timeout_s)
        self._timeout_s = timeout_s

    def _read(self, connection: socket.socket, timeout_s: float) -> Any:
        reader = self._reader
        try:
            while (reply := reader.gets()) is False:
                if timeout_s != self._timeout_s:
                    self._set_timeout(connection, timeout_s)
                received = connection.recv(CHUNK_BYTES)
                if not received:
                    raise ConnectionResetError(CLOSED)
                reader.feed(received)
        except hiredis.ProtocolError as error:
            raise not_redis(self._address) from error
        return reply

    def _connect(self) -> socket.socket:
        address = self._address.located()
        self._reader, self._timeout_s = hiredis.Reader(), None
        connection = _open(address, CONNECT_TIMEOUT_S)
        try:
            if not address.path:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if address.tls:
                connection = address.tls.wrap_socket(connection, server_hostname=address.host)
            refuse_bad_greeting(address, self._greet(address, connection))
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        return connection

    def _greet(self, address: Address, connection: socket.socket) -> list[Any]:
        """The replies to the greeting. A Redis that refuses all connections says why and closes, maybe before it has
        read anything: its error is looked for even when the greeting can't be sent."""
        greeting = address.greeting(self._name, self._protocol)
        replies: list[Any] = []
        lost: OSError | None = None
        try:
            connection.sendall(pack(greeting))
        except OSError as error:
            lost = error
        try:
            while len(replies) < len(greeting):
                replies.append(self._read(connection, CONNECT_TIMEOUT_S))
        except OSError as error:
            refuse_error(address, replies)
            raise lost or error  # noqa: B904  the first one says more
        return replies


class SharedWire(ConnectionPool[Wire]):
    """A `Transport` for any number of threads: each exchange has a connection for itself."""

    def __init__(self, address: Address, *, name: str, most: int = MAX_CONNECTIONS) -> None:
        super().__init__(partial(Wire, address, name=name), most=most)

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        """As `Wire.exchange`."""
        wire = self.take()
        try:
            replies = wire.exchange(commands, timeout_s)
        except RedisUnavailable:
            self.drop(wire)
            self.drop_idle()  # most likely they are lost as well: a second try must not meet the next lost one
            raise
        except BaseException:
            self.drop(wire)
            raise
        self.give_back(wire)
        return replies


def _open(address: Address, timeout_s: float) -> socket.socket:
    if not address.path:
        return socket.create_connection((address.host, address.port), timeout_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(address.path)
    except BaseException:
        connection.close()
        raise
    return connection


# --- errors, for blocking and awaiting connections -----------------------------------------------------------


def unreachable(address: Address, error: OSError) -> RedisUnavailable:
    """Why Redis can't be reached, and what to do about it if the reason is on our side."""
    what = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        what += " (raise the limit with ulimit -n, or look for what leaves files open)"
    return RedisUnavailable(f"can't reach Redis at {address}: {what}")


def not_redis(address: Address) -> OSError:
    """The error of a connection that received something else than a reply of Redis."""
    return ConnectionAbortedError(
        f"what answers there isn't Redis{'' if address.tls else ', or wants TLS (rediss://)'}"
    )


def unasked_error(address: Address) -> str:
    """The error that Redis sends to a new connection before it closes it (too many clients, or protected mode); "" if
    there is none. A client that writes first may see only a broken connection."""
    if address.tls:
        return ""
    try:
        with _open(address, GREETING_ERROR_S) as connection:
            line = connection.recv(CHUNK_BYTES)
    except OSError:
        return ""
    return line.decode(errors="replace").strip()[1:] if line.startswith(b"-") else ""


def refuse_bad_greeting(address: Address, replies: Sequence[Any]) -> None:
    """Raise `RedisUnavailable` for the first error among the replies to a greeting, or if a replica answers in the
    place of the master: what it has may be old or missing."""
    refuse_error(address, replies)
    if address.must_be_master and "role:master" not in str(replies[-1]):
        raise RedisUnavailable(f"Redis at {address} is a replica, though a sentinel named it as the master")


def refuse_error(address: Address, replies: Sequence[Any]) -> None:
    """Raise `RedisUnavailable` for the first error among the replies to a greeting, of which some may be missing."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailable(f"Redis at {address} refused us: {reply}")
