"""`python -m taskpool_workers`: a configuration error is reported in one line, before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from taskpool import TaskStatus
from taskpool.redis.embedded import RedisServer
from tests.support import PATIENCE_S
from tests.worker_pool import WorkerPool


def run(*arguments: str, **variables: str) -> tuple[int, str]:
    """The exit status and what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "taskpool_workers", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TASKPOOL_WORKRES": "3"}, "TASKPOOL_WORKRES: no such setting; did you mean TASKPOOL_WORKERS?"),
        ({"TASKPOOL_WORKERS": "many"}, "TASKPOOL_WORKERS: 'many' is not a whole number"),
        ({"TASKPOOL_REDIS_URL": "unix:///nowhere/redis.sock"}, "/nowhere/redis.sock"),
        ({"TASKPOOL_DATA_DIR": "/nowhere"}, "no Redis runs in /nowhere"),
    ],
)
def test_a_wrong_setting_is_named(variables: Mapping[str, str], said: str) -> None:
    status, error = run(**variables)

    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_flag_is_checked_like_its_variable() -> None:
    status, error = run("--workers", "0")

    assert status == 2
    assert "--workers: '0' is not a whole number from 1" in error


def test_a_missing_task_file_is_named(redis_url: str, tmp_path: Path) -> None:
    status, error = run("--tasks", str(tmp_path / "missing.py"), TASKPOOL_REDIS_URL=redis_url)

    assert status == 2
    assert "missing.py" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "No such file"), ("file", "Not a directory")])
def test_a_files_root_that_is_no_directory_is_named(name: str, reason: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    status, error = run(TASKPOOL_FILES_ROOT=str(tmp_path / name), TASKPOOL_REDIS_URL=redis_url)

    assert status == 2
    assert f"can't use the files root {tmp_path / name}: {reason}" in error
    assert len(error.splitlines()) == 1


def test_a_flag_takes_precedence_over_its_variable(redis_url: str, tmp_path: Path) -> None:
    with WorkerPool(redis_url, tmp_path / "log", "--queues", "elsewhere", queues="default") as workers:
        task = workers.pool.add_task("elsewhere", {"n": 1})

        assert workers.pool.wait(task.id, timeout_s=PATIENCE_S).result == 2
        assert {worker.queues for worker in workers.pool.workers()} == {("elsewhere",)}


def test_the_redis_password_is_on_no_command_line(tmp_path: Path, redis_binary: str | None) -> None:
    server = RedisServer(tmp_path, binary=redis_binary, config={"requirepass": "secret-word"})
    server.start()
    try:
        with WorkerPool(f"{server.url}?password=secret-word", tmp_path / "log") as workers:
            lines = [" ".join(process.cmdline()) for process in workers.descendants()]

            assert workers.result("ok").status is TaskStatus.DONE
            assert lines != []
            assert not any("secret-word" in line for line in lines)
            assert "secret-word" not in workers.log.read_text()
    finally:
        server.stop()
