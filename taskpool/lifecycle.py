"""Tells objects that hold connections when the process has forked and when it ends.

A connection belongs to one process. A child that used a connection of its parent would read answers to the parent's
questions, and the parent would read the child's.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Member(Protocol):
    """An object that holds connections."""

    def forked(self) -> None:
        """Forget the parent's connections. This runs in the child of a fork, where only the forking thread lives on:
        it must not take a lock that another thread may have held."""

    def at_exit(self) -> None:
        """Close what can be closed without waiting."""


_members: weakref.WeakSet[Member] = weakref.WeakSet()


def watch(member: Member) -> None:
    """Call the member's `forked` in each child process, and its `at_exit` when the interpreter ends."""
    _members.add(member)


def _forked() -> None:
    for member in list(_members):
        member.forked()


@atexit.register
def _at_exit() -> None:
    for member in list(_members):
        member.at_exit()


os.register_at_fork(after_in_child=_forked)
