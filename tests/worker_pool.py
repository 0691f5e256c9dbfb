"""A worker pool as real processes, for the system tests: started, watched, signalled, and always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from taskpool import TaskPool, TaskRecord
from taskpool.redis.embedded import RedisServer
from tests.support import PATIENCE_S, eventually, is_running

TASKS = str(Path(__file__).with_name("tasks_for_tests.py"))
LEASE_S = 5 * PATIENCE_S
"""So long that no test waits for the end of a lease by mistake: what has to happen sooner must happen sooner."""


class WorkerPool:
    """`python -m taskpool_workers` on a Redis, with `pool` to submit to it. Settings are given by their names."""

    def __init__(self, redis_url: str, log: Path, *arguments: str, **settings: Any) -> None:
        env: dict[str, str] = settings.pop("env", {})
        chosen = {
            "redis_url": redis_url,
            "workers": 1,
            "tasks": TASKS,
            "builtins": True,
            "lease_s": LEASE_S,
            **settings,
        }
        variables = {f"TASKPOOL_{name.upper()}": str(value) for name, value in chosen.items()}
        self.size = int(chosen["workers"])
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskpool_workers", *arguments],
                env={**os.environ, **variables, **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pool = TaskPool(redis_url)

    def __enter__(self) -> WorkerPool:
        try:
            eventually(lambda: len(self.pids()) >= self.size and self._is_announced())
        except AssertionError as error:
            self.__exit__(None, None, None)
            raise AssertionError(f"{error}; the pool's log:\n{self.log.read_text()}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()
        everything = self.descendants()
        self.process.kill()
        self.process.wait()
        for process in everything:
            if is_running(process.pid):
                process.kill()
        if kind is not None:
            sys.stderr.write(self.log.read_text())

    def pids(self) -> list[int]:
        """The worker processes of this pool, as RQ shows them. Those of a pool that was killed are still there, too."""
        assert self.process.poll() is None, f"the pool ended with {self.process.returncode}"
        workers = [worker for worker in self.pool.workers() if worker.pool and worker.state in ("idle", "busy")]
        return sorted(worker.pid for worker in workers if self._is_ours(worker.pid))

    def _is_ours(self, pid: int) -> bool:
        try:
            return self.process.pid in (parent.pid for parent in psutil.Process(pid).parents())
        except psutil.NoSuchProcess:
            return False

    def descendants(self) -> list[psutil.Process]:
        """Every process below the supervisor."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def submit(self, do: str = "ok", *, type: str = "act", **options: Any) -> TaskRecord:
        """Submits one of the tasks for tests; what isn't an option of `add_task` goes into its payload."""
        payload = {name: options.pop(name) for name in ("note", "seconds", "until") if name in options}
        payload = {name: str(value) if isinstance(value, Path) else value for name, value in payload.items()}
        return self.pool.add_task(type, {"do": do} | payload, **options)

    def result(self, do: str = "ok", **options: Any) -> TaskRecord:
        """Submits one and waits for its end."""
        return self.pool.wait(self.submit(do, **options).id, timeout_s=PATIENCE_S)

    def send(self, number: signal.Signals) -> None:
        """Sends the supervisor a signal."""
        self.process.send_signal(number)

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Waits for the supervisor's end; its exit status."""
        return self.process.wait(timeout_s)

    def _is_announced(self) -> bool:
        return any(info.served_by for info in self.pool.types())


@contextmanager
def pool_with_redis(directory: Path, redis_binary: str | None, **settings: Any) -> Iterator[WorkerPool]:
    """A pool with a Redis of its own, for all tests of a file: it isn't emptied in between."""
    server = RedisServer(directory, binary=redis_binary)
    server.start()
    try:
        with WorkerPool(server.url, directory / "log", **settings) as workers:
            yield workers
    finally:
        server.stop()


def lines(path: Path) -> list[str]:
    """What tasks have written to a file so far."""
    return path.read_text().splitlines() if path.exists() else []


def started(path: Path, attempts: int = 1) -> int:
    """Waits until so many attempts have begun that note it in `path`; the process id of the last one."""
    pids = eventually(
        lambda: (found := [line.split()[0] for line in lines(path) if line[0].isdigit()])[attempts - 1 :] and found
    )
    return int(pids[-1])
