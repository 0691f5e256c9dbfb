"""Fan-out and fan-in: many tasks and one behind all of them, beside Celery's chord and RQ's `depends_on`.

The time runs from the begin of the submission, with idle workers, to the end of the last task. Two worker processes
each. A contestant that takes longer than the limit is ended, and shown with the limit. Then, for Taskpool alone: many
small workflows, and the memory that a task of a workflow takes.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
import rq

from benchmarks.processes import Command, running
from benchmarks.report import Readings, options, show
from benchmarks.server import private_redis
from taskpool import TaskPool, TaskSpec
from taskpool.operations.flow.values import NodeSpec, WorkflowSpec
from taskpool.tasks.node import After
from taskpool.tasks.registry import Registry

PROCESSES = 2
MODULE = "benchmarks.fan_tasks"
LOOK_S = 0.02


class TooSlow(Exception):
    """It hasn't ended within the limit."""


def wait_until(is_over: Callable[[], bool], limit_s: float) -> None:
    until_mono = time.monotonic() + limit_s
    while not is_over():
        if time.monotonic() > until_mono:
            raise TooSlow
        time.sleep(LOOK_S)


class Taskpool:
    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.pool = TaskPool(redis_url, registry=Registry([MODULE]))

    def commands(self) -> Sequence[Command]:
        settings = {"REDIS_URL": self.redis_url, "WORKERS": str(PROCESSES), "TASKS": MODULE, "LOG_LEVEL": "warning"}
        return [Command(["-m", "taskpool_workers"], {f"TASKPOOL_{name}": value for name, value in settings.items()})]

    def warm_up(self) -> None:
        self.pool.wait(self.pool.add_task("fan_row", {"n": 0}).id, timeout_s=60)

    def fan(self, total: int, limit_s: float) -> None:
        rows = tuple(TaskSpec(type="fan_row", payload={"n": n}) for n in range(total - 1))
        summary = TaskSpec(type="fan_summary", payload={"count": total})
        nodes = (
            NodeSpec(name="rows", map=rows),
            NodeSpec(name="summary", task=summary, after=(After("rows", "any"),)),
        )
        id = self.pool.add_workflow(WorkflowSpec(name="fan", nodes=nodes)).id
        self._wait(id, limit_s)

    def small_ones(self, count: int, limit_s: float) -> None:
        """So many workflows of ten tasks: eight rows between a first and a last one."""
        row = TaskSpec(type="fan_row", payload={"n": 1})
        nodes = (
            NodeSpec(name="first", task=row),
            NodeSpec(name="rows", map=(row,) * 8, after=("first",)),
            NodeSpec(name="last", task=row, after=("rows",)),
        )
        ids = [self.pool.add_workflow(WorkflowSpec(name="small", nodes=nodes)).id for _ in range(count)]
        for id in ids:
            self._wait(id, limit_s)

    def _wait(self, id: str, limit_s: float) -> None:
        wait_until(lambda: self.pool.get_workflow(id).status.is_terminal, limit_s)
        assert self.pool.get_workflow(id).status == "done"

    def close(self) -> None:
        self.pool.close()


class Rq:
    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.redis = redis.Redis.from_url(redis_url)
        self.queue = rq.Queue(connection=self.redis)

    def commands(self) -> Sequence[Command]:
        arguments = ["-m", "rq.cli", "worker", "--worker-class", "rq.SimpleWorker", "--url", self.redis_url, "--quiet"]
        return [Command(arguments)] * PROCESSES

    def warm_up(self) -> None:
        job = self.queue.enqueue(f"{MODULE}.rq_row", 0)
        wait_until(lambda: bool(job.get_status(refresh=True) == "finished"), 60)

    def fan(self, total: int, limit_s: float) -> None:
        until_mono = time.monotonic() + limit_s
        jobs = self.queue.enqueue_many([rq.Queue.prepare_data(f"{MODULE}.rq_row", args=(n,)) for n in range(total - 1)])
        last = self.queue.enqueue(f"{MODULE}.rq_summary", total, depends_on=jobs)
        left_s = until_mono - time.monotonic()
        wait_until(lambda: bool(last.get_status(refresh=True) == "finished"), left_s)

    def close(self) -> None:
        self.redis.close()


class Celery:
    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        from benchmarks import fan_tasks

        self.tasks: Any = fan_tasks
        fan_tasks.app.conf.update(broker_url=redis_url, result_backend=redis_url)

    def commands(self) -> Sequence[Command]:
        arguments = ["-m", "celery", "-A", MODULE, "worker", "--concurrency", str(PROCESSES), "-l", "error"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [Command([*arguments, *quiet], {"FAN_REDIS": self.redis_url})]

    def warm_up(self) -> None:
        self.tasks.celery_row.delay(0).get(timeout=60)

    def fan(self, total: int, limit_s: float) -> None:
        from celery import chord

        row, summary = self.tasks.celery_row, self.tasks.celery_summary
        result = chord(row.s(n) for n in range(total - 1))(summary.s())
        try:
            wait_until(result.ready, limit_s)
        finally:
            del result
            gc.collect()  # at the end of the process, Celery could no longer unsubscribe from the results

    def close(self) -> None:
        self.tasks.app.close()


CONTESTANTS: dict[str, Callable[[str], Any]] = {"taskpool": Taskpool, "celery": Celery, "rq": Rq}


def fan(name: str, redis_url: str, total: int, limit_s: float) -> dict[str, float]:
    """The seconds of one fan-out and fan-in, and the tasks a second."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    contestant = CONTESTANTS[name](redis_url)
    try:
        with running(contestant.commands()):
            contestant.warm_up()
            begun = time.monotonic()
            with suppress(TooSlow):
                contestant.fan(total, limit_s)
            seconds = time.monotonic() - begun
    finally:
        contestant.close()
    return {"seconds": seconds, "tasks_per_s": total / seconds}


def ours(redis_url: str, total: int, count: int) -> dict[str, float]:
    """Taskpool alone: bytes of Redis a task of a workflow, and the seconds of many small workflows."""
    contestant = Taskpool(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        rows = tuple(TaskSpec(type="fan_row", payload={"n": n}) for n in range(total))
        contestant.pool.add_task("fan_row", {"n": 0})
        before = client.info("memory")["used_memory"]
        contestant.pool.add_workflow(WorkflowSpec(name="fan", nodes=(NodeSpec(name="rows", map=rows),)))
        taken = client.info("memory")["used_memory"] - before
        client.flushall()
    with running(contestant.commands()):
        contestant.warm_up()
        begun = time.monotonic()
        contestant.small_ones(count, 120)
        seconds = time.monotonic() - begun
    contestant.close()
    return {"bytes_per_task": taken / total, "small_workflows": count, "small_workflows_s": seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__, tasks=10_000, rounds=1)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="comma separated (%(default)s)")
    parser.add_argument("--limit", type=float, default=120, metavar="S", help="seconds for one run (%(default)s)")
    parser.add_argument("--small", type=int, default=1000, help="how many workflows of ten tasks (%(default)s)")
    asked = parser.parse_args(arguments)
    names = asked.contestants.split(",")
    readings = Readings()
    with private_redis(asked.redis_server, unix=False) as redis_url:
        for _ in range(asked.rounds):
            for name in names:
                readings.add(name, fan(name, redis_url, asked.tasks, asked.limit))
        small = Readings()
        if "taskpool" in names:
            small.add("taskpool", ours(redis_url, asked.tasks, asked.small))
    title = f"fan-out and fan-in of {asked.tasks:,} tasks: {PROCESSES} processes"
    show(title, readings.medians(), as_json=asked.json, ratio_of="tasks_per_s")
    if "taskpool" in names:
        show("taskpool: memory, and workflows of ten tasks", small.medians(), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
