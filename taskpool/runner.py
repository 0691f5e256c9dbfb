"""Runs tasks: claim one, run an attempt, stop or retry one; and the entry point that RQ's own workers call.

`run_task` and `execute_here` are for tests and for programs with a worker of their own. They run an attempt in the
caller's thread, without a supervisor or heartbeats: an attempt that outlives its lease is taken back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from taskpool.access.audit import Actor, entry
from taskpool.errors import AttemptLost, FieldError, InvalidTask, TaskConflict, TaskNotFound, TaskpoolError
from taskpool.operations import status
from taskpool.operations.records import check_id, fetch
from taskpool.operations.specs import check_seconds
from taskpool.operations.status import release_dependents
from taskpool.redis import keys, rq_job, scripts
from taskpool.redis.calls import Call, Plan, one
from taskpool.redis.rq_job import parents_of
from taskpool.redis.store import Store
from taskpool.settings import Settings
from taskpool.tasks.attempt import Outcome, execute_task, execute_task_async, stopped
from taskpool.tasks.context import TaskContext
from taskpool.tasks.registry import Registry
from taskpool.types import LEFT_ALONE, ForeignJobs, RunningTask, TaskRecord, TaskStatus
from taskpool.validation import LONGEST_GRACE_S, queue_name_fault

__all__ = ["Outcome", "execute_task", "execute_task_async", "kill_task", "parents_of", "retry_task", "run", "run_task"]

RACES = 5
"""How often a move is tried again when the task changed its status in between."""


class TaskFailed(TaskpoolError):
    """Raised in a plain RQ worker for a task that failed, so that RQ marks the job as failed."""


def run_task(
    queues: Sequence[str], *, worker: str, attempt_id: str, lease_s: float, foreign: ForeignJobs = LEFT_ALONE
) -> Call[RunningTask | None]:
    """Claim the next task of these queues, the first queue first, for one attempt; None when none is ready.

    Called again with the same attempt id, it answers with what that attempt holds.

    Raises:
        InvalidTask: `queues` is no list of names of queues, or `lease_s` no number of seconds from 0.001 to ten years.
    """
    _check_queues(queues)
    check_seconds("lease_s", lease_s, 0.001)
    lease_ms = round(lease_s * 1000)
    return scripts.claim(queues, worker=worker, attempt_id=attempt_id, lease_ms=lease_ms, again=True, foreign=foreign)


def _check_queues(queues: Sequence[str]) -> None:
    faults = [FieldError(f"/queues/{at}", fault) for at, name in enumerate(queues) if (fault := queue_name_fault(name))]
    if isinstance(queues, str):
        faults = [FieldError("/queues", f"must be a list of names, not the text {queues!r}")]
    if faults:
        raise InvalidTask(f"{faults[0].pointer}: {faults[0].detail}", faults)


def kill_task(id: str, *, grace_s: float = 10.0, force: bool = False, by: Actor | None = None) -> Plan[TaskRecord]:
    """Stop a task: one that hasn't started is canceled, a running one is asked to stop and killed after `grace_s`
    (`force`: at once), an ended one stays as it is. Returns the record as it is then.

    Raises:
        TaskNotFound
        InvalidTask: `grace_s` is no number of seconds from 0 to a day.
    """
    check_id(id)
    check_seconds("grace_s", grace_s, most_s=LONGEST_GRACE_S)
    audited = entry(by, "task.stopped", id)
    for _ in range(RACES):
        word = yield from one(scripts.stop(id, grace_s=grace_s, force=force, audited=audited))
        if word not in keys.RQ_SET["cancelable"]:
            break
        word = yield from one(scripts.cancel(id, reason="canceled", error=keys.NOT_STARTED, audited=audited))
        if word == "children":
            yield from release_dependents(id)
        if word in ("ok", "children"):
            break
    return (yield from one(fetch(id)))


def retry_task(id: str, by: Actor | None = None) -> Plan[TaskRecord]:
    """Give a failed, stopped or canceled task a new life: it is queued for a new attempt.

    Raises:
        TaskNotFound
        TaskConflict: its status doesn't allow it, or a task it depends on hasn't ended well.
    """
    check_id(id)
    word = yield from one(scripts.revive(id, entry(by, "task.retried", id)))
    if word == "gone":
        raise TaskNotFound(id)
    record = yield from one(fetch(id))
    if word.startswith("unique "):
        held = f"task {word.removeprefix('unique ')} holds its unique key {record.unique_key!r}"
        raise TaskConflict(id, record.status, f"task {id} can't run again now: {held}")
    if word.startswith("dependency "):
        _, parent, status = word.split()
        advice = "its record is gone: submit both again" if status == "gone" else "it is not done: retry that one first"
        raise TaskConflict(id, record.status, f"task {id} depends on task {parent}, but {advice}")
    if word == "secrets":
        raise TaskConflict(id, record.status, f"task {id}: its secret fields are no longer kept; submit it again")
    if word != "ok":
        raise TaskConflict(
            id, record.status, f"task {id} is {record.status}; only failed, stopped and canceled tasks can be retried"
        )
    return record


def run(type: str, payload: Any = None) -> Any:
    """The function every job names. Our own workers never call it: a plain `rq worker -S json` does.

    It runs the task with the settings of its environment (TASKPOOL_TASKS) and keeps result and error where our API
    reads them. Leases, retries and stop requests are then RQ's.

    Raises:
        TaskFailed: the task failed; the text says why.
    """
    job = rq_job.PlainJob.current()
    settings = Settings.load(os.environ)
    if (rival := job.rival()) is not None:
        error = f"the task {rival} took its unique key before it was queued again"
        document = msgspec.json.encode({"reason": "unique_key_held", "message": error})
        job.keep({"error": error, "failure": document, "reason": "unique_key_held"})
        raise TaskFailed(error)
    running = job.running(type, {} if payload is None else payload)
    context = TaskContext.of(running, job)
    outcome = execute_task(
        running,
        _registry(settings.tasks, settings.builtins),
        context,
        max_result_bytes=settings.max_result_bytes,
        run_coroutine=asyncio.run,
    )
    if outcome.status is not TaskStatus.DONE:
        failure = outcome.failure
        job.keep({"error": outcome.error, "failure": msgspec.json.encode(failure), "reason": failure["reason"]})
        raise TaskFailed(f"{outcome.error}\n{outcome.traceback}".strip())
    job.keep({"result": outcome.result})
    job.keep_for_dependents()
    job.forget_secrets(running)
    return msgspec.json.decode(outcome.result)


@cache
def _registry(modules: tuple[str, ...], builtins: bool | tuple[str, ...] | None) -> Registry:
    return Registry(modules, builtins=builtins)


class StoreSink:
    """What a task's context needs, written at once through a store. Raises AttemptLost when the lease is gone."""

    def __init__(self, store: Store, running: RunningTask) -> None:
        self._store = store
        self._running = running

    def progress(self, done: float, total: float | None, note: str | None) -> None:
        """Write the progress."""
        self._kept(self._store.run(scripts.progress(self._running, {"done": done, "total": total, "note": note})))

    def log(self, message: str) -> None:
        """Write one line of the log."""
        at_ms = time.time_ns() // 1_000_000
        self._kept(self._store.run(status.log_task(self._running, [(at_ms, line) for line in message.split("\n")])))

    def is_cancelled(self) -> bool:
        """Ask Redis whether a stop was requested."""
        attempt = (self._running.id, self._running.attempt_id, self._running.queue)
        (word,) = self._store.run(scripts.heartbeat([attempt], 15_000))
        return word != "ok"

    def parents(self) -> Mapping[str, Any]:
        """Read the parents' results."""
        return self._store.carry_out(parents_of(self._running.depends_on))

    def _kept(self, word: str) -> None:
        if word == "lost":
            raise AttemptLost(f"attempt {self._running.attempt} of task {self._running.id} no longer holds its lease")


def execute_here(store: Store, registry: Registry, running: RunningTask, *, max_result_bytes: int) -> TaskStatus:
    """Run a claimed task to the end of its attempt and write how it ended: the status it ended with.

    Raises:
        AttemptLost: its lease was lost meanwhile; nothing was written.
    """
    context = TaskContext.of(running, StoreSink(store, running))
    outcome = execute_task(running, registry, context, max_result_bytes=max_result_bytes, run_coroutine=asyncio.run)
    word = store.run(status.update_status(running, outcome))
    if word == "stopping":
        outcome = stopped()
        word = store.run(status.update_status(running, outcome))
    if word == "lost":
        raise AttemptLost(f"attempt {running.attempt} of task {running.id} no longer holds its lease")
    if word == "children":
        store.carry_out(status.release_dependents(running.id))
    return outcome.status
