"""Tells objects that hold connections when the process has forked and when it ends.

A connection belongs to one process. A child that used a connection of its parent would read answers to the parent's
questions, and the parent would read the child's.
"""

from __future__ import annotations

import atexit
import codecs
import os
import weakref
from typing import NoReturn, Protocol

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
