"""Processes as the operating system sees them: groups, orphans, guardians, shortages, and stack dumps.

Each worker process leads its own session and process group, so that everything its tasks start can be ended with it.
A process that leaves the group is found by its descent: an orphan is adopted by the worker process it descends from,
or by the fork server when that worker has died. Where a kernel offers less than Linux, the functions say so in their
return values.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import faulthandler
import gc
import logging
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, Final, NamedTuple

from .shared_memory import Block, LaneState, Request, Run

log = logging.getLogger("workers")

# --- parents and orphans ----------------------------------------------------------------------------------------------

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
GONE_POLL_S: Final = 0.005
ORPHANS_S: Final = 2.0
"""How long the functions that end orphans block after each signal: some may hang in the kernel."""
GROUP_S: Final = 10.0
MOST_ZOMBIES: Final = 64


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent, process `parent`, dies; dies at once if it has."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undoes `die_with_parent`."""
    _prctl(PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Makes this process the parent of the orphans among its descendants, so that it can reap them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    """Only Linux has it. Elsewhere, processes end when the fork server's control socket closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, int(value), 0, 0, 0)


def children(of: int | None = None) -> set[int]:
    """The children of the main thread of a process (by default this one), zombies included. It also adopts orphans."""
    pid = os.getpid() if of is None else of
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return {int(child) for child in file.read().split()}
    except OSError:  # not Linux, a kernel without this list, or out of file descriptors
        return set()


def end_children(spare: Container[int]) -> None:
    """Kills and reaps all children except the spared ones, and then their children, which this process adopts."""

    def unreaped() -> list[int]:
        return [pid for pid in children() if pid not in spare and not _reap(pid)]

    _kill_until_gone(unreaped)


def end_orphans(parent: int, spare: Container[int]) -> None:
    """Kills the children of another process, which is frozen, except the spared ones, and all their descendants."""

    def living() -> set[int]:
        processes = _processes() or {}
        orphans = {pid for pid, stat in processes.items() if stat.parent == parent and pid not in spare}
        return {pid for pid in orphans | _descendants(orphans, processes) if processes[pid].is_alive}

    _kill_until_gone(living)


def has_many_zombies() -> bool:
    """Whether many dead children, most likely orphans of tasks, wait to be reaped. We must not: a task may do it."""
    ours = children()
    if len(ours) <= MOST_ZOMBIES:
        return False
    return sum(stat is not None and not stat.is_alive for stat in map(_stat_or_none, ours)) > MOST_ZOMBIES


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # reaped already
        return True


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or changed its user
        os.kill(pid, number)


def _kill_until_gone(find: Callable[[], Collection[int]]) -> None:
    """Kills what `find` returns until it returns nothing, or for ORPHANS_S; at least once, however long it searches."""
    deadline = time.monotonic() + ORPHANS_S
    while living := find():
        for pid in living:
            _kill(pid)
        if time.monotonic() > deadline:
            return
        time.sleep(GONE_POLL_S)


# --- groups -----------------------------------------------------------------------------------------------------------


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of a group, if there are any."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def is_group_alive(group: int) -> bool:
    """Whether a process of the group is alive. Zombies don't count: their parent may never reap them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS raises it for zombies; or a process changed its user
        pass
    processes = _processes()
    return processes is None or any(stat.is_alive and stat.group == group for stat in processes.values())


async def end_group(group: int) -> bool:
    """Kills a group and waits until it is gone. False: a process of it hangs in the kernel."""
    signal_group(group, signal.SIGKILL)
    for _ in range(round(GROUP_S / GONE_POLL_S)):
        if not is_group_alive(group):
            return True
        await asyncio.sleep(GONE_POLL_S)
    return False


def kill_family(leader: int) -> None:
    """Kills a process group and all descendants of its leader, in any group, and blocks until they are gone."""
    known = {leader}

    def living() -> set[int]:
        nonlocal known
        processes = _processes() or {}
        known |= _descendants(known, processes)  # before the first of them dies: orphans get another parent
        signal_group(leader, signal.SIGKILL)
        found = {pid for pid in known if pid in processes and processes[pid].is_alive}
        known = {leader} | found
        return found or ({leader} if is_group_alive(leader) else set())

    _kill_until_gone(living)


def end_others() -> bool:
    """Ends every other process of this process's group and all its descendants, by SIGTERM and then by SIGKILL. False:
    some are left, or there is no /proc to find out."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _others() or ():
            _kill(pid, number)
        deadline = time.monotonic() + ORPHANS_S
        while _others() and time.monotonic() < deadline:
            time.sleep(GONE_POLL_S)
    return _others() == []


def _others() -> list[int] | None:
    """The other living processes of this group, and this process's descendants in any; None: there is no /proc."""
    processes = _processes()
    if processes is None:
        return None
    own, group = os.getpid(), os.getpgrp()
    family = _descendants({own}, processes)
    return [
        pid
        for pid, stat in processes.items()
        if pid != own and stat.is_alive and (stat.group == group or pid in family)
    ]


def _descendants(of: Container[int], processes: Mapping[int, _Stat]) -> set[int]:
    family: set[int] = set()
    parents = of
    while found := {pid for pid, stat in processes.items() if stat.parent in parents} - family:
        family |= found
        parents = found
    return family


# --- /proc ------------------------------------------------------------------------------------------------------------


class _Stat(NamedTuple):
    """What /proc says about a process. `exit_status` is only meaningful for a dead one."""

    state: bytes
    parent: int
    group: int
    exit_status: int
    is_alive: bool


def _stat(pid: int) -> _Stat | None:
    """None: the process is gone, or hidden from this user. Raises: OSError without file descriptors."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # from the third on, which follows the name
        state, parent, group = fields[:3]
        # The main thread of a process can be a zombie while other threads go on.
        is_alive = state not in (b"Z", b"X") or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return _Stat(state, int(parent), int(group), int(fields[49]), is_alive)


def _stat_or_none(pid: int) -> _Stat | None:
    """Also None when this process is out of file descriptors."""
    with suppress(OSError):
        return _stat(pid)
    return None


def _processes() -> dict[int, _Stat] | None:
    """All processes by id; None: there is no /proc, or no file descriptor is left to read it."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return {pid: stat for pid in pids if (stat := _stat(pid)) is not None}
    except OSError:
        return None


def is_process_alive(pid: int) -> bool:
    """Whether a process exists and isn't a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it changed its user
        return True
    stat = _stat_or_none(pid)
    return stat is None or stat.is_alive


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal (SIGSTOP) or a debugger."""
    stat = _stat_or_none(pid)
    return stat is not None and stat.state in (b"T", b"t")


def exit_status(pid: int) -> int | None:
    """The wait status of a dead process that its parent hasn't reaped; None: unknown. 0 counts as unknown, because the
    kernel also shows it to users that may not read the status."""
    stat = _stat_or_none(pid)
    return stat.exit_status or None if stat is not None and stat.state in (b"Z", b"X") else None


# --- guardians --------------------------------------------------------------------------------------------------------
#
# A guardian kills a worker process before a lease ends that isn't renewed. Only tasks that must not outlive their
# leases (`on_lost_lease` is "kill") need one. Usually the supervisor kills such an attempt in time (see attempts.py).
# The guardian covers a supervisor that is frozen or too busy. It is a process of its own, so it works while a task
# holds the interpreter lock. The fork server forks it when a worker process asks for it; it ends with that process.
#
# A lease of L seconds that was last renewed at t ends in Redis at t + L or later. The supervisor kills at t + 0.8 L,
# the guardian at t + 0.9 L. The rest is for the kill itself, and for clocks that run at different speeds.

SUPERVISOR_SHARE: Final = 0.2
GUARDIAN_SHARE: Final = 0.1
"""How long before a lease may end each of them kills, as a share of the lease."""
LOOK_SHARE: Final = 0.05
"""How often both check."""
LONGEST_LOOK_S: Final = 0.5
START_SHARE: Final = 0.6
"""How much of its lease must be left when an attempt starts: the next heartbeat, a third of a lease later at most, must
come before the supervisor would kill it."""
SUPERVISED_SHARE: Final = 1 / 3
"""For how much of a lease a worker process claims tasks without a sign of its supervisor."""
READY_S: Final = 2.0
"""How long a worker process waits for its guardian."""
STALE_S: Final = 2.0
"""A guardian whose last beat is older than this is frozen."""
ASK_S: Final = 0.02

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds of a clock of this host that never steps and goes on while the host sleeps."""
    return time.clock_gettime(_CLOCK)


def wait_for_guardian(block: Block) -> bool:
    """Called by a worker process: waits for a guardian. False, and a log line: none watches it within READY_S."""
    deadline = boottime() + READY_S
    while (now := boottime()) <= deadline:
        if block.head.beat_ms and now - block.head.beat_ms / 1000 < STALE_S:
            return True
        block.head.wants_guardian = 1
        os.kill(os.getppid(), signal.SIGCHLD)  # it makes the fork server look; any other process ignores it
        time.sleep(ASK_S)
    log.error("a task with on_lost_lease=kill is given back: the fork server starts no guardian for its process")
    return False


def kill_late_when_continued(block: Block) -> None:
    """Called by a worker process, in its main thread. If the process was stopped by a signal and continues (SIGCONT)
    after a lease may have ended, it kills itself at once. Its guardian may have been stopped as well."""

    def look(number: int, frame: object) -> None:
        if overdue := [run for run in _fenced_runs(block) if run.safe_until <= boottime()]:
            block.ask(overdue[0], Request.FENCED)
            os.killpg(os.getpgrp(), signal.SIGKILL)

    if signal.getsignal(signal.SIGCONT) is signal.SIG_DFL:
        signal.signal(signal.SIGCONT, look)


def end_when_continued(is_wanted: bool) -> None:
    """Called by a worker process, in its main thread: whether SIGCONT ends the process at once, before any thread runs.

    This is for attempts that must not outlive their leases and run in other threads. Python calls its signal handlers
    only in the main thread, and the other threads would run task code meanwhile. So the handler is a function of the C
    library that can't compare times: a short stop ends the process, too. False restores Python's handler.
    """
    if is_wanted:
        library = ctypes.CDLL(None)
        library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        library.signal(signal.SIGCONT, ctypes.cast(library._exit, ctypes.c_void_p))
    else:
        signal.signal(signal.SIGCONT, signal.getsignal(signal.SIGCONT))


def start_thread(thread: threading.Thread) -> None:
    """Starts one of the worker process's own threads so that it never receives SIGCONT.

    A continued process runs all its threads. If another thread received the signal, the main thread could run task code
    for a moment before it runs the handler of `kill_late_when_continued`.

    Raises:
        RuntimeError: the host allows no more threads.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})  # a new thread inherits the mask
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_guardian(block: Block, pid: int, pidfd: int | None, lease_s: float) -> None:
    """Watches worker process `pid` until it has ended: the whole life of a guardian, right after the fork. `pidfd` is
    None where the kernel has none."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    for fd in _open_files():  # the fork server's sockets must close when it ends
        if fd > 2 and fd != pidfd:
            with suppress(OSError):  # the descriptor that listed the others is closed already
                os.close(fd)
    look_s = min(lease_s * LOOK_SHARE, LONGEST_LOOK_S)
    poll = select.poll()
    if pidfd is not None:
        poll.register(pidfd, select.POLLIN)
    while is_process_alive(pid):
        now = boottime()
        block.head.guardian_pid, block.head.beat_ms = os.getpid(), int(now * 1000)
        left_s = {run: run.safe_until - lease_s * GUARDIAN_SHARE - now for run in _fenced_runs(block)}
        overdue = [run for run, seconds in left_s.items() if seconds <= 0]
        for run in overdue:
            block.ask(run, Request.FENCED)  # tells the supervisor why
        if overdue:
            kill_family(pid)
        if poll.poll(max(min([look_s, *left_s.values()]), 0.001) * 1000):
            return


def _fenced_runs(block: Block) -> list[Run]:
    """The running attempts that must not outlive their leases."""
    return [run for run in block.runs() if run.safe_until and run.state is LaneState.RUNNING]


def _open_files() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # there is no /proc
        return list(range(os.sysconf("SC_OPEN_MAX") if sys.platform != "linux" else 65536))


# --- shortages: file descriptors, processes, threads, memory, disk ----------------------------------------------------

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
"""The errors of a socket whose descriptor was closed, or now stands for another file."""
TAKEN_ADVICE: Final = "a task has closed file descriptors of the worker; a task should close only what it has opened"
RESERVED: Final = 8
"""Enough to look up a host name and to connect."""
SHORT_S: Final = 0.0005
CHECK_EVERY: Final = 16
"""Of tasks as short as that, only every 16th is followed by a check of the file descriptors: two system calls."""


def explain(error: OSError) -> str:
    """Why something couldn't be opened or forked, and what to do when the host has run out of a resource."""
    if isinstance(error, BlockingIOError):  # raised by a fork that isn't allowed
        return ADVICE[errno.EAGAIN]
    return shortage(error) or str(error)


def shortage(error: BaseException) -> str | None:
    """Which resource the host has run out of, and what to do; None: the error has another cause."""
    for cause in _causes(error):
        # A read that would block has the same number as a fork that isn't allowed.
        if isinstance(cause, OSError) and cause.errno in ADVICE and not isinstance(cause, BlockingIOError):
            return ADVICE[cause.errno]
        if isinstance(cause, RuntimeError) and "start new thread" in str(cause):
            return ADVICE[errno.EAGAIN]
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def has_lost_selector(error: BaseException) -> bool:
    """Whether an event loop can never run again, because a task has closed or replaced its descriptor."""
    return isinstance(error, OSError) and error.errno in {errno.EBADF, errno.EINVAL}


class FileDescriptors:
    """Watches the file descriptors of a worker process, so that it leaves in order before they run out. A few are kept
    in reserve: enough to connect to Redis once more and to write how the last task ended."""

    def __init__(self, worker: str) -> None:
        self._worker, self._unchecked = worker, 0
        self._reserve: list[int] = []
        with suppress(OSError):  # a smaller reserve is better than none
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            for _ in range(RESERVED if limit == resource.RLIM_INFINITY else min(RESERVED, limit // 16)):
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        self._edge = _edge()
        if self._reserve and self._reserve[-1] >= self._edge:
            log.warning("worker %s: the limit of open files is very low; raise it (ulimit -n)", worker)
            self._edge = math.inf

    def are_running_out_after(self, run_s: float) -> bool:
        """`are_running_out`, after a task that ran for `run_s` seconds."""
        self._unchecked += 1
        if run_s <= SHORT_S and self._unchecked < CHECK_EVERY:
            return False
        self._unchecked = 0
        return self.are_running_out()

    def are_running_out(self) -> bool:
        """Whether the process has nearly no file descriptors left, and must leave. The reason is logged."""
        try:
            fd = os.dup(0)  # the next free number tells in about a microsecond how many are in use
        except OSError as error:
            if error.errno not in FILES:  # a task closed 0
                return False
        else:
            os.close(fd)
            if fd < self._edge or fd < (edge := _edge()):
                return False
            self._edge = edge
        self._log()
        return True

    def free_reserve(self, error: BaseException) -> bool:
        """Called when Redis can't be reached. If file descriptors are short, it frees the reserve, for one more try.
        True: the process must leave, because its descriptors are used up, or a task has closed them."""
        numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
        if numbers & TAKEN:
            self._log(TAKEN_ADVICE)
            return True
        if not numbers & FILES or not self._reserve:
            return False
        fds, self._reserve = self._reserve, []
        for fd in fds:
            with suppress(OSError):  # a task closed it
                os.close(fd)
        if errno.EMFILE not in numbers:
            return False
        self._log()
        return True

    def _log(self, why: str = ADVICE[errno.EMFILE]) -> None:
        log.error("worker %s leaves and is replaced: %s", self._worker, why)


def _edge() -> float:
    """The descriptor number from which on a process leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else limit - max(limit // 16, 2 * RESERVED)


def memory_bytes(pid: int) -> int:
    """The memory that a process uses (its resident set); 0 if that isn't known. Memory that it shares with others, as
    after a fork, counts in full."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, LookupError, ValueError):  # it has ended, there is no /proc, or no file descriptor is left
        return 0


# --- stack dumps ------------------------------------------------------------------------------------------------------
#
# The interpreter writes the stacks of a worker process's threads into a file without a name, also while code outside
# Python blocks it. It does so at a fatal error, and when the supervisor asks for it before it ends a task by force.
# The fork server reads the file when the process has ended.

STACKS_SIGNAL: Final = signal.SIGUSR2
FATAL: Final = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"})
"""The signals at which the interpreter dumps the stacks by itself."""
MOST_STACK_BYTES: Final = 16_000
"""The end is kept: it has the main thread."""
WRITE_S: Final = 0.2
"""How long after the signal the stacks are surely written."""


def write_stacks_to(file: IO[Any]) -> None:
    """Has the stacks of this process written into the file from now on. It must stay open."""
    faulthandler.enable(file, all_threads=True)
    faulthandler.register(STACKS_SIGNAL, file, all_threads=True, chain=False)


def read_stacks(file: IO[bytes]) -> str:
    """The last MOST_STACK_BYTES that were written."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_STACK_BYTES))
    return file.read().decode("utf-8", "replace").strip()
