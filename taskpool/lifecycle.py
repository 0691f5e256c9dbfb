"""What connections need in a program with threads, forks and event loops.

A connection belongs to one process: a child that used a connection of its parent would read the answers to the parent's
questions. `ConnectionPool` shares blocking connections among threads. `PerLoop` keeps what works only in the event loop
that made it. Each forgets the parent's connections in the child of a fork.
"""

from __future__ import annotations

import asyncio
import atexit
import codecs
import os
import stat
import sys
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from taskpool.errors import ConfigurationError, NoEventLoop, RedisUnavailable

# The first call that looks up a host imports this codec. A child forked by another thread at that moment would wait for
# the import for ever, so it is done now.
codecs.lookup("idna")


class HoldsConnections:
    """A base for classes whose objects hold connections, and therefore stay in their process."""

    def __reduce__(self) -> NoReturn:
        """Refuse pickle and copy, which multiprocessing uses to hand an object to another process."""
        name = type(self).__name__
        raise TypeError(
            f"a {name} can't be pickled or copied, because it holds connections: make a {name} in each process, "
            f"for example as a global variable of a module that each process imports"
        )


inherited: Final[list[object]] = []
"""In a forked child: objects of the parent that must not be collected, because that would close or lock something."""

_alive: weakref.WeakSet[ConnectionPool[Any] | PerLoop[Any]] = weakref.WeakSet()


def _all_alive() -> list[ConnectionPool[Any] | PerLoop[Any]]:
    while True:
        try:
            return list(_alive)
        except RuntimeError:  # another thread added a member meanwhile
            continue


def _forked() -> None:
    for member in _all_alive():
        member.forked()


@atexit.register
def _at_exit() -> None:
    for member in _all_alive():
        if isinstance(member, ConnectionPool):  # each loop closes its own state
            member.close()


os.register_at_fork(after_in_child=_forked)


# --- threads -------------------------------------------------------------------------------------------------

MAX_CONNECTIONS: Final = 100
WAIT_S: Final = 10.0  # how long a caller waits for a free connection when all are in use
LOOK_S: Final = 0.5


class Connection(Protocol):
    """What the pool needs of a connection. It is opened when it is first used."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Connection)


class ConnectionsInUse(RedisUnavailable):
    """Raised when no connection became free in time. Nothing was sent."""


class ConnectionPool(Generic[C]):
    """Blocking connections made by `make`, shared by threads: each caller has one for itself while it uses it.

    A caller takes the connection that was given back last, so a program has as many connections as it has callers at
    the same moment, however many threads it starts. When `most` are in use, callers wait; unless `is_limit` is False:
    then more are made, and `most` are kept. A connection that failed is dropped: it may hold an unread answer.

    Every step is one operation of a deque, a dict or a SimpleQueue. None needs a lock, so a signal handler may use the
    pool that it interrupts, and a forked child never waits for a lock of a thread that it doesn't have."""

    def __init__(self, make: Callable[[], C], *, most: int = MAX_CONNECTIONS, is_limit: bool = True) -> None:
        if most < 1:
            raise ConfigurationError(f"max_connections must be 1 or more, not {most}")
        self._make, self._most, self._is_limit = make, most, is_limit
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._idle: deque[C] = deque()
        self._known: dict[int, weakref.ref[C]] = {}  # the connections made and neither dropped nor closed, by their id
        self._permits = deque([None] * self._most)  # an entry for each connection that may still be made
        self._waiting: deque[SimpleQueue[C | None]] = deque()  # of each caller that waits: what it gets

    def take(self) -> C:
        """A connection for this caller alone, until it calls `give_back` or `drop`.
        Raises: ConnectionsInUse (none became free within 10 s)."""
        if os.getpid() != self._pid:  # a fork that didn't run Python's hooks, as some servers written in C do
            self.forked()
        try:
            return self._idle.pop()
        except IndexError:
            return self._another()

    def give_back(self, connection: C) -> None:
        """Return a connection on which no answer is outstanding."""
        # Taken before `close` or a fork; or surplus.
        if id(connection) not in self._known or len(self._idle) >= self._most:
            self.drop(connection)
            return
        if self._waiting and self._hand(connection):
            return
        self._idle.append(connection)
        if id(connection) not in self._known:  # closed a moment ago
            self.drop_idle()
        elif self._waiting:  # since a moment ago
            self._serve()

    def drop(self, connection: C) -> None:
        """Close a connection that can't be used any more."""
        connection.close()
        self._forget(id(connection))

    def drop_idle(self) -> None:
        """Close the connections that no caller uses now."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self.drop(connection)

    @contextmanager
    def taken(self, *harmless: type[BaseException]) -> Iterator[C]:
        """A connection for the block. It is dropped if the block raises an exception that isn't `harmless`."""
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
        if os.getpid() != self._pid:
            self.forked()
        for id in list(self._known):
            self._forget(id)
        self.drop_idle()

    def forked(self) -> None:
        """In a child process: abandon the parent's connections, those in use as well. The child has only the forking
        thread, so this takes no lock that another thread may have held."""
        connections = [connection for ref in list(self._known.values()) if (connection := ref()) is not None]
        self._begin()
        for connection in connections:
            self._abandon(connection)

    def __del__(self) -> None:
        if "_waiting" in self.__dict__:
            self.close()

    def _abandon(self, connection: C) -> None:
        """Close the child's copy of a connection. The other side must not notice."""
        connection.close()

    def _another(self) -> C:
        """A new connection or, if no more may be made, the next that becomes free."""
        end_mono = time.monotonic() + WAIT_S
        while not self._may_make():
            if (connection := self._wait(end_mono)) is not None:
                return connection
            if time.monotonic() >= end_mono:
                raise ConnectionsInUse(
                    f"all {self._most} connections to Redis are in use, and none became free within {WAIT_S:g} s: "
                    "use fewer threads, or give the pool a larger max_connections"
                )
        try:
            connection = self._make()
            # A caller that is interrupted between two steps may lose its connection without `drop`.
            lost = partial(_forget_lost, weakref.ref(self), id(connection))
            self._known[id(connection)] = weakref.ref(connection, lost)
        except BaseException:
            self._permits.append(None)
            raise
        return connection

    def _may_make(self) -> bool:
        try:
            self._permits.pop()
        except IndexError:
            return not self._is_limit
        return True

    def _forget(self, id: int) -> None:
        """Count a connection no longer; another may be made in its place."""
        if self._known.pop(id, None) is not None:
            self._permits.append(None)
            self._hand(None)

    def _serve(self) -> None:
        """Hand idle connections to the callers that wait, the one that waits longest first."""
        while self._waiting:
            try:
                connection = self._idle.pop()
            except IndexError:
                return  # taken meanwhile; it will be given back
            if not self._hand(connection):
                self._idle.append(connection)

    def _hand(self, connection: C | None) -> bool:
        """Hand a connection to a caller that waits, or let it look again; False when none waits."""
        try:
            self._waiting.popleft().put(connection)
        except IndexError:
            return False
        return True

    def _wait(self, end_mono: float) -> C | None:
        """The next connection that becomes free; None when the caller should look again."""
        handed: SimpleQueue[C | None] = SimpleQueue()
        self._waiting.append(handed)
        try:
            self._serve()  # one that was given back before we were seen
            if not self._permits:
                return handed.get(timeout=max(0.0, min(LOOK_S, end_mono - time.monotonic())))
        except Empty:
            pass
        except BaseException:
            if (connection := self._leave(handed)) is not None:
                self._idle.append(connection)
            raise
        return self._leave(handed)

    def _leave(self, handed: SimpleQueue[C | None]) -> C | None:
        """Stop waiting. Returns the connection that another thread is handing over at this moment, if there is one."""
        try:
            self._waiting.remove(handed)
        except ValueError:
            with suppress(Empty):
                return handed.get(timeout=LOOK_S)
        return None


def _forget_lost(pool: weakref.ref[ConnectionPool[Any]], id: int, _: weakref.ref[Any]) -> None:
    if (there := pool()) is not None:
        there._forget(id)


# --- event loops ---------------------------------------------------------------------------------------------


class LoopState(Protocol):
    """The connections of an object in one event loop. `abandon` lets go of the sockets without the loop's help, and
    sends nothing."""

    async def close(self) -> None: ...

    def abandon(self) -> None: ...


S = TypeVar("S", bound=LoopState)


class _Entry(NamedTuple, Generic[S]):
    state: S
    closer: AsyncGenerator[None]
    pid: int


class PerLoop(Generic[S]):
    """One state for each event loop, made by `make` when it is first used there. `owner` is the class that needs it,
    `blocking` the one to use where asyncio doesn't run.

    A state is closed when its loop shuts down: `asyncio.run` closes the async generators of its loop at the end, and
    each state has one that waits for it."""

    def __init__(self, make: Callable[[], S], *, owner: str, blocking: str) -> None:
        self._make, self._owner, self._blocking = make, owner, blocking
        # The keys aren't weak: transports refer to their loop, so the values would keep them alive all the same.
        self._entries: dict[asyncio.AbstractEventLoop, _Entry[S]] = {}
        _alive.add(self)

    def here(self) -> S:
        """The state of the running loop.
        Raises: NoEventLoop (asyncio doesn't run in this thread)."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise NoEventLoop(self._why()) from None
        if entry := self._entries.get(loop):
            return entry.state
        self._sweep()
        state = self._make()
        closer = self._closing(loop, state)
        with suppress(StopIteration):  # raised by the first `yield`, because nothing awaits it
            closer.__anext__().send(None)
        self._entries[loop] = _Entry(state, closer, os.getpid())
        return state

    async def close(self) -> None:
        """Close the state of the running loop, and abandon those whose loop is closed. Other loops keep theirs."""
        self._sweep()
        if entry := self._entries.get(asyncio.get_running_loop()):
            await entry.closer.aclose()

    def forked(self) -> None:
        """In a child process: abandon the states of the parent's loops."""
        entries, self._entries = self._entries, {}
        for entry in entries.values():
            self._abandon(entry)

    async def _closing(self, loop: asyncio.AbstractEventLoop, state: S) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._entries.pop(loop, None)
            await state.close()

    def _sweep(self) -> None:
        """Abandon the states of loops that were closed without `shutdown_asyncgens`."""
        for loop in [loop for loop in list(self._entries) if loop.is_closed()]:
            if entry := self._entries.pop(loop, None):  # else another thread did it
                self._abandon(entry)

    def _abandon(self, entry: _Entry[S]) -> None:
        entry.state.abandon()
        if entry.pid != os.getpid():
            inherited.append(entry)

    def _why(self) -> str:
        trio: Any = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            return (
                f"{self._owner} needs asyncio, and trio runs here: use {self._blocking} in a thread, "
                f"as in `await trio.to_thread.run_sync(pool.get, id)`"
            )
        return f"{self._owner} needs a running asyncio event loop: call it from a coroutine, or use {self._blocking}"


def descriptor_of(transport: Any) -> int:
    """The descriptor of the socket below a transport of asyncio or a stream of httpcore; -1 if it is closed."""
    found = transport.get_extra_info("socket")
    return -1 if found is None else int(found.fileno())


def inode_of(descriptor: int) -> int | None:
    """A number that identifies the socket behind a descriptor; None if there is no socket."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def let_go(descriptor: int, inode: int | None) -> None:
    """Close the socket behind a descriptor that still belongs to a transport, if it is still that socket.

    The descriptor then refers to /dev/null. If it were closed, its number could be given to another file, which the
    transport would close later."""
    if descriptor < 0 or inode is None or inode_of(descriptor) != inode:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)
