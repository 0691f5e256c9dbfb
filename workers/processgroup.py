"""Process groups: who dies with whom, and whether anything of a task is left alive.

Each worker process leads its own session and group, so that what its tasks start can be ended with it. Where the
kernel offers less than Linux does, the parts that need it say so by their return values.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
GONE_POLL_S: Final = 0.005


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent, process `parent`, dies; dies at once if it has."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Takes `die_with_parent` back."""
    _prctl(PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Makes this process the parent of what its descendants leave behind, so that it can reap them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of a group; nothing happens when none is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def is_alive(group: int) -> bool:
    """True while a process of the group lives. A zombie doesn't: who should collect it may be dead, or never do it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of zombies; or a process changed its user: it's there
        pass
    return _has_living(group)


async def end_group(group: int, *, timeout_s: float = 10) -> bool:
    """Kills a group and waits until it is gone. False: something in it doesn't die (it hangs in the kernel)."""
    signal_group(group, signal.SIGKILL)
    for _ in range(round(timeout_s / GONE_POLL_S)):
        if not is_alive(group):
            return True
        await asyncio.sleep(GONE_POLL_S)
    return False


def end_others(grace_s: float = 2) -> bool:
    """Ends every other process of our own group, SIGTERM first and SIGKILL after `grace_s`. Blocks meanwhile.

    False: some are left, or there is no /proc to tell.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _others() or ():
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):  # it ended by itself, or changed its user
                pass
        deadline = time.monotonic() + grace_s
        while _others() and time.monotonic() < deadline:
            time.sleep(GONE_POLL_S)
    return _others() == []


def _has_living(group: int) -> bool:
    """Whether a process of the group is more than a zombie; True where there is no /proc to tell."""
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        return True
    return any(_lives_in(pid, group) for pid in pids)


def _lives_in(pid: str, group: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
        # The first thread of a process can be a zombie while others go on.
        return int(its_group) == group and (state not in (b"Z", b"X") or len(os.listdir(f"/proc/{pid}/task")) > 1)
    except (FileNotFoundError, ProcessLookupError):  # it ended this moment
        return False


def _others() -> list[int] | None:
    """The other processes of our group; None where there is no /proc."""
    own, group = os.getpid(), os.getpgrp()
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:
        return None
    return [pid for pid in pids if pid != own and _group_of(pid) == group]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _prctl(option: int, value: int) -> None:
    """Linux alone has it. Elsewhere the fork server's end of file on its control socket does most of the same."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, int(value), 0, 0, 0)
