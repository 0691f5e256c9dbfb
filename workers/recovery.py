"""What becomes of the attempts of a worker process that has ended, as soon as all of its process group is gone.

The attempts are read from Redis and not from the shared memory: Redis may have carried out a claim whose reply the
process never saw. An attempt whose code never started is given back as if it hadn't been claimed. Any other one gets a
crash report: how the process ended, how long it ran, which resources it used, and its last log lines.
"""

from __future__ import annotations

import logging
import os
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
from .process_handle import ProcessHandle, Verdict
from .shared_memory import LaneState, Run

log = logging.getLogger("workers")

LATE_CLAIMS_S: Final = (0.0, 0.2, 1.0)
"""Redis may carry out a claim a moment after the end of the process that sent it."""
LINES: Final = 10
LINE_CHARS: Final = 500
LINES_AT_ONCE: Final = 500
NumberedLine = tuple[int, bytes]

# --- attempts in Redis ------------------------------------------------------------------------------------------------


def attempts_held_in_redis(worker: str) -> Call[list[tuple[str, str]]]:
    """The task id and the attempt id of every attempt that Redis shows with a worker."""
    return Call(
        ("SMEMBERS", f"{keys.WORKER}{worker}:executions"),
        lambda reply: [split_attempt(member.decode()) for member in reply],
        again=True,
    )


def split_attempt(member: str) -> tuple[str, str]:
    """The task id and the attempt id of an attempt's name in Redis."""
    id, _, attempt_id = member.partition(":")
    return id, attempt_id


def running_of(
    id: str, attempt_id: str, worker: str, found: TaskRecord | None, queue: str | None = None
) -> RunningTask:
    """The claimed task of an attempt, rebuilt from its record (None: it is gone) for a call that ends it."""
    names = ("type", "queue", "attempt", "max_attempts", "backoff_s", "backoff_max_s", "timeout_s")
    options: dict[str, Any] = {
        "type": "unknown",
        "queue": "default",
        "attempt": 1,
        "max_attempts": 1,
        "timeout_s": None,
    }
    if found is not None:
        options = {name: getattr(found, name) for name in names}
    ttl_s, failure_ttl_s = (found.result_ttl_s, found.failure_ttl_s) if found is not None else (None, None)
    return RunningTask(
        id=id,
        attempt_id=attempt_id,
        worker=worker,
        payload=None,
        started_ms=0,
        result_ttl_s=DEFAULT_RESULT_TTL_S if ttl_s is None else ttl_s,
        failure_ttl_s=DEFAULT_FAILURE_TTL_S if failure_ttl_s is None else failure_ttl_s,
        **options | ({"queue": queue} if queue else {}),
    )


def give_back_unseen(worker: str, known: Container[str]) -> Plan[None]:
    """Gives back what Redis shows with the worker, except the `known` attempts (by id): it never saw their claims."""
    (attempts,) = yield (attempts_held_in_redis(worker),)
    unseen = [(id, attempt_id) for id, attempt_id in attempts if attempt_id not in known]
    if unseen:
        yield from give_back(unseen, worker)


def give_back(attempts: Sequence[tuple[str, str]], worker: str | None = None) -> Plan[None]:
    """Gives back attempts (task id, attempt id) of a worker; None: the one that each record names."""
    found = yield [records.fetch_if_there(id) for id, _ in attempts]
    yield [
        scripts.give_back(running_of(id, attempt_id, worker or (record.worker if record else None) or "", record))
        for (id, attempt_id), record in zip(attempts, found, strict=True)
    ]


# --- the end of a process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndedProcess:
    """A process that has ended, with what its memory showed. Another process may use that memory now."""

    process: ProcessHandle
    ending: Ending
    runs: Mapping[str, Run]
    """By attempt id."""
    lines: Mapping[str, list[NumberedLine]]
    """By attempt id: log lines that Redis may not have yet."""
    ended_mono: float
    looks_s: Sequence[float]
    """The waits before each search for its attempts in Redis."""

    @classmethod
    def of(cls, process: ProcessHandle, ending: Ending) -> EndedProcess:
        """Reads the memory of a process that has just ended."""
        process.note_fenced()
        runs = {run.attempt_id: run for run in process.runs()}
        lines = {id: with_open_lines(lines) for id, lines in process.block.spool.lines().items() if id in runs}
        # Only a process with a free lane may have sent a claim; one that ended in order has seen its reply.
        is_full = sum(run.state is LaneState.RUNNING for run in runs.values()) == process.block.lanes
        looks_s = (0.0,) if ending.status == 0 or is_full else LATE_CLAIMS_S
        return cls(process, ending, runs, lines, time.monotonic(), looks_s)

    async def wait_for_group(self) -> None:
        """Waits until nothing of the process's group is left."""
        pid, name = self.process.pid, self.process.name
        while not await process_group.end_group(pid):
            log.error("process group %d of worker %s doesn't die: its tasks stay as they are", pid, name)

    def verdict(self, attempt_id: str) -> Verdict | None:
        """Why an attempt ended; None: it crashed."""
        if attempt_id not in self._suspects():
            return Verdict.GIVEN_BACK
        # The supervisor killed the process because of another attempt.
        default = Verdict.GIVEN_BACK if self.process.verdicts else None
        return self.process.verdicts.get(attempt_id, default)

    def is_cause_unknown(self) -> bool:
        """Whether several attempts may have been the cause: they ran in this process, or in those that died with their
        fork server."""
        return len(self._suspects()) > 1 or bool(self.ending.cause and self.process.fork_client.runs_at_loss > 1)

    def _suspects(self) -> list[str]:
        """The attempts that may have been the cause: those whose code ran, else those that were about to end."""
        return self._running() or list(self.runs)

    def _running(self) -> list[str]:
        return [id for id, run in self.runs.items() if run.state is LaneState.RUNNING]

    def recover_attempt(self, id: str, attempt_id: str, *, max_crashes: int) -> Plan[None]:
        """Ends one of the attempts that Redis still shows with the process, and counts it."""
        (found,) = yield (records.fetch_if_there(id),)
        run = self.runs.get(attempt_id)
        running = running_of(id, attempt_id, self.process.name, found, run.queue if run else None)
        outcome = yield from self._end_attempt(running, run, max_crashes)
        type, queue = (found.type, found.queue) if found else ("unknown", "default")
        yield (scripts.count({field_name(TASKS, outcome, type, queue): 1}),)

    def _end_attempt(self, running: RunningTask, run: Run | None, max_crashes: int) -> Plan[str]:
        """Returns the word under which the attempt is counted."""
        verdict = self.verdict(running.attempt_id)
        if verdict is Verdict.GIVEN_BACK:
            (word,) = yield (scripts.give_back(running),)
            if word != "stopping":
                return "given_back"
        last = (yield (last_lines(running.id, _started_ms(run), most=LINES),))[0] if run is not None else []
        report = self.crash_report(run, last)
        if verdict is Verdict.TIMEOUT:
            outcome = timed_out(running)
            (word,) = yield (update_status(running, replace(outcome, failure={**outcome.failure, **report})),)
            if word != "stopping":
                return COUNTED_AS[outcome.status]
        error = self.error(verdict)
        is_shared = verdict is None and self.is_cause_unknown()
        if is_shared:
            error += (
                "; it isn't known which of its tasks was the cause, so none is charged, and this one runs alone next"
            )
        reason = "lease_lost" if verdict is Verdict.LEASE_LOST else "crashed"
        (word,) = yield (
            scripts.crash(
                running.id, running.attempt_id, running.queue, error=error,
                failure={"reason": reason, "message": error, **report}, max_crashes=max_crashes, is_shared=is_shared,
            ),
        )  # fmt: skip
        if word == "given_back":
            log.warning("task %s: %s", running.id, error)
        elif word in ("queued", "failed"):
            becomes = "queued again" if word == "queued" else "failed"
            log.warning("task %s: %s; it is %s", running.id, error, becomes)
        return word if word in ("given_back", "stopped") else reason

    # --- the crash report ---------------------------------------------------------------------------------------------

    def error(self, verdict: Verdict | None) -> str:
        """How an attempt died, in one line."""
        how = describe_status(self.ending.status)
        if verdict is Verdict.STOPPED:
            return f"stopped on request: its worker process was killed ({how})"
        if verdict is Verdict.LEASE_LOST:
            return (
                f"lease lost: its lease couldn't be renewed, so its process was killed before the lease ended ({how})"
            )
        if self.ending.cause:
            return f"crashed: its worker process ended {self.ending.cause} ({how})"
        hint = " (killed from outside, or out of memory)" if self._signal() == "SIGKILL" else ""
        return f"crashed: its worker process ended with {how}{hint}"

    def crash_report(self, run: Run | None, last: Sequence[str]) -> dict[str, Any]:
        """How an attempt died, in detail. `usage` is that of the whole process. `stacks` are there after a fatal error,
        and when the supervisor asked for them before it killed the process. `log` has the `last` lines."""
        ending, signal_name = self.ending, self._signal()
        report: dict[str, Any] = {"exit": describe_status(ending.status)}
        if signal_name is not None:
            report["signal"] = signal_name
        elif ending.status is not None:
            report["exit_status"] = os.waitstatus_to_exitcode(ending.status)
        ran_s = round(self.ended_mono - run.started_mono, 3) if run else 0
        report |= {"worker": self.process.name, "pid": self.process.pid, "ran_s": ran_s}
        if ending.usage:
            report["usage"] = dict(ending.usage)
        if last:
            report["log"] = [line[:LINE_CHARS] for line in last]
        was_asked = run is not None and run.attempt_id in self.process.asked_for_stacks
        if ending.stacks and (was_asked or signal_name in process_group.FATAL):
            report["stacks"] = ending.stacks
        return report

    def _signal(self) -> str | None:
        """The name of the signal that ended the process."""
        kind, _, name = describe_status(self.ending.status).partition(" ")
        return name if kind == "signal" else None

    # --- unsent log lines ---------------------------------------------------------------------------------------------

    def send_log_lines(self, limits: LogLimits) -> Plan[None]:
        """Sends the lines that Redis doesn't have yet, which their numbers tell. It may be repeated."""
        running = self._running()
        for attempt_id, run in self.runs.items():
            lines = self.lines.get(attempt_id, [])
            if self.ending.output and running == [attempt_id]:  # else it isn't known whose output it is
                lines = lines + (yield from self._unread_output(run, limits, lines[-1][0] if lines else 0))
            calls = [scripts.log(run.id, attempt_id, part, limits, first=first) for first, part in _consecutive(lines)]
            if calls:
                yield calls

    def _unread_output(self, run: Run, limits: LogLimits, last: int) -> Plan[list[NumberedLine]]:
        """What stood unread in the pipes, as lines whose numbers follow `last`."""
        secrets: Call[bytes | None] = Call(("GET", keys.SECRETS + run.id), lambda reply: reply, again=True)
        found, stored = yield (records.fetch_if_there(run.id), secrets)
        collected: list[NumberedLine] = []

        def keep(number: int, line: bytes) -> None:
            if number:  # else the line hasn't ended yet
                collected.append((last + number, line))

        mask = Secrets.restore(stored).hide if stored else None
        lines = Lines(found.attempt if found else 0, limits, mask=mask, spool=keep)
        for stream, text in self.ending.output.items():
            lines.write(stream, text)
        lines.end()
        return collected


def _started_ms(run: Run) -> float:
    """When an attempt's code started, by this host's clock, in ms since 1970; a little early rather than late."""
    return (time.time() - (time.monotonic() - run.started_mono)) * 1000 - 2


def with_open_lines(lines: Iterable[NumberedLine]) -> list[NumberedLine]:
    """The lines of a spool. Those that never ended, under the number 0, follow as the last ones."""
    found: list[NumberedLine] = []
    open_lines: dict[str, bytes] = {}
    for number, line in lines:
        stream = decode_line(line).stream
        if number:
            found.append((number, line))
            open_lines.pop(stream, None)
        else:
            open_lines[stream] = line
    last = found[-1][0] if found else 0
    return found + [(last + count, line) for count, line in enumerate(open_lines.values(), 1)]


def _consecutive(lines: Iterable[NumberedLine]) -> Iterator[tuple[int, list[bytes]]]:
    """Lines whose numbers follow each other, with the number of the first; at most LINES_AT_ONCE together."""
    first, part = 0, list[bytes]()
    for number, line in lines:
        if part and (number != first + len(part) or len(part) == LINES_AT_ONCE):
            yield first, part
            part = []
        first = first if part else number
        part.append(line)
    if part:
        yield first, part
