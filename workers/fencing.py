"""Self-fencing: the supervisor kills attempts that must not outlive their leases, before the leases end.

An attempt with `on_lost_lease` "kill" shows until when its lease surely lasts (see slots). Its process is killed in
time, with all that descends from it. The other attempts of the process are given back. If the supervisor itself is
frozen, the process's guardian does it a little later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from workers import processgroup
from workers.child import Child, Verdict
from workers.guardian import SUPERVISOR_SHARE, boottime
from workers.slots import LaneState

log = logging.getLogger("workers")

LOOK_SHARE: Final = 0.05
"""How often it looks, as a share of the lease."""


async def enforce(children: Iterable[Child], *, lease_s: float) -> float:
    """Kills what is about to outlive its lease, and shows all processes that their supervisor is at work. Returns the
    seconds until it must look again."""
    now, look_s = boottime(), lease_s * LOOK_SHARE
    doomed: dict[int, Child] = {}
    for child in children:
        child.block.supervise(now)
        for run in child.runs():
            if not run.safe_until or run.state is not LaneState.RUNNING:
                continue
            due_s = run.safe_until - lease_s * SUPERVISOR_SHARE - now
            if due_s > 0:
                look_s = min(look_s, due_s)
            elif child.is_running(run):
                if run.attempt_id not in child.verdicts:  # a process that is hard to end is killed again and again
                    log.warning(
                        "task %s: its lease can't be renewed and %s: SIGKILL to its process group %d"
                        " (on_lost_lease is kill)", run.id, _when(run.safe_until - now), child.pid,
                    )  # fmt: skip
                child.kill(Verdict.LEASE_LOST, run)
                doomed[child.pid] = child
    # What left the process group usually is the fork server's to kill, which may be frozen.
    await asyncio.gather(*(asyncio.to_thread(processgroup.kill_family, pid) for pid in doomed))
    return max(look_s, 0.001)


def _when(left_s: float) -> str:
    if left_s > 0:
        return f"ends in {left_s:.3g} s at the earliest"
    return f"may have ended {-left_s:.3g} s ago"
