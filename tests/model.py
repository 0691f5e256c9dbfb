"""What the scripts must do, in plain Python: the model that tests/test_machine.py holds them against.

Every method is one script: it answers with the script's word and changes the state as the script must change Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from taskpool.operations.catalog import PoolInfo
from taskpool.redis.keys import MOST_SUSPICIONS
from taskpool.types import RETRYABLE, TERMINAL, TaskStatus
from taskpool.types.fleet import ReasonKind
from tests.model_state import RUNS, Hidden, Lease, S, State, Task, indexes_of

Broken = tuple[str, str, str]
"""The edge for which a task is canceled: the parent, how it should have ended, and the reason."""

_WAITS = {
    S.SCHEDULED: ReasonKind.SCHEDULED,
    S.WAITING: ReasonKind.WAITS_FOR,
    S.WAITING_CONFIRMATION: ReasonKind.CONFIRMATION,
}
"""Why a task with this status doesn't run."""


def verdict(on: str, outcome: str | None) -> str:
    """What an outcome means for an edge."""
    if outcome is None:
        return "wait"
    if on == "any" or (on, outcome) in {("success", "done"), ("failure", "failed")}:
        return "ok"
    return "not_needed" if outcome == "not_needed" or (on == "failure" and outcome == "done") else "dependency_failed"


class Model(State):
    """All tasks, and every move."""

    def add(self, tasks: Sequence[Task]) -> tuple[str, ...] | str:
        """The statuses; or the parent that doesn't exist."""
        if any(task.id in self.tasks for task in tasks):
            return tuple([self.tasks[task.id].shown if task.id in self.tasks else "gone" for task in tasks])
        own: set[str] = set()
        for task in tasks:
            for parent, _ in task.edges:
                if parent not in own and parent not in self.tasks:
                    return parent
            own.add(task.id)
        return self._store(tasks)

    def _store(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        for task in tasks:
            self._add(task)
        ready = [task for task in tasks if task.status is S.QUEUED]
        for task in reversed(ready):
            if task.front:
                self.queues[task.queue].insert(0, task.id)
        for task in ready:
            if not task.front:
                self.queues[task.queue].append(task.id)
        for task in ready:
            self.ring(task.queue)
        return tuple([task.shown for task in tasks])

    def add_by(self, lease: Lease, tasks: Sequence[Task]) -> tuple[str, ...] | str:
        """The same for tasks that an attempt adds: what an attempt at the same task added before isn't added again."""
        _, by, attempt_id = lease
        if self.holds(by, attempt_id) is None:
            return "lost"
        before = {
            task.id: self.tasks[task.id].shown if task.id in self.tasks else "gone"
            for task in tasks
            if task.id in self.tasks or task.id in self.added[by]
        }
        own: set[str] = set()
        for task in tasks:
            for parent, _ in task.edges if task.id not in before else ():
                if parent not in own and parent not in self.tasks:
                    return parent
            own.add(task.id)
        new = [task for task in tasks if task.id not in before]
        self.added[by] |= {task.id for task in new}
        statuses = dict(zip([task.id for task in new], self._store(new), strict=True))
        return tuple([before.get(task.id) or statuses[task.id] for task in tasks])

    def _add(self, task: Task) -> None:
        self.tasks[task.id] = task
        self.known.add(task.queue)
        for name in indexes_of(task):
            self.index[name].add(task.id)
        pending, broken = self.weigh(task)
        task.unconfirmed = bool(task.confirm)
        self.enter(task, broken)
        if broken:
            task.status, task.reason = S.CANCELED, broken[2]
            self.note_cause(task, broken)
            return
        if pending:
            task.status = S.WAITING
        elif task.confirm:
            task.status = S.WAITING_CONFIRMATION
            self.ask(task)
        elif task.later:
            task.status = S.SCHEDULED
        task.pending, task.was_released = pending, not pending
        if task.expires:
            self.expiring.add(task.id)

    # --- what tasks depend on -------------------------------------------------------------------------------------

    def outcome(self, id: str) -> str | None:
        """How a task has ended, as far as that concerns others."""
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.status not in TERMINAL:
            return None
        if task.status is S.DONE:
            return "done"
        return "not_needed" if task.reason == "not_needed" else "failed"

    def weigh(self, task: Task) -> tuple[int, Broken | None]:
        """How many edges aren't satisfied; and the first that can't be, with the reason."""
        verdicts = [(ref, on, verdict(on, self.outcome(ref))) for ref, on in task.edges]
        broken = (each for each in verdicts if each[2] not in ("ok", "wait"))
        return sum(each[2] != "ok" for each in verdicts), next(broken, None)

    def enter(self, task: Task, broken: Broken | None) -> None:
        for ref, on in task.edges:
            outcome = self.outcome(ref)
            if outcome is None and not broken:
                self.place(ref, on, task.id)[0].add(self.place(ref, on, task.id)[1])
            elif outcome != "gone" and not (broken and broken[:2] == (ref, on)):
                self.needed[ref].add(task.id)
                if outcome:
                    self.hold(ref)

    def place(self, ref: str, on: str, id: str) -> tuple[set[str], str]:
        """Where a task waits for another, and as what."""
        is_plain = on == "success" and not self.tasks[id].confirm
        return (self.dependents[ref], id) if is_plain else (self.followers[ref], f"{on}:{id}")

    def note_cause(self, task: Task, broken: Broken) -> None:
        task.canceled_by = broken[0]
        if self.outcome(broken[0]) not in ("done", "gone"):
            self.revivable[broken[0]].add(task.id)

    # --- attempts -------------------------------------------------------------------------------------------------

    def claim(self, queues: Sequence[str], worker: str, attempt_id: str, *, again: bool) -> str | None:
        """The id of the claimed task."""
        if again:
            for id in self.tasks:
                if self.holds(id, attempt_id) and f"{id}:{attempt_id}" in self.held[worker]:
                    return id
        claimed = self.claim_together(queues, worker, attempt_id, most=1, share=1)
        return claimed[0][0] if claimed else None

    def claim_together(
        self, queues: Sequence[str], worker: str, attempt_id: str, *, most: int, share: int
    ) -> list[tuple[str, str]]:
        """The ids of the claimed tasks, and those of their attempts."""
        for queue in queues:
            while self.queues[queue]:
                task = self.tasks[self.queues[queue].pop(0)]
                more = 0 if task.suspect else min(most - 1, len(self.queues[queue]) // share)
                claimed = self.start(task, worker, f"{attempt_id}-0" if more else attempt_id)
                for number in range(1, more + 1) if claimed else ():
                    if not self.queues[queue] or self.tasks[self.queues[queue][0]].suspect:
                        break
                    claimed += self.start(self.tasks[self.queues[queue].pop(0)], worker, f"{attempt_id}-{number}")
                if claimed:
                    return claimed
        self.bells.update(dict.fromkeys(queues, 0))
        return []

    def start(self, task: Task, worker: str, attempt_id: str) -> list[tuple[str, str]]:
        """Begin an attempt at a task that was taken out of its queue."""
        self.expiring.discard(task.id)
        if task.expires == "due" and not task.was_started:
            task.reason = "expired"
            self.move(task, S.CANCELED)
            return []
        task.attempt += 1
        if task.attempt > 1 or task.was_started:
            if task.was_started and task.reason:
                task.crashes = task.suspect = 0
            task.stop = task.reason = ""
        task.attempt_id, task.worker, task.was_started = attempt_id, worker, True
        self.move(task, S.IN_PROGRESS)
        self.leases[task.queue, task.id, attempt_id] = False
        self.held[worker].add(f"{task.id}:{attempt_id}")
        return [(task.id, attempt_id)]

    def why(self, task: Task, pool: PoolInfo, paused: str) -> list[ReasonKind]:
        """Why it doesn't run, if this is the only pool, and `paused` is paused."""
        if task.status in TERMINAL:
            return [ReasonKind.ENDED]
        if task.status in RUNS:
            return [ReasonKind.RUNNING]
        if task.status is S.SCHEDULED and task.history[-1:] == ["failed"]:
            return [ReasonKind.RETRY_BACKOFF]
        if task.status is not S.QUEUED:
            return [_WAITS[task.status]]
        found = [ReasonKind.EXPIRED] if task.expires == "due" and not task.was_started else []
        found += [ReasonKind.PAUSED] if paused in ("all", f"queue:{task.queue}") else []
        if task.queue not in pool.queues:
            return [*found, ReasonKind.NO_WORKER_FOR_QUEUE]
        if task.type not in pool.types:
            return [*found, ReasonKind.NO_WORKER_FOR_TYPE]
        found += [ReasonKind.PAUSED] if paused == f"pool:{pool.id}" else []
        if found:
            return found
        urgent = pool.queues[: pool.queues.index(task.queue)]
        ahead = sum(len(self.queues[queue]) for queue in urgent if paused != f"queue:{queue}")
        ahead += self.queues[task.queue].index(task.id)
        free = len(pool.workers) * pool.slots - sum(len(self.held[worker]) for worker in pool.workers)
        return [ReasonKind.BUSY] if free <= ahead else []

    def awaited(self, task: Task) -> set[str]:
        """The tasks that it waits for and that haven't ended."""
        parents = [self.tasks.get(ref) for ref, _ in task.edges]
        return {parent.id for parent in parents if parent is not None and parent.status not in TERMINAL}

    def finish(self, lease: Lease, worker: str, status: TaskStatus) -> str:
        _, id, attempt_id = lease
        task = self.holds(id, attempt_id)
        self.drop(lease, worker)
        if task is not None:
            task.reason = "" if status is S.DONE else f"{status} by its attempt"
            if status is not S.DONE or task.history:
                task.history.append(status.value)
            self.move(task, status)
            if status is not S.DONE:
                self.results.add(id)
            return self.end_just_now()
        task = self.tasks.get(id)
        is_repeat = task and (task.attempt_id, task.status) == (attempt_id, status)
        if not is_repeat or (status is not S.DONE and self.tasks[id].reason != f"{status} by its attempt"):
            return "lost"
        return self.has_children(id)

    def finish_together(self, leases: Sequence[Lease], worker: str) -> list[str]:
        held = [self.holds(id, attempt_id) is not None for _, id, attempt_id in leases]
        words = []
        for lease, is_held in zip(leases, held, strict=True):
            words.append(self.finish(lease, worker, S.DONE) if is_held else "other")
        return words

    def requeue(self, lease: Lease, worker: str, how: str, *, later: bool) -> str:
        _, id, attempt_id = lease
        task = self.holds(id, attempt_id)
        mark = f"{attempt_id}:{how}"
        if task is None:
            self.drop(lease, worker)
            return "ok" if id in self.tasks and self.tasks[id].put_back == mark else "lost"
        if task.stop:
            return "stopping"
        self.drop(lease, worker)
        task.attempt -= how != "retry"
        task.suspect = 0 if how == "retry" else task.suspect
        task.snoozes += how == "snooze"
        task.attempt_id, task.put_back = "", mark
        task.history.append({"given_back": "given_back", "snooze": "snoozed", "retry": "failed"}[how])
        task.later |= later
        self.move(task, S.SCHEDULED if later else S.QUEUED, front=how == "given_back")
        return "ok"

    def crash(self, lease: Lease, worker: str, *, max_crashes: int, only_expired: bool) -> str:
        _, id, attempt_id = lease
        task = self.holds(id, attempt_id)
        if only_expired and not self.leases.get(lease):
            return "lost"
        was_shown, record = lease in self.shown, self.tasks.get(id)
        # A reaper doesn't know whose attempt it was, unless there was a heartbeat or the record tells it.
        is_known = not only_expired or was_shown or (record is not None and record.worker == worker)
        self.drop(lease, worker if is_known else "")
        if task is None:
            return "lost"
        if only_expired and not was_shown and "-" in attempt_id and not task.stop and task.suspect < MOST_SUSPICIONS:
            task.suspect += 1
            task.attempt, task.attempt_id = max(task.attempt - 1, 0), ""
            task.history.append("given_back")
            self.move(task, S.QUEUED, front=True)
            return "given_back"
        task.crashes += 1
        reason = "lease_lost" if only_expired else "crashed"
        task.history.append("stopped" if task.stop and not only_expired else reason)
        if task.stop or task.crashes >= max_crashes:
            status = S.STOPPED if task.stop else S.FAILED
            task.reason = "crashed"
            self.results.add(id)
            self.move(task, status)
            return status.value
        task.attempt_id = ""
        self.move(task, S.QUEUED, front=True)
        return "queued"

    def heartbeat(self, leases: Sequence[Lease]) -> list[str]:
        words = []
        for lease in leases:
            task = self.holds(lease[1], lease[2])
            words.append((task.stop or "ok") if task else "lost")
            if task:
                self.leases[lease] = False
                self.shown[lease] = task.worker
        return words

    def report(self, lease: Lease, *, logs: bool) -> str:
        task = self.holds(lease[1], lease[2])
        if task is None:
            return "lost"
        task.seq += 1
        if logs:
            self.logs.add(task.id)
        return "ok"

    def stop(self, id: str, *, force: bool) -> str:
        task = self.tasks.get(id)
        if task is None or task.status not in RUNS:
            return task.rq if task else "gone"
        if not task.stop or (force and task.stop != "force"):
            task.stop = "force" if force else "stop"
            task.status = S.STOPPING
            task.seq += 1
        return "ok"

    def cancel(self, id: str, mark: str, *, expired: bool) -> str:
        task = self.tasks.get(id)
        if task is None or task.status in RUNS | TERMINAL:
            if expired or not task:
                self.expiring.discard(id)
            if task and task.status is S.CANCELED and mark and task.by_call == mark:
                return self.has_children(id)
            return task.rq if task else "gone"
        if expired and (task.was_started or task.expires != "due"):
            return "early"
        if task.status is S.QUEUED:
            self.queues[task.queue].remove(id)
        self.expiring.discard(id)
        self.ask_no_more(task)
        task.reason, task.by_call = "expired" if expired else "canceled", mark or task.by_call
        self.move(task, S.CANCELED)
        return self.end_just_now()

    def run_now(self, id: str, mark: str) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.by_call == mark:
            return "ok"
        if task.status is not S.SCHEDULED:
            return task.rq
        task.later, task.by_call = False, mark
        self.move(task, S.QUEUED)
        return "ok"

    def change_queue(self, id: str, queue: str, mark: str) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.by_call == mark:
            return "ok"
        if task.status in RUNS | TERMINAL:
            return task.rq
        if task.queue == queue:
            return "same"
        if task.status is S.QUEUED:
            self.queues[task.queue].remove(id)
        task.queue, task.by_call = queue, mark
        self.known.add(queue)
        if task.status is S.QUEUED:
            self.enqueue(task, front=False)
        return "ok"

    def revive(self, id: str, mark: str) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.by_call == mark:
            return self.has_children(id)
        if task.status not in RETRYABLE:
            return task.rq
        pending, broken = self.weigh(task)
        if task.was_released:
            pending = 0
        elif broken:
            return f"dependency {broken[0]} {self.tasks[broken[0]].rq if broken[0] in self.tasks else 'gone'}"
        task.later = False
        self.begin(task, pending)
        task.by_call = mark
        if self.revivable[id]:
            self.outbox.add(id)
        return self.has_children(id)

    def uncancel(self, id: str, canceled_by: str, mark: str) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.by_call == mark:
            return self.has_children(id)
        if task.status is not S.CANCELED:
            return task.rq
        if task.by_call != canceled_by:
            return "other"
        pending, broken = self.weigh(task)
        if task.was_released:
            pending = 0
        elif broken:
            return f"dependency {broken[0]} {self.tasks[broken[0]].rq if broken[0] in self.tasks else 'gone'}"
        self.begin(task, pending, goes_on=True)
        task.by_call = mark
        if self.revivable[id]:
            self.outbox.add(id)
        return self.has_children(id)

    def begin(self, task: Task, pending: int, *, goes_on: bool = False) -> None:
        """A new life; with `goes_on`, the one that it had."""
        for ref, on in task.edges:
            outcome = self.outcome(ref)
            is_ok = verdict(on, outcome) == "ok"
            if outcome is not None or (not pending and not is_ok):
                place, member = self.place(ref, on, task.id)
                place.discard(member)
            if outcome not in (None, "gone") and (is_ok or pending):
                self.needed[ref].add(task.id)
                self.hold(ref)
            elif outcome is None and pending:
                place, member = self.place(ref, on, task.id)
                place.add(member)
        task.pending, task.was_released = pending, not pending
        task.reason = task.canceled_by = task.by_call = ""
        task.asks = task.question = False
        if not goes_on:
            task.attempts_a_life = task.attempts_a_life or task.max_attempts
            task.max_attempts = task.attempt + task.attempts_a_life
            task.crashes, task.snoozes, task.stop, task.expires, task.attempt_id = 0, 0, "", "", ""
            task.was_started, task.answers = False, []
        elif task.expires and not task.was_started:
            self.expiring.add(task.id)
        if pending:
            self.move(task, S.WAITING)
        else:
            self.pass_gates(task)

    # --- people ---------------------------------------------------------------------------------------------------

    def pass_gates(self, task: Task) -> None:
        """Nothing holds it any more but a person or its time."""
        if task.unconfirmed:
            task.decision = ""
            self.move(task, S.WAITING_CONFIRMATION)
            self.ask(task)
        else:
            self.move(task, S.SCHEDULED if task.later else S.QUEUED)

    def confirm(self, id: str, decision: str) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.status is S.WAITING_CONFIRMATION and task.unconfirmed:
            return self.decide(task, decision)
        if not task.decision:
            return task.rq
        if task.decision != decision:
            return "decided"
        return self.has_children(id) if decision == "rejected" else "ok"

    def decide(self, task: Task, decision: str) -> str:
        self.ask_no_more(task)
        task.decision = decision
        if decision == "confirmed":
            task.unconfirmed = False
            self.pass_gates(task)
            return "ok"
        self.expiring.discard(task.id)
        task.reason = "rejected"
        self.move(task, S.CANCELED)
        return self.end_just_now()

    def ask_in_the_middle(self, lease: Lease, worker: str) -> str:
        _, id, attempt_id = lease
        task = self.holds(id, attempt_id)
        mark = f"{attempt_id}:ask"
        if task is None:
            self.drop(lease, worker)
            return "ok" if id in self.tasks and self.tasks[id].put_back == mark else "lost"
        if task.stop:
            return "stopping"
        self.drop(lease, worker)
        task.attempt -= 1
        task.attempt_id, task.put_back, task.question = "", mark, True
        task.history.append("asked")
        self.move(task, S.WAITING_CONFIRMATION)
        self.ask(task)
        return "ok"

    def answer(self, id: str, step: int) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.status is S.WAITING_CONFIRMATION and task.question and task.seq == step:
            self.resume(task, "answered")
            return "ok"
        found = [how for asked, how in task.answers if asked == step]
        return ("ok" if found[0] == "answered" else "other") if found else "changed"

    def resume(self, task: Task, how: str) -> None:
        task.answers.append((task.seq, how))
        self.ask_no_more(task)
        self.move(task, S.QUEUED)

    def unanswered(self, id: str) -> str:
        task = self.tasks.get(id)
        if id not in self.confirmations:
            return "gone"
        if task is None or task.status is not S.WAITING_CONFIRMATION:  # a dashboard has queued it, for example
            self.confirmations.discard(id)
            return "gone"
        if not task.is_due:
            return "early"
        if task.question:
            self.resume(task, "timeout")
            return "ok"
        return self.decide(task, "confirmed" if task.confirm == "confirm" else "rejected")

    def checkpoint(self, lease: Lease) -> str:
        if self.holds(lease[1], lease[2]) is None:
            return "lost"
        self.checkpoints.add(lease[1])
        return "ok"

    def purge(self, id: str, *, when_due: bool, by_hold: bool = False, mark: str = "") -> str:
        """`by_hold`: not its own time has come, but that to look whether others still need its record. With a `mark`,
        it can be put back."""
        task = self.tasks.get(id)
        if mark and id in self.hidden and self.hidden[id].mark == mark:
            return "ok"
        if task is None:
            self.drop_rest(id)
            return "gone"
        if when_due and not (self.kept.get(id, True) if by_hold else task.is_due or task.status not in TERMINAL):
            return "early"
        if task.status not in TERMINAL:
            if by_hold:
                self.kept.pop(id, None)
            return task.rq
        if self.dependents[id] or self.followers[id] or (task.status is S.DONE and self.revivable[id]):
            return "children"
        if when_due:
            self.needed[id] = {child for child in self.needed[id] if self.needs(child, task)}
            if self.needed[id]:
                task.is_due = task.is_due and by_hold
                task.is_held, self.kept[id] = True, False
                return "needed"
        is_looked_at = self.kept.pop(id, None)
        if by_hold and not task.is_due:
            task.is_held = False
            return "early"
        for name in indexes_of(task):
            self.index[name].discard(id)
        if mark:
            extras = [name for name, ids in self.extras.items() if id in ids]
            sets = (set(self.needed[id]), set(self.added[id]), set(self.revivable[id]))
            self.hidden[id] = Hidden(mark, task, extras, sets, is_looked_at)
        self.revivable[task.canceled_by].discard(id)
        del self.tasks[id]
        self.drop_rest(id)
        return "ok"

    def unpurge(self, id: str, removed_by: str, mark: str) -> str:
        task, hidden = self.tasks.get(id), self.hidden.get(id)
        if task is not None and task.by_call == mark:
            return "ok"
        if hidden is None:
            return "gone"
        if hidden.mark != removed_by:
            return "other"
        if task is not None:
            return "exists"
        task = self.tasks[id] = self.hidden.pop(id).task
        task.by_call, task.is_due = mark, False
        for name in indexes_of(task):
            self.index[name].add(id)
        self.known.add(task.queue)
        for name in hidden.extras:
            self.extras[name].add(id)
        self.needed[id], self.added[id], self.revivable[id] = hidden.sets
        self.retain(task)
        if hidden.is_looked_at is not None:
            task.is_held, self.kept[id] = True, hidden.is_looked_at
        if task.canceled_by and self.outcome(task.canceled_by) not in ("done", "gone"):
            self.revivable[task.canceled_by].add(id)
        for ref, _ in task.edges if task.status is not S.DONE else ():
            if self.outcome(ref) == "done":
                self.needed[ref].add(id)
                self.hold(ref)
        return "ok"

    def needs(self, child: str, parent: Task) -> bool:
        """Whether a task may still read how another one ended."""
        task = self.tasks.get(child)
        if task is None or task.status is S.DONE:
            return False
        return parent.status is S.DONE or task.status not in TERMINAL

    def drop_rest(self, id: str) -> None:
        self.results.discard(id)
        self.logs.discard(id)
        self.checkpoints.discard(id)
        self.needed.pop(id, None)
        self.revivable.pop(id, None)
        self.kept.pop(id, None)
        self.added.pop(id, None)

    def promote(self, id: str) -> str:
        task = self.tasks.get(id)
        if task is None or task.status is not S.SCHEDULED:
            return "gone"
        if not task.is_due:
            return "early"
        self.move(task, S.QUEUED)
        return "ok"

    def release(self, id: str, ready: Iterable[str], causes: Mapping[str, str]) -> list[str]:
        """`ready`: the children that are queued after it, in order. `causes`: by task, because of which one it is
        canceled after it. Both are Redis's choice."""
        refs, begun = [id], len(self.tasks)
        queued: list[str] = []
        for ref in refs:  # it grows
            assert len(refs) <= 10 * (begun + 1)
            outcome = self.outcome(ref)
            if outcome in (None, "done"):
                refs += self._revive_all(ref)
            if outcome is not None:
                refs += self._release(ref, outcome, queued, causes)
            self.outbox.discard(ref)
        order = [each for each in ready if each in queued]
        assert sorted(order) == sorted(queued)
        for each in order:
            self.move(self.tasks[each], S.QUEUED)
        for queue, ids in self.queues.items():  # revived ones came in between
            ids.sort(key=[each for each in ready if each in self.queues[queue]].index)
        return []

    def _revive_all(self, ref: str) -> list[str]:
        more = []
        for each in sorted(self.revivable.pop(ref, ())):
            task = self.tasks.get(each)
            if task is None or task.status is not S.CANCELED or task.canceled_by != ref:
                continue
            pending, broken = self.weigh(task)
            if broken is None:
                self.begin(task, pending)
                more += [each] if self.revivable[each] else []
            elif broken[0] != ref:
                self.note_cause(task, broken)
        return more

    def _release(self, id: str, outcome: str, queued: list[str], causes: Mapping[str, str]) -> list[str]:
        canceled = []
        members = [("success", each) for each in self.dependents.pop(id, ())]
        for on, child in [*members, *(member.split(":") for member in self.followers.pop(id, ()))]:
            task = self.tasks.get(child)
            if task is None or task.status is S.DONE:
                continue
            is_bad = verdict(on, outcome) != "ok"
            if task.status is S.WAITING and is_bad and causes.get(child) == id:
                self.expiring.discard(child)
                task.reason = verdict(on, outcome)
                self.move(task, S.CANCELED)
                self.note_cause(task, (id, on, task.reason))
                canceled += [child] if child in self.outbox else []
                continue
            if task.status is S.WAITING and not is_bad and child not in queued:
                task.pending -= 1
                task.was_released = task.pending <= 0
                if task.pending <= 0 and (task.later or task.unconfirmed):
                    self.pass_gates(task)
                elif task.pending <= 0:
                    queued.append(child)
            if outcome != "gone":
                self.needed[id].add(child)
                self.hold(id)
        return canceled

    def sweep_waiting(self, queue: str) -> str:
        for task in self.tasks.values():
            if task.status is S.WAITING and task.queue == queue:
                for ref, on in task.edges:
                    outcome, (place, member) = self.outcome(ref), self.place(ref, on, task.id)
                    if outcome and member in place:
                        self.outbox.add(ref)
                    elif outcome == "done" and task.id not in self.needed[ref]:
                        self.needed[ref].add(task.id)
                        self.hold(ref)
        return "end"

    def sweep_index(self, name: str) -> str:
        for id in [id for id in self.index[name] if id not in self.tasks]:
            self.index[name].discard(id)
            self.drop_rest(id)
            self.expiring.discard(id)
            self.confirmations.discard(id)
            if self.dependents[id] or self.followers[id]:
                self.outbox.add(id)
        return ""

    # --- what RQ's dashboard does ---------------------------------------------------------------------------------

    def delete(self, id: str) -> None:
        task = self.tasks.pop(id)
        if task.status is S.QUEUED:
            self.queues[task.queue].remove(id)
        self.results.discard(id)

    def requeue_by_rq(self, id: str) -> None:
        """Without a ring, a number or an event."""
        task = self.tasks[id]
        task.status = S.QUEUED
        self.queues[task.queue].append(id)
