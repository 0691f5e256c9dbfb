"""The processes of a soak: Redis with an append-only file, the API, the worker pools. Each can be ended and restarted.

Nothing it starts outlives `close`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import psutil

from benchmarks.chaos.network import Link, Network
from benchmarks.chaos.plan import Plan
from benchmarks.ports import free_port
from taskpool.redis_server import RedisServer

TASKS: Final = Path(__file__).with_name("tasks.py")
ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = Path("/dev/shm")
STOP_S: Final = 30.0
START_S: Final = 60.0
REFUSED_TO_START: Final = 2


class Service:
    """One process and what is below it: `python -m MODULE` with its own link to Redis."""

    def __init__(
        self, name: str, module: str, link: Link, environment: Mapping[str, str], *, root: Path, log: Path
    ) -> None:
        self.name, self.link, self.log = name, link, log
        self._module, self._root = module, root
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.exits: list[int] = []
        """How its ends that were asked for went: the exit status of each."""
        self.killed: list[int] = []
        """The process ids of those that were killed."""

    def start(self) -> None:
        """Starts it, without waiting until it works."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TASKPOOL_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env={**clean, "PYTHONPATH": str(self._root), **self._environment, "TASKPOOL_REDIS_URL": self.link.url},
                cwd=self._root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def root(self) -> psutil.Process:
        """Its first process. Raises psutil.NoSuchProcess."""
        assert self.process is not None
        return psutil.Process(self.process.pid)

    def tree(self) -> list[psutil.Process]:
        """All its processes, the first one first; none when it has ended."""
        try:
            root = self.root()
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL for its first process alone: what is below must follow by itself."""
        assert self.process is not None
        self.killed.append(self.process.pid)
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """SIGTERM; its exit status. What doesn't end within STOP_S is killed.

        One that was only just starting may die of the signal: that isn't noted.
        """
        assert self.process is not None
        tree = self.tree()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                status = self.process.wait(STOP_S)
                if len(tree) > 1 or status != -signal.SIGTERM:
                    self.exits.append(status)
            except subprocess.TimeoutExpired:
                self.exits.append(-signal.SIGKILL)
                kill_all(tree)
                self.process.wait()
        return self.process.returncode


class Cluster:
    """All of them. `directory` holds the logs and the file of effects; Redis's data is in memory where it can be.

    An append-only file on a slow disk may be written late while it is synchronised (up to 2 s with `everysec`), so
    that a killed Redis would lose what it had answered: that is the disk's doing, not what is looked for here.
    """

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan, self.directory = plan, directory
        self.effects = directory / "effects"
        self.effects.write_bytes(b"")
        self._data = tempfile.TemporaryDirectory(prefix="taskpool-chaos-", dir=MEMORY if MEMORY.is_dir() else None)
        config = {"appendonly": "yes", "appendfsync": "everysec"}
        self.redis = RedisServer(Path(self._data.name), binary=plan.redis_binary, config=config)
        self.redis.start()
        self.network = Network(self.redis.socket_path)
        self.port = free_port()
        root = Path(plan.source) if plan.source else ROOT
        self.client_link = self.network.link(plan.seed)
        api = {"TASKPOOL_PORT": str(self.port), "TASKPOOL_LOG_LEVEL": "warning"}
        self.api = Service("api", "api", self.network.link(plan.seed + 1), api, root=root, log=directory / "api.log")
        self.pools = [
            Service(
                pool.name,
                "workers",
                self.network.link(plan.seed + 2 + number),
                {
                    "TASKPOOL_WORKERS": str(pool.workers),
                    "TASKPOOL_SLOTS": str(pool.slots),
                    "TASKPOOL_QUEUES": ",".join(pool.queues),
                    "TASKPOOL_LEASE_S": f"{plan.lease_s:g}",
                    "TASKPOOL_GRACE_S": f"{plan.grace_s:g}",
                    "TASKPOOL_MAX_CRASHES": str(plan.max_crashes),
                    "TASKPOOL_TASKS": str(TASKS),
                    "TASKPOOL_BUILTINS": "no",
                    "CHAOS_EFFECTS": str(self.effects),
                    "CHAOS_POOL": pool.name,
                },
                root=root,
                log=directory / f"pool-{pool.name}.log",
            )
            for number, pool in enumerate(plan.pools)
        ]

    @property
    def services(self) -> list[Service]:
        """The API and the pools."""
        return [self.api, *self.pools]

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def keep(self) -> None:
        """Starts again what ended because it found no Redis at its start, as `restart: unless-stopped` would."""
        for service in self.services:
            if service.process is not None and service.process.poll() == REFUSED_TO_START:
                service.start()

    def close(self) -> None:
        """Ends everything, frozen processes too."""
        for service in self.services:
            kill_all(service.tree())
            if service.process is not None:
                service.process.wait()
        self.network.close()
        self.redis.stop()
        self._data.cleanup()


def fork_server(pool: Service) -> psutil.Process | None:
    """The process that forks a pool's workers; None while there is none."""
    try:
        return next((child for child in pool.root().children() if "workers.forkserver" in child.cmdline()), None)
    except psutil.NoSuchProcess:
        return None


def workers(pool: Service) -> list[psutil.Process]:
    """A pool's worker processes."""
    server = fork_server(pool)
    try:
        return server.children() if server is not None else []
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL for each that is still there."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def await_true(what: str, is_true: Callable[[], bool], timeout_s: float = START_S) -> None:
    """Waits for something to become true.

    Raises:
        TimeoutError: it didn't.
    """
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.05)
