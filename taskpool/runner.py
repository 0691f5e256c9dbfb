"""Runs tasks: claim one, run an attempt, stop or retry one; and the entry point that RQ's own workers call.

`run_task` and `execute_here` are for tests and for programs with a worker of their own. They run an attempt in the
caller's thread, without a supervisor or heartbeats: an attempt that outlives its lease is taken back.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

import msgspec

from taskpool.access.audit import Actor, entry
from taskpool.errors import FieldError, InvalidTask, TaskConflict, TaskNotFound, TaskpoolError
from taskpool.operations import status
from taskpool.operations.flow.additions import Additions
from taskpool.operations.flow.edges import outcomes_of
from taskpool.operations.queue import Rules
from taskpool.operations.records import check_id, fetch
from taskpool.operations.specs import check_seconds, read_specs
from taskpool.operations.status import refuse_lost, release_dependents
from taskpool.redis import keys, people_scripts, rq_job, scripts
from taskpool.redis.calls import Call, Plan, one
from taskpool.redis.store import Store
from taskpool.settings import Settings
from taskpool.tasks.attempt import Outcome, execute_task, execute_task_async
from taskpool.tasks.context import Asking, TaskContext
from taskpool.tasks.node import Afters, Node
from taskpool.tasks.outcomes import AnyOutcome
from taskpool.tasks.questions import Asked, state_document
from taskpool.tasks.registry import Registry
from taskpool.text import Secrets
from taskpool.types import (
    LEFT_ALONE,
    RQ_STATUS,
    Answer,
    ForeignJobs,
    Receipt,
    RunningTask,
    TaskRecord,
    TaskSpec,
    TaskStatus,
)
from taskpool.validation import LONGEST_GRACE_S, queue_name_fault

__all__ = ["Outcome", "execute_task", "execute_task_async", "kill_task", "retry_task", "run", "run_task"]

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
    """Give a failed, stopped or canceled task a new life: it is queued for a new attempt. If a task that it depends on
    was retried and hasn't ended yet, it waits for that one. Tasks that were canceled because of it are revived with it.

    Raises:
        TaskNotFound
        TaskConflict: its status doesn't allow it, or a task it depends on has not ended as it needs.
    """
    check_id(id)
    word = yield from one(scripts.revive(id, entry(by, "task.retried", id)))
    if word == "children":  # that were canceled because of it, and are revived with it
        yield from release_dependents(id)
        word = "ok"
    if word == "gone":
        raise TaskNotFound(id)
    record = yield from one(fetch(id))
    if word.startswith("unique "):
        held = f"task {word.removeprefix('unique ')} holds its unique key {record.unique_key!r}"
        raise TaskConflict(id, record.status, f"task {id} can't run again now: {held}")
    if word.startswith("dependency "):
        raise TaskConflict(id, record.status, f"task {id} depends on {_obstacle(*word.split()[1:])}")
    if word == "secrets":
        raise TaskConflict(id, record.status, f"task {id}: its secret fields are no longer kept; submit it again")
    if word != "ok":
        raise TaskConflict(
            id, record.status, f"task {id} is {record.status}; only failed, stopped and canceled tasks can be retried"
        )
    return record


def _obstacle(ref: str, word: str) -> str:
    """The parent that keeps a task from being retried, and what to do. `word`: RQ's word of its status, or ``gone``."""
    workflow, colon, _ = ref.partition(":")
    parent = f"workflow {workflow}" if colon else f"task {ref}"
    if word == "gone":
        return f"{parent}, but its record is gone: submit both again"
    if word == RQ_STATUS[TaskStatus.DONE]:
        return f"the failure of {parent}, but that one is done"
    return f"{parent}, but it is not done: retry that one first"


def run(type: str, payload: Any = None) -> Any:
    """The function every job names. Our own workers never call it: a plain `rq worker -S json` does.

    It runs the task with the settings of its environment (TASKPOOL_TASKS) and keeps result and error where our API
    reads them. Leases, retries and stop requests are then RQ's.

    Raises:
        TaskFailed: the task failed; the text says why.
    """
    job = _PlainSink(state_document)
    settings = Settings.load(os.environ)
    if (rival := job.rival()) is not None:
        _refuse(job, "unique_key_held", f"the task {rival} took its unique key before it was queued again")
    if job.is_unconfirmed():
        _refuse(job, "unconfirmed", "a person has to confirm it first, and a plain RQ worker can't ask: retry it")
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
    job.keep_result(running, outcome.result)
    return msgspec.json.decode(outcome.result)


class _PlainSink(rq_job.PlainJob):
    """What a task's context needs in a plain RQ worker."""

    def outcomes(self) -> Mapping[str, AnyOutcome]:
        """Read how the parents have ended."""
        return outcomes_of(self.id, self.edges(), self.carry_out)


def _refuse(job: rq_job.PlainJob, reason: str, error: str) -> NoReturn:
    document = msgspec.json.encode({"reason": reason, "message": error})
    job.keep({"error": error, "failure": document, "reason": reason})
    raise TaskFailed(error)


@cache
def _registry(modules: tuple[str, ...], builtins: bool | tuple[str, ...] | None) -> Registry:
    return Registry(modules, builtins=builtins)


class StoreSink:
    """What a task's context needs, written at once through a store. Raises AttemptLost when the lease is gone."""

    def __init__(self, store: Store, running: RunningTask, rules: Rules) -> None:
        self._store = store
        self._running = running
        self._additions = Additions(running, rules)
        self._adding = threading.Lock()  # a task may have threads

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

    def outcomes(self) -> Mapping[str, AnyOutcome]:
        """Read how the parents have ended."""
        return outcomes_of(self._running.id, self._running.edges, self._store.carry_out)

    def add_task(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> Receipt:
        """Add a task."""
        with self._adding:
            return self._store.carry_out(self._additions.add_task(given, named))

    def add_tasks(self, specs: Iterable[TaskSpec]) -> list[Receipt]:
        """Add tasks."""
        listed = read_specs(specs)  # a generator runs code of the task
        with self._adding:
            return self._store.carry_out(self._additions.add_tasks(listed))

    def ask(self, asking: Asking) -> Any:
        """Read the answer to a question."""
        asked = Asked(asking)
        answers: tuple[Answer, ...] = self._store.run(people_scripts.answers_of(self._running.id))
        return asked.answer_in(answers)

    def checkpoint(self, state: Any, secrets: Secrets | None) -> None:
        """Write the state."""
        self._kept(self._store.run(people_scripts.checkpoint(self._running, state_document(state, secrets))))

    def state(self) -> Any:
        """Read the state."""
        return self._store.run(people_scripts.checkpoint_of(self._running.id))

    def add_node(self, name: str, given: tuple[Any, ...], after: Afters, options: Mapping[str, Any]) -> Node:
        """Collect a node of the workflow."""
        return self._additions.add_node(name, given, after, options)

    def add_map(self, name: str, specs: Iterable[TaskSpec], after: Afters) -> Node:
        """Collect a map."""
        return self._additions.add_map(name, specs, after)

    def commit(self) -> None:
        """Add what was collected."""
        for line in self._store.carry_out(self._additions.commit()):
            self.log(line)

    def _kept(self, word: str) -> None:
        refuse_lost(self._running, word)


def execute_here(
    store: Store, registry: Registry, running: RunningTask, *, rules: Rules, max_result_bytes: int
) -> TaskStatus:
    """Run a claimed task to the end of its attempt and write how it ended: the status it ended with. `rules`: what
    tasks that it adds are checked with.

    Raises:
        AttemptLost: its lease was lost meanwhile; nothing was written.
    """
    context = TaskContext.of(running, StoreSink(store, running, rules))
    outcome = execute_task(running, registry, context, max_result_bytes=max_result_bytes, run_coroutine=asyncio.run)
    word = store.run(status.update_status(running, outcome))
    ended = status.INSTEAD[word](running).status if word in status.INSTEAD else outcome.status
    refuse_lost(running, store.carry_out(status.follow_up(running, word)))
    return ended
