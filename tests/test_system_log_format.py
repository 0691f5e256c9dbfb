"""The log of worker and API processes as JSON: each line is an object, and says which task wrote it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskpool import TaskStatus
from tests.api_client import environment
from tests.support import PATIENCE_S, eventually
from tests.worker_pool import WorkerPool, lines

TASKS = """
import logging, os, subprocess, sys
from taskpool import Secret, TaskContext, task

@task("speaks", max_attempts=2, backoff_s=0)
def speaks(ctx: TaskContext, password: Secret[str]) -> None:
    logging.getLogger("shop").warning("attempt with %s", password, extra={"order": 7})
    print("printed", password)
    os.write(2, b"from the descriptor\\n")
    if ctx.attempt == 1:
        raise RuntimeError("again")

@task("speaks_async")
async def speaks_async() -> None:
    logging.getLogger("shop").info("hello")
"""


@pytest.mark.parametrize("slots", [1, 4])
def test_each_line_of_a_worker_says_which_task_wrote_it(redis_url: str, tmp_path: Path, slots: int) -> None:
    (tmp_path / "speakers.py").write_text(TASKS)
    with WorkerPool(
        redis_url, tmp_path / "log", tasks=str(tmp_path / "speakers.py"), log_format="json", slots=slots
    ) as workers:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        plain = workers.pool.add_task("speaks", {"password": "canary-canary"}, traceparent=trace).id
        other = workers.pool.add_task("speaks_async").id
        assert {workers.pool.wait(id, timeout_s=PATIENCE_S).status for id in (plain, other)} == {TaskStatus.DONE}
        workers.send(signal.SIGTERM)
        assert workers.end() == 0

    documents: list[dict[str, Any]] = [json.loads(line) for line in lines(workers.log)]
    assert all(each["time"].endswith("Z") and each["level"] and each["logger"] for each in documents)
    assert any(each["message"].startswith("pool ") for each in documents)
    found = {(each["logger"], each["attempt"], each["message"]) for each in documents if each.get("task_id") == plain}
    wanted = {("shop", n, "attempt with ***") for n in (1, 2)} | {("stdout", n, "printed ***") for n in (1, 2)}
    wanted |= {("stderr", n, "from the descriptor") for n in (1, 2)} if slots == 1 else set()
    assert wanted <= found
    spoken = [each for each in documents if each["logger"] == "shop"]
    assert {each["trace_id"] for each in spoken if each["task_id"] == plain} == {trace.split("-")[1]}
    assert {(each["task_id"], each["type"], each["queue"]) for each in spoken} == {
        (plain, "speaks", "default"),
        (other, "speaks_async", "default"),
    }
    assert {each.get("order") for each in spoken} == {7, None}


def test_the_api_logs_json(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskpool_api"],
            env=environment(redis_url, TASKPOOL_LOG_FORMAT="auto"),
            stderr=file,
        )
    try:
        (line,) = eventually(lambda: lines(log))
    finally:
        process.terminate()
        process.wait(PATIENCE_S)

    document = json.loads(line)
    assert (document["level"], document["logger"]) == ("info", "api")
    assert document["message"].startswith("listening on http://")
