"""A plain socket to Redis: packed commands out, raw replies in, nothing else.

hiredis packs and parses; redis-py's client costs more CPU a task than our whole task (see docs/decisions.md).
A connection that fails in any way is closed; the next exchange opens a new one.

Blocking connections that threads share: each caller has one for itself while it uses it, then gives it back.

A caller takes the connection that was given back last, so a program has as many connections as it has callers at the
same moment, however many threads it starts. `deque.pop` and `deque.append` are atomic: the common case needs no lock,
and a signal handler may use the pool while the code it interrupted does.

A connection that failed is dropped: it may hold an unread answer. After a fork the child starts with an empty
pool. It closes its copies of the parent's sockets, which sends nothing and leaves the parent's connections alone.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import hiredis

from taskpool import lifecycle
from taskpool.errors import ConfigurationError, RedisUnavailable, TaskpoolError
from taskpool.redis.address import Address
from taskpool.redis.calls import Part

CONNECT_TIMEOUT_S: Final = 5.0
GREETING_ERROR_S: Final = 1.0
CHUNK_BYTES: Final = 65536
CLOSED: Final = "Redis closed the connection"


def pack(commands: Sequence[Sequence[Part]]) -> bytes:
    """Commands as Redis reads them; one that is bytes already is."""
    return b"".join(
        [command if type(command) is bytes else hiredis.pack_command(tuple(command)) for command in commands]  # type: ignore[arg-type]
    )


class Wire:
    """One connection, opened when first used. Not for two threads at once."""

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
            self._wait_at_most(connection, timeout_s)
            connection.sendall(pack(commands))
            return [self._read(connection) for _ in commands]
        except OSError as error:
            self.close()
            raise self._unavailable(error) from error
        except BaseException:
            # Left with replies unread (an interrupted task, a broken stream), the connection is of no more use.
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
            if len(packed) > CHUNK_BYTES:  # less doesn't wait: the kernel takes it
                self._wait_at_most(connection, CONNECT_TIMEOUT_S)
            connection.sendall(packed)
        except OSError as error:
            self.close()
            raise self._unavailable(error) from error

    def next_reply(self, timeout_s: float) -> Any:
        """The next reply or, on a RESP 3 connection, the next message pushed; None when none came within `timeout_s`.

        Raises:
            RedisUnavailable
        """
        try:
            reply = self._reader.gets()
            if reply is not False:
                return reply
            connection = self._socket
            if connection is None:
                raise RedisUnavailable(f"not connected to Redis at {self._address}")
            self._wait_at_most(connection, timeout_s)
            return self._read(connection)
        except TimeoutError:
            return None
        except hiredis.ProtocolError as error:
            self.close()
            raise self._unavailable(strange(self._address)) from error
        except OSError as error:
            self.close()
            raise self._unavailable(error) from error

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

    def _wait_at_most(self, connection: socket.socket, timeout_s: float) -> None:
        """Setting a timeout is a system call: not for each task when it stays the same."""
        if timeout_s != self._timeout_s:
            connection.settimeout(timeout_s)
            self._timeout_s = timeout_s

    def _read(self, connection: socket.socket) -> Any:
        reader = self._reader
        try:
            reply = reader.gets()
            while reply is False:
                received = connection.recv(CHUNK_BYTES)
                if not received:
                    raise ConnectionResetError(CLOSED)
                reader.feed(received)
                reply = reader.gets()
        except hiredis.ProtocolError as error:
            raise strange(self._address) from error
        return reply

    def _connect(self) -> socket.socket:
        address = self._address.located()
        self._reader = hiredis.Reader()
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
        self._socket, self._timeout_s = connection, None
        return connection

    def _greet(self, address: Address, connection: socket.socket) -> list[Any]:
        """The replies to the greeting. A Redis that refuses everybody says why once and closes: before or after we have
        sent anything, and whether or not that can still be sent."""
        greeting = address.greeting(self._name, self._protocol)
        replies: list[Any] = []
        lost: OSError | None = None
        try:
            connection.sendall(pack(greeting))
        except OSError as error:
            lost = error
        try:
            while len(replies) < len(greeting):
                replies.append(self._read(connection))
        except OSError as error:
            refuse_error(address, replies)
            raise lost or error  # noqa: B904  the first one says more
        return replies

    def _unavailable(self, error: OSError) -> RedisUnavailable:
        return unreachable(self._address, error)


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


def unreachable(address: Address, error: OSError) -> RedisUnavailable:
    """Why Redis can't be reached, and what to do about it if that is on our side."""
    what = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        what += " (raise the limit with ulimit -n, or look for what leaves files open)"
    return RedisUnavailable(f"can't reach Redis at {address}: {what}")


def strange(address: Address) -> OSError:
    """What the connection has died of when what came wasn't a reply of Redis."""
    return ConnectionAbortedError(
        f"what answers there isn't Redis{'' if address.tls else ', or wants TLS (rediss://)'}"
    )


def greeting_error(redis_url: str) -> str:
    """The error that Redis sends to a new connection before it closes it: too many clients, or protected mode.

    A client that writes first may see only a broken connection. "" if there is no such error.
    """
    try:
        return said_first(Address.parse(redis_url).located())
    except (OSError, TaskpoolError):
        return ""


def said_first(address: Address) -> str:
    """The error that a Redis sends to a new connection that has sent nothing; "" if there is none."""
    if address.tls:
        return ""
    try:
        with _open(address, GREETING_ERROR_S) as connection:
            line = connection.recv(CHUNK_BYTES)
    except OSError:
        return ""
    return line.decode(errors="replace").strip()[1:] if line.startswith(b"-") else ""


def refuse_bad_greeting(address: Address, replies: Sequence[Any]) -> None:
    """Raise `RedisUnavailable` for the first error among the replies to a greeting, or if it is a replica that answers
    in the place of the master: what can be read there may be old or missing."""
    refuse_error(address, replies)
    if address.must_be_master and "role:master" not in _text(replies[-1]):
        raise RedisUnavailable(f"Redis at {address} is a replica, though a sentinel named it as the master")


def refuse_error(address: Address, replies: Sequence[Any]) -> None:
    """Raise `RedisUnavailable` for the first error among the replies to a greeting, of which some may be missing."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailable(f"Redis at {address} refused us: {reply}")


def _text(reply: Any) -> str:
    """A reply in RESP 2 or 3 as text."""
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)


MAX_CONNECTIONS: Final = 100
WAIT_S: Final = 10.0
"""How long a caller waits for a free connection when all are in use."""
LOOK_S: Final = 0.5


class Connection(Protocol):
    """What the pool needs of a connection. It is opened when it is first used."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Connection)


class ConnectionsInUse(RedisUnavailable):
    """Raised when no connection became free in time. Nothing was sent."""


class ConnectionPool(Generic[C]):
    """Up to `most` connections made by `make`. Safe for threads, signal handlers and forks."""

    def __init__(self, make: Callable[[], C], *, most: int = MAX_CONNECTIONS) -> None:
        if most < 1:
            raise ConfigurationError(f"max_connections must be 1 or more, not {most}")
        self._make = make
        self._most = most
        self._pid = os.getpid()
        self._members = _Members[C](most)
        lifecycle.watch(self)

    def take(self) -> C:
        """A connection for this caller alone, until it calls `give_back` or `drop`.

        Raises:
            ConnectionsInUse: none became free within 10 s.
        """
        if os.getpid() != self._pid:  # a fork that didn't run Python's hooks, as some servers written in C do
            self.forked()
        try:
            return self._members.idle.pop()
        except IndexError:
            return self._another()[0]

    def give_back(self, connection: C) -> None:
        """Return a connection on which no answer is outstanding."""
        members = self._members
        if not members.has(connection):  # taken before `close` or a fork
            connection.close()
            return
        members.idle.append(connection)
        if members.waiting or members.is_closed:
            members.settle()

    def drop(self, connection: C) -> None:
        """Close a connection that is of no more use."""
        connection.close()
        self._members.forget(id(connection))

    def drop_idle(self) -> None:
        """Close the connections that no call uses now."""
        self._members.close_idle()

    @contextmanager
    def taken(self, *harmless: type[BaseException]) -> Iterator[C]:
        """A connection for the block. It is dropped if the block raises something else than a `harmless` exception."""
        connection = self.take()
        try:
            yield connection
        except harmless:
            self.give_back(connection)
            raise
        except BaseException:
            self.drop(connection)
            raise
        self.give_back(connection)

    def close(self) -> None:
        """Close all connections; those in use close when they are given back. The next `take` opens a new one."""
        members, self._members = self._members, _Members(self._most)
        members.close()

    def forked(self) -> None:
        """Start anew in a child process: close our copies of the parent's sockets, those in use as well."""
        members, self._members = self._members, _Members(self._most)
        self._pid = os.getpid()
        members.is_closed = True
        for connection in members.all():
            connection.close()

    def at_exit(self) -> None:
        """As `close`."""
        self.close()

    def __del__(self) -> None:
        if "_members" in self.__dict__:
            self.close()

    def _another(self) -> tuple[C, _Members[C]]:
        end_mono = time.monotonic() + WAIT_S
        while True:
            members = self._members
            if connection := members.another(self._make, end_mono):
                return connection, members
            if time.monotonic() >= end_mono:
                raise ConnectionsInUse(
                    f"all {self._most} connections to Redis are in use, and none became free within {WAIT_S:g} s: "
                    "use fewer threads, or give the pool a larger max_connections"
                )


class SharedWire(ConnectionPool[Wire]):
    """A `Transport` for any number of threads: each exchange has a connection for itself."""

    def __init__(self, address: Address, *, name: str, most: int = MAX_CONNECTIONS) -> None:
        super().__init__(partial(Wire, address, name=name), most=most)

    def exchange(self, commands: Sequence[Sequence[Part]], timeout_s: float) -> list[Any]:
        """As `Wire.exchange`."""
        if os.getpid() != self._pid:
            self.forked()
        members = self._members
        try:
            wire = members.idle.pop()  # this is `take` and `give_back`, without what their calls cost
        except IndexError:
            wire, members = self._another()
        try:
            replies = wire.exchange(commands, timeout_s)
        except RedisUnavailable:
            self.drop(wire)
            self.drop_idle()  # most likely they are as dead: a second try must not meet the next dead one
            raise
        except BaseException:
            self.drop(wire)
            raise
        members.idle.append(wire)
        if members.waiting or members.is_closed:
            members.settle()
        return replies


class _Waiting(Generic[C]):
    """A caller that waits for a connection. Its lock is free once it was served."""

    __slots__ = ("connection", "lock")

    def __init__(self) -> None:
        self.connection: C | None = None
        self.lock = threading.Lock()
        self.lock.acquire()


class _Members(Generic[C]):
    """The connections of one pool between two calls of `close`, and the callers that wait for one."""

    def __init__(self, most: int) -> None:
        self.idle: deque[C] = deque()
        self.waiting: deque[_Waiting[C]] = deque()
        self._permits = deque([None] * most)  # one for each connection that may still be made
        self._known: dict[int, weakref.ref[C]] = {}
        self.is_closed = False

    def has(self, connection: C) -> bool:
        """Whether the connection was made here, and wasn't dropped."""
        return id(connection) in self._known

    def all(self) -> list[C]:
        """Every connection, in use or not."""
        return [connection for ref in list(self._known.values()) if (connection := ref()) is not None]

    def another(self, make: Callable[[], C], end_mono: float) -> C | None:
        """A new connection if one more may be made, else the next that becomes free; None: look again."""
        try:
            self._permits.pop()
        except IndexError:
            return self._wait(end_mono)
        try:
            connection = make()
            # A caller may be interrupted between two steps, and lose its connection without `drop`.
            self._known[id(connection)] = weakref.ref(connection, partial(self._lost, id(connection)))
        except BaseException:
            self._permits.append(None)
            raise
        return connection

    def forget(self, id: int) -> None:
        """Count a connection no longer; another may be made in its place."""
        if self._known.pop(id, None) is None:
            return
        self._permits.append(None)
        if self.waiting:
            self._wake(None)

    def settle(self) -> None:
        """Do what a connection that was given back calls for."""
        if self.is_closed:  # since a moment ago
            self.close_idle()
        else:
            self._serve()

    def _serve(self) -> None:
        """Hand idle connections to those who wait, the first one first."""
        while self.waiting:
            try:
                connection = self.idle.pop()
            except IndexError:
                return  # taken meanwhile; it will be given back
            if not self._wake(connection):
                self.idle.append(connection)

    def close(self) -> None:
        """Close what is idle, and send those who wait elsewhere."""
        self.is_closed = True
        self.close_idle()
        while self._wake(None):
            pass

    def close_idle(self) -> None:
        """Close what is idle."""
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return
            connection.close()
            self.forget(id(connection))

    def _lost(self, id: int, _: weakref.ref[C]) -> None:
        self.forget(id)

    def _wait(self, end_mono: float) -> C | None:
        me = _Waiting[C]()
        self.waiting.append(me)
        is_served = False
        try:
            # Look again, now that a caller who gives one back sees us.
            if not (self.idle or self._permits or self.is_closed):
                is_served = me.lock.acquire(timeout=max(0.0, min(LOOK_S, end_mono - time.monotonic())))
        except BaseException:
            self._leave(me, is_served)
            if me.connection is not None:
                self.idle.append(me.connection)
            raise
        self._leave(me, is_served)
        if me.connection is not None:
            return me.connection
        try:
            return self.idle.pop()
        except IndexError:
            return None

    def _leave(self, me: _Waiting[C], is_served: bool) -> None:
        if is_served:
            return
        try:
            self.waiting.remove(me)
        except ValueError:
            me.lock.acquire(timeout=LOOK_S)  # another thread is serving us at this moment, or has

    def _wake(self, connection: C | None) -> bool:
        try:
            waiting = self.waiting.popleft()
        except IndexError:
            return False
        waiting.connection = connection
        waiting.lock.release()
        return True
