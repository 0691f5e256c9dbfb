"""Process groups: who dies with whom, and whether anything of a task is left alive.

Each worker process leads its own session and group, so that what its tasks start can be ended with it. What leaves
both is found by its descent: an orphan falls to the worker it descends from, and when that has died to the fork
server, which kills what comes to it. Where the kernel offers less than Linux does, the parts that need it say so by
their return values.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
GONE_POLL_S: Final = 0.005
ORPHANS_S: Final = 2.0
MOST_ZOMBIES: Final = 64
_EXIT_CODE: Final = 49
"""The place of exit_code, field 52, among the fields of /proc/PID/stat from the third on."""


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


def is_there(pid: int) -> bool:
    """Whether a process is there that isn't a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it changed its user
        return True
    try:
        stat = _stat(pid)
    except OSError:  # out of file descriptors
        return True
    return sys.platform != "linux" or (stat is not None and stat.lives)


def kill_family(leader: int) -> bool:
    """Kills a process group and all that descends from its leader, in any group. Blocks until they are gone, for
    ORPHANS_S at most.

    False: some are left; they hang in the kernel.
    """
    known = {leader}
    deadline = time.monotonic() + ORPHANS_S
    while True:
        processes = _processes() or {}
        known |= _descendants(known, processes)  # before the first of them dies: orphans get another parent
        signal_group(leader, signal.SIGKILL)
        living = {pid for pid in known if pid in processes and processes[pid].lives}
        known = {leader} | living
        for pid in living:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it ended by itself, or changed its user
                pass
        if not living and not is_alive(leader):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(GONE_POLL_S)


async def end_group(group: int, *, timeout_s: float = 10) -> bool:
    """Kills a group and waits until it is gone. False: something in it doesn't die (it hangs in the kernel)."""
    signal_group(group, signal.SIGKILL)
    for _ in range(round(timeout_s / GONE_POLL_S)):
        if not is_alive(group):
            return True
        await asyncio.sleep(GONE_POLL_S)
    return False


def end_others(grace_s: float = 2) -> bool:
    """Ends every other process of our own group and all that descend from us, SIGTERM first and SIGKILL after
    `grace_s`. Blocks meanwhile.

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


def children(of: int | None = None) -> set[int]:
    """The children of the main thread of a process (by default this one), to which orphans fall as well; zombies
    included."""
    pid = os.getpid() if of is None else of
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return {int(child) for child in file.read().split()}
    except OSError:  # not Linux, a kernel without this list, or out of file descriptors
        return set()


def open_files() -> list[int]:
    """The file descriptors of this process; one of them was only needed to list them."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # there is no /proc
        return list(range(os.sysconf("SC_OPEN_MAX") if sys.platform != "linux" else 65536))


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (SIGSTOP) or a debugger."""
    try:
        fields = _fields(pid)
    except OSError:  # out of file descriptors
        return False
    return fields is not None and fields[0] in (b"T", b"t")


def exit_status(pid: int) -> int | None:
    """The wait status of a dead process that its parent hasn't collected; None: it can't be told.

    The kernel shows 0 to those who may not know it, so 0 tells nothing.
    """
    try:
        fields = _fields(pid)
    except OSError:  # out of file descriptors
        return None
    if fields is None or fields[0] not in (b"Z", b"X") or len(fields) <= _EXIT_CODE:
        return None
    return int(fields[_EXIT_CODE]) or None


def is_child(pid: int, parent: int) -> bool:
    """Whether a process is there, dead or alive, and its parent is `parent`."""
    try:
        stat = _stat(pid)
    except OSError:  # out of file descriptors
        return False
    return stat is not None and stat.parent == parent


def end_orphans(parent: int, spare: Container[int]) -> bool:
    """Kills the children of another process that are not spared, and all that descends from them. That process can't do
    it because it is frozen. Blocks for ORPHANS_S at most.

    False: some are left.
    """
    deadline = time.monotonic() + ORPHANS_S
    while True:
        processes = _processes() or {}
        orphans = {pid for pid, stat in processes.items() if stat.parent == parent and pid not in spare}
        living = {pid for pid in orphans | _descendants(orphans, processes) if processes[pid].lives}
        if not living:
            return True
        for pid in living:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it ended by itself, or changed its user
                pass
        if time.monotonic() > deadline:
            return False
        time.sleep(GONE_POLL_S)


def end_children(spare: Container[int]) -> bool:
    """Kills and collects all children but the spared ones, and theirs, which fall to us then. Blocks for ORPHANS_S at
    most.

    False: some are left; they hang in the kernel.
    """
    deadline = time.monotonic() + ORPHANS_S
    while doomed := [pid for pid in children() if pid not in spare]:
        for pid in doomed:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, PermissionError, ChildProcessError):  # changed its user; or collected already
                pass
        if time.monotonic() > deadline:
            return False
        time.sleep(GONE_POLL_S)
    return True


def has_many_zombies() -> bool:
    """Whether many dead children wait to be collected, orphans of tasks most likely. We can't: a task may want to."""
    ours = children()
    if len(ours) <= MOST_ZOMBIES:
        return False
    try:
        return sum(stat is not None and not stat.lives for stat in map(_stat, ours)) > MOST_ZOMBIES
    except OSError:  # out of file descriptors
        return False


@dataclass(frozen=True, slots=True)
class _Stat:
    """A process in /proc. A zombie doesn't live."""

    parent: int
    group: int
    lives: bool


def _fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat behind the name; None: the process is gone.

    Raises:
        OSError: this process is out of file descriptors.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # hidden from us, so it's not one of ours
        return None


def _stat(pid: int) -> _Stat | None:
    """None: it ended this moment."""
    fields = _fields(pid)
    if fields is None:
        return None
    state, parent, group = fields[:3]
    try:
        # The first thread of a process can be a zombie while others go on.
        lives = state not in (b"Z", b"X") or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Stat(int(parent), int(group), lives)


def _processes() -> dict[int, _Stat] | None:
    """All processes there are, by id; None: there is no /proc, or no file descriptor left to read it."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return {pid: stat for pid in pids if (stat := _stat(pid)) is not None}
    except OSError:
        return None


def _has_living(group: int) -> bool:
    """Whether a process of the group is more than a zombie; True where there is no /proc to tell."""
    processes = _processes()
    return processes is None or any(stat.lives and stat.group == group for stat in processes.values())


def _others() -> list[int] | None:
    """The other processes of our group, and what descends from us in any; None where there is no /proc."""
    processes = _processes()
    if processes is None:
        return None
    own, group = os.getpid(), os.getpgrp()
    family = _descendants({own}, processes)
    return [
        pid for pid, stat in processes.items() if pid != own and stat.lives and (stat.group == group or pid in family)
    ]


def _descendants(of: Container[int], processes: Mapping[int, _Stat]) -> set[int]:
    """All that descend from some processes."""
    family: set[int] = set()
    young: Container[int] = of
    while found := {pid for pid, stat in processes.items() if stat.parent in young} - family:
        family |= found
        young = found
    return family


def _prctl(option: int, value: int) -> None:
    """Linux alone has it. Elsewhere the fork server's end of file on its control socket does most of the same."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, int(value), 0, 0, 0)
