"""The guardian of a worker process: kills it before a lease ends that isn't renewed.

Only tasks that must not outlive their leases (`on_lost_lease` is "kill") need one. Usually the supervisor kills such
an attempt in time (see fencing). The guardian is for the case that the supervisor is frozen, or too busy. It is a
process of its own, so it works while a task holds the interpreter lock. The fork server forks it when a worker process
asks for it, and it ends with that process. It reads in shared memory how long the leases surely last.

A lease of L seconds that was last renewed at t ends in Redis at t + L or later. The supervisor kills at t + 0.8 L, the
guardian at t + 0.9 L. The rest is for the kill itself, and for clocks that run at different speeds.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import time
from contextlib import suppress
from typing import Final

from workers import processgroup
from workers.slots import Block, LaneState, Request

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
    while processgroup.is_there(pid):
        now = boottime()
        block.beat(os.getpid(), now)
        running = [run for run in block.runs() if run.safe_until and run.state is LaneState.RUNNING]
        overdue = [run for run in running if run.safe_until - lease_s * GUARDIAN_SHARE <= now]
        if overdue:
            for run in overdue:
                block.ask(run, Request.FENCED)  # says why, to the supervisor
            processgroup.kill_family(pid)
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
    for fd in processgroup.open_files():  # the fork server's end must be seen: this process holds none of its sockets
        if fd > 2 and fd != pidfd:
            with suppress(OSError):  # the one of the list itself is closed already
                os.close(fd)
    watch(block, pid, pidfd, lease_s)
