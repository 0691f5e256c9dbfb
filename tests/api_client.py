"""What the API's tests share: published task types, the application in this process, and the API as a process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from api.app import create_app
from taskpool import Registry, TaskPool, TaskRecord, TaskStatus
from taskpool.operations.catalog import PoolInfo, publish
from taskpool.redis.store import Store
from taskpool.settings import Settings
from taskpool.tasks.attempt import Outcome
from taskpool.types import TypeInfo
from tests.loop_watch import HELD
from tests.support import PATIENCE_S, eventually

ROOT = Path(__file__).parent.parent
JSON = {"content-type": "application/json"}


def publish_types(redis_url: str) -> None:
    """Announce the built-in task types, as a worker pool would."""
    types = _builtin_types()
    names = tuple(each.name for each in types)
    pool = PoolInfo(id="pool-1", host="here", pid=1, queues=("default",), types=names, workers=())
    store = Store(redis_url)
    store.run(publish(pool, types, ttl_s=3600))
    store.close()


@functools.cache
def _builtin_types() -> Sequence[TypeInfo]:
    """Reading their sources takes most of the time of a short test."""
    return [task_type.info() for task_type in Registry(builtins=True)]


@asynccontextmanager
async def api(redis_url: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, in this process."""
    app = create_app(Settings(redis_url=redis_url, **settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


def claim(redis_url: str) -> TaskRecord:
    """Start the next task of the queue `default`, and leave it running."""
    with TaskPool(redis_url) as pool:
        running = pool.run_task(["default"], worker="w", attempt_id="a1")
        assert running is not None
        return pool.get(running.id)


def run_next(redis_url: str, status: TaskStatus = TaskStatus.DONE, **outcome: Any) -> TaskRecord:
    """Start the next task of the queue `default` and end it with this outcome."""
    with TaskPool(redis_url) as pool:
        running = pool.run_task(["default"], worker="w", attempt_id="a1")
        assert running is not None
        assert pool.update_status(running, Outcome(status, **outcome)) in ("ok", "children")
        return pool.get(running.id)


def environment(redis_url: str, **variables: str) -> dict[str, str]:
    """The environment of an API process."""
    return {**os.environ, "TASKPOOL_REDIS_URL": redis_url, "TASKPOOL_PORT": "0", **variables}


@contextmanager
def api_process(
    redis_url: str, log: Path, *, module: Sequence[str] = ("tests.loop_watch",), **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m taskpool_api` on a free port until the block ends: the process and its URL. No request may keep its
    event loop for long in one go. `module`: another one that runs it, and its arguments."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], env=environment(redis_url, **variables), cwd=ROOT, stderr=output
        )
    try:
        yield process, eventually(lambda: _url(process, log)) or ""
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    held = log.read_text().partition(HELD)[1:]
    assert not any(held), log.read_text()


def _url(process: subprocess.Popen[bytes], log: Path) -> str | None:
    text = log.read_text()
    assert process.poll() is None, text
    _, found, url = text.partition("listening on ")
    if not found or not url.endswith("\n"):
        return None
    url = url.split()[0]
    try:
        httpx.get(url + "/livez", timeout=PATIENCE_S)
    except httpx.ConnectError:  # bound, and about to listen
        return None
    return url
