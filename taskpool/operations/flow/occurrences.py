"""What happens when schedules are due: any worker pool fires them, without a leader.

A pool reads what is due and computes each schedule's next occurrence. The script that stores the task compares what the
schedule expects, and sets the next occurrence in the same step, so of several pools exactly one submits it. The id of
the task is derived from the schedule, its incarnation and the occurrence.

Whatever refuses the task is noted as the outcome of the occurrence, and the schedule goes on. Two refusals may pass, so
they are tried again for a minute: a full queue, and a type that no live pool serves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from taskpool.access.audit import Actor, entry
from taskpool.errors import InvalidTask, NotAllowed, QueueFull, TaskpoolError, UnknownType
from taskpool.operations import queue
from taskpool.operations.catalog import PoolInfo
from taskpool.operations.flow.schedules import Stored, check_rights, due_of, find, stored
from taskpool.operations.queue import Rules
from taskpool.operations.status import release_dependents
from taskpool.operations.submit import check_task
from taskpool.redis import add_script, keys, schedule_scripts, scripts
from taskpool.redis.add_script import Added, NewTask
from taskpool.redis.calls import SLICE_S, Call, Plan, one, redis_ms, tolerant
from taskpool.redis.schedule_scripts import Occurrence, schedule_guard
from taskpool.tasks.schedule import LATE_S, times_of
from taskpool.text import SecretsGone
from taskpool.types import RQ_STATUS, Receipt, TaskStatus
from taskpool.types.dependency import Edge
from taskpool.validation import derived_id, id_at

log = logging.getLogger("taskpool")

BATCH: Final = 200
RETRY_S: Final = 60
RETRY_EVERY_MS: Final = 5000
UNDECLARED_LOOK_MS: Final = 5000
UNREADABLE_LOOK_MS: Final = 60_000
STOP_GRACE_S: Final = 10.0
"""How long a run has to stop that another one takes the place of."""
REPLACED: Final = "canceled: the next run of its schedule replaced it"


class Due(NamedTuple):
    """What to do now for a schedule: submit for an occurrence, or note it with this outcome, or only look again later,
    in `wait_ms`."""

    occurrence: Occurrence
    outcome: str = ""
    wait_ms: int | None = None


def decide(schedule: Stored, now_ms: int) -> Due:
    """What is to be done for a schedule that waits for an occurrence."""
    expected_ms = schedule.next_ms
    assert expected_ms is not None
    times, timing = times_of(schedule.timing), schedule.timing

    def occurrence(at_ms: int) -> Occurrence:
        next_ms = times.after(at_ms)
        due_ms = None if next_ms is None else schedule.due_ms(next_ms)
        return Occurrence(schedule.id, schedule.incarnation, schedule.revision, at_ms, expected_ms, next_ms, due_ms)

    if schedule.due_ms(expected_ms) > now_ms:
        return Due(occurrence(expected_ms), wait_ms=schedule.due_ms(expected_ms) - now_ms)
    # One more than wanted: the last one may not be due yet, because of its jitter.
    most = timing.catch_up_limit if timing.catch_up == "all" else 1
    due = [each for each in times.last_of(expected_ms, now_ms, most + 1) if schedule.due_ms(each) <= now_ms]
    due = due[-most:] or [expected_ms]
    found = occurrence(due[0])
    tried_ms = now_ms if schedule.retry_ms is None else min(schedule.retry_ms, now_ms)
    if timing.catch_up == "none" and tried_ms - schedule.due_ms(due[0]) > LATE_S * 1000:
        return Due(found, "missed")
    return Due(found)


def fire_due(rules: Rules, live: Collection[PoolInfo]) -> Plan[float]:
    """Submit what is due, a batch at most, and return the seconds until more may be. `live`: the live pools, which say
    which declared schedules may run."""
    now_ms: int
    due, now_ms = yield (scripts.due(keys.SCHEDULES_DUE, limit=BATCH), redis_ms())
    wait_s = 0.0 if len(due.members) == BATCH else 1.0 if due.next_in_ms is None else due.next_in_ms / 1000
    if not due.members:
        return wait_s
    found = yield [stored(id) for id in due.members]
    firing: list[_Firing] = []
    rest: list[Call[str]] = []
    for id, schedule in zip(due.members, found, strict=True):
        if schedule is not None and schedule.paused_ms is not None:
            continue  # it was paused just now
        if schedule is None:
            rest.append(schedule_scripts.postpone(Occurrence(id, "", 0, 0, 0), UNREADABLE_LOOK_MS))
        elif schedule.next_ms is not None and schedule.next_ms <= schedule.last_ms:
            rest.append(_moved_on(schedule, now_ms))
        elif schedule.next_ms is None:  # it has no further runs, and was kept for a while
            rest.append(schedule_scripts.remove(schedule.id, schedule.incarnation, schedule.revision))
        else:
            firing.append(_Firing(schedule, now_ms))
    if rest:
        yield [tolerant(call, "") for call in rest]
    yield from _fire(firing, rules, live)
    # What was missed is caught up with one by one.
    next_ms = [each.due.occurrence.due_ms for each in firing if each.due.occurrence.due_ms is not None]
    return max(0.0, min([wait_s, *((ms - now_ms) / 1000 for ms in next_ms)]))


def _moved_on(schedule: Stored, now_ms: int) -> Call[str]:
    """The call that has a schedule wait for an occurrence after its last one, if it doesn't: another program changed
    it."""
    next_ms = times_of(schedule.timing).after(schedule.last_ms)
    return schedule_scripts.save(
        schedule.id,
        {"next_ms": "" if next_ms is None else next_ms},
        revision=schedule.revision,
        next_ms=schedule.next_ms,
        incarnation=schedule.incarnation,
        due_ms=due_of(schedule.id, schedule.timing, next_ms, now_ms),
    )


class _Firing:
    """A schedule that is due, and what becomes of it."""

    def __init__(self, schedule: Stored, now_ms: int) -> None:
        self.schedule, self.now_ms = schedule, now_ms
        self.due = decide(schedule, now_ms)
        self.task: NewTask | None = None
        self.call: Call[str] | None = None
        """What ends it without a task."""

    def give_up(self, reason: str, *, may_pass: bool = False) -> None:
        """Note that the task is refused; or try again later, if that `may_pass` and a minute isn't over yet."""
        since_ms = self.schedule.retry_ms
        if may_pass and (since_ms is None or self.now_ms - since_ms < RETRY_S * 1000):
            self.call = schedule_scripts.postpone(self.due.occurrence, RETRY_EVERY_MS, is_retry=True)
        else:
            self.call = schedule_scripts.settle(self.due.occurrence, "refused", reason)

    def prepare(self, rules: Rules, live: Collection[PoolInfo]) -> Plan[None]:
        """Make the task, or the call that ends it without one."""
        schedule, due = self.schedule, self.due
        if not schedule.is_declared(live):
            self.call = schedule_scripts.postpone(due.occurrence, UNDECLARED_LOOK_MS)
        elif due.wait_ms is not None:
            self.call = schedule_scripts.postpone(due.occurrence, due.wait_ms)
        elif due.outcome:
            self.call = schedule_scripts.settle(due.occurrence, due.outcome)
        else:
            try:
                task = yield from check_task(schedule.spec(), *rules, by=schedule.owner)
                self.task = _of_schedule(task, schedule, due.occurrence.at_ms)
            except UnknownType as error:
                self.give_up(str(error), may_pass=True)
            except (InvalidTask, NotAllowed) as error:
                self.give_up(str(error))
            except (SecretsGone, LookupError, TypeError) as error:
                self.give_up(f"its secret fields can't be read: {error}")

    def addition(self, overlaps: str | bool) -> Call[Added]:
        """The call that submits the task."""
        assert self.task is not None
        by = self.schedule.owner
        guard = schedule_guard(self.due.occurrence, overlaps)
        return add_script.add([self.task], audited=entry(by, "task.submitted", self.task.id), guard=guard)

    def note(self, added: Added) -> str | None:
        """Look at what the addition was answered. Returns the id of the run before, if that hasn't ended."""
        assert self.task is not None
        if added.overlap is not None:
            before, waits = added.overlap
            if self.schedule.timing.overlap == "skip" or waits:
                self.call = schedule_scripts.settle(
                    self.due.occurrence, "skipped", f"its run before, {before}, hasn't ended"
                )
                return None
            return before
        if not added.broken_guard:
            try:
                queue.submitted([self.task], added)
            except QueueFull as error:
                self.give_up(str(error), may_pass=True)
            except TaskpoolError as error:
                self.give_up(str(error))
        return None


def _fire(firing: Sequence[_Firing], rules: Rules, live: Collection[PoolInfo]) -> Plan[None]:
    due_mono = time.monotonic() + SLICE_S
    for each in firing:
        yield from each.prepare(rules, live)
        if time.monotonic() >= due_mono:
            yield ()
            due_mono = time.monotonic() + SLICE_S
    tasks = [each for each in firing if each.task is not None]
    if tasks:
        nothing = Added(broken_guard="unreadable")
        added = yield [tolerant(each.addition(each.schedule.timing.overlap == "allow"), nothing) for each in tasks]
        behind = [(each, each.note(reply)) for each, reply in zip(tasks, added, strict=True)]
        for each, before in behind:
            if before is not None:
                yield from _fire_beside(each, before)
    calls = [each.call for each in firing if each.call is not None]
    if calls:
        yield [tolerant(call, "") for call in calls]


def _fire_beside(firing: _Firing, before: str) -> Plan[None]:
    """Submit a run whose run before hasn't ended: behind that, which is stopped first if it is to be replaced."""
    assert firing.task is not None
    if firing.schedule.timing.overlap == "replace":
        yield from _stop(before)
    task = firing.task
    firing.task = replace(task, edges=[Edge(before, "any")])
    added = yield from one(firing.addition(before))
    if added.unknown_dependency is not None:  # it has ended and was removed just now
        firing.task = task
        added = yield from one(firing.addition(before))
    if firing.note(added) is not None:  # a person has just had another one run
        firing.call = schedule_scripts.postpone(firing.due.occurrence, 0)


def _stop(id: str) -> Plan[None]:
    """Cancel a task that hasn't started, else ask it to stop."""
    word = yield from one(scripts.cancel(id, reason="replaced", error=REPLACED))
    if word == "children":
        yield from release_dependents(id)
    elif word == RQ_STATUS[TaskStatus.IN_PROGRESS]:
        yield from one(scripts.stop(id, grace_s=STOP_GRACE_S, force=False))


def _of_schedule(task: NewTask, schedule: Stored, at_ms: int, id: str = "") -> NewTask:
    """The task of an occurrence: its id is derived from that, and its record shows it."""
    fields = [*task.fields, "schedule", schedule.name, "occurrence_ms", at_ms]
    id = id or derived_id(id_at(at_ms), f"{schedule.id} {schedule.incarnation} {at_ms}".encode())
    return replace(task, id=id, fields=fields, is_plain=False)


def run_schedule(name: str, rules: Rules, by: Actor | None = None) -> Plan[Receipt]:
    """Submit the task of a schedule now, beside its occurrences and whatever runs. Its nominal time is now. Raises:
    ScheduleNotFound, and as `submit`."""
    while True:
        schedule = yield from find(name, by)
        check_rights(schedule, by)
        now_ms = yield from one(redis_ms())
        checked = yield from check_task(schedule.spec(), *rules, by=schedule.owner)
        task = _of_schedule(checked, schedule, now_ms, checked.id)
        occurrence = Occurrence(schedule.id, schedule.incarnation, schedule.revision, now_ms, None)
        audited = entry(by, "task.submitted", task.id)
        added = yield from one(add_script.add([task], audited=audited, guard=schedule_guard(occurrence, True)))
        if not added.broken_guard:
            return queue.submitted([task], added).receipts[0]
        # It was changed just now.
