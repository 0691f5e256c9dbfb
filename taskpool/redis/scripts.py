"""One typed function per Lua script: its arguments and its reply. Each returns a `Call`; nothing runs here.

Every write of a running attempt carries its attempt id: an attempt that no longer holds the lease gets `lost`. A call
that changes a task's status may be sent twice, when the answer was lost: the second call changes nothing and gets the
first answer, except that `crash` says `lost` and `purge` says `gone`. Calls that add something may not be sent twice:
`turn` that claims without `again`, `progress`, `count`, and `log` without numbers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from taskpool.redis import keys, rq_job
from taskpool.redis.add_script import Added, NewTask, add
from taskpool.redis.calls import Call, Part, Script, names, texts
from taskpool.redis.rq_job import restore_claimed
from taskpool.types import LEFT_ALONE, ForeignJobs, LogLimits, RunningTask, TaskStatus

__all__ = ["Added", "NewTask", "add"]  # and all that is below

UNREAD: Final = (
    "RQ workers took it again and again and could not read it: "
    "start them with `-S json` and TASKPOOL_TASKS, or on other queues"
)
_turn, _finish, _requeue, _crash = map(Script, ("turn", "finish", "requeue", "crash"))
_heartbeat, _unseen, _progress, _log = map(Script, ("heartbeat", "unseen", "progress", "log"))
_stop, _cancel, _revive, _purge = map(Script, ("stop", "cancel", "revive", "purge"))
_promote, _release, _due, _queues_due = map(Script, ("promote", "release", "due", "queues_due"))
_tick, _step, _rebase = map(Script, ("tick", "step", "rebase"))
_adopt, _misread, _judge, _recheck = map(Script, ("adopt", "misread", "judge", "recheck"))
_sweep_waiting, _sweep_index, _sweep_secrets = map(Script, ("sweep_waiting", "sweep_index", "sweep_secrets"))
_sweep_unique, _queue_page, _count, _take = map(Script, ("sweep_unique", "queue_page", "count", "take"))


@dataclass(frozen=True, slots=True)
class Tick:
    """What a round of housekeeping learns of Redis's clock, all in ms: the time; for how long writes are known to work
    and the clock to run steadily; the sum of its steps; whether all due times are corrected by those; how far the clock
    is behind the last round of any pool; the time up to which something is due (earlier than the time itself while
    it may have been stepped); and whether the caller does the housekeeping now."""

    now_ms: int
    steady_ms: int
    stepped_ms: int
    is_corrected: bool
    behind_ms: int
    due_by_ms: int
    is_housekeeper: bool


@dataclass(frozen=True, slots=True)
class Due:
    """Members of a sorted set whose time has come, and how many ms until the next one (None: there is none)."""

    members: tuple[str, ...]
    next_in_ms: int | None


@dataclass(frozen=True, slots=True)
class QueueDue:
    """What housekeeping has to do for a queue: the marks of `queues_due.lua`, the seconds until a scheduled task is due
    and until anything is (None: nothing will be)."""

    marks: str
    scheduled_in_s: float | None
    next_in_s: float | None


@dataclass(frozen=True, slots=True)
class Adopted:
    """How many tasks were queued again, and the offsets to go on from."""

    count: int
    offsets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Misread:
    """The state of each queue's failed tasks and the next offset; and those that an RQ worker failed: id, entry of the
    result, traceback."""

    states: Mapping[str, tuple[str, int]]
    found: Sequence[tuple[str, str, str]]


# --- one attempt --------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """The end of an attempt whose task is done. `result` is JSON."""

    running: RunningTask
    result: bytes


class Turn(NamedTuple):
    """What became of the ends, each ``ok``, ``children`` (tasks wait for it: release them) or ``other`` (write it with
    `finish`); and the tasks that were claimed."""

    words: Sequence[str]
    claimed: Sequence[RunningTask]


def turn(
    queues: Sequence[str],
    done: Sequence[Done] = (),
    *,
    worker: str,
    attempt_id: str = "",
    lease_ms: int = 0,
    most: int = 0,
    share: int = 1,
    was_idle: bool = False,
    again: bool = False,
    foreign: ForeignJobs = LEFT_ALONE,
) -> Call[Turn]:
    """End attempts of a worker, and take the next ready tasks, most urgent queue first: none while `rq suspend` holds.

    `most`: how many tasks it takes. More than one of them are of one queue, and at most one in `share` of those that
    wait behind the first. `foreign` says what becomes of RQ jobs that aren't tasks.

    With `again` it may be sent twice: what the attempt holds already is answered once more. Our own worker processes
    don't need that, nor what it costs: they give back what they never saw (see workers/recovery.py).
    """

    def read(reply: list[Any]) -> Turn:
        words, claimed = reply
        return Turn(texts(words), [restore_claimed(each, worker, foreign) for each in claimed])

    shown = "again" if again else "1" if was_idle else ""
    head: list[Part] = [worker, attempt_id, lease_ms, shown, foreign.argument, most, share, len(done)]
    for running, result in done:
        head += (running.id, running.attempt_id, running.queue, running.result_ttl_s, result)
    return _turn.call((*head, *queues), read, again=again or not most)


def claim(
    queues: Sequence[str],
    *,
    worker: str,
    attempt_id: str,
    lease_ms: int,
    was_idle: bool = False,
    again: bool = False,
    foreign: ForeignJobs = LEFT_ALONE,
) -> Call[RunningTask | None]:
    """Take the next ready task, as `turn`; None when there is none."""
    call = turn(
        queues,
        worker=worker,
        attempt_id=attempt_id,
        lease_ms=lease_ms,
        most=1,
        was_idle=was_idle,
        again=again,
        foreign=foreign,
    )
    return Call(call.command, lambda reply: next(iter(call.read(reply).claimed), None), call.script, again=again)


def ring_wait(queues: Sequence[str], timeout_s: float) -> Call[bool]:
    """Block until a doorbell of these queues rings (True) or `timeout_s` is over; pipeline a claim behind it."""
    bells = [keys.DOORBELL + queue for queue in queues]
    return Call(("BLPOP", *bells, timeout_s), lambda reply: reply is not None, blocks_s=timeout_s)


def finish(
    running: RunningTask,
    status: TaskStatus,
    *,
    result: bytes = b"",
    error: str = "",
    failure: Mapping[str, Any] | None = None,
    traceback: str = "",
) -> Call[str]:
    """End the task: ``ok``, ``children`` (tasks wait for it: release them), or ``lost``. `result` is JSON."""
    if status is TaskStatus.DONE:
        ttl_s, kept = running.result_ttl_s, rq_job.return_value(result) if running.of_rq else b""
    else:
        ttl_s, kept = running.failure_ttl_s, rq_job.exc_string(traceback or error)
    head = (running.id, running.attempt_id, running.queue, running.worker)
    reason = failure.get("reason", "") if failure else ""
    rest = (status, ttl_s, result, error, _json(failure), reason, kept, running.type, "1" if running.of_rq else "")
    more = (_fault(failure),) if status is TaskStatus.FAILED else ()
    return _finish.call(head + rest + more, bytes.decode)


def retry(running: RunningTask, *, delay_ms: int, error: str, failure: Mapping[str, Any]) -> Call[str]:
    """End the attempt and run the task again after `delay_ms`: ``ok``, ``stopping`` or ``lost``."""
    return _again(running, delay_ms, "", error, failure)


def snooze(running: RunningTask, *, delay_ms: int, message: str) -> Call[str]:
    """End the attempt, uncounted, and run the task again after `delay_ms`: ``ok``, ``stopping`` or ``lost``."""
    return _again(running, delay_ms, "snooze", message, None)


def give_back(running: RunningTask) -> Call[str]:
    """Put the task back to the front of its queue, as if it hadn't been claimed: ``ok``, ``stopping`` or ``lost``."""
    return _again(running, 0, "1", "", None)


def _again(running: RunningTask, delay_ms: int, how: str, error: str, failure: Mapping[str, Any] | None) -> Call[str]:
    head = (running.id, running.attempt_id, running.queue, running.worker)
    return _requeue.word(*head, delay_ms, how, error, _json(failure), _fault(failure), running.type)


def crash(
    id: str,
    attempt_id: str,
    queue: str,
    *,
    worker: str = "",
    error: str,
    failure: Mapping[str, Any],
    max_crashes: int,
    only_expired: bool = False,
    by_ms: int | None = None,
    is_shared: bool = False,
) -> Call[str]:
    """Settle an attempt whose process is gone: ``queued``, ``failed``, ``stopped`` (it was asked to), or ``lost``.

    With `is_shared` it isn't known which of several attempts was the cause. Then the crash isn't counted, and the task
    is queued again as a suspect, which runs alone: ``given_back``.

    The end's reason is ``lease_lost`` if `failure` says so, else ``crashed``; ``stopped`` if a stop was requested.

    With `only_expired`, which a reaper uses, the attempt is settled only if its lease has ended. Its process may still
    run, so the reason is always ``lease_lost``, also when a stop was requested. The answer ``unseen`` means that the
    attempt never began (see `mark_unseen`): nothing is changed, and the caller gives the task back. With `by_ms` as
    well, the lease must have ended by that time of Redis's clock.
    """
    expired: Part = "" if not only_expired else "1" if by_ms is None else by_ms
    lost = {**failure, "reason": "lease_lost"}
    failed, stopped = (lost, lost) if only_expired else (failure, {**failure, "reason": "stopped"})
    reason = "lease_lost" if failed.get("reason") == "lease_lost" else "crashed"
    arguments = (id, attempt_id, queue, max_crashes, error, _json(failed), rq_job.exc_string(error))
    return _crash.word(*arguments, expired, _json(stopped), reason, "1" if is_shared else "", _fault(failed), worker)


def heartbeat(attempts: Sequence[tuple[str, str, str]], lease_ms: int) -> Call[list[str]]:
    """Renew the leases of attempts ``(id, attempt_id, queue)``: for each ``ok``, ``stop``, ``force`` or ``lost``."""
    flat = [part for attempt in attempts for part in attempt]
    return _heartbeat.call((lease_ms, *flat), texts)


def attempts_of(worker: str) -> Call[list[str]]:
    """What a worker runs, as ``id:attempt_id``: one of ours, of the release before, or a plain RQ worker."""
    return Call(("SUNION", keys.ATTEMPTS + worker, f"{keys.WORKER}{worker}:executions"), names, again=True)


def mark_unseen(worker: str, runs: Sequence[str], *, listed: int, least_ms: int) -> Call[int]:
    """Mark claims of a worker that had no heartbeat, and are missing in two lists of what it `runs`, so long after one
    another: how many. `listed` is another number for each list."""
    return _unseen.call((worker, least_ms, listed, *runs), int)


def progress(running: RunningTask, document: Mapping[str, Any]) -> Call[str]:
    """Note a running task's progress: ``ok`` or ``lost``."""
    return _progress.word(running.id, running.attempt_id, _json(document), again=False)


def log(id: str, attempt_id: str, lines: Sequence[bytes], limits: LogLimits, *, first: int | None = None) -> Call[str]:
    """Append lines (JSON) to a running task's log: ``ok`` or ``lost``. `first`: the number that the first has."""
    head = (id, attempt_id, "" if first is None else first, limits.lines, limits.bytes)
    return _log.word(*head, *lines, again=first is not None)


# --- by hand --------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """An operation on many tasks, or a redrive, for which a program changes tasks. The scripts that get one answer
    ``lost`` if another program goes on with it, or it has ended."""

    id: str
    driver: str = ""
    """The program; '': any."""
    key: str = ""
    """Of a redrive: that of its hash."""


def stop(id: str, *, grace_s: float, force: bool, audited: bytes = b"", work: Work | None = None) -> Call[str]:
    """Ask a running task to stop: ``ok``, ``gone``, or RQ's word of the status that doesn't allow it."""
    more = (work.id, work.driver) if work else ()
    return _stop.word(id, f"{grace_s:g}", "1" if force else "", audited, *more)


def cancel(id: str, *, reason: str, error: str, audited: bytes = b"") -> Call[str]:
    """Cancel a task that hasn't started (reason ``expired``: only if it has expired): ``ok``, ``children`` (tasks wait
    for it: release them), or why not."""
    mark = "" if reason == "expired" else _mark()
    return _cancel.word(id, reason, error, mark, audited)


def revive(id: str, audited: bytes = b"", *, work: Work | None = None) -> Call[str]:
    """Queue a failed, stopped or canceled task again: ``ok``, ``gone``, ``dependency ID STATUS`` (that parent has not
    ended well), ``secrets`` (they are gone), ``unique ID`` (that task holds its unique key), or RQ's word of its
    status. For the same `work` it is revived once, whenever the call is sent again."""
    if work is None:
        return _revive.word(id, _mark(), audited)
    return _revive.word(id, work.id, audited, *filter(None, work[1:]))


def purge(id: str, registry: str = "", audited: bytes = b"", *, work: Work | None = None) -> Call[str]:
    """Remove an ended task (with `registry`: if its time there has come): ``ok``, ``early``, ``gone``, ``children``,
    ``needed`` (with `registry`: a dependent may still read its result), or RQ's word of the status that doesn't allow
    it. For an operation it is only hidden, and `bulk_scripts.unpurge` can put it back for a while."""
    if work is None:
        return _purge.word(id, registry, audited, "")
    return _purge.word(id, registry, audited, work.id, work.driver)


# --- housekeeping ---------------------------------------------------------------------------------------------


def promote(id: str, queue: str, *, foreign: ForeignJobs = LEFT_ALONE) -> Call[str]:
    """Queue a scheduled task whose time has come: ``ok``, ``early``, ``gone`` or ``foreign`` (left to RQ)."""
    return _promote.word(id, queue, foreign.argument)


def release(id: str, limit: int = 100) -> Call[list[str]]:
    """Release up to `limit` tasks that wait for an ended one, and cancel down the line if it did not end well; the ids
    of ended tasks that still have dependents to release."""
    return _release.call((id, limit), texts)


def due(
    registry: str, *, limit: int, ahead_s: float = 0, newest_first: bool = False, by_ms: int | None = None
) -> Call[Due]:
    """What is due in a registry scored in seconds, `ahead_s` early: the `limit` oldest, or newest, in that order. With
    `by_ms`, what was due by that time of Redis's clock."""

    def read(reply: list[Any]) -> Due:
        now_ms, next_score, *members = reply
        next_in_ms = None if not next_score else max(0, round((float(next_score) - ahead_s) * 1000 - now_ms))
        return Due(tuple([member.decode(errors="replace") for member in members]), next_in_ms)

    arguments = (f"{ahead_s:g}", limit, "1" if newest_first else "", "" if by_ms is None else by_ms)
    return _due.call(arguments, read, keys=(registry,))


def tick(
    *,
    steady_ms: int,
    gap_ms: int,
    lease_ms: int,
    expected_ms: int | None = None,
    least_ms: int = 0,
    base_ms: int = 0,
    corrected_ms: int | None = None,
    turn: tuple[str, str] = ("", ""),
) -> Call[Tick]:
    """Note that Redis takes writes, and learn of its clock. `steady_ms`: for how long the caller has seen writes work
    and the clock run steadily; `gap_ms`: the longest gap between rounds of any pools that costs no lease;
    `corrected_ms`: the sum of steps up to which the caller has corrected all due times. `steady_ms` counts only if the
    time is `expected_ms`, give or take `least_ms`, and `base_ms` is the sum of all steps. `turn`: the key of the
    turn and the pool's id, if the pool shares the housekeeping with others."""

    def read(reply: list[Any]) -> Tick:
        now_ms, known_ms, stepped_ms, is_corrected, behind_ms, due_by_ms, is_mine = reply
        return Tick(now_ms, known_ms, stepped_ms, is_corrected == b"1", behind_ms, due_by_ms, is_mine == b"1")

    corrected, expected = ("" if ms is None else ms for ms in (corrected_ms, expected_ms))
    return _tick.call((steady_ms, gap_ms, lease_ms, corrected, expected, least_ms, base_ms, *turn), read)


def step(step_ms: int, *, base_ms: int, least_ms: int, lease_ms: int) -> Call[tuple[bool, int]]:
    """Note a measured step of Redis's clock, and begin all leases anew: whether it is a new one, and the sum of all
    steps. `base_ms` is that sum when the measurement began."""
    arguments = (step_ms, base_ms, least_ms, lease_ms)
    return _step.call(arguments, lambda reply: (reply[0] == b"stepped", reply[1]))


def rebase(queue: str, cursor: str, limit: int) -> Call[str]:
    """Correct due times by the steps of Redis's clock: of a queue's scheduled tasks, or (``""``) of all that expire.
    The cursor to go on from, ``0`` at the end."""
    return _rebase.word(queue, cursor, limit)


def queues_due(queues: Sequence[str], *, by_ms: int | None = None) -> Call[dict[str, QueueDue]]:
    """What there is to do for each of these queues, at most a few hundred. Queues that have been empty for a while are
    forgotten."""

    def read(reply: list[bytes]) -> dict[str, QueueDue]:
        rows = zip(reply[::3], map(_seconds, reply[1::3]), map(_seconds, reply[2::3]), strict=True)
        return {
            queue: QueueDue(marks.decode(), scheduled_s, next_s)
            for queue, (marks, scheduled_s, next_s) in zip(queues, rows, strict=True)
        }

    return _queues_due.call(("" if by_ms is None else by_ms, *queues), read)


def sweep_waiting(queue: str, limit: int) -> Call[str]:
    """Look for waiting tasks whose parents ended unnoticed, in one step of up to `limit` reads: ``more`` or ``end``."""
    return _sweep_waiting.word(queue, limit)


def sweep_index(index: str, after: str, limit: int) -> Call[str]:
    """Drop ids whose records are gone from an index by type or tag; the id to go on after, empty at the end."""
    return _sweep_index.call((after, limit), bytes.decode, keys=(index,))


def sweep_secrets(after: str, limit: int) -> Call[str]:
    """Delete the secrets of tasks whose records are gone; the id to go on after, empty at the end."""
    return _sweep_secrets.word(after, limit)


def adopt(offsets: Mapping[str, int], limit: int, *, after_s: float, foreign: ForeignJobs) -> Call[Adopted]:
    """Queue tasks again that a plain RQ worker took `after_s` ago or earlier and never started. `offsets`: where to go
    on in each queue's intermediate list."""

    def read(reply: list[int]) -> Adopted:
        return Adopted(reply[0], dict(zip(offsets, reply[1:], strict=True)))

    flat = [part for item in offsets.items() for part in item]
    return _adopt.call((f"{after_s:g}", limit, foreign.argument, *flat), read)


def misread(states: Mapping[str, tuple[str, int]], *, limit: int, most: int, walks: bool) -> Call[Misread]:
    """Find tasks that a plain RQ worker failed, among the last `limit` failed ones of each queue; `most` of them.
    `states`: what the last call answered for each queue. `walks`: look at the older ones, too, page by page."""

    def read(reply: list[Any]) -> Misread:
        ends = 2 * len(states)
        after = [(state.decode(), offset) for state, offset in zip(reply[:ends:2], reply[1:ends:2], strict=True)]
        texts = [part.decode() for part in reply[ends:]]
        return Misread(dict(zip(states, after, strict=True)), list(zip(*[iter(texts)] * 3, strict=True)))

    flat = [part for queue, (state, offset) in states.items() for part in (queue, state, offset if walks else "")]
    return _misread.call((limit, most, *flat), read)


def recheck(queue: str, offset: int, limit: int, *, foreign: ForeignJobs = LEFT_ALONE) -> Call[int]:
    """Look for tasks near the head of a queue, and in a page of `limit` ids, among the jobs that claims pass over; the
    offset of the next page."""
    return _recheck.call((queue, offset, limit, foreign.argument), int)


def judge(id: str, entry: str, *, is_unread: bool) -> Call[str]:
    """Schedule a task again that an RQ worker failed without reading it, or let its failure stand: ``scheduled``,
    ``failed`` or ``lost``. `entry`: the id of the result that was judged."""
    return _judge.word(id, entry, "1" if is_unread else "", UNREAD)


def sweep_unique(cursor: str, limit: int) -> Call[str]:
    """Drop unique keys that no task holds any more; the cursor to go on from, ``0`` at the end."""
    return _sweep_unique.word(cursor, limit)


def queue_page(queue: str, offset: int, limit: int, behind: Sequence[str] = ()) -> Call[list[Any]]:
    """A part of a queue in dispatch order: ``[now_ms, length, offset, id, flat hash, ...]``, raw.

    It begins at `offset`, where the page before ended; or, as tasks come and go, `behind` one of those that it showed
    last: id, its `enqueued_at`, id, ... the last one first.
    """
    return _queue_page.call((queue, offset, limit, *behind), lambda reply: reply)


def count(
    deltas: Mapping[str, int], report: tuple[str, int] | None = None, on_reply: Callable[[], None] = lambda: None
) -> Call[str]:
    """Add to the counts of this minute: `deltas` by field of `keys.COUNTERS`, with the build of the worker behind it.
    With a `report` (who counts, and the number of its report) the call may be sent twice."""

    def read(reply: bytes) -> str:
        on_reply()
        return reply.decode()

    parts = [part for item in deltas.items() for part in item]
    return _count.call((*(report or ("", 0)), *parts), read, again=report is not None)


def _mark() -> str:
    """What tells one call of a person's from the next, so that it is known when it is sent again."""
    return secrets.token_hex(6)


def _seconds(milliseconds: bytes) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None


def _fault(failure: Mapping[str, Any] | None) -> bytes:
    """What `failures.lua` takes of a failure: what kind it is, where it happened, and its fingerprint if the place
    decides it. Other failures have one for each reason, crashes for
    each signal, too."""
    if not failure:
        return b""
    reason = failure.get("reason", "")
    signal = failure.get("signal") if reason == "crashed" else None
    kind = "" if reason == "timeout" else failure.get("exception", "")
    kind = kind or (f"{reason} {signal}" if signal else reason)
    fault = {name: failure[name] for name in ("fingerprint", "place", "build") if failure.get(name)}
    return _json({"kind": kind, "is_final": reason == "non_retryable", **fault})


def _json(document: Mapping[str, Any] | None) -> bytes:
    return b"" if document is None else msgspec.json.encode(document)


class Taken(NamedTuple):
    """How many tokens were taken, how many are left, and in how many seconds there are as many as are needed (0: there
    are)."""

    tokens: int
    left: int
    next_in_s: float


def take(name: str, *, rate: float, most: int, wanted: int, needed: int = 1) -> Call[Taken]:
    """Take up to `wanted` tokens out of a bucket that holds `most` and gets `rate` a second; with fewer than `needed`
    none."""
    # Sent again because the answer was lost, it takes twice: the caller's next request waits a little longer.
    return _take.call(
        (name, rate, most, wanted, needed), lambda reply: Taken(reply[0], reply[1], reply[2] / 1000), again=True
    )
