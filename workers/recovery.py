"""What Redis says a worker holds: claims that were carried out although nobody saw the answer are found here.

What is told of an attempt whose process is gone: of what it died, how long it ran, what it used, its last words.

What the attempts of a dead process had written and nobody had sent: it goes into their logs before their ends do.

What becomes of the attempts of a process that has ended, settled at once and never before all of it is gone.

What it held is read from Redis, which knows better than the shared memory: a claim may have been answered that the
process never saw. An attempt whose code never began is given back as if it hadn't been claimed.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from taskpool.operations import records
from taskpool.operations.status import update_status
from taskpool.operations.task_logs import last_lines
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call, Plan
from taskpool.redis.keys import TASKS, field_name
from taskpool.tasks.attempt import timed_out
from taskpool.tasks.log_lines import Lines, decode_line
from taskpool.text import Secrets
from taskpool.types import DEFAULT_FAILURE_TTL_S, DEFAULT_RESULT_TTL_S, LogLimits, RunningTask, TaskRecord

from . import process_group
from .fork_client import Ending, describe_status
from .metrics import COUNTED_AS
from .process_handle import Child, Verdict
from .shared_memory import LaneState, Run


def attempts_of(worker: str) -> Call[list[tuple[str, str]]]:
    """The task id and the attempt id of all that a worker holds."""

    def read(reply: list[bytes]) -> list[tuple[str, str]]:
        pairs = (member.decode().partition(":") for member in reply)
        return [(id, attempt_id) for id, _, attempt_id in pairs]

    return Call(("SMEMBERS", f"{keys.WORKER}{worker}:executions"), read, again=True)


def running_of(
    id: str, attempt_id: str, worker: str, found: TaskRecord | None, queue: str | None = None
) -> RunningTask:
    """The claimed task of an attempt, made anew from its record (None: it is gone) for a call that ends it."""
    return RunningTask(
        id=id,
        type=found.type if found else "unknown",
        payload=None,
        queue=queue or (found.queue if found else "default"),
        attempt=found.attempt if found else 1,
        attempt_id=attempt_id,
        worker=worker,
        max_attempts=found.max_attempts if found else 1,
        backoff_s=found.backoff_s if found else None,
        backoff_max_s=found.backoff_max_s if found else None,
        timeout_s=found.timeout_s if found else None,
        result_ttl_s=_or_default(found.result_ttl_s if found else None, DEFAULT_RESULT_TTL_S),
        failure_ttl_s=_or_default(found.failure_ttl_s if found else None, DEFAULT_FAILURE_TTL_S),
        started_ms=0,
    )


def give_back_unseen(worker: str, known: Container[str]) -> Plan[None]:
    """Gives back what the worker holds without knowing it: every attempt but the `known` ones, by attempt id."""
    (held,) = yield (attempts_of(worker),)
    unseen = [(id, attempt_id) for id, attempt_id in held if attempt_id not in known]
    if unseen:
        yield from give_back(unseen, worker)


def give_back(attempts: Sequence[tuple[str, str]], worker: str | None = None) -> Plan[None]:
    """Gives back attempts (task id, attempt id) of a worker; None: the one that each record names."""
    records = yield [records.fetch_if_there(id) for id, _ in attempts]
    yield [
        scripts.give_back(running_of(id, attempt_id, worker or (found.worker if found else None) or "", found))
        for (id, attempt_id), found in zip(attempts, records, strict=True)
    ]


def _or_default(ttl_s: int | None, default: int) -> int:
    return default if ttl_s is None else ttl_s


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
    if ending.stacks and ((run and run.attempt_id in child.asked_for_stacks) or number in process_group.FATAL):
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


Numbered = tuple[int, bytes]
AT_ONCE = 500


class LastWords:
    """Of one process, read from its memory before another uses that."""

    def __init__(self, child: Child, ending: Ending) -> None:
        self._runs = {run.attempt_id: run for run in child.runs()}
        self._lines = {id: ended(lines) for id, lines in child.block.spool.lines().items() if id in self._runs}
        running = [run for run in self._runs.values() if run.state is LaneState.RUNNING]
        self._writer = running[0] if len(running) == 1 and ending.output else None
        self._output: Mapping[str, str] = ending.output

    def send(self, limits: LogLimits) -> Plan[None]:
        """Sends all that Redis doesn't have yet: the numbers of the lines tell. May be done again."""
        for id, run in self._runs.items():
            lines = self._lines.get(id, [])
            if run is self._writer:
                lines = lines + (yield from self._unread(run, limits, lines[-1][0] if lines else 0))
            calls = [scripts.log(run.id, id, part, limits, first=first) for first, part in _parts(lines)]
            if calls:
                yield calls

    def _unread(self, run: Run, limits: LogLimits, number: int) -> Plan[list[Numbered]]:
        """What stood in the pipes, as lines with the numbers that follow."""
        found, stored = yield (
            records.fetch_if_there(run.id),
            Call(("GET", keys.SECRETS + run.id), bytes_of, again=True),
        )
        collected: list[Numbered] = []

        def keep(count: int, line: bytes) -> None:
            collected.append((number + count, line))

        mask = Secrets.restore(stored).hide if stored else None
        lines = Lines(found.attempt if found else 0, limits, mask=mask, spool=keep)
        for stream, text in self._output.items():
            lines.write(stream, text)
        lines.end()
        return collected


def ended(lines: Iterable[Numbered]) -> list[Numbered]:
    """Lines as a spool has them, and behind them, as the next ones, those that never ended."""
    found: list[Numbered] = []
    still_open: dict[str, bytes] = {}
    for number, line in lines:
        stream = decode_line(line).stream
        if number:
            found.append((number, line))
            still_open.pop(stream, None)
        else:
            still_open[stream] = line
    last = found[-1][0] if found else 0
    return found + [(last + count, line) for count, line in enumerate(still_open.values(), 1)]


def bytes_of(reply: bytes | None) -> bytes:
    """A string; empty when there is none."""
    return reply or b""


def _parts(lines: Iterable[Numbered]) -> Iterator[tuple[int, list[bytes]]]:
    """Lines whose numbers follow each other, with the number of the first."""
    first, part = 0, list[bytes]()
    for number, line in lines:
        if part and (number != first + len(part) or len(part) == AT_ONCE):
            yield first, part
            part = []
        first = first if part else number
        part.append(line)
    if part:
        yield first, part


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
    while not await process_group.end_group(child.pid):
        log.error("process group %d of worker %s doesn't die: its tasks stay as they are", child.pid, child.name)


def settle(remains: Remains, id: str, attempt_id: str, *, max_crashes: int) -> Plan[None]:
    """Settles one of the attempts that Redis still shows with the process."""
    (found,) = yield (records.fetch_if_there(id),)
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
