"""RQ's own tools as processes of this machine: rq-dashboard, the `rq` command, and beside them our workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from benchmarks.ports import free_port
from taskpool import TaskPool
from taskpool.errors import TaskNotFound
from taskpool.redis import scripts
from taskpool.redis.keys import BY_TAG, BY_TYPE, EVENTS, FAILURE
from taskpool.types import QueueInfo, TaskRecord, TaskStatus
from tests.support import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent
TASKS = "tests.rq_tasks"
SETTINGS = ("-j", "-c", "taskpool.rq_dashboard")


def environment(redis_url: str, **more: str) -> dict[str, str]:
    """What our code finds in the environment: the Redis and the tasks of these tests."""
    return {**os.environ, "TASKPOOL_REDIS_URL": redis_url, "TASKPOOL_TASKS": TASKS, "TASKPOOL_BUILTINS": "true", **more}


@contextmanager
def process(arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m arguments...` until the block ends; its output goes to `log`."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def rq(redis_url: str, command: str, *arguments: str) -> str:
    """What `rq COMMAND ...` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "rq.cli", command, "--url", redis_url, *arguments],
        env=environment(redis_url),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Dashboard:
    """rq-dashboard's pages and buttons as its browser side uses them."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def queue(self, name: str) -> dict[str, int]:
        """A queue's numbers, by rq-dashboard's names of the registries."""
        queues = self._get("/0/data/queues.json")["queues"]
        row = next(queue for queue in queues if queue["name"] == name)
        counts = {key.removesuffix("_job_registry_count"): value for key, value in row.items() if "count" in key}
        return {"queued": counts.pop("count"), **counts}

    def jobs(self, registry: str, queue: str = "default") -> list[dict[str, Any]]:
        """One page of a registry."""
        jobs: list[dict[str, Any]] = self._get(f"/0/data/jobs/{queue}/{registry}/50/asc/1.json")["jobs"]
        return jobs

    def job(self, id: str) -> dict[str, Any]:
        """The data of a job's page."""
        return self._get(f"/0/data/job/{id}.json")

    def workers(self) -> list[dict[str, Any]]:
        """The rows of the workers page."""
        workers: list[dict[str, Any]] = self._get("/0/data/workers.json")["workers"]
        return workers

    def press(self, button: str) -> dict[str, Any]:
        """What a button posts."""
        answer = self.client.post(f"/{button}")
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def _get(self, path: str) -> dict[str, Any]:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document


@contextmanager
def dashboard(
    redis_url: str, directory: Path, options: Sequence[str] = SETTINGS, env: Mapping[str, str] | None = None
) -> Iterator[Dashboard]:
    """rq-dashboard on a loopback port; with a password, it is ann's: `secret`."""
    port = free_port()
    address = ("--bind", "127.0.0.1", "--port", str(port), "--redis-url", redis_url)
    log = directory / "dashboard.log"
    auth = ("ann", "secret") if "--password" in options else None
    with (
        process(("rq_dashboard", *options, *address), {**os.environ, **(env or {})}, log) as running,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, auth=auth) as client,
    ):

        def answers() -> bool:
            assert running.poll() is None, log.read_text()
            try:
                return client.get("/0/data/queues.json").status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers)
        yield Dashboard(client)


@contextmanager
def workers(redis_url: str, directory: Path, *, count: int = 2, lease_s: float = 1, **more: str) -> Iterator[None]:
    """A pool of our workers that serves the default queue; short leases have it beat three times a second. `more`:
    environment variables."""
    settings = {**more, "TASKPOOL_WORKERS": str(count), "TASKPOOL_LEASE_S": f"{lease_s:g}", "TASKPOOL_GRACE_S": "5"}
    log = directory / "workers.log"
    with TaskPool(redis_url) as pool:
        others = {worker.name for worker in pool.workers()}  # of tests before
        with process(("workers",), environment(redis_url, **settings), log) as running:

            def serve() -> bool:
                assert running.poll() is None, log.read_text()
                return len({worker.name for worker in pool.workers()} - others) == count

            eventually(serve)
            yield


def once(pool: TaskPool, id: str, status: TaskStatus) -> TaskRecord:
    """The task, as soon as it has this status."""
    eventually(lambda: pool.get(id).status is status)
    return pool.get(id)


def is_gone(pool: TaskPool, id: str) -> bool:
    """Whether there is no such task."""
    try:
        pool.get(id)
    except TaskNotFound:
        return True
    return False


def numbers(pool: TaskPool, queue: str = "default") -> QueueInfo:
    """A queue's counts as our API says them."""
    return next(info for info in pool.queues() if info.name == queue)


def traces(redis: Redis, pool: TaskPool, id: str) -> list[str]:
    """The keys that still say something of a task, once the indexes are swept (our workers do that one by one, a step
    a second). The stream of events, which forgets by itself, isn't counted, nor is a group of failures, which names
    a task as a sample."""
    for prefix in (BY_TYPE, BY_TAG):
        for index in redis.scan_iter(f"{prefix}*", count=1000):
            pool.store.run(scripts.sweep_index(index.decode(), "", 1000))
    return sorted(
        key.decode()
        for key in redis.scan_iter(count=1000)
        if key != EVENTS.encode()
        and not key.startswith(FAILURE.encode())
        and (id.encode() in key or id.encode() in _content(redis, key))
    )


def _content(redis: Redis, key: bytes) -> bytes:
    """All that a key holds, in any order."""
    readers: dict[bytes | str, Callable[[bytes], object]] = {
        b"string": redis.get,
        b"list": lambda name: redis.lrange(name, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda name: redis.zrange(name, 0, -1),
        b"hash": redis.hgetall,
        b"stream": redis.xrange,
        b"none": lambda _: b"",
    }
    return repr(readers[redis.type(key)](key)).encode()
