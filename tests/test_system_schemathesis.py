"""The API under schemathesis: thousands of requests made from the OpenAPI document, against a server and its workers.

All of its checks are on, and all its phases. It must find nothing; what it can't know stands in `schemathesis_hooks`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from taskpool.apikey import Scope
from tests.api_client import ROOT, api_process
from tests.keys import id_of, make_key
from tests.worker_pool import WorkerPool

EXAMPLES = 15
SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))


def schemathesis(url: str, key: str, report: Path) -> str:
    """Run it; what it says when it found something, else nothing."""
    arguments = [
        "--checks=all",
        "--exclude-tag=events",
        "--generation-deterministic",
        f"--max-examples={EXAMPLES}",
        "--no-color",
    ]
    arguments.append(f"--header=Authorization: Bearer {key}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEST_KEY_ID": id_of(key)}
    config = ROOT / "tests" / "schemathesis.toml"
    command = [SCHEMATHESIS, f"--config-file={config}", "run", f"{url}/openapi.json", *arguments]
    ended = subprocess.run(
        command,
        cwd=report,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert "generated" in ended.stdout, ended.stdout
    return "" if ended.returncode == 0 else ended.stdout


def test_schemathesis_finds_nothing(tmp_path: Path, redis_url: str) -> None:
    key = make_key(redis_url, "tester", Scope.ADMIN)
    with (
        WorkerPool(redis_url, tmp_path / "workers.log", tasks=""),
        api_process(redis_url, tmp_path / "api.log") as (_, url),
    ):
        found = schemathesis(url, key, tmp_path)

    assert not found, found
    assert "Traceback" not in (tmp_path / "api.log").read_text()
