"""A whole Taskpool on this machine: Redis, the worker pool, the API. Started in this order, stopped in the reverse one.

The API comes last, so that whoever sees `/readyz` answer 200 finds workers that serve. A part that ends by
itself ends the instance: restarting it would hide why it fell.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from taskpool import catalogue
from taskpool.async_pool import AsyncTaskPool
from taskpool.cli.options import environment
from taskpool.cli.part import CONFIGURATION_FAULT, Part, Tell, Watcher
from taskpool.cli.ports import answers_ready, claim_port, local_url
from taskpool.embedded import EmbeddedRedis, check_redis
from taskpool.errors import ConfigurationError, RedisUnavailable, TaskpoolError
from taskpool.settings import Settings

READY_LIMIT_S: Final = 60.0
LOOK_S: Final = 0.05
REDIS_LOOK_S: Final = 0.5
API_STOP_S: Final = 15.0
DRAIN_MARGIN_S: Final = 10.0
HURRY_S: Final = 5.0
BETWEEN_SIGNALS_S: Final = 0.2  # two that come at once are one to the process
TAKING: Final = ("idle", "busy")

T = TypeVar("T")


class PartDied(TaskpoolError):
    """Raised when a part of the instance ended by itself, or never served; the text has its last output, if that
    wasn't told."""

    def __init__(self, what: str, tail: Iterable[str]) -> None:
        lines = [f"  {line}" for line in tail]
        super().__init__("\n".join([what + ("; its last output:" if lines else ""), *lines]))


class Instance:
    """One instance: `start` it, wait until it has `died` or for whatever else, and always `stop` it."""

    def __init__(self, settings: Settings, *, tell: Tell | None = None, reload: bool = False) -> None:
        """`tell` takes what the parts print; without it, an error that ends the instance has their last lines."""
        self.settings = settings
        self._is_quiet = tell is None
        self._tell: Tell = tell or (lambda name, line: None)
        self._reload = reload
        self._redis: EmbeddedRedis | None = None
        self._watcher: Watcher | None = None
        self._parts: list[Part] = []
        self._hurry = asyncio.Event()

    @property
    def url(self) -> str:
        """Where this machine reaches the API."""
        return local_url(self.settings.host, self.settings.port)

    @property
    def data_dir(self) -> Path | None:
        """Where the data lies; None with a Redis that somebody else runs."""
        return self._redis.data_dir if self._redis is not None else None

    async def start(self) -> None:
        """Start every part; returns when the API says that it's ready.

        Raises:
            ConfigurationError: something stands in the way, such as a port in use or a wrong task module.
            PartDied: a part ended instead of serving, or didn't serve within 60 s.
        """
        port = claim_port(self.settings.host, self.settings.port)
        self.settings = replace(self.settings, port=port, redis_url=await self._start_redis())
        self._watcher = Watcher()
        await self._start_part("workers", "workers", *(["--reload"] if self._reload else []))
        await self._until(self._workers_serve)
        await self._start_part("api", "api")
        await self._until(lambda: asyncio.to_thread(answers_ready, self.url))

    async def died(self) -> None:
        """Wait until a part ends by itself.

        Raises:
            PartDied: it did; the only way out.
        """
        watched = [asyncio.create_task(self._outlive(part)) for part in self._parts]
        watched.append(asyncio.create_task(self._outlive_redis()))
        try:
            for ended in asyncio.as_completed(watched):
                await ended
        finally:
            for task in watched:
                task.cancel()

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, as long as every part lives.

        Raises:
            PartDied: one ended first; `work` is cancelled.
        """
        working, death = asyncio.create_task(work), asyncio.create_task(self.died())
        try:
            await asyncio.wait([working, death], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await death
            return await working
        finally:
            working.cancel()
            death.cancel()

    async def stop(self) -> None:
        """Stop every part in order: the API takes no more, the workers finish what runs, Redis saves."""
        limits = {"api": API_STOP_S, "workers": self.settings.grace_s + DRAIN_MARGIN_S}
        for part in reversed(self._parts):
            await self._stop_part(part, limits[part.name])
        if self._redis is not None:
            await asyncio.to_thread(self._redis.__exit__, None, None, None)
        if self._watcher is not None:
            self._watcher.close()

    def hurry(self) -> None:
        """Let `stop` wait no longer for what runs; the tasks go back to their queues."""
        self._hurry.set()

    async def _start_redis(self) -> str:
        if self.settings.redis_url:
            await asyncio.to_thread(check_redis, self.settings.redis_url)
            return self.settings.redis_url
        redis = EmbeddedRedis(self.settings.data_dir, binary=self.settings.redis_server)
        await asyncio.to_thread(redis.__enter__)
        self._redis = redis
        return redis.url

    async def _start_part(self, name: str, *arguments: str) -> None:
        assert self._watcher is not None
        part = Part(name, self._tell)
        # -P: a directory of the user's own that is called `api` or `workers` isn't taken for ours.
        await part.start([sys.executable, "-P", "-m", *arguments], environment(self.settings))
        self._watcher.add(part.pid)
        self._parts.append(part)

    async def _until(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `is_ready` says so."""

        async def look() -> None:
            while not await is_ready():
                await asyncio.sleep(LOOK_S)

        try:
            await self.during(asyncio.wait_for(look(), READY_LIMIT_S))
        except TimeoutError:
            part = self._parts[-1]
            raise self._death(part, f"didn't get ready within {READY_LIMIT_S:g} s") from None

    async def _workers_serve(self) -> bool:
        """Whether our pool has announced itself and as many of its worker processes as we asked for take tasks."""
        mine = (socket.gethostname(), self._parts[0].pid)
        try:
            async with AsyncTaskPool(self.settings.redis_url or "") as pool:
                found = await pool.store.carry_out(catalogue.pools())
                names = {name for info in found if (info.host, info.pid) == mine for name in info.workers}
                workers = [worker for worker in await pool.workers() if worker.name in names]
        except RedisUnavailable:
            return False  # it loads its data, or it's gone: then `died` says so
        return sum(worker.state in TAKING for worker in workers) >= self.settings.workers

    async def _outlive(self, part: Part) -> None:
        status = await part.ended()
        if status == CONFIGURATION_FAULT:
            raise ConfigurationError(_last_words(part))
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise self._death(part, how)

    def _death(self, part: Part, how: str) -> PartDied:
        return PartDied(f"{part.name} {how}", part.tail if self._is_quiet else ())

    async def _outlive_redis(self) -> None:
        while self._redis is None or self._redis.pid is not None:
            await asyncio.sleep(REDIS_LOOK_S)
        self.hurry()  # what runs has nobody to report to
        raise PartDied(f"redis ended; see {self._redis.data_dir / 'redis.log'}", ())

    async def _stop_part(self, part: Part, limit_s: float) -> None:
        stopping = asyncio.create_task(part.stop(limit_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await asyncio.wait([stopping], timeout=BETWEEN_SIGNALS_S)
            part.send(signal.SIGTERM)  # the second one: don't wait for what runs
            await asyncio.wait([stopping], timeout=HURRY_S)
            part.kill()
        if not await stopping:
            self._tell(part.name, "killed: it didn't end in time")


def _last_words(part: Part) -> str:
    """What a part said of its configuration: from the last line that starts with a name, as errors do."""
    lines = list(part.tail)
    for at in reversed(range(len(lines))):
        name, colon, words = lines[at].partition(": ")
        if colon and name in ("taskpool", part.name):
            return "\n".join([words, *lines[at + 1 :]])
    return "\n".join([f"{part.name} can't start:", *lines])
