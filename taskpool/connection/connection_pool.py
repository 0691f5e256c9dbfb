"""Blocking connections that threads share: each caller has one for itself while it uses it, then gives it back.

A caller takes the connection that was given back last, so a program has as many connections as it has callers at the
same moment, however many threads it starts. `deque.pop` and `deque.append` are atomic: the common case needs no lock,
and a signal handler may use the pool while the code it interrupted does.

A connection that failed is dropped: it may hold an unread answer. After a fork the child starts with an empty
pool. It closes its copies of the parent's sockets, which sends nothing and leaves the parent's connections alone.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from taskpool import lifecycle
from taskpool.calls import Part
from taskpool.connection.address import Address
from taskpool.connection.wire import Wire
from taskpool.errors import ConfigurationError, RedisUnavailable

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
