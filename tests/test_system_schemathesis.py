"""The API under schemathesis: thousands of requests made from the OpenAPI document, against a server and its workers.

All of its checks are on, and all its phases. It must find nothing; what it can't know is in `schemathesis_hooks`.
(All other tests compare the answers of an API that needs no key with its document.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.access.api_key import Scope
from tests.api_client import ROOT, api_process
from tests.keys import id_of, make_key
from tests.worker_pool import WorkerPool

EXAMPLES = 15
SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))
TASKS = str(Path(__file__).with_name("tasks_for_schemathesis.py"))


def schemathesis(url: str, directory: Path, key: str) -> str:
    """Run it as the holder of this key; what it says when it found something, else nothing."""
    config = ROOT / "tests" / "schemathesis.toml"
    command = [SCHEMATHESIS, f"--config-file={config}", "run", f"{url}/openapi.json", "--checks=all", "--no-color"]
    command += ["--generation-deterministic", f"--max-examples={EXAMPLES}", f"--header=Authorization: Bearer {key}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEST_KEY_ID": id_of(key)}
    ended = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
        check=False,
    )
    assert "generated" in ended.stdout, ended.stdout
    return "" if ended.returncode == 0 else ended.stdout


@pytest.mark.long(about_s=90)
def test_schemathesis_finds_nothing(tmp_path: Path, redis_url: str) -> None:
    key = make_key(redis_url, "tester", Scope.ADMIN)
    with (
        WorkerPool(redis_url, tmp_path / "workers.log", tasks=TASKS, builtins=False) as workers,
        api_process(redis_url, tmp_path / "api.log", TASKPOOL_AUTH="auto") as (_, url),
    ):
        workers.pool.add_task("nothing", {})  # so that streams of events have something to tell

        found = schemathesis(url, tmp_path, key)

    assert not found, found
    assert "Traceback" not in (tmp_path / "api.log").read_text()
