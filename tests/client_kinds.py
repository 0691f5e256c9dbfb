"""What the client's tests share: both kinds of client behind one face, and a whole service to talk to."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.ports import free_port
from taskpool import AsyncClient, Client
from taskpool.redis.embedded import RedisServer
from tests.api_client import api_process
from tests.worker_pool import WorkerPool

KINDS = ("blocking", "awaiting")
SILENT_S = 120


class Service:
    """A Redis, a worker pool and an API on it."""

    def __init__(self, redis_url: str, url: str, workers: WorkerPool) -> None:
        self.redis_url, self.url, self.workers = redis_url, url, workers
        self.pool = workers.pool
        self.key = ""


@contextmanager
def service(directory: Path, redis_binary: str | None, **settings: Any) -> Iterator[Service]:
    server = RedisServer(directory, binary=redis_binary)
    server.start()
    try:
        with (
            WorkerPool(server.url, directory / "workers.log", **settings) as workers,
            api_process(server.url, directory / "api.log") as (_, url),
        ):
            yield Service(server.url, url, workers)
    finally:
        server.stop()


@contextmanager
def client_of(kind: str, url: str, *arguments: Any, **options: Any) -> Iterator[Client]:
    """A client of this kind; the one that awaits does so on a loop in another thread, and looks like the other."""
    if kind == "blocking":
        with Client(url, *arguments, **options) as client:
            yield client
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    awaiting = _Awaiting(AsyncClient(url, *arguments, **options), loop)
    try:
        yield awaiting  # type: ignore[misc]
    finally:
        awaiting.close()
        asyncio.run_coroutine_threadsafe(_settle(), loop).result(SILENT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _settle() -> None:
    """As `asyncio.run` does it: what a stream that was left early still has to close, is closed."""
    await asyncio.get_running_loop().shutdown_asyncgens()
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


class _Awaiting:
    """An `AsyncClient` whose methods block."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._loop = client, loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made = getattr(self._client, name)(*arguments, **options)
            return self._run(made) if inspect.iscoroutine(made) else self._each(made)

        return call

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SILENT_S)

    def _each(self, received: Any) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(received)

        try:
            with suppress(StopAsyncIteration):
                while True:
                    yield self._run(step())
        finally:
            self._run(received.aclose())


class Api:
    """An API that dies and comes back at its address."""

    def __init__(self, redis_url: str, log: Path) -> None:
        self._redis_url, self._log = redis_url, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._running: ExitStack | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_there(self) -> bool:
        return self._running is not None

    def start(self) -> None:
        self._running = ExitStack()
        running = api_process(self._redis_url, self._log, TASKPOOL_PORT=str(self.port))
        self._process, _ = self._running.enter_context(running)

    def kill(self) -> None:
        """At once, as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.end()

    def end(self) -> None:
        """As an orderly shutdown does."""
        if self._running is not None:
            self._running.close()
        self._running = None
