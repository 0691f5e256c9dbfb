"""Whole instances as processes, for tests: `taskpool up` in a directory of its own, and the commands beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ports import free_port
from tests.support import PATIENCE_S, eventually, is_running

COMMAND = (sys.executable, "-m", "taskpool.cli")


class Up:
    """One `taskpool up` in a directory of its own."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.output = directory / "output"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--port", str(self.port), "--workers", "2", *arguments],
                cwd=directory, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.children: list[psutil.Process] = []

    def await_ready(self) -> None:
        eventually(lambda: self.ask("GET", "/readyz")[0] == 200 or self.has_failed())
        assert "ready: " in self.text() or eventually(lambda: "ready: " in self.text())
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def has_failed(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self.text())
        return False

    def ask(self, method: str, path: str, document: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            try:
                body = None if document is None else json.dumps(document)
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read() or b"null")
            except ConnectionError:
                return 0, None

    def text(self) -> str:
        return self.output.read_text()

    def part(self, module: str) -> psutil.Process:
        """The process of one part: `workers` or `api`."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.cmdline()[-2:] == ["-m", module])

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Signal it and wait for its end; its exit status. Nothing of it may be left."""
        self.process.send_signal(number)
        return self.await_end()

    def await_end(self) -> int:
        status = self.process.wait(timeout=PATIENCE_S)
        eventually(lambda: not any(is_running(child.pid) for child in self.children))
        return status

    def kill(self) -> None:
        for child in self.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def taskpool(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=directory, env=os.environ | environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
