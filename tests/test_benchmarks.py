"""A benchmark that gets a signal leaves nothing behind: no server, no worker, no directory."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.__main__ import NAMES
from tests.support import PATIENCE_S, eventually, is_running

ROOT = Path(__file__).parent.parent
MARK = "TEST_BENCHMARK"

BENCHMARKS = {
    **{f"{name} has begun": (["benchmarks", name], "valkey-server") for name in NAMES},
    "a pool idles": (["benchmarks.idle"], "taskpool_workers.fork_server"),
    "requests are made": (["benchmarks", "http", "--contestants", "bare"], "benchmarks.web.load"),
    "subscribers listen": (["benchmarks", "events", "--subscribers", "3"], "benchmarks.web.listen"),
    "a soak has begun": (["benchmarks.chaos", "--rate", "5"], " workers.fork_server"),
}
"""What is run, and a process of it that is there when it gets the signal."""


def marked(mark: str) -> list[psutil.Process]:
    """Every live process with this mark in its environment. (Redis writes its title over its environment.)"""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended this moment, or isn't ours
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def below(pid: int, *awaited: str) -> list[psutil.Process]:
    """The processes below this one, once all that are awaited are among them."""
    found = psutil.Process(pid).children(recursive=True)
    commands = ""
    for process in found:
        with suppress(psutil.Error):
            commands += " ".join(process.cmdline()) + "\n"
    return found if all(each in commands for each in awaited) else []


@pytest.mark.parametrize("case", BENCHMARKS)
def test_a_benchmark_that_gets_a_signal_leaves_nothing(tmp_path: Path, case: str) -> None:
    command, awaited = BENCHMARKS[case]
    mark = secrets.token_hex(8)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, MARK: mark, "TMPDIR": str(tmp_path / "tmp")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment, cwd=ROOT, stdout=log, stderr=log)
    started: list[psutil.Process] = []
    try:
        started = eventually(lambda: below(process.pid, "valkey-server", awaited))

        process.send_signal(signal.SIGTERM)

        status = process.wait(PATIENCE_S)
        eventually(lambda: not [each for each in started if is_running(each.pid)] and not marked(mark))
        assert list((tmp_path / "tmp").iterdir()) == []
        assert status == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        for left in [*started, *marked(mark)]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
