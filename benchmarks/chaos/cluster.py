"""The processes of a soak: Redis with an append-only file, the API, the worker pools. Each can be ended and restarted.

Nothing it starts outlives `close`.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from benchmarks.chaos.backend import SentinelRedis, SingleRedis
from benchmarks.chaos.network import Link, Network
from benchmarks.chaos.plan import SHARED_QUEUE, Plan
from benchmarks.ports import free_port

TASKS: Final = Path(__file__).with_name("tasks.py")
ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = Path("/dev/shm")
STOP_S: Final = 30.0
REFUSED_TO_START: Final = 2
OLDER: Final = "0abebe4"
"""The commit of the release before."""
PACKAGES: Final = ("taskpool", "workers", "api")
FORK_SERVERS: Final = {"workers.fork_server", "workers.forkserver"}
"""The module of a fork server, in this release and the one before."""
RQ: Final = "rq"
"""What effects call the pool of the plain RQ worker."""


class Service:
    """One process and what is below it: `python -m COMMAND...`, with its own link to Redis where that has a proxy."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        redis: Link | str,
        environment: Mapping[str, str],
        *,
        root: Path,
        log: Path,
    ) -> None:
        self.name, self.log = name, log
        self.link = redis if isinstance(redis, Link) else None
        self._redis_url = redis.url if isinstance(redis, Link) else redis
        self._command, self._root = tuple(command), root
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
                [sys.executable, "-m", *self._command],
                env={
                    **clean,
                    "PYTHONPATH": str(self._root),
                    **self._environment,
                    "TASKPOOL_REDIS_URL": self._redis_url,
                },
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
        data = Path(self._data.name)
        self.single = None if plan.profile.sentinel else SingleRedis(data, plan.redis_binary)
        self.sentinel = SentinelRedis(data, plan.redis_binary) if plan.profile.sentinel else None
        self.network = Network()
        self.root = Path(plan.source) if plan.source else ROOT
        self.older_root = older_release(directory / "older") if plan.profile.older else None
        """Where the release before is; None: the plan has none, or the repository doesn't have it."""
        self.offsets_s = [0.0]
        """By how many seconds Redis's clock was ahead of the right time, one after the other."""
        self._seed = plan.seed
        self.client_redis = self._redis_link()
        self.apis = [self._api(number) for number in range(2 if plan.profile.second_api else 1)]
        self.pools = [self._pool(number) for number in range(len(plan.pools))]
        self.rq_worker = self._rq_worker() if plan.profile.rq_worker else None

    @property
    def redis(self) -> SingleRedis | SentinelRedis:
        """What holds the data."""
        redis = self.single or self.sentinel
        assert redis is not None
        return redis

    @property
    def services(self) -> list[Service]:
        """The APIs, the pools and the RQ worker."""
        return [*self.apis, *self.pools, *([self.rq_worker] if self.rq_worker else [])]

    @property
    def older_pools(self) -> frozenset[str]:
        """The names of the pools that run the release before."""
        return frozenset({self.plan.pools[-1].name} if self.older_root else ())

    def note_step(self, offset_s: float) -> None:
        """Redis's clock is about to be this far ahead of the right time."""
        self.offsets_s.append(offset_s)

    def right_ms(self, at_ms: float) -> float:
        """The right time of what Redis said was then. It must have been said just now."""
        now_ms = time.time() * 1000
        return min(
            (at_ms - offset_s * 1000 for offset_s in self.offsets_s), key=lambda right_ms: abs(right_ms - now_ms)
        )

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
        self.redis.close()
        self._data.cleanup()

    def _redis_link(self) -> Link | str:
        """A proxy of its own for the next client of Redis; the URL itself where the sentinels tell where to go."""
        if self.single is None:
            return self.redis.url
        self._seed += 1
        refuses = any(fault.startswith("refuse") for fault in self.plan.faults)
        return self.network.link(self._seed, str(self.single.server.socket_path), reads_commands=refuses)

    def _api(self, number: int) -> Api:
        port = free_port()
        self._seed += 1
        return Api(
            f"api{number or ''}",
            ("api",),
            self._redis_link(),
            {"TASKPOOL_PORT": str(port), "TASKPOOL_LOG_LEVEL": "warning", "TASKPOOL_WEBHOOK_ALLOW": "127.0.0.1"},
            root=self.root,
            log=self.directory / f"api{number or ''}.log",
            port=port,
            front=self.network.link(self._seed, ("127.0.0.1", port)),
        )

    def _pool(self, number: int) -> Service:
        plan, pool = self.plan, self.plan.pools[number]
        environment = {
            "TASKPOOL_WORKERS": str(pool.workers),
            "TASKPOOL_SLOTS": str(pool.slots),
            "TASKPOOL_QUEUES": ",".join(pool.queues),
            "TASKPOOL_LEASE_S": f"{plan.lease_s:g}",
            "TASKPOOL_GRACE_S": f"{plan.grace_s:g}",
            "TASKPOOL_MAX_CRASHES": str(plan.max_crashes),
            "TASKPOOL_WEBHOOK_ALLOW": "127.0.0.1",
            **self._tasks(pool.name),
        }
        root = self.older_root if self.older_root and pool.name in self.older_pools else self.root
        log = self.directory / f"pool-{pool.name}.log"
        return Service(pool.name, ("workers",), self._redis_link(), environment, root=root, log=log)

    def _rq_worker(self) -> Service:
        url = self.redis.url
        command = ("rq.cli", "worker", "-S", "json", "--url", url, SHARED_QUEUE)
        return Service(RQ, command, url, self._tasks(RQ), root=self.root, log=self.directory / "rq.log")

    def _tasks(self, pool: str) -> dict[str, str]:
        return {
            "TASKPOOL_TASKS": str(TASKS),
            "TASKPOOL_BUILTINS": "no",
            "CHAOS_EFFECTS": str(self.effects),
            "CHAOS_POOL": pool,
        }


class Api(Service):
    """An API. `front` is a proxy before it, which can lose requests and answers."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        redis: Link | str,
        environment: Mapping[str, str],
        *,
        root: Path,
        log: Path,
        port: int,
        front: Link,
    ) -> None:
        super().__init__(name, command, redis, environment, root=root, log=log)
        self.url, self.front = f"http://127.0.0.1:{port}", front


def older_release(directory: Path) -> Path | None:
    """The packages of the release before, as the repository has them; None: it doesn't, as in a shallow clone."""
    command = ["git", "-C", str(ROOT), "archive", OLDER, *PACKAGES]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(directory, filter="data")
    metadata = directory / "taskpool-0.1.0.dist-info" / "METADATA"  # it reads its version under its old name
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: taskpool\nVersion: 0.1.0\n")
    return directory


def fork_servers(pool: Service) -> list[psutil.Process]:
    """The processes that fork a pool's workers: one, or more while one is frozen."""
    try:
        return [child for child in pool.root().children() if FORK_SERVERS & set(_command(child))]
    except psutil.NoSuchProcess:
        return []


def workers(pool: Service) -> list[psutil.Process]:
    """A pool's worker processes. (Guardians are children of a fork server, too.)"""
    found = []
    for server in fork_servers(pool):
        try:
            found += [child for child in server.children() if not is_guardian(child)]
        except psutil.NoSuchProcess:
            pass
    return found


def is_guardian(process: psutil.Process) -> bool:
    """Whether it watches a worker process: it ignores SIGTERM, which no worker does."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(ignored & 1 << signal.SIGTERM - 1)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL for each that is still there."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
