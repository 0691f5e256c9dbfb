"""Tells objects that hold connections when the process has forked and when it ends.

A connection belongs to one process. A child that used a connection of its parent would read answers to the parent's
questions, and the parent would read the child's.

What belongs to one asyncio event loop: connections, locks and futures work only in the loop that made them.

`PerLoop` keeps one state for each loop. A loop's state is made when it is first used there, and closed when the loop
shuts down: `asyncio.run` closes the async generators of its loop at the end, and each state has one that waits for it.
"""

from __future__ import annotations

import asyncio
import atexit
import codecs
import os
import stat
import sys
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from taskpool.errors import NoEventLoop

# The first call that looks up a host imports this codec. A child forked by another thread at that moment would wait for
# the import for ever, so it is done now.
codecs.lookup("idna")


class Member(Protocol):
    """An object that holds connections."""

    def forked(self) -> None:
        """Forget the parent's connections. This runs in the child of a fork, where only the forking thread lives on:
        it must not take a lock that another thread may have held."""

    def at_exit(self) -> None:
        """Close what can be closed without waiting."""


class HoldsConnections:
    """A base for classes that hold connections: an object of them stays in its process."""

    def __reduce__(self) -> NoReturn:
        """Refuse pickle and copy, which multiprocessing uses for what it hands to another process."""
        name = type(self).__name__
        raise TypeError(
            f"a {name} can't be pickled or copied, because it holds connections: make a {name} in each process, "
            f"for example as a global variable of a module that each process imports"
        )


_members: weakref.WeakSet[Member] = weakref.WeakSet()


def watch(member: Member) -> None:
    """Call the member's `forked` in each child process, and its `at_exit` when the interpreter ends."""
    _members.add(member)


def _forked() -> None:
    for member in _alive():
        member.forked()


@atexit.register
def _at_exit() -> None:
    for member in _alive():
        member.at_exit()


def _alive() -> list[Member]:
    while True:
        try:
            return list(_members)
        except RuntimeError:  # another thread has just made one: look again
            continue


os.register_at_fork(after_in_child=_forked)


class LoopState(Protocol):
    """What an object needs in one loop."""

    async def close(self) -> None:
        """Close the connections. Runs in the loop."""

    def abandon(self) -> None:
        """Let go of the sockets without the loop's help, and without a word to the other side."""


S = TypeVar("S", bound=LoopState)

_inherited: Final[list[object]] = []
"""In a forked child: the parent's states. If Python collected them, their transports would act on the parent's loop."""


class _Entry(NamedTuple, Generic[S]):
    state: S
    closer: AsyncGenerator[None]
    pid: int


class PerLoop(Generic[S]):
    """One state for each running event loop, made by `make`. `owner` is the class that needs it, `blocking` the one to
    use where asyncio doesn't run."""

    def __init__(self, make: Callable[[], S], *, owner: str, blocking: str) -> None:
        self._make, self._owner, self._blocking = make, owner, blocking
        # The keys aren't weak: transports refer to their loop, so the values would keep them alive all the same.
        self._entries: dict[asyncio.AbstractEventLoop, _Entry[S]] = {}
        watch(self)

    def here(self) -> S:
        """The state of the running loop.

        Raises:
            NoEventLoop: asyncio doesn't run in this thread.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise NoEventLoop(self._why()) from None
        entry = self._entries.get(loop)
        return self._begin(loop) if entry is None else entry.state

    async def close(self) -> None:
        """Close the state of the running loop, and let go of those whose loop is closed. Other loops keep theirs."""
        self._sweep()
        entry = self._entries.get(asyncio.get_running_loop())
        if entry is not None:
            await entry.closer.aclose()

    def forked(self) -> None:
        """In the child of a fork: let go of everything that belongs to the parent's loops."""
        entries, self._entries = self._entries, {}
        for entry in entries.values():
            self._abandon(entry)

    def at_exit(self) -> None:
        """Nothing: what a loop holds, it closes itself."""

    def _begin(self, loop: asyncio.AbstractEventLoop) -> S:
        self._sweep()
        state = self._make()
        closer = self._closing(loop, state)
        with suppress(StopIteration):  # that is how a generator hands out a value when nothing awaits it
            closer.__anext__().send(None)
        self._entries[loop] = _Entry(state, closer, os.getpid())
        return state

    async def _closing(self, loop: asyncio.AbstractEventLoop, state: S) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._entries.pop(loop, None)
            await state.close()

    def _sweep(self) -> None:
        """Let go of the states of closed loops: those that were closed without `shutdown_asyncgens`."""
        for loop in [loop for loop in list(self._entries) if loop.is_closed()]:
            entry = self._entries.pop(loop, None)
            if entry is not None:  # else another thread did it
                self._abandon(entry)

    def _abandon(self, entry: _Entry[S]) -> None:
        entry.state.abandon()
        if entry.pid != os.getpid():
            _inherited.append(entry)

    def _why(self) -> str:
        trio: Any = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            return (
                f"{self._owner} needs asyncio, and trio runs here: use {self._blocking} in a thread, "
                f"as in `await trio.to_thread.run_sync(pool.get, id)`"
            )
        return f"{self._owner} needs a running asyncio event loop: call it from a coroutine, or use {self._blocking}"


def inode_of(descriptor: int) -> int | None:
    """A number that tells the socket behind a descriptor from all others; None if no socket is there."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def let_go(descriptor: int, inode: int | None) -> None:
    """Close the socket behind a descriptor that a transport still believes to own, if it is still that socket.

    The descriptor leads to /dev/null from then on: were it closed, its number could be given to another file, which the
    transport would close in its end.
    """
    if descriptor < 0 or inode is None or inode_of(descriptor) != inode:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(nothing, descriptor, inheritable=False)
    finally:
        os.close(nothing)
