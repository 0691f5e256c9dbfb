"""What is told of an attempt whose process is gone: of what it died, how long it ran, what it used, its last words."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any, Final

from workers import stacks
from workers.child import Child, Verdict
from workers.nursery import Ending, describe_status
from workers.slots import Run

LINES: Final = 10
LINE_CHARS: Final = 500


def error_of(ending: Ending, verdict: Verdict | None) -> str:
    """How it died, in one line."""
    how = describe_status(ending.status)
    if verdict is Verdict.STOPPED:
        return f"stopped on request: its worker process was killed ({how})"
    if verdict is Verdict.LEASE_LOST:
        return f"lease lost: its lease couldn't be renewed, so its process was killed before the lease ended ({how})"
    if ending.cause:
        return f"crashed: its worker process ended {ending.cause} ({how})"
    error = f"crashed: its worker process ended with {how}"
    if _signal_of(ending) is signal.SIGKILL:
        error += " (killed from outside, or out of memory)"
    return error


def failure_of(child: Child, ending: Ending, run: Run | None, ended_mono: float, log: Sequence[str]) -> dict[str, Any]:
    """How it died, in detail. `usage` is the process's, from its start; `stacks` are those of the moment in which the
    supervisor lost patience, or of a fatal error; `log` has the attempt's last lines."""
    failure: dict[str, Any] = {"exit": describe_status(ending.status)}
    if (number := _signal_of(ending)) is not None:
        failure["signal"] = getattr(number, "name", str(number))
    elif ending.status is not None:
        failure["exit_status"] = os.waitstatus_to_exitcode(ending.status)
    failure |= {
        "worker": child.name,
        "pid": child.pid,
        "ran_s": round(ended_mono - run.started_mono, 3) if run else 0,
    }
    if ending.usage:
        failure["usage"] = dict(ending.usage)
    if log:
        failure["log"] = [line[:LINE_CHARS] for line in log]
    if ending.stacks and ((run and run.attempt_id in child.asked_for_stacks) or number in stacks.FATAL):
        failure["stacks"] = ending.stacks
    return failure


def began_ms(run: Run) -> float:
    """When an attempt's code began, by this host's clock, in ms since 1970; a little early rather than late."""
    return (time.time() - (time.monotonic() - run.started_mono)) * 1000 - 2


def _signal_of(ending: Ending) -> signal.Signals | int | None:
    """The signal it died of; a number, when that has no name."""
    if ending.status is None or not os.WIFSIGNALED(ending.status):
        return None
    number = os.WTERMSIG(ending.status)
    return signal.Signals(number) if number in set(signal.Signals) else number
