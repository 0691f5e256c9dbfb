"""Workflows in the soak: a client that submits, stops and retries them, and what must have become of each in the end.

A workflow begins with one task, which adds rows to it and an end behind all of them. Whatever dies meanwhile, nothing
is added twice, nothing of a commit is missing, and the counts are those of the tasks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from redis import Redis

from benchmarks.chaos.evidence import Finding
from benchmarks.chaos.load import UNKNOWN, Client, Ledger, WorkflowSubmission
from benchmarks.chaos.plan import Plan
from taskpool import TaskPool, TaskSpec
from taskpool.errors import RedisUnavailable, TaskpoolError
from taskpool.operations.flow.expansion import member_id
from taskpool.operations.flow.values import NodeSpec, WorkflowRecord, WorkflowSpec
from taskpool.redis import keys, rq_job
from taskpool.types import TERMINAL, TaskStatus

KEPT_S: Final = 3600
MOST_ROWS: Final = 300
"""More than one chunk."""


class WorkflowClient(Client):
    """With `TaskPool`, over a bad network too."""

    def __init__(self, plan: Plan, ledger: Ledger, rate: float, redis_url: str) -> None:
        super().__init__(plan, ledger, "workflows", rate)
        self._pool = TaskPool(redis_url)

    def run(self) -> None:
        super().run()
        self._pool.close()

    def _submit(self) -> None:
        self._number += 1
        batch = f"{self._prefix}-{self._number}"
        rows = self._random.choice((0, 3, 10, MOST_ROWS if self._random.random() < 0.1 else 1))
        payload = {"n": 0, "batch": batch, "seconds": round(self._random.uniform(0, 0.5), 3), "rows": rows}
        submission = WorkflowSubmission(batch, rows)
        self._ledger.workflows.append(submission)
        first = TaskSpec(type="chaos", payload=payload, queue="fast", max_attempts=3, result_ttl_s=KEPT_S)
        try:
            spec = WorkflowSpec(name=batch, nodes=(NodeSpec(name="first", task=first),))
            submission.id = self._pool.add_workflow(spec).id
        except RedisUnavailable:
            submission.word = "unknown"
        except TaskpoolError as error:
            submission.word, submission.detail = "refused", f"{type(error).__name__}: {error}"
        else:
            submission.word = "accepted"

    def _steer(self) -> None:
        """Now and then stops or retries one of the last workflows."""
        known = [each.id for each in self._ledger.workflows[-10:] if each.id]
        if not known or self._random.random() > self._plan.steers:
            return
        id = self._random.choice(known)
        try:
            if self._random.random() < 0.5:
                self._ledger.steered.append((time.time() * 1000, "stop_workflow", id, UNKNOWN))
                self._pool.stop_workflow(id, grace_s=0.3)
            else:
                self._pool.retry_workflow(id)
        except TaskpoolError:  # away, or it hasn't ended, or is done
            pass


def check_workflows(redis: Redis, pool: TaskPool, ledger: Ledger) -> Iterator[Finding]:
    """Findings: workflow."""
    by_name = {record.name: record for record in _all(pool)}
    for submission in ledger.workflows:
        record = by_name.pop(submission.batch, None)
        if submission.word == "refused":
            yield Finding("workflow", f"a good workflow was refused: {submission.detail}")
        if record is None:
            if submission.word == "accepted":
                yield Finding("workflow", f"{submission.batch} was accepted, and doesn't exist", submission.id)
            continue
        for fault in _faults(redis, pool.get_workflow(record.id), submission.rows):
            yield Finding("workflow", f"{submission.batch}: {fault}", record.id)
    left = (keys.EXPANDING, keys.WORKFLOWS_OPEN, keys.WORKFLOWS_STOPPING, keys.WORKFLOWS_REVIVING)
    if redis.exists(*left):
        yield Finding("workflow", f"when all has ended, one of {left} is left")


def _all(pool: TaskPool) -> Iterator[WorkflowRecord]:
    cursor: str | None = None
    while True:
        page = pool.workflows(cursor=cursor)
        yield from page.items
        if (cursor := page.next_cursor) is None:
            return


def _faults(redis: Any, record: WorkflowRecord, rows: int) -> Iterator[str]:
    if not record.status.is_terminal:
        yield f"it is {record.status} when all should have ended"
    names = [node.name for node in record.nodes]
    if names not in (["first"], ["first", "rows", "end"]):
        yield f"its nodes are {names}"
    first = record.nodes[0].status if record.nodes else None
    if first is TaskStatus.DONE and len(names) != 3:
        yield f"its first task is done, and its nodes are {names}"
    if record.total != (1 if len(names) == 1 else rows + 2):
        yield f"it has {record.total} tasks with the nodes {names}, and {rows} rows"
    ids = [
        member_id(record.id, number) for number in range(1, int(redis.hget(keys.WORKFLOW + record.id, "reserved")) + 1)
    ]
    stored = [redis.hmget(keys.JOB + id, "status", "workflow") for id in ids]
    statuses = [rq_job.status_of(status) for status, workflow in stored if workflow is not None]
    if any(status not in TERMINAL for status in statuses):
        yield f"its tasks are {Counter(statuses)}"
    if record.counts != Counter(statuses):
        yield f"it counts {dict(record.counts)}, and its tasks are {dict(Counter(statuses))}"
