"""What the scripts must do, in plain Python: the model that tests/test_machine.py holds them against.

Every method is one script: it answers with the script's word and changes the state as the script must change Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskpool.types import RETRYABLE, TERMINAL, TaskStatus
from tests.model_state import RUNS, Lease, S, State, Task


class Model(State):
    """All tasks, and every move."""

    def add(self, tasks: Sequence[Task]) -> tuple[str, ...] | str:
        """The statuses; or the parent that doesn't exist."""
        if any(task.id in self.tasks for task in tasks):
            return tuple([self.tasks[task.id].rq if task.id in self.tasks else "gone" for task in tasks])
        own: set[str] = set()
        for task in tasks:
            for parent in task.parents:
                if parent not in own and parent not in self.tasks:
                    return parent
            own.add(task.id)
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
        return tuple([task.rq for task in tasks])

    def _add(self, task: Task) -> None:
        self.tasks[task.id] = task
        self.known.add(task.queue)
        for name in (f"type:{task.type}", *(f"tag:{tag}" for tag in task.tags)):
            self.index[name].add(task.id)
        statuses = {parent: self.tasks[parent].status for parent in task.parents}
        waits_for = [parent for parent, status in statuses.items() if status is not S.DONE]
        is_broken = any(status in RETRYABLE for status in statuses.values())
        for parent, status in statuses.items():
            if is_broken or status is S.DONE:
                self.needed[parent].add(task.id)
        if is_broken:
            task.status, task.reason = S.CANCELED, "dependency_failed"
            return
        if waits_for:
            task.status, task.pending = S.WAITING, len(waits_for)
            for parent in waits_for:
                self.dependents[parent].add(task.id)
        elif task.later:
            task.status = S.SCHEDULED
        task.was_released = not waits_for
        if task.expires:
            self.expiring.add(task.id)

    def claim(self, queues: Sequence[str], worker: str, attempt_id: str, *, again: bool) -> str | None:
        """The id of the claimed task."""
        if again:
            for id in self.tasks:
                if self.holds(id, attempt_id) and f"{id}:{attempt_id}" in self.held[worker]:
                    return id
        for queue in queues:
            while self.queues[queue]:
                task = self.tasks[self.queues[queue].pop(0)]
                self.expiring.discard(task.id)
                if task.expires == "due" and not task.was_started:
                    task.reason = "expired"
                    self.move(task, S.CANCELED)
                    continue
                task.attempt += 1
                if task.attempt > 1:
                    task.crashes = 0 if task.reason else task.crashes
                    task.stop = task.reason = ""
                task.attempt_id, task.was_started = attempt_id, True
                self.move(task, S.IN_PROGRESS)
                self.leases[queue, task.id, attempt_id] = False
                self.held[worker].add(f"{task.id}:{attempt_id}")
                return task.id
        self.bells.update(dict.fromkeys(queues, 0))
        return None

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
        else:
            task = self.tasks.get(id)
            is_repeat = task and (task.attempt_id, task.status) == (attempt_id, status)
            if not is_repeat or (status is not S.DONE and self.tasks[id].reason != f"{status} by its attempt"):
                return "lost"
        return "children" if self.dependents[id] else "ok"

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
        task.snoozes += how == "snooze"
        task.attempt_id, task.put_back = "", mark
        task.history.append({"given_back": "given_back", "snooze": "snoozed", "retry": "failed"}[how])
        self.move(task, S.SCHEDULED if later else S.QUEUED, front=how == "given_back")
        return "ok"

    def crash(self, lease: Lease, worker: str, *, max_crashes: int, only_expired: bool) -> str:
        _, id, attempt_id = lease
        task = self.holds(id, attempt_id)
        if only_expired and not self.leases.get(lease):
            return "lost"
        self.drop(lease, worker)
        if task is None:
            return "lost"
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
                return "children" if self.dependents[id] else "ok"
            return task.rq if task else "gone"
        if expired and (task.was_started or task.expires != "due"):
            return "early"
        if task.status is S.QUEUED:
            self.queues[task.queue].remove(id)
        self.expiring.discard(id)
        task.reason, task.by_call = "expired" if expired else "canceled", mark or task.by_call
        self.move(task, S.CANCELED)
        return "children" if self.dependents[id] else "ok"

    def revive(self, id: str, mark: str) -> str:
        task = self.tasks.get(id)
        if task is None:
            return "gone"
        if task.by_call == mark:
            return "ok"
        if task.status not in RETRYABLE:
            return task.rq
        good = [parent for parent in task.parents if parent in self.tasks and self.tasks[parent].status is S.DONE]
        if not task.was_released and (bad := [parent for parent in task.parents if parent not in good]):
            return f"dependency {bad[0]} {self.tasks[bad[0]].rq if bad[0] in self.tasks else 'gone'}"
        for parent in good:
            self.needed[parent].add(id)
        task.was_released = True
        task.attempts_a_life = task.attempts_a_life or task.max_attempts
        task.max_attempts = task.attempt + task.attempts_a_life
        task.crashes, task.snoozes, task.stop, task.reason, task.expires, task.attempt_id = 0, 0, "", "", "", ""
        task.later = task.was_started = False
        task.by_call = mark
        self.move(task, S.QUEUED)
        return "ok"

    def purge(self, id: str, *, when_due: bool) -> str:
        task = self.tasks.get(id)
        if task is None:
            self.results.discard(id)
            self.logs.discard(id)
            self.needed.pop(id, None)
            return "gone"
        if when_due and task.status in TERMINAL and not task.is_due:
            return "early"
        if task.status not in TERMINAL:
            return task.rq
        if self.dependents[id]:
            return "children"
        if when_due and task.status is S.DONE:
            self.needed[id] = {child for child in self.needed[id] if child in self.tasks}
            self.needed[id] = {child for child in self.needed[id] if self.tasks[child].status is not S.DONE}
            if self.needed[id]:
                task.is_due = False
                return "needed"
        self.needed.pop(id, None)
        for name in (f"type:{task.type}", *(f"tag:{tag}" for tag in task.tags)):
            self.index[name].discard(id)
        del self.tasks[id]
        self.results.discard(id)
        self.logs.discard(id)
        return "ok"

    def promote(self, id: str) -> str:
        task = self.tasks.get(id)
        if task is None or task.status is not S.SCHEDULED:
            return "gone"
        if not task.is_due:
            return "early"
        self.move(task, S.QUEUED)
        return "ok"

    def release(self, id: str, ready: Iterable[str]) -> list[str]:
        """`ready`: the children that are queued after it; in which order they come is Redis's choice."""
        parents = [id]
        for each in parents:  # it grows: what is canceled has children of its own
            if each not in self.tasks or self.tasks[each].status in TERMINAL:
                parents += self._release(each, ready)
            self.outbox.discard(each)
        return []

    def _release(self, id: str, ready: Iterable[str]) -> list[str]:
        parent = self.tasks.get(id)
        queued, canceled = [], []
        children = [self.tasks[each] for each in self.dependents.pop(id, ()) if each in self.tasks]
        if parent is not None:
            self.needed[id] |= {child.id for child in children if child.status is not S.DONE}
        for child in children:
            if child.status is not S.WAITING:
                continue
            if parent is None or parent.status is not S.DONE:
                self.expiring.discard(child.id)
                child.reason = "dependency_failed"
                self.move(child, S.CANCELED)
                canceled += [child.id] if self.dependents[child.id] else []
                continue
            child.pending -= 1
            child.was_released = child.pending <= 0
            if child.pending <= 0 and child.later:
                self.move(child, S.SCHEDULED)
            elif child.pending <= 0:
                queued.append(child.id)
        order = [each for each in ready if each in queued]
        assert sorted(order) == sorted(queued)
        for each in order:
            self.move(self.tasks[each], S.QUEUED)
        return canceled

    def sweep_waiting(self, queue: str) -> str:
        for task in self.tasks.values():
            if task.status is S.WAITING and task.queue == queue:
                for parent in task.parents:
                    ended = parent not in self.tasks or self.tasks[parent].status in TERMINAL
                    if ended and task.id in self.dependents[parent]:
                        self.outbox.add(parent)
                    elif ended and parent in self.tasks and self.tasks[parent].status is S.DONE:
                        self.needed[parent].add(task.id)
        return "end"

    def sweep_index(self, name: str) -> str:
        for id in [id for id in self.index[name] if id not in self.tasks]:
            self.index[name].discard(id)
            self.results.discard(id)
            self.logs.discard(id)
            self.needed.pop(id, None)
            self.expiring.discard(id)
            if self.dependents[id]:
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
