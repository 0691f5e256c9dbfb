"""Our workers beside real RQ workers that break off, or can't read our tasks; and the guide's program, as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from taskpool import Registry, TaskPool, TaskStatus
from tests.rq_processes import ROOT, environment, process, rq, workers
from tests.support import PATIENCE_S, eventually

S = TaskStatus
GUIDE = ROOT / "docs" / "next-to-rq.md"

DIES_BEHIND_THE_POP = """
import os, signal, sys
from redis import Redis
from rq import Worker

class Dying(Worker):
    def execute_job(self, job, queue):
        os.kill(os.getpid(), signal.SIGKILL)

Dying(["default"], connection=Redis.from_url(sys.argv[1])).work()
"""


@pytest.fixture
def pool(redis_url: str) -> Iterator[TaskPool]:
    with TaskPool(redis_url, registry=Registry(builtins=True)) as pool:
        yield pool


def test_rq_workers_that_die_or_cannot_read_a_task_cost_none(
    pool: TaskPool, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    taken = pool.add_task("echo", {"message": "taken"})
    subprocess.run([sys.executable, "-c", DIES_BEHIND_THE_POP, redis_url], cwd=ROOT, check=False, capture_output=True)
    assert redis.lrange("rq:queue:default:intermediate", 0, -1) == [taken.id.encode()]
    queued: Any = redis.hget(f"rq:job:{taken.id}", "enqueued_at")
    redis.set(f"taskpool:stuck:{taken.id}", f"{int(time.time() * 1000) - 60_000} {queued.decode()}")  # a minute ago
    unread = pool.add_task("echo", {"message": "unread"})
    pickled = Queue(connection=redis).enqueue("os.getcwd")
    rq(redis_url, "worker", "--burst", "default")
    assert pool.get(unread.id).status is S.FAILED
    assert pickled.get_status() is JobStatus.FINISHED
    left = [Queue(connection=redis).enqueue("os.getcwd").id for _ in range(3)]

    with workers(redis_url, tmp_path, count=2):
        assert pool.wait(taken.id, timeout_s=PATIENCE_S).result == "taken"
        eventually(lambda: pool.get(unread.id).result == "unread")  # it is still failed until it is scheduled again
        eventually(
            lambda: "'default' holds RQ jobs that aren't Taskpool tasks" in (tmp_path / "workers.log").read_text()
        )

    assert Queue(connection=redis).job_ids == left
    rq(redis_url, "worker", "--burst", "default")
    assert set(left) < set(Queue(connection=redis).finished_job_registry.get_job_ids())


def test_the_guides_program_gets_its_result_from_our_workers(redis_url: str, redis: Redis, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (setting,) = re.findall(r"^(TASKPOOL_RQ_FUNCTIONS=\S+) taskpool worker$", GUIDE.read_text(), re.MULTILINE)
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    name, value = setting.split("=")
    env = environment(
        redis_url, **{name: value, "TASKPOOL_WORKERS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    )

    with process(("workers",), env, tmp_path / "log"):
        ran = subprocess.run(
            [sys.executable, "enqueue.py"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    assert [name for name, _ in blocks] == ["jobs.py", "enqueue.py"]
    assert ran.stdout == "2 for ann\n", ran.stderr
    (id,) = Queue(connection=redis, serializer=JSONSerializer).finished_job_registry.get_job_ids()
    assert redis.hget(f"rq:job:{id}", "type") == b"jobs.send_invoice"
