"""Process groups: who dies with whom, and whether anything of a task is left alive.

Each worker process leads its own session and group, so that what its tasks start can be ended with it. What leaves
both is found by its descent: an orphan falls to the worker it descends from, and when that has died to the fork
server, which kills what comes to it. Where the kernel offers less than Linux does, the parts that need it say so by
their return values.

The guardian of a worker process: kills it before a lease ends that isn't renewed.

Only tasks that must not outlive their leases (`on_lost_lease` is "kill") need one. Usually the supervisor kills such
an attempt in time (see fencing). The guardian is for the case that the supervisor is frozen, or too busy. It is a
process of its own, so it works while a task holds the interpreter lock. The fork server forks it when a worker process
asks for it, and it ends with that process. It reads in shared memory how long the leases surely last.

A lease of L seconds that was last renewed at t ends in Redis at t + L or later. The supervisor kills at t + 0.8 L, the
guardian at t + 0.9 L. The rest is for the kill itself, and for clocks that run at different speeds.

What the host has run out of, in words that say what to do: file descriptors, processes, threads, memory, disk.

The stacks of a worker process's threads, in words: written by the interpreter itself, also while code outside Python
holds it up, into a file without a name that its fork server reads when the process has ended.

They are written when the supervisor asks for them, before it ends a task by force, and at a fatal error.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import faulthandler
import gc
import logging
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Final

from . import shared_memory
from .shared_memory import Block, LaneState, Request

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


log = logging.getLogger("workers")

SUPERVISOR_SHARE: Final = 0.2
"""How long before a lease may end the supervisor kills, as a share of the lease."""
GUARDIAN_SHARE: Final = 0.1
"""The same for the guardian."""
LOOK_SHARE: Final = 0.05
"""How often the guardian looks, as a share of the lease."""
LONGEST_LOOK_S: Final = 0.5
START_SHARE: Final = 0.6
"""How much of its lease must be left when an attempt begins: the next heartbeat, a third of a lease later at most, must
come before the supervisor would kill it."""
SUPERVISED_SHARE: Final = 1 / 3
"""For how much of a lease a worker process claims tasks without a sign of its supervisor."""
READY_S: Final = 2.0
"""How long a worker process waits for its guardian."""
STALE_S: Final = 2.0
"""How old a guardian's last beat may be. An older one comes from a guardian that is frozen."""
ASK_S: Final = 0.02

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds by a clock that never steps and that all processes of a host share. It goes on while the host sleeps,
    unlike `time.monotonic()` on Linux."""
    return time.clock_gettime(_CLOCK)


def wait_for_guardian(block: Block) -> bool:
    """Called by a worker process: has a guardian watch it. Blocks until it does, or for READY_S. False is logged."""
    deadline = boottime() + READY_S
    while (now := boottime()) <= deadline:
        if block.beaten_at and now - block.beaten_at < STALE_S:
            return True
        block.ask_for_guardian()
        os.kill(os.getppid(), signal.SIGCHLD)  # it makes the fork server look; any other process ignores it
        time.sleep(ASK_S)
    log.error("a task with on_lost_lease=kill is given back: the fork server starts no guardian for its process")
    return False


def is_supervised(block: Block, lease_s: float) -> bool:
    """Called by a worker process: whether the supervisor was at work a moment ago. A frozen one renews no lease, so
    every task that the process claims would lose its lease."""
    at = block.supervised_at
    return not at or boottime() - at < lease_s * SUPERVISED_SHARE


def is_in_time(safe_until: float, lease_s: float) -> bool:
    """Whether enough of a lease is left to begin an attempt that must not outlive it."""
    return safe_until - boottime() >= lease_s * START_SHARE


def end_late_when_continued(block: Block) -> None:
    """Called by a worker process, in its main thread. When the process was stopped by a signal and goes on (SIGCONT),
    it ends itself at once if a lease may have ended meanwhile. Its guardian may have been stopped as well."""

    def look(number: int, frame: object) -> None:
        now = boottime()
        for run in block.runs():
            if run.safe_until and run.state is LaneState.RUNNING and run.safe_until <= now:
                block.ask(run, Request.FENCED)
                os.killpg(os.getpgrp(), signal.SIGKILL)

    if signal.getsignal(signal.SIGCONT) is signal.SIG_DFL:
        signal.signal(signal.SIGCONT, look)


def watch(block: Block, pid: int, pidfd: int | None, lease_s: float) -> None:
    """Watches the worker process `pid` until it has ended. `pidfd` is None where the kernel has none."""
    look_s = min(lease_s * LOOK_SHARE, LONGEST_LOOK_S)
    poll = select.poll()
    if pidfd is not None:
        poll.register(pidfd, select.POLLIN)
    while is_there(pid):
        now = boottime()
        block.beat(os.getpid(), now)
        running = [run for run in block.runs() if run.safe_until and run.state is LaneState.RUNNING]
        overdue = [run for run in running if run.safe_until - lease_s * GUARDIAN_SHARE <= now]
        if overdue:
            for run in overdue:
                block.ask(run, Request.FENCED)  # says why, to the supervisor
            kill_family(pid)
        due_s = min((run.safe_until - lease_s * GUARDIAN_SHARE - now for run in running), default=look_s)
        if poll.poll(min(max(due_s, 0.001), look_s) * 1000):
            return


def become(block: Block, pid: int, pidfd: int | None, lease_s: float) -> None:
    """The whole life of a guardian, right after the fork: it keeps nothing of the fork server but the shared memory."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    for fd in open_files():  # the fork server's end must be seen: this process holds none of its sockets
        if fd > 2 and fd != pidfd:
            with suppress(OSError):  # the one of the list itself is closed already
                os.close(fd)
    watch(block, pid, pidfd, lease_s)


ADVICE: Final = {
    errno.EMFILE: "this process has too many open files; raise the limit (ulimit -n), or close what tasks leave open",
    errno.ENFILE: "the host has too many open files; raise fs.file-max",
    errno.EAGAIN: "no more processes or threads are allowed; raise the limit (ulimit -u, or pids.max of the container)",
    errno.ENOMEM: "the host has too little memory",
    errno.ENOSPC: "the disk is full; free some space in the folder for temporary files (TMPDIR)",
    errno.EDQUOT: "the disk quota is used up; free some space in the folder for temporary files (TMPDIR)",
}
FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
TAKEN: Final = frozenset({errno.EBADF, errno.ENOTSOCK})
"""What a socket answers whose descriptor was closed, or now stands for something else."""
TAKEN_ADVICE: Final = "a task has closed file descriptors of the worker; a task should close only what it has opened"
RESERVED: Final = 8
"""Enough to look up a host name and to connect."""
NO_EDGE: Final = 1 << 62
QUICK_S: Final = 0.0005
"""A task that was over sooner opened no great number of files. Only each LOOK_EVERYth of those costs a look."""
LOOK_EVERY: Final = 16


def explain(error: OSError) -> str:
    """Why something couldn't be opened or forked. If the host has run out of something, it says what to do."""
    if isinstance(error, BlockingIOError):  # what a fork raises that isn't allowed
        return ADVICE[errno.EAGAIN]
    return lack(error) or str(error)


def lack(error: BaseException) -> str | None:
    """What the host has run out of, and what to do; None: the error comes from something else."""
    for cause in causes(error):
        # A read that would block has the number of a fork that isn't allowed, so that is left out.
        if isinstance(cause, OSError) and cause.errno in ADVICE and not isinstance(cause, BlockingIOError):
            return ADVICE[cause.errno]
        if isinstance(cause, RuntimeError) and "start new thread" in str(cause):
            return ADVICE[errno.EAGAIN]
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def has_lost_selector(error: BaseException) -> bool:
    """Whether an event loop ended with this error because a task has closed its descriptor, or put another file in its
    place: such a loop can never run again."""
    return isinstance(error, OSError) and error.errno in {errno.EBADF, errno.EINVAL}


class Files:
    """The file descriptors of a worker process. It leaves in order before they run out, so that the task that leaked
    them ends as it did, and no other task fails for the lack of them.

    A few are kept in reserve: enough to connect to Redis once more, and to write how the last task ended.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._quick = 0
        self._reserve: list[int] = []
        with suppress(OSError):  # a smaller reserve is better than none
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            for _ in range(RESERVED if limit == resource.RLIM_INFINITY else min(RESERVED, limit // 16)):
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        self._edge = self._edge_now()
        if self._reserve and self._reserve[-1] >= self._edge:
            log.warning("worker %s: the limit of open files is very low; raise it (ulimit -n)", worker)
            self._edge = NO_EDGE

    def are_short_after(self, run_s: float) -> bool:
        """`are_short`, asked after a task that ran for so long: rarely enough to cost nothing."""
        self._quick += 1
        if run_s <= QUICK_S and self._quick < LOOK_EVERY:
            return False
        self._quick = 0
        return self.are_short()

    def are_short(self) -> bool:
        """Whether the process has nearly no file descriptors left, and must leave. The reason is logged.

        It costs about a microsecond: the next free number tells how many are in use."""
        try:
            fd = os.dup(0)
        except OSError as error:
            if error.errno not in FILES:  # a task closed 0
                return False
            self._log()
            return True
        os.close(fd)
        if fd < self._edge or fd < (edge := self._edge_now()):
            return False
        self._edge = edge
        self._log()
        return True

    def give_way(self, error: BaseException) -> bool:
        """Called when Redis couldn't be reached. If the reason was a lack of file descriptors, it frees the reserve for
        another attempt. True: the process itself has used them up, or a task has closed them, and it must leave."""
        numbers = {cause.errno for cause in causes(error) if isinstance(cause, OSError)}
        if numbers & TAKEN:
            self._log(TAKEN_ADVICE)
            return True
        lacks = numbers & FILES
        if not lacks or not self._reserve:
            return False
        fds, self._reserve = self._reserve, []
        for fd in fds:
            with suppress(OSError):  # a task closed it
                os.close(fd)
        if errno.EMFILE in lacks:
            self._log()
        return errno.EMFILE in lacks

    def _edge_now(self) -> int:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return NO_EDGE if limit == resource.RLIM_INFINITY else limit - max(limit // 16, 2 * RESERVED)

    def _log(self, why: str = ADVICE[errno.EMFILE]) -> None:
        log.error("worker %s leaves and is replaced: %s", self._worker, why)


ASK: Final = signal.SIGUSR2
FATAL: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
LONGEST_BYTES: Final = 16_000
"""The end is kept: there stands the main thread."""
WRITE_S: Final = 0.2
"""How long to wait, after asking, until they are surely written."""


def open_file() -> IO[bytes]:
    """A file for one process."""
    return shared_memory.open_file("taskpool-stacks")


def write_into(file: IO[Any]) -> None:
    """Has the stacks of this process written into the file from now on. It must stay open."""
    faulthandler.enable(file, all_threads=True)
    faulthandler.register(ASK, file, all_threads=True, chain=False)


def read(file: IO[bytes]) -> str:
    """What was written, at most LONGEST_BYTES of it; empty when nothing was."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_BYTES))
    return file.read().decode("utf-8", "replace").strip()
