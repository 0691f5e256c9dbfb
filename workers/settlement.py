"""What becomes of the attempts of a process that has ended, settled at once and never before all of it is gone.

What it held is read from Redis, which knows better than the shared memory: a claim may have been answered that the
process never saw. An attempt whose code never began is given back as if it hadn't been claimed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from taskpool import record, scripts
from taskpool.attempt import timed_out
from taskpool.calls import Plan
from taskpool.logs.pages import last_lines
from taskpool.metrics_names import TASKS, field_name
from taskpool.status import update_status
from taskpool.types import TaskRecord
from workers import processgroup
from workers.child import Child, Verdict
from workers.dossier import LINES, began_ms, error_of, failure_of
from workers.held import running_of
from workers.nursery import Ending
from workers.slots import LaneState, Run
from workers.stats import COUNTED_AS

log = logging.getLogger("workers")

LATE_CLAIMS_S: Final = (0.0, 0.2, 1.0)
"""A claim that was on its way when its process died may be carried out by Redis a moment later."""


@dataclass(frozen=True, slots=True)
class Remains:
    """A process that has ended: what its memory said it ran, and why."""

    child: Child
    ending: Ending
    runs: Mapping[str, Run]
    """By attempt id."""
    ended_mono: float
    looks_s: Sequence[float]
    """When to look for what it held: the waits before each look."""

    @classmethod
    def of(cls, child: Child, ending: Ending) -> Remains:
        """What `child`, which ended so, leaves behind."""
        child.note_fenced()
        runs = child.runs()
        # Only a process with a lane to spare may have sent a claim; one that ended in order has seen its answer.
        running = [run for run in runs if run.state is LaneState.RUNNING]
        looks_s = (0.0,) if ending.status == 0 or len(running) == child.block.lanes else LATE_CLAIMS_S
        return cls(child, ending, {run.attempt_id: run for run in runs}, time.monotonic(), looks_s)

    def is_shared(self) -> bool:
        """Whether it isn't known which attempt was the cause of the end: several ran in this process, or in those
        that died with their fork server."""
        return len(self._candidates()) > 1 or (bool(self.ending.cause) and (self.child.nursery.runs_at_loss or 0) > 1)

    def _candidates(self) -> list[str]:
        """The attempts that may have been the cause: those whose code ran, else those that were about to end."""
        running = [id for id, run in self.runs.items() if run.state is LaneState.RUNNING]
        return running or list(self.runs)

    def verdict(self, attempt_id: str) -> Verdict | None:
        """What to do with an attempt; None: it crashed."""
        if attempt_id not in self._candidates():
            return Verdict.GIVEN_BACK
        # The process was killed for the sake of another attempt: this one is a bystander.
        default = Verdict.GIVEN_BACK if self.child.verdicts else None
        return self.child.verdicts.get(attempt_id, default)


async def await_end(child: Child) -> None:
    """Waits until nothing of the process's group is left."""
    while not await processgroup.end_group(child.pid):
        log.error("process group %d of worker %s doesn't die: its tasks stay as they are", child.pid, child.name)


def settle(remains: Remains, id: str, attempt_id: str, *, max_crashes: int) -> Plan[None]:
    """Settles one of the attempts that Redis still shows with the process."""
    (found,) = yield (record.fetch_if_there(id),)
    outcome = yield from _settle_attempt(remains, id, attempt_id, found, max_crashes)
    type, queue = (found.type, found.queue) if found else ("unknown", "default")
    yield (scripts.count({field_name(TASKS, outcome, type, queue): 1}),)


def _settle_attempt(
    remains: Remains, id: str, attempt_id: str, found: TaskRecord | None, max_crashes: int
) -> Plan[str]:
    """Settles one; the word under which it is counted."""
    run = remains.runs.get(attempt_id)
    running = running_of(id, attempt_id, remains.child.name, found, run.queue if run else None)
    verdict = remains.verdict(attempt_id)
    if verdict is Verdict.GIVEN_BACK:
        (word,) = yield (scripts.give_back(running),)
        if word != "stopping":
            return "given_back"
    dossier = yield from _dossier(remains, id, run)
    if verdict is Verdict.TIMEOUT:
        outcome = timed_out(running)
        (word,) = yield (update_status(running, replace(outcome, failure={**outcome.failure, **dossier})),)
        if word != "stopping":
            return COUNTED_AS[outcome.status]
    error = error_of(remains.ending, verdict)
    is_shared = verdict is None and remains.is_shared()
    if is_shared:
        error += "; it isn't known which of its tasks was the cause, so none is charged, and this one runs alone next"
    reason = "lease_lost" if verdict is Verdict.LEASE_LOST else "crashed"
    failure = {"reason": reason, "message": error, **dossier}
    (word,) = yield (
        scripts.crash(
            id,
            attempt_id,
            running.queue,
            error=error,
            failure=failure,
            max_crashes=max_crashes,
            is_shared=is_shared,
        ),
    )
    if word == "given_back":
        log.warning("task %s: %s", id, error)
        return "given_back"
    if word in ("queued", "failed"):
        log.warning("task %s: %s; it is %s", id, error, "queued again" if word == "queued" else "failed")
    return "stopped" if word == "stopped" else reason


def _dossier(remains: Remains, id: str, run: Run | None) -> Plan[dict[str, Any]]:
    """All there is to tell of how the attempt died."""
    log: list[str] = []
    if run is not None:
        (log,) = yield (last_lines(id, began_ms(run), most=LINES),)
    return failure_of(remains.child, remains.ending, run, remains.ended_mono, log)
