"""What becomes of the attempts of a worker process that has ended, as soon as all of its process group is gone.

The attempts are read from Redis and not from the shared memory: Redis may have carried out a claim whose reply the
process never saw. An attempt whose code never started is given back as if it hadn't been claimed. Any other one gets a
crash report: how the process ended, how long it ran, which resources it used, and its last log lines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final

from msgspec.structs import replace

from taskpool.operations import records
from taskpool.operations.status import release_dependents, update_status
from taskpool.operations.waiting import last_lines
from taskpool.redis import keys, scripts
from taskpool.redis.calls import Call, Plan, one, texts
from taskpool.redis.keys import TASKS, field_name
from taskpool.tasks.attempt import Outcome, timed_out
from taskpool.tasks.log_lines import Lines, decode_line
from taskpool.text import Secrets
from taskpool.types import DEFAULT_FAILURE_TTL_S, DEFAULT_RESULT_TTL_S, LogLimits, RunningTask, TaskRecord, TaskStatus

from . import process_group
from .duties import log
from .fork_client import Ending, ProcessHandle, Verdict, describe_status
from .shared_memory import LaneState, Run

LATE_CLAIMS_S: Final = (0.0, 0.2, 1.0)
"""Redis may carry out a claim a moment after the end of the process that sent it."""
LINES: Final = 10
LINE_CHARS: Final = 500
LINES_AT_ONCE: Final = 500
NumberedLine = tuple[int, bytes]
_COUNTED_AS: Final = {
    TaskStatus.DONE: "done",
    TaskStatus.FAILED: "failed",
    TaskStatus.STOPPED: "stopped",
    TaskStatus.SCHEDULED: "retried",
    TaskStatus.WAITING_CONFIRMATION: "asked",
}


def counted_as(outcome: Outcome) -> str:
    """The word under which an attempt with this outcome is counted."""
    is_snoozed = outcome.status is TaskStatus.SCHEDULED and not outcome.counts
    return "snoozed" if is_snoozed else _COUNTED_AS[outcome.status]


# --- attempts in Redis ------------------------------------------------------------------------------------------------


def attempts_held_in_redis(worker: str) -> Call[list[tuple[str, str]]]:
    """The task id and the attempt id of every attempt that Redis shows with a worker. Of those that were claimed
    together the last one comes first: when they are given back, each goes to the front of its queue."""

    def read(reply: list[bytes]) -> list[tuple[str, str]]:
        return sorted(map(split_attempt, texts(reply)), key=lambda attempt: _place(attempt[1]), reverse=True)

    return Call(("SMEMBERS", keys.ATTEMPTS + worker), read, again=True)


def _place(attempt_id: str) -> int:
    """The place of an attempt among those that were claimed with it, see turn.lua."""
    place = attempt_id.rpartition("-")[2]
    return int(place) if place.isdecimal() and "-" in attempt_id else 0


def split_attempt(member: str) -> tuple[str, str]:
    """The task id and the attempt id of an attempt's name in Redis."""
    id, _, attempt_id = member.partition(":")
    return id, attempt_id


def running_of(
    id: str, attempt_id: str, worker: str, found: TaskRecord | None, queue: str | None = None
) -> RunningTask:
    """The claimed task of an attempt, rebuilt from its record (None: it is gone) for a call that ends it."""
    options: dict[str, Any] = {"type": "unknown", "queue": "default", "attempt": 1, "max_attempts": 1}
    options |= {"timeout_s": None, "backoff_s": None, "backoff_max_s": None}
    options |= {"result_ttl_s": DEFAULT_RESULT_TTL_S, "failure_ttl_s": DEFAULT_FAILURE_TTL_S}
    if found is not None:
        options |= {name: value for name in options if (value := getattr(found, name)) is not None}
    if queue:
        options["queue"] = queue
    return RunningTask(id=id, attempt_id=attempt_id, worker=worker, payload=None, started_ms=0, **options)


def give_back_unseen(worker: str, known: Container[str]) -> Plan[None]:
    """Gives back what Redis shows with the worker, except the `known` attempts (by id): it never saw their claims."""
    (attempts,) = yield (attempts_held_in_redis(worker),)
    yield from give_back([(id, attempt_id) for id, attempt_id in attempts if attempt_id not in known], worker)


def give_back(attempts: Sequence[tuple[str, str]], worker: str | None = None) -> Plan[None]:
    """Gives back attempts (task id, attempt id) of a worker; None: the one that each record names."""
    found = yield [records.fetch_if_there(id) for id, _ in attempts]
    yield [
        scripts.give_back(running_of(id, attempt_id, worker or (record.worker if record else None) or "", record))
        for (id, attempt_id), record in zip(attempts, found, strict=True)
    ]


# --- the end of a process ---------------------------------------------------------------------------------------------


class EndedProcess:
    """A process that has just ended, with what its memory shows: another process may use that memory soon."""

    def __init__(self, process: ProcessHandle, ending: Ending) -> None:
        process.note_fenced()
        self.process, self._ending, self._ended_mono = process, ending, time.monotonic()
        self._how = describe_status(ending.status)
        self._runs = {run.attempt_id: run for run in process.runs()}
        """By attempt id."""
        lines = process.block.spool.lines()
        self._lines = {id: with_open_lines(lines[id]) for id in lines.keys() & self._runs.keys()}
        """By attempt id: log lines that Redis may not have yet."""
        self._results = process.results()
        """By attempt id: what an attempt of the process's batch has returned, as JSON, where Redis may not have it."""
        self._running = [id for id, run in self._runs.items() if run.state is LaneState.RUNNING]
        self._suspects = self._running or [id for id in self._runs if id not in self._results]
        """The attempts that may have been the cause: those whose code ran, else those that were about to end."""
        # Only a process with a free lane may have sent a claim; one that ended in order has seen its reply.
        is_full = len(self._running) == process.block.lanes
        self.looks_s = (0.0,) if ending.status == 0 or is_full else LATE_CLAIMS_S
        """The waits before each search for its attempts in Redis."""

    def _verdict(self, attempt_id: str) -> Verdict | None:
        """Why an attempt ended; None: it crashed."""
        if attempt_id not in self._suspects:
            return Verdict.GIVEN_BACK
        # The supervisor killed the process because of another attempt.
        default = Verdict.GIVEN_BACK if self.process.verdicts else None
        return self.process.verdicts.get(attempt_id, default)

    def recover_attempt(self, id: str, attempt_id: str, *, max_crashes: int) -> Plan[None]:
        """Ends one of the attempts that Redis still shows with the process."""
        (found,) = yield (records.fetch_if_there(id),)
        run = self._runs.get(attempt_id)
        running = running_of(id, attempt_id, self.process.name, found, run.queue if run else None)
        yield from self._end_attempt(running, run, max_crashes)

    def _end_attempt(self, running: RunningTask, run: Run | None, max_crashes: int) -> Plan[None]:
        result = self._results.get(running.attempt_id)
        if result is not None and (yield from self._write(running, Outcome(TaskStatus.DONE, result=result))):
            return
        verdict = self._verdict(running.attempt_id)
        if verdict is Verdict.GIVEN_BACK:
            (word,) = yield (scripts.give_back(running),)
            if word != "stopping":
                return
        last: Sequence[str] = ()
        if run is not None:  # its lines since its start by this host's clock, a little early rather than late
            since_ms = (time.time() - (time.monotonic() - run.started_mono)) * 1000 - 2
            (last,) = yield (last_lines(running.id, since_ms, most=LINES),)
        report = self._crash_report(run, last)
        if verdict is Verdict.TIMEOUT:
            outcome = timed_out(running)
            outcome = replace(outcome, failure={**outcome.failure, **report})
            if (yield from self._write(running, outcome)):
                return
        error = self._error(verdict)
        # Several attempts may have been the cause: in this process, or in those that died with its fork server.
        is_server_lost = bool(self._ending.cause) and self.process.fork_client.runs_at_loss > 1
        is_shared = verdict is None and (len(self._suspects) > 1 or is_server_lost)
        if is_shared:
            error += keys.NONE_CHARGED
        reason = "lease_lost" if verdict is Verdict.LEASE_LOST else "crashed"
        (word,) = yield (
            scripts.crash(
                running.id, running.attempt_id, running.queue, error=error,
                failure={"reason": reason, "message": error, **report}, max_crashes=max_crashes, is_shared=is_shared,
                worker=running.worker,
            ),
        )  # fmt: skip
        if word in ("failed", "stopped"):
            yield from release_dependents(running.id)
        if word == "given_back":
            log.warning("task %s: %s", running.id, error)
        elif word in ("queued", "failed"):
            becomes = "queued again" if word == "queued" else "failed"
            log.warning("task %s: %s; it is %s", running.id, error, becomes)

    def _write(self, running: RunningTask, outcome: Outcome) -> Plan[bool]:
        """Writes how an attempt ended. False: a stop was requested, so it can't end that way."""
        word: str = yield from one(update_status(running, outcome))
        if word == "children":
            yield from release_dependents(running.id)
        if word in ("ok", "children"):
            labels = (running.type, running.queue, self.process.fork_client.loaded.build)
            yield (scripts.count({field_name(TASKS, counted_as(outcome), *labels): 1}),)
        return word != "stopping"

    # --- the crash report ---------------------------------------------------------------------------------------------

    def _error(self, verdict: Verdict | None) -> str:
        how = self._how
        if verdict is Verdict.STOPPED:
            return f"stopped on request: its worker process was killed ({how})"
        if verdict is Verdict.LEASE_LOST:
            return f"lease lost: it couldn't be renewed, so the process was killed before the lease ended ({how})"
        if self._ending.cause:
            return f"crashed: its worker process ended {self._ending.cause} ({how})"
        hint = " (killed from outside, or out of memory)" if how == "signal SIGKILL" else ""
        return f"crashed: its worker process ended with {how}{hint}"

    def _crash_report(self, run: Run | None, last: Sequence[str]) -> dict[str, Any]:
        """`usage` is that of the whole process. `stacks` are there after a fatal error, and when the supervisor asked
        for them before it killed the process. `log` has the `last` lines."""
        ending = self._ending
        report: dict[str, Any] = {"exit": self._how}
        if self._how.startswith("signal "):
            report["signal"] = self._how.removeprefix("signal ")
        elif ending.status is not None:
            report["exit_status"] = os.waitstatus_to_exitcode(ending.status)
        ran_s = round(self._ended_mono - run.started_mono, 3) if run else 0
        report |= {"worker": self.process.name, "pid": self.process.pid, "ran_s": ran_s}
        report["build"] = self.process.fork_client.loaded.build
        if ending.usage:
            report["usage"] = dict(ending.usage)
        if last:
            report["log"] = [line[:LINE_CHARS] for line in last]
        was_asked = run is not None and run.attempt_id in self.process.asked_for_stacks
        if ending.stacks and (was_asked or report.get("signal") in process_group.FATAL):
            report["stacks"] = ending.stacks
        return report

    # --- unsent log lines ---------------------------------------------------------------------------------------------

    def send_log_lines(self, limits: LogLimits) -> Plan[None]:
        """Sends the lines that Redis doesn't have yet, which their numbers tell. It may be repeated."""
        for attempt_id, run in self._runs.items():
            lines = self._lines.get(attempt_id, [])
            if self._ending.output and self._running == [attempt_id]:  # else it isn't known whose output it is
                lines = lines + (yield from self._unread_output(run, limits, lines[-1][0] if lines else 0))
            yield [scripts.log(run.id, attempt_id, part, limits, first=first) for first, part in _consecutive(lines)]

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
        for stream, text in self._ending.output.items():
            lines.write(stream, text)
        lines.end()
        return collected


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
